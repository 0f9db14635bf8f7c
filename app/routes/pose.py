"""POST /pose."""

import asyncio
import logging
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from app import bombs, overlay, tracing
from app.admission import HEAVY_AT_ONCE, Admission, Room
from app.batching import ClientGone, DeadlineExceeded, Overloaded, Run, Ticket
from app.crew import in_pool
from app.decode import Header
from app.errors import ApiError, request_id, to_api_error
from app.intake import CLOSE, GivenImage, Picture, Upload, announced_bytes, examine, read, to_picture
from app.pipeline import ImageResult, Pipeline, PoseOptions, PoseRequest
from app.routes.common import TOKEN, authorise, problems, service_of
from app.schemas import (
    CocoResult,
    PoseAnswer,
    PoseQuery,
    coco_results,
    error_answer,
    image_answer,
    split_answer,
)
from app.service import Service

log = logging.getLogger("dynpose.pose")

STAGES = {"detect": ("detect",), "score": ("score",), "estimate": ("small", "large")}
LOGGED = ("read", "render")  # parts of the time that the answer does not tell apart from waiting

EXAMINERS = ThreadPoolExecutor(4, thread_name_prefix="examiner")
"""For headers, some of which take long on purpose. One picture of a request at a time: of one that is given up no more
is examined, and one of many pictures leaves threads to others."""
HEAVY = ThreadPoolExecutor(HEAVY_AT_ONCE, thread_name_prefix="heavy")
"""For what takes long to decode, so that others need not wait for it."""

NO_PIXELS = torch.empty(0, 0, 3, dtype=torch.uint8)

ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}, "image/jpeg": {}}}}

BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    "boxes": {
                        "type": "string",
                        "description": "JSON: a list of [x, y, w, h], or null, per picture",
                    },
                },
            },
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "additionalProperties": False,
                "properties": {"images": {"type": "array", "items": GivenImage.model_json_schema()}},
            },
            "example": {"images": [{"data": "<base64 of a JPEG>", "boxes": [[48.1, 398.0, 197.2, 505.6]]}]},
        },
    },
}


