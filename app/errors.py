"""Errors as clients see them: RFC 9457 problem documents, and nothing of what is inside."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs, tracing
from app.admission import TooLarge
from app.batching import ClientGone, DeadlineExceeded, Overloaded, StageDied, StageFailed

log = logging.getLogger("dynpose.errors")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
CLIENT_CLOSED_REQUEST = 499  # nginx's name for it; nobody is there to read it, but the metrics are


class ApiError(Exception):
    """An answer other than 200. `code` is for programs, `detail` a sentence for people."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def to_api_error(error: BaseException) -> ApiError:
    """What the client is told of `error`. Unexpected ones say nothing; the log has them under the request's id."""
    match error:
        case ApiError():
            return error
        case DeadlineExceeded() | TimeoutError():
            return ApiError(504, "deadline", "the deadline passed before the answer was ready")
        case Overloaded():
            detail = f"no room now, try again in {error.retry_after_s} s"
            return ApiError(429, "overloaded", detail, {"Retry-After": str(error.retry_after_s)})
        case TooLarge():
            return ApiError(
                413, "too_large", "the pictures together are larger than the service ever has room for"
            )
        case ClientGone():
            return ApiError(
                CLIENT_CLOSED_REQUEST, "client_closed_request", "the client closed the connection"
            )
        case StageFailed():
            return ApiError(
                500, "internal", "the work failed twice; the log has the reason under this request_id"
            )
        case StageDied():
            return ApiError(500, "internal", "a part of the service has died or is stuck; the log says why")
        case _:
            return ApiError(500, "internal", "an error of the service; the log has it under this request_id")


def problem(request: Request, error: ApiError) -> Response:
    """The problem document of `error`."""
    request.scope["state"]["facts"]["code"] = error.code
    body = {
        "type": "about:blank",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id(request),
    }
    return JSONResponse(body, error.status, error.headers, media_type="application/problem+json")


def _title(status: int) -> str:
    return HTTPStatus(status).phrase if status != CLIENT_CLOSED_REQUEST else "Client Closed Request"


def request_id(request: Request) -> str:
    """The id that `RequestId` gave this request."""
    found: str = request.scope["state"]["request_id"]
    return found


def install(app: FastAPI) -> None:
    """Answer expected exceptions with problem documents; `RequestId` does it for the others."""

    async def api_error(request: Request, error: Exception) -> Response:
        answer = to_api_error(error)
        if answer.status == 500 and answer is not error:  # else its cause is in the log already
            log.error("request %s failed", request_id(request), exc_info=error)
        return problem(request, answer)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem(request, ApiError(422, "invalid_parameter", explain(error.errors())))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "bad_request")
        headers = dict(error.headers or {})
        if documented := error.status_code == 405 and app.openapi()["paths"].get(request.url.path):
            headers["Allow"] = ", ".join(
                map(str.upper, documented)
            )  # Starlette names those of one route alone
        return problem(request, ApiError(error.status_code, code, _title(error.status_code), headers))

    ours = (
        ApiError,
        DeadlineExceeded,
        Overloaded,
        TooLarge,
        ClientGone,
        StageFailed,
        StageDied,
        TimeoutError,
    )
    for expected in ours:
        app.add_exception_handler(expected, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


EXPLAINED = 8
"""A query may have thousands of unknown parameters."""


def explain(errors: Any) -> str:
    """The first validation errors as one line. The input itself is not repeated: it may be NaN, which JSON has no word
    for."""
    return "; ".join(
        f"{'.'.join(str(part) for part in e['loc'] if part != 'query')}: {e['msg']}"
        for e in errors[:EXPLAINED]
    )


Observe = Callable[[Scope, int, float], None]


STOPPING = {"Connection": "close", "Retry-After": "1"}
NOSNIFF = (b"x-content-type-options", b"nosniff")
SLICE = 65_536
"""Bytes of an answer that are sent at a time: what its client does not take stays with us, and not in copies in the
buffers of its connection."""


class RequestId:
    """Gives each request its id (the client's X-Request-ID when that is sane), sends it back, answers unexpected
    exceptions, and reports (scope, status, seconds) of each finished request to `observe`, and more to the log: routes
    put what they know into `request.state.facts`. draining: whether the service is about to stop."""

    def __init__(self, app: ASGIApp, observe: Observe, draining: Callable[[], bool]) -> None:
        self.app = app
        self.observe = observe
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        own = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        facts: dict[str, Any] = {"bytes": 0}
        scope.setdefault("state", {}).update(request_id=own, facts=facts)
        status: int | None = None
        started, answered = time.monotonic(), 0.0

        async def receive_counted() -> Message:
            message = await receive()
            facts["bytes"] += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                # How long its client then takes to read it says nothing of us.
                status, answered = message["status"], time.monotonic()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", own.encode()), NOSNIFF]
            body, sent = message.get("body", b""), 0
            while len(body) - sent > SLICE:
                await send({**message, "body": body[sent : sent + SLICE], "more_body": True})
                sent += SLICE
            await send({**message, "body": body[sent:]} if sent else message)

        token = logs.REQUEST_ID.set(own)
        try:
            await self.app(scope, receive_counted, send_with_id)
        except Exception as error:
            log.error("request %s failed", own, exc_info=error)
            if status is not None:
                raise  # too late for another answer: the server closes the connection
            await problem(Request(scope), to_api_error(error))(scope, receive, send_with_id)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if status is not None or task is None or not self.draining():
                # What a server (Ray Serve) may do when the client has gone.
                status = status or CLIENT_CLOSED_REQUEST
                raise
            task.uncancel()
            late = ApiError(503, "draining", "the service stopped before the answer was ready", STOPPING)
            await problem(Request(scope), late)(scope, receive, send_with_id)
        finally:
            seconds = (answered or time.monotonic()) - started
            self.observe(scope, status or 500, seconds)
            if trace_id := tracing.trace_id():
                facts["trace_id"] = trace_id
            logs.request(scope, status or 500, seconds, facts)
            logs.REQUEST_ID.reset(token)
