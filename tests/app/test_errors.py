"""Every error leaves as a problem document that says nothing of what is inside."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Query
from fastapi.responses import Response, StreamingResponse
from starlette.types import Message

from app.admission import TooLarge
from app.batching import ClientGone, DeadlineExceeded, Overloaded, StageDied, StageFailed
from app.errors import SLICE, ApiError, RequestId, explain, install, to_api_error

Seen = list[tuple[str, int, float]]


class Client:
    """Asks an application without a server."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def client(seen: Seen) -> Client:
    app = FastAPI()
    install(app)
    app.add_middleware(
        RequestId, observe=lambda scope, *what: seen.append((scope["path"], *what)), draining=lambda: False
    )
    raised: dict[str, Exception] = {
        "api": ApiError(415, "unsupported_media_type", "no", {"Connection": "close"}),
        "deadline": DeadlineExceeded(),
        "failed": StageFailed("/secret/path.py"),
        "bug": RuntimeError("/secret/path.py: torch exploded"),
    }

    @app.get("/raise/{what}")
    def fail(what: str) -> None:
        raise raised[what]

    @app.get("/p")
    def share(p: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)], n: int = 1) -> float:
        return p * n

    @app.post("/body")
    def body(given: dict[str, Annotated[float, Query(le=1)]]) -> None: ...

    @app.get("/stream")
    def stream() -> StreamingResponse:
        async def halves() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("late")

        return StreamingResponse(halves())

    return Client(app)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ApiError(413, "too_large", "no"), 413, "too_large"),
        (DeadlineExceeded(), 504, "deadline"),
        (Overloaded(7), 429, "overloaded"),
        (TooLarge(), 413, "too_large"),
        (ClientGone(), 499, "client_closed_request"),
        (StageFailed(), 500, "internal"),
        (StageDied(), 500, "internal"),
        (KeyError("secret"), 500, "internal"),
    ],
)
def test_each_error_of_the_service_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    answer = to_api_error(error)
    assert (answer.status, answer.code) == (status, code)
    assert "secret" not in answer.detail


def test_overload_says_when_to_come_back() -> None:
    assert to_api_error(Overloaded(7)).headers == {"Retry-After": "7"}


def test_an_error_is_a_problem_document_with_the_requests_id(client: Client) -> None:
    answer = client.get("/raise/api", headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == 415
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Unsupported Media Type",
        "status": 415,
        "detail": "no",
        "code": "unsupported_media_type",
        "request_id": "abc-1",
    }


@pytest.mark.parametrize("what", ["failed", "bug"])
def test_an_internal_error_is_in_the_log_and_not_in_the_answer(
    client: Client, seen: Seen, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = client.get(f"/raise/{what}", headers={"X-Request-ID": "find.me"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "find.me"
    assert "secret" not in answer.text
    assert "torch" not in answer.text
    (record,) = caplog.records
    assert "find.me" in record.getMessage()
    assert record.exc_info is not None
    assert [(path, status) for path, status, _ in seen] == [(f"/raise/{what}", 500)]


def test_an_error_after_the_answer_began_is_counted_with_what_was_sent(client: Client, seen: Seen) -> None:
    answer = client.get("/stream")
    assert (answer.status_code, answer.content) == (200, b"half")
    assert [status for _, status, _ in seen] == [200]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("PUT", "/p", 405, "method_not_allowed")],
)
def test_unknown_paths_and_methods_are_problems_too(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "2", "x", ""])
def test_a_parameter_out_of_range_is_named(client: Client, value: str) -> None:
    answer = client.get("/p", params={"p": value})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
    assert answer.json()["detail"].startswith("p: ")


def test_of_very_many_bad_parameters_a_few_are_named() -> None:
    errors = [{"loc": ("query", f"x{number}"), "msg": "not known"} for number in range(500)]
    assert explain(errors).count("not known") == 8


def test_every_bad_parameter_is_named(client: Client) -> None:
    detail = client.get("/p", params={"p": "2", "n": "x"}).json()["detail"]
    assert "p: " in detail
    assert "n: " in detail


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_a_body_with_a_number_that_json_cannot_answer_is_no_server_error(client: Client, number: str) -> None:
    answer = client.request(
        "POST", "/body", content=f'{{"p": {number}}}', headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "naïve", "a\tb", "<script>"])
def test_an_id_that_is_not_plain_is_replaced(client: Client, given: str) -> None:
    sent = client.get("/p", params={"p": 0}, headers={"X-Request-ID": given.encode()}).headers["x-request-id"]
    assert sent != given
    assert len(sent) == 32


def test_requests_without_an_id_get_different_ones(client: Client) -> None:
    ids = {client.get("/p", params={"p": 0}).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_each_request_is_reported_once_with_status_and_seconds(client: Client, seen: Seen) -> None:
    client.get("/p", params={"p": 0.5})
    client.get("/raise/deadline")
    assert [(path, status) for path, status, _ in seen] == [("/p", 200), ("/raise/deadline", 504)]
    assert all(seconds >= 0 for *_, seconds in seen)


async def sent_by(app: Any, seen: Seen, *, draining: bool = False, cancelled: bool = False) -> list[Message]:
    """What `RequestId` around an application sends."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError

    middle = RequestId(
        app, observe=lambda scope, *what: seen.append((scope["path"], *what)), draining=lambda: draining
    )
    task = asyncio.create_task(
        middle({"type": "http", "method": "POST", "path": "/pose", "headers": []}, receive, send)
    )
    await asyncio.sleep(0)
    if cancelled:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return messages


@pytest.mark.parametrize("size", [0, 1, SLICE, SLICE + 1, 3 * SLICE, 3 * SLICE + 7])
def test_an_answer_is_sent_in_parts_of_which_few_wait_for_the_client(size: int, seen: Seen) -> None:
    whole = bytes(index % 251 for index in range(size))
    _, *parts = asyncio.run(sent_by(Response(whole), seen))
    assert b"".join(part["body"] for part in parts) == whole
    assert max(len(part["body"]) for part in parts) <= SLICE
    assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]


@pytest.mark.parametrize(("draining", "statuses"), [(True, [503]), (False, [])])
def test_what_a_stop_cuts_off_is_no_client_that_has_gone(
    seen: Seen, draining: bool, statuses: list[int]
) -> None:
    async def app(*_: object) -> None:
        await asyncio.Event().wait()

    messages = asyncio.run(sent_by(app, seen, draining=draining, cancelled=True))
    assert [message["status"] for message in messages if "status" in message] == statuses
    assert [status for _, status, _ in seen] == (statuses or [499])
