"""Real connections to a tiny application, on one event loop: who is closed, and who is waited for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.connections import Answers, Connection, connection_class

LONG = 30
PATIENCE_S = 0.05
LARGE = bytes(30_000_000)
PART, PARTS = 65_536, 300
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def application(scope: dict[str, Any], _: Receive, send: Send) -> None:
    if scope["path"] == "/parts":  # as `errors.RequestId` sends
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PARTS):
            await send({"type": "http.response.body", "body": bytes(PART), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(5 * PATIENCE_S)
    body = LARGE if scope["path"] == "/large" else b"done"
    headers = [(b"content-length", str(len(body)).encode())]
    if scope["path"] == "/refused":  # before its body was read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client(NamedTuple):
    """A connection, and the server's account of all it has."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: ServerState


@asynccontextmanager
async def connected(patience_s: float = PATIENCE_S) -> AsyncIterator[Client]:
    config = uvicorn.Config(
        application,
        http=connection_class(patience_s),
        lifespan="off",
        log_config=None,
        timeout_keep_alive=LONG,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not state.connections:
            await asyncio.sleep(0)
        yield Client(reader, writer, state)
        writer.transport.abort()
        while state.connections or state.tasks:
            await asyncio.sleep(0)


def with_connection(test: Callable[..., Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        async with asyncio.timeout(LONG), connected() as client:
            await test(client)

    def synchronous() -> None:
        asyncio.run(run())

    synchronous.__name__ = test.__name__
    return synchronous


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the server closes."""
    with suppress(ConnectionResetError):
        return await reader.read()
    return b""


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(4)


@with_connection
async def test_a_connection_that_asks_nothing_is_closed(client):
    assert await closed(client.reader) == b""


@with_connection
async def test_a_head_that_trickles_in_is_not_waited_for(client):
    while client.state.connections:
        client.writer.write(b"G")
        await asyncio.sleep(PATIENCE_S / 10)
    assert await closed(client.reader) == b""


@with_connection
async def test_the_next_head_of_a_kept_connection_is_not_waited_for_either(client):
    client.writer.write(GET % b"")
    assert await answer(client.reader) == b"done"
    client.writer.write(b"GET / HT")
    assert await closed(client.reader) == b""


@with_connection
async def test_a_kept_connection_may_rest_for_longer_than_that(client):
    for _ in range(2):
        client.writer.write(GET % b"")
        assert await answer(client.reader) == b"done"
        await asyncio.sleep(4 * PATIENCE_S)


async def takes_nothing_of(client: Client, answers: int) -> None:
    client.writer.transport.pause_reading()
    client.writer.write(answers * (GET % b"large"))
    while client.state.connections or client.state.tasks:
        await asyncio.sleep(PATIENCE_S / 10)
    client.writer.transport.resume_reading()
    assert len(await closed(client.reader)) < len(LARGE)


@with_connection
async def test_an_answer_that_nobody_takes_is_thrown_away(client):
    await takes_nothing_of(client, 1)


@with_connection
async def test_an_answer_that_nobody_takes_is_thrown_away_while_the_next_waits(client):
    await takes_nothing_of(client, 2)  # the first is done, and the second waits behind it


@with_connection
async def test_a_connection_may_rest_after_a_body_that_nobody_read(client):
    client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
    assert await answer(client.reader) == b"done"
    for _ in range(2):
        client.writer.write(b"body")
        await asyncio.sleep(PATIENCE_S / 10)
    await asyncio.sleep(4 * PATIENCE_S)
    client.writer.write(GET % b"")
    assert await answer(client.reader) == b"done"


@with_connection
async def test_a_slow_answer_and_a_slow_reader_are_waited_for(client):
    client.writer.write(GET % b"slow")
    assert await answer(client.reader) == b"done"
    client.writer.write(GET % b"large")
    await client.reader.readuntil(b"\r\n\r\n")
    for _ in range(20):
        await client.reader.readexactly(len(LARGE) // 20)
        await asyncio.sleep(PATIENCE_S / 5)


@with_connection
async def test_a_slow_reader_is_waited_for_though_as_much_waits_for_it_at_each_look(client):
    (connection,) = client.state.connections
    connection.transport.get_write_buffer_size = lambda: PART
    client.writer.write(GET % b"parts")
    for _ in range(20):
        await client.reader.readexactly(PARTS * PART // 20)
        await asyncio.sleep(PATIENCE_S / 5)


@with_connection
async def test_a_reader_who_takes_a_few_bytes_at_each_look_is_not_waited_for(client):
    (connection,) = client.state.connections
    client.writer.write(GET % b"parts")
    await client.reader.readuntil(b"\r\n\r\n")
    connection.transport.get_write_buffer_size = lambda: PART
    connection.transport.write = lambda _: None
    async with asyncio.timeout(LONG):
        while client.state.connections:
            connection.transport.given += 100
            await asyncio.sleep(PATIENCE_S / 5)


@with_connection
async def test_a_kept_connection_is_good_for_as_long_as_it_is_used(client):
    for _ in range(20):
        client.writer.write(GET % b"")
        assert await answer(client.reader) == b"done"
        await asyncio.sleep(PATIENCE_S / 5)


POST = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(LARGE)


def test_a_client_that_still_sends_gets_its_answer() -> None:
    async def run() -> None:
        async with asyncio.timeout(LONG), connected(LONG) as client:
            client.writer.write(POST)
            await asyncio.sleep(
                PATIENCE_S
            )  # the answer is out, and more of the body comes than the kernel holds
            for begin in range(0, len(LARGE), 1_000_000):
                client.writer.write(LARGE[begin : begin + 1_000_000])
                await client.writer.drain()
            assert (await client.reader.read()).endswith(b"done")
            client.writer.close()
            while client.state.connections:
                await asyncio.sleep(0)

    asyncio.run(run())


@with_connection
async def test_a_client_that_sends_for_ever_is_closed(client: Client) -> None:
    client.writer.write(POST.replace(str(len(LARGE)).encode(), b"9" * 15))
    assert (await client.reader.read()).endswith(b"done")
    while client.state.connections:
        with suppress(ConnectionError):
            client.writer.write(b"x")
        await asyncio.sleep(PATIENCE_S / 5)


@with_connection
async def test_what_is_no_http_after_an_answer_ends_the_connection(client: Client) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, failure: failures.append(failure))
    client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert await answer(client.reader) == b"done"
    client.writer.write(b"zz\r\n")
    assert await closed(client.reader) == b""
    assert failures == []


class Recorder:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(b"closed")


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([b"HTTP/1.1 200 OK", b"body", b""], [b"HTTP/1.1 200 OKbody"]),
        ([b"HTTP/1.1 200 OK", b""], [b"HTTP/1.1 200 OK"]),
        ([b"HTTP/1.1 200 OK"], [b"HTTP/1.1 200 OK"]),
        (
            [b"HTTP/1.1 100 Continue", b"HTTP/1.1 200 OK", b"body"],
            [b"HTTP/1.1 100 ContinueHTTP/1.1 200 OK", b"body"],
        ),
        ([b"HTTP/1.1 200 OK", None], [b"HTTP/1.1 200 OK", b"closed"]),
        ([b"more", b"HTTP/ in a body"], [b"more", b"HTTP/ in a body"]),
    ],
)
def test_the_head_of_an_answer_goes_out_with_its_body(
    writes: list[bytes | None], expected: list[bytes]
) -> None:
    async def run() -> list[bytes]:
        recorder = Recorder()
        connection = SimpleNamespace(loop=asyncio.get_running_loop(), conn=SimpleNamespace(their_state=None))
        answers = Answers(cast(asyncio.Transport, recorder), cast(Connection, connection))
        for data in writes:
            if data is None:
                answers.close()
            else:
                answers.write(data)
        await asyncio.sleep(0)
        return recorder.written

    assert asyncio.run(run()) == expected
