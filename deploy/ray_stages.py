"""Both ends of the way between the ingress and the stages' replicas on a Ray cluster.

`Replica` is a stage in a process of its own: one `app.batching.Stage`, so that batches, deadlines and second attempts
are the plain server's. `RemoteStage` stands for all replicas of one stage where `app.pipeline` expects the stage. A
picture is put into Ray's object store once, and read in place by whichever stage needs it.
"""

import asyncio
import contextvars
import logging
import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from app import logs
from app.admission import Ahead
from app.batching import BatchQueue, CostLine, Observer, Run, Stage, StageDied, Ticket
from app.service import Service, build_stages, manifest_of, warm
from app.settings import Settings
from models.album import to_device
from models.runtime import resolve_device, resolve_dtype, resolve_int8, resolve_runtime, set_cpu_threads
from models.zoo import Pair, load_detector, load_estimator, load_router

log = logging.getLogger("dynpose.ray")

T = TypeVar("T")

STAGES = {
    "detect": ("detect",),
    "score": ("score",),
    "small": ("easy", "extremely_hard"),
    "large": ("hard",),
}
"""The deployments and the queues that each serves."""

Event = tuple[str, tuple[Any, ...]]
Load = Callable[[str, Settings, Observer], Stage]


class Reply(NamedTuple):
    """outcomes: of each item its result, or the exception in its place. runs: the batches since the request's last
    reply, in the replica's time, which is `now`. events: what the stage's observer was told since the replica's last
    reply, for the ingress's metrics; the batch of these very outcomes may still be missing."""

    outcomes: list[Any]
    runs: list[Run]
    now: float
    events: list[Event]


class Events:
    """An `Observer` that keeps what it is told until somebody takes it."""

    def __init__(self) -> None:
        self._kept: list[Event] = []

    def take(self) -> list[Event]:
        return emptied(self._kept)

    def waited(self, queue: str, seconds: float) -> None:
        self._kept.append(("waited", (queue, seconds)))

    def ran(self, stage: str, size: int, seconds: float) -> None:
        self._kept.append(("ran", (stage, size, seconds)))

    def failed(self, stage: str) -> None:
        self._kept.append(("failed", (stage,)))


def emptied(growing: list[T]) -> list[T]:
    """What is in a list to which another thread appends, taken out of it."""
    return [growing.pop(0) for _ in range(len(growing))]


def load_stage(name: str, settings: Settings, observer: Observer) -> Stage:
    """One stage, with its own network alone, warm."""
    device = resolve_device(settings.device)
    dtype, runtime = resolve_dtype(device, settings.precision), resolve_runtime(device, settings.runtime)
    int8 = resolve_int8(device, settings.precision, settings.runtime)
    if device.type == "cpu":
        set_cpu_threads(settings.threads)
    manifest = manifest_of(settings)
    folder, how = str(manifest.folder), (device, dtype, runtime)
    load: dict[str, tuple[str, Callable[[], Any]]] = {
        "detect": ("detector", lambda: load_detector(folder, manifest.detector, *how, int8)),
        "score": ("router", lambda: load_router(folder, manifest.router, *how, manifest.small)),
        "small": ("small", lambda: load_estimator(folder, manifest.small, *how)),
        "large": ("large", lambda: load_estimator(folder, manifest.large, *how)),
    }
    role, network = load[name]
    networks: dict[str, Any] = dict.fromkeys(("detector", "router", "small", "large"))
    pair = Pair(manifest, device, **networks | {role: network()})
    (stage,) = (
        stage
        for stage in build_stages(pair, observer, settings.max_passed_over_ms / 1000, at_once=1)
        if stage.name == name
    )
    warm(pair, [stage], settings.flip_test)
    return stage


class Replica:
    """One stage, loaded once, that runs one batch at a time."""

    def __init__(self, name: str, settings: Settings, load: Load = load_stage) -> None:
        begin(settings)
        self._stall_s = settings.stall_s
        self._device = resolve_device(settings.device)
        self._events = Events()
        self._stage = load(name, settings, self._events)
        self._queues = {queue.name: queue for queue in self._stage.queues}
        self._tickets: WeakValueDictionary[str, Ticket] = WeakValueDictionary()
        self._stage.start()

    async def ready(self) -> tuple[CostLine, int]:
        """What the stage found out about its batches in warming up, and their limit."""
        return self._stage.cost, self._stage.limit

    async def run(
        self, queue: str, items: list[Any], picture: np.ndarray, request: str, seconds: float
    ) -> Reply:
        """Run items of one picture, which comes by itself, for `request`, which has `seconds` left."""
        ticket = self._tickets.setdefault(request, Ticket(request, time.monotonic() + seconds))
        pixels = to_device(torch.from_numpy(picture), self._device)
        work = [self._queues[queue].submit(item._replace(picture=pixels), ticket) for item in items]
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        if any(isinstance(outcome, StageDied) for outcome in outcomes):
            self._end("it has died")
        plain = [outcome.numpy() if isinstance(outcome, Tensor) else outcome for outcome in outcomes]
        return Reply(plain, emptied(ticket.runs), time.monotonic(), self._events.take())

    def check_health(self) -> None:
        """Called by Serve now and then."""
        since = self._stage.busy_since
        if since is not None and time.monotonic() - since > self._stall_s:
            self._end(f"it has been in one batch for {self._stall_s:g} s")

    def _end(self, reason: str) -> None:
        """End this process: Serve starts another in its place, and the ingress asks again."""
        log.error("stage %s: %s", self._stage.name, reason)
        os._exit(1)


