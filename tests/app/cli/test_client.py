"""How long a client bears with a server, and what it says of one."""

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.cli import client as module
from app.cli.client import Client, Refused, ServerError

Answer = Callable[[], httpx.Response]


def posed(answers: list[Answer], patience_s: float = 60.0) -> bytes:
    """The answer to a picture of a server that answers so, one after the other."""
    rest: Iterator[Answer] = iter(answers)
    transport = httpx.MockTransport(lambda _: next(rest)())

    async def ask() -> bytes:
        async with Client("http://pose", patience_s=patience_s, transport=transport) as client:
            return await client.pose(b"picture", {})

    return asyncio.run(ask())


def problem(status: int, detail: str = "why", **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx.Response(status, json={"detail": detail}, headers=names)


def good() -> httpx.Response:
    return httpx.Response(200, content=b"good")


def refused() -> httpx.Response:
    raise httpx.ConnectError("refused")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses, which take no time here but are on the clock."""
    pauses: list[float] = []
    now = [0.0]

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return pauses


def test_a_server_without_room_is_waited_for_as_long_as_it_says(slept: list[float]) -> None:
    busy = problem(429, retry_after="7")
    assert posed([busy] * 20 + [problem(429, retry_after="soon"), good]) == b"good"
    assert slept == [7.0] * 20 + [1.0]


def test_a_server_that_drains_or_is_gone_is_tried_again(slept: list[float]) -> None:
    draining = problem(503, retry_after="1")
    assert posed([draining, refused, lambda: httpx.Response(502, text="<html>"), good]) == b"good"
    assert slept == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("answer", "says"), [(refused, "refused"), (problem(503, "draining"), "draining")])
def test_a_server_that_does_not_come_back_is_given_up(slept: list[float], answer: Answer, says: str) -> None:
    with pytest.raises(ServerError, match=f"http://pose: {says}.*, for 5 s"):
        posed([answer] * 10, patience_s=5)
    assert sum(slept) == 5


def hung_up() -> httpx.Response:
    raise httpx.ReadError("")


@pytest.mark.usefixtures("slept")
def test_a_picture_that_a_server_hangs_up_on_time_and_again_is_to_blame() -> None:
    """Its 413 is lost where it closes the connection while the body still comes."""
    there = [lambda: httpx.Response(200, json={"models": {}})]
    with pytest.raises(Refused, match="hangs up on it, it may be too large"):
        posed([hung_up, *there] * 3)
    assert posed([hung_up, *there, refused, hung_up, *there, hung_up, *there, good]) == b"good"
    with pytest.raises(ServerError, match="for 5 s"):
        posed([hung_up, refused] * 10, patience_s=5)


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500, 504])
def test_what_is_said_of_a_picture_concerns_that_picture(status: int) -> None:
    with pytest.raises(Refused, match=rf"why \({status}\)"):
        posed([problem(status)])


@pytest.mark.parametrize("status", [401, 404])
def test_what_would_be_said_of_every_picture_ends_it(status: int) -> None:
    with pytest.raises(ServerError, match=rf"http://pose: why \({status}\)"):
        posed([problem(status)])


@pytest.mark.parametrize(
    ("url", "token"), [("pose:8000", None), ("http://", None), ("ftp://pose", None), ("http://pose", "a\nb")]
)
def test_a_url_or_token_that_cannot_be_one_is_refused(url: str, token: str | None) -> None:
    with pytest.raises(ServerError):
        Client(url, token)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_another_server_is_told_from_this_one(body: bytes) -> None:
    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
        async with Client("http://pose", transport=transport) as client:
            await client.config()

    with pytest.raises(ServerError, match="this is no DynPose server"):
        asyncio.run(ask())