class Door(APIRoute):
    """Lets in who has the token, once the service is ready and has room for the announced body. FastAPI takes the
    request apart only then: under overload half of the requests come no further."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def enter(request: Request) -> Response:
            service = service_of(request)
            authorise(request, service.settings.pose_token)
            service.ready_pipeline()
            limit = service.settings.body_limit
            announced = announced_bytes(request, limit)
            with counted(service):  # only a look: what the body takes is what arrives
                service.admission.check(1, limit if announced is None else announced)
            return await handle(request)

        return enter


router = APIRouter(tags=["pose"], route_class=Door)


@router.post(
    "/pose",
    response_model=PoseAnswer | list[CocoResult],
    responses=ANSWER | problems(400, 401, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra={"requestBody": BODY} | TOKEN,
)
async def pose(request: Request, query: Annotated[PoseQuery, Query()]) -> Response:
    """Find the people of one or more pictures and their keypoints.

    Send the picture as the body (`image/*`), as multipart parts `images` (with an optional part `boxes`), or as JSON
    with base64. A bad picture among several has `error` in its place; `format=coco` then fails as a whole.
    """
    started = time.monotonic()
    service = service_of(request)
    pipeline = service.ready_pipeline()
    options = options_of(query, service)
    deadline_s = (query.deadline_ms or service.settings.deadline_ms) / 1000
    work = PoseRequest(Ticket(request_id(request), started + deadline_s), options)
    with concluded(request, work.ticket, started), Room(service.admission) as room:
        with timed(work.ticket, "read"):
            try:
                # A deadline that nobody asked for leaves it to the body's own time limit (408).
                async with asyncio.timeout(deadline_s if query.deadline_ms else None):
                    uploads = await read(request, service.settings, lambda size: hold(room, service, 0, size))
            except TimeoutError as error:
                raise ApiError(504, "deadline", "the deadline passed while the body came", CLOSE) from error
        work.ticket.since = time.monotonic()  # a slow upload shall not go before those that came meanwhile
        request.state.facts["pictures"] = len(uploads)
        if query.render and len(uploads) > 1:
            raise ApiError(422, "invalid_parameter", "render=overlay takes one picture")
        async with in_time_and_wanted(request, work.ticket, service):
            if len(uploads) == 1 and bombs.is_brief(uploads[0].data):
                headers = [header_of(uploads[0], service)]  # a thread would cost more than it saves
            else:
                headers = [await in_pool(EXAMINERS, header_of, upload, service) for upload in uploads]
            good = [header for header in headers if isinstance(header, Header)]
            if not good:
                raise next(header for header in headers if isinstance(header, ApiError))
            hold(room, service, len(good), sum(header.decoded_bytes for header in good))
            pictures = zip(uploads, headers, strict=True)
            turn = service.ahead.turn()
            outcomes = await asyncio.gather(
                *(one_picture(service, pipeline, work, turn, bool(query.render), *one) for one in pictures)
            )
            request.state.facts["people"] = people_by_route(outcomes)
            return await answer(service, pipeline, request, query, work, uploads, outcomes, started)


@dataclass(frozen=True, slots=True)
class Outcome:
    picture: Picture
    result: ImageResult


def options_of(query: PoseQuery, service: Service) -> PoseOptions:
    live, limit = service.config.live, service.settings.max_people
    if query.max_people is not None and query.max_people > limit:
        raise ApiError(422, "invalid_parameter", f"max_people: at most {limit}")
    return PoseOptions(
        p=query.p,
        estimator=query.estimator,
        min_score=live.min_score if query.min_score is None else query.min_score,
        max_people=query.max_people or limit,
        flip_test=live.flip_test,
    )


def header_of(upload: Upload, service: Service) -> Header | ApiError:
    """What can be known of a picture before it is decoded, or what is wrong with it."""
    try:
        return examine(upload, service.settings)
    except ApiError as error:
        return error


@contextmanager
def counted(service: Service) -> Iterator[None]:
    """Count a refusal for want of room."""
    try:
        yield
    except Overloaded:
        service.metrics.rejected("overloaded")
        raise


def hold(room: Room, service: Service, pictures: int, size: int) -> None:
    """Take room for pictures and bytes until `room` is left. Raises Overloaded and TooLarge."""
    with counted(service):
        room.take(pictures, size)


class Drawing(Response):
    """A drawn picture, which may be as large as many requests: its bytes count until the client has them."""

    def __init__(self, content: bytes, media_type: str, admission: Admission) -> None:
        super().__init__(content, media_type=media_type)
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.sending(len(self.body)):
            await super().__call__(scope, receive, send)


@asynccontextmanager
async def in_time_and_wanted(request: Request, ticket: Ticket, service: Service) -> AsyncIterator[None]:
    """Give up, and give back all places in the queues, at the deadline or when the client hangs up."""
    task = asyncio.current_task()
    assert task is not None
    gone = False
    service.metrics.in_flight.inc()

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(max(0.0, ticket.deadline - time.monotonic())):
            yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        service.metrics.in_flight.dec()
        watcher.cancel()
        ticket.cancel()


async def one_picture(
    service: Service,
    pipeline: Pipeline,
    work: PoseRequest,
    turn: asyncio.Semaphore,
    drawn: bool,
    upload: Upload,
    header: Header | ApiError,
) -> Outcome | ApiError:
    """Decode and estimate; an error concerns this picture alone, but for one of the whole request. drawn: whether the
    pixels are needed after that."""
    if isinstance(header, ApiError):
        return header
    queued = time.monotonic()
    try:
        async with service.ahead.place(turn, heavy=header.heavy):
            service.metrics.waited(service.ahead.name, time.monotonic() - queued)
            pool = HEAVY if header.heavy else service.workers
            picture = await in_pool(pool, decoded, upload, service, work.ticket, queued)
            found = await pipeline.find(picture, upload.boxes, work)
        result = await pipeline.estimate(picture, found, work)
        # The others of the request may take long yet.
        return Outcome(picture if drawn else replace(picture, pixels=NO_PIXELS), result)
    except (DeadlineExceeded, ClientGone):
        raise
    except Exception as error:
        told = to_api_error(error)
        if told.status == 500:
            log.exception("request %s: a picture failed", work.ticket.request_id)
        # Else it would keep this frame, and so the upload, until the garbage collector comes.
        return told.with_traceback(None)


async def answer(
    service: Service,
    pipeline: Pipeline,
    request: Request,
    query: PoseQuery,
    work: PoseRequest,
    uploads: list[Upload],
    outcomes: list[Outcome | ApiError],
    started: float,
) -> Response:
    """The answer in the form that was asked for. Raises the first error where it fails whole."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, ApiError)]
    found = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    if errors and (not found or query.format == "coco"):
        raise errors[0]
    if query.render:
        accept = request.headers.get("accept", "")
        drawn, kind = await service.in_thread(rendered, found[0], accept, work.ticket, time.monotonic())
        return Drawing(drawn, kind, service.admission)
    if query.format == "coco":
        ids = [
            upload.image_id if upload.image_id is not None else index for index, upload in enumerate(uploads)
        ]
        results = coco_results(list(zip(ids, (outcome.result for outcome in found), strict=True)))
        return Response(to_json(results), media_type="application/json")
    full = PoseAnswer(
        request_id=work.ticket.request_id,
        models=service.manifest.names(),
        split=split_answer(work.split or pipeline.split(work.options)),
        images=[
            image_answer(index, outcome.picture, outcome.result)
            if isinstance(outcome, Outcome)
            else error_answer(index, uploads[index], outcome.code, outcome.detail)
            for index, outcome in enumerate(outcomes)
        ],
        timing_ms=timing(work.ticket, time.monotonic() - started),
    )
    return Response(full.model_dump_json(exclude_unset=True), media_type="application/json")


