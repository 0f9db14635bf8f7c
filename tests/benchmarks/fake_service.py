"""A service over real HTTP whose answers are known beforehand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.client import Client
from benchmarks.pictures import Post

PICTURES = [Post("a.webp", b"a"), Post("b.jpg", b"b")]

TIMING = {"decode": 1, "detect": 5, "score": 1, "estimate": 2, "queued": 0, "total": 10}


class FakeService:
    """Two people in `a`, one of them hard, nobody in `b`, which is refused when `full`. Detect takes 0.5 s a picture.

    delay: seconds until an answer. forgetful: connections close after every answer, without a word. chunked: bodies
    come in pieces. locked: p cannot be changed.
    """

    def __init__(
        self,
        *,
        full: bool = False,
        delay: float = 0.0,
        forgetful: bool = False,
        chunked: bool = False,
        locked: bool = False,
    ) -> None:
        self.full, self.delay, self.forgetful = full, delay, forgetful
        self.chunked, self.locked = chunked, locked
        self.p = 0.5
        self.posted: list[tuple[bytes, str]] = []
        self.connections = 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield client
        finally:
            await client.close()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = dict(line.lower().split(": ") for line in lines if line)
                body = await reader.readexactly(int(fields["content-length"]))
                status, answer = await self._answer(first, fields.get("content-type", ""), body)
                writer.write(f"HTTP/1.1 {status} whatever\r\n".encode() + self._framed(answer))
                await writer.drain()
                if self.forgetful:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _framed(self, body: bytes) -> bytes:
        if not self.chunked:
            return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        return b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"

    async def _answer(self, first: str, kind: str, body: bytes) -> tuple[int, bytes]:
        match first.split()[:2]:
            case ["GET", "/metrics"]:
                name, seconds = "dynpose_stage_duration_seconds", 0.5 * len(self.posted)
                return 200, f'# TYPE {name} histogram\n{name}_sum{{stage="detect"}} {seconds}\n'.encode()
            case ["GET", "/config"]:
                return 200, json.dumps({"p": self.p}).encode()
            case ["PATCH", "/config"] if not self.locked:
                self.p = json.loads(body)["p"]
                return 200, b"{}"
            case ["POST", "/pose"]:
                await asyncio.sleep(self.delay)
                self.posted.append((body, kind))
                return self._pose(body)
        return 401, b""

    def _pose(self, picture: bytes) -> tuple[int, bytes]:
        if picture == b"b" and self.full:
            return 429, b""
        routes = {"easy": 1, "hard": 1} if picture == b"a" else {"easy": 0, "hard": 0}
        people = [{}, {}] if picture == b"a" else []
        image = {"routes": routes, "people": people}
        return 200, json.dumps({"split": {"p": self.p}, "images": [image], "timing_ms": TIMING}).encode()