class Waiting(NamedTuple):
    """context: of the request, by which Serve knows what to cancel when its client hangs up."""

    item: Any
    ticket: Ticket
    future: asyncio.Future[Any]
    context: contextvars.Context


class RemoteQueue(BatchQueue[Any, Any]):
    """Hands items on to a deployment instead of keeping them. What one turn of the event loop brings for one picture
    goes out in one call, so that its people make a batch there. depth: items handed on and not yet answered."""

    def __init__(self, name: str, stage: "RemoteStage") -> None:
        super().__init__(name)
        self._stage = stage
        self._turn: list[Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()

    def submit(self, item: Any, ticket: Ticket) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._turn:
            loop.call_soon(self._send)
        self._turn.append(Waiting(item, ticket, loop.create_future(), contextvars.copy_context()))
        return self._turn[-1].future

    def _send(self) -> None:
        turn, self._turn = self._turn, []
        groups: defaultdict[Any, list[Waiting]] = defaultdict(list)
        for one in turn:
            groups[one.ticket, id(one.item.picture)].append(one)
        for group in groups.values():
            for start in range(0, len(group), self._stage.limit):  # more than a batch is for several replicas
                part = group[start : start + self._stage.limit]
                call = asyncio.create_task(self._call(part), context=part[0].context)
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _call(self, group: list[Waiting]) -> None:
        self._depth += len(group)
        task = asyncio.current_task()
        assert task is not None
        for one in group:
            one.future.add_done_callback(
                lambda _: task.cancel() if all(other.future.cancelled() for other in group) else None
            )
        try:
            outcomes = await self._stage.ask(self.name, [one.item for one in group], group[0].ticket)
        except Exception as error:
            outcomes = [error] * len(group)
        finally:
            self._depth -= len(group)
        for one, outcome in zip(group, outcomes, strict=True):
            if one.future.done():
                continue
            if isinstance(outcome, Exception):
                one.future.set_exception(outcome)
            else:
                one.future.set_result(outcome)


class RemoteStage(Stage):
    """The ingress's side of a deployment."""

    def __init__(self, name: str, handle: DeploymentHandle, pictures: "Pictures", observer: Observer) -> None:
        queues = [RemoteQueue(queue, self) for queue in STAGES[name]]
        super().__init__(name, [lambda _: []], queues, buckets=(1,), observer=observer)
        self._handle = handle
        self._pictures = pictures

    async def ask(self, queue: str, items: list[Any], ticket: Ticket) -> list[Any]:
        """Of each item of one picture the result, or the exception that a `Stage` has in its place. Raises StageDied
        when two replicas were lost over them."""
        picture = await self._pictures.put(items[0].picture)
        bare = [item._replace(picture=None) for item in items]
        request = f"{ticket.request_id}-{id(ticket)}"
        for _ in range(2):
            left = ticket.deadline - time.monotonic()
            response = self._handle.run.remote(queue, bare, picture, request, left)
            try:
                return self._received(await response, ticket)
            except RayActorError:
                log.exception("stage %s: a replica was lost", self.name)
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise StageDied(self.name)

    def _received(self, reply: Reply, ticket: Ticket) -> list[Any]:
        ahead = time.monotonic() - reply.now  # the replica's clock is another machine's
        for run in reply.runs:
            queued, started, ended = run.queued + ahead, run.started + ahead, run.ended + ahead
            ticket.runs.append(run._replace(queued=queued, started=started, ended=ended))
        for name, arguments in reply.events:
            getattr(self._observer, name)(*arguments)
            if name == "ran":
                self.cost.add(*arguments[1:])
        return [torch.tensor(one) if isinstance(one, np.ndarray) else one for one in reply.outcomes]

    async def until_ready(self) -> None:
        """Returns once a replica takes work."""
        self.cost, self.limit = await self._handle.ready.remote()

    def start(self) -> None:
        """Nothing: threads are the replicas' matter, and Serve's to replace the dead ones."""


class Pictures:
    """Which pictures are in the object store: each is put once, and leaves with its last user."""

    def __init__(self) -> None:
        self._references = WeakTensorKeyDictionary()

    def put(self, picture: Tensor) -> "asyncio.Future[Any]":
        """The reference of `picture`, (H, W, 3) uint8."""
        if picture not in self._references:
            put = asyncio.to_thread(ray.put, picture.numpy())
            self._references[picture] = asyncio.ensure_future(put)
        reference: asyncio.Future[Any] = self._references[picture]
        return asyncio.shield(reference)


class RemoteService(Service):
    """A `Service` whose stages are deployments."""

    def __init__(self, settings: Settings, handles: dict[str, DeploymentHandle]) -> None:
        super().__init__(settings)
        self.ahead = Ahead(settings.max_pending_pictures)  # how many replicas there are it does not know
        self._handles = handles

    async def open_stages(self) -> list[Stage]:
        pictures = Pictures()
        stages = [RemoteStage(name, handle, pictures, self.metrics) for name, handle in self._handles.items()]
        await asyncio.gather(*(stage.until_ready() for stage in stages))
        if self.status == "loading":
            self.status = "warming"
        return list(stages)


def begin(settings: Settings) -> None:
    """What `python -m app` does first, for a process that Ray has started."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Pictures lie read-only in the object store, and no stage writes to one.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO, handlers=[logs.handler(settings.log_format, sys.stderr)])