def decoded(upload: Upload, service: Service, ticket: Ticket, queued: float) -> Picture:
    with timed(ticket, "decode", queued):
        return to_picture(upload, service.device)


def rendered(outcome: Outcome, accept: str, ticket: Ticket, queued: float) -> tuple[bytes, str]:
    with timed(ticket, "render", queued):
        return overlay.encode(overlay.draw(outcome.picture.pixels.cpu(), outcome.result), accept)


@contextmanager
def timed(ticket: Ticket, stage: str, queued: float | None = None) -> Iterator[None]:
    """Note work for a request that no stage does. queued: since when it has waited for a thread."""
    started = time.monotonic()
    try:
        yield
    finally:
        ticket.runs.append(Run(stage, queued or started, started, time.monotonic(), 1))


def timing(ticket: Ticket, total_s: float, also: Sequence[str] = ()) -> dict[str, float]:
    """Milliseconds in which something was decoded, or a batch ran that held this request, and the rest as `queued`."""

    runs = sorted(ticket.runs, key=lambda run: run.started)

    def seconds_of(*stages: str) -> float:
        seconds, until = 0.0, 0.0
        for run in runs:
            if run.stage in stages:  # at the same time as another counts once
                seconds += max(0.0, run.ended - max(run.started, until))
                until = max(until, run.ended)
        return seconds

    seconds = {name: seconds_of(name) for name in also} | {"decode": seconds_of("decode")}
    seconds |= {name: seconds_of(*stages) for name, stages in STAGES.items()}
    worked = seconds_of("decode", *also, *(stage for stages in STAGES.values() for stage in stages))
    seconds |= {"queued": max(0.0, total_s - worked), "total": total_s}
    return {name: round(1000 * value, 2) for name, value in seconds.items()}


def people_by_route(outcomes: Sequence[Outcome | ApiError]) -> dict[str, int]:
    found = (outcome.result.people for outcome in outcomes if isinstance(outcome, Outcome))
    return dict(Tally(person.route or f"forced_{person.estimator}" for people in found for person in people))


@contextmanager
def concluded(request: Request, ticket: Ticket, started: float) -> Iterator[None]:
    """Leave what is known of a request, answered or not, to the log and to the trace."""
    try:
        yield
    finally:
        request.state.facts["timing_ms"] = timing(ticket, time.monotonic() - started, LOGGED)
        tracing.record(ticket.runs)
