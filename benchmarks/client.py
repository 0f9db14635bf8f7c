"""HTTP/1.1 over asyncio streams: a load generator on the cores that it loads must cost little.

A request of 100 KB with an answer of 2 KB took 0.04 ms of processor time here, 0.09 with aiohttp and 0.9 with httpx
(three alternating rounds on one core, JSON read).
"""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.pictures import MEDIA_TYPE, Post

STAGE_SECONDS = "dynpose_stage_duration_seconds_sum "
CPU_SECONDS = "process_cpu_seconds_total"
RESIDENT_BYTES = "process_resident_memory_bytes"

TIMEOUT_S = 60


class RequestFailed(Exception):
    """A request of the benchmark's own, such as a change of p, was refused."""


@dataclass(frozen=True)
class Answer:
    """One request, in `time.perf_counter` seconds. begin: when it was due, which in an open loop may be before it was
    sent. status: 0 without any answer. timing_ms: what the service says of itself. picture: its name."""

    status: int
    begin: float
    sent: float
    end: float
    people: int = 0
    p: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    timing_ms: dict[str, float] = field(default_factory=dict)
    picture: str = ""

    @property
    def seconds(self) -> float:
        """What the client waited."""
        return self.end - self.begin


class Client:
    """Connections to one server, which stay open; as many as there are requests under way. pose_token, admin_token:
    what `POST /pose` and `PATCH /config` need there."""

    def __init__(self, url: str, *, pose_token: str | None = None, admin_token: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._tls = parts.hostname or "127.0.0.1", parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._host_line = f"Host: {parts.netloc}\r\n"
        tokens = {"POST": pose_token, "PATCH": admin_token}
        self._token_line = {
            method: f"Authorization: Bearer {token}\r\n" for method, token in tokens.items() if token
        }
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(
        self, method: str, path: str, body: bytes = b"", media_type: str | None = None
    ) -> tuple[int, bytes]:
        """Status and body. Raises OSError, or asyncio.IncompleteReadError, where no whole answer came."""
        kind = f"Content-Type: {media_type}\r\n" if media_type else ""
        headers = f"{self._host_line}{self._token_line.get(method, '')}{kind}Content-Length: {len(body)}\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{headers}\r\n"
        while True:
            used = bool(self._idle)
            reader, writer = self._idle.pop() if used else await self._connect()
            try:
                writer.write(head.encode() + body)
                async with asyncio.timeout(TIMEOUT_S):
                    status, answer, keep = await _answer(reader)
            except BaseException as error:
                writer.close()
                # The server may have closed a connection that was idle: that is no failure of this request.
                closed = isinstance(error, ConnectionError | asyncio.IncompleteReadError)
                if used and closed:
                    continue
                raise
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()
            return status, answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context() if self._tls else None
        return await asyncio.open_connection(self._host, self._port, ssl=context)

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def pose(self, picture: Post, due: float | None = None, query: str = "") -> Answer:
        """Post one picture. due: when it should have been sent."""
        sent = time.perf_counter()
        begin = sent if due is None else due
        try:
            status, content = await self.request("POST", f"/pose{query}", picture.body, MEDIA_TYPE)
        except (OSError, asyncio.IncompleteReadError):  # the first has asyncio's TimeoutError, too
            return Answer(0, begin, sent, time.perf_counter())
        end = time.perf_counter()
        if status != 200:
            return Answer(status, begin, sent, end)
        body = json.loads(content)
        (image,) = body["images"]
        return Answer(
            200,
            begin,
            sent,
            end,
            people=len(image["people"]),
            p=body.get("split", {}).get("p", 0.0),
            routes=image.get("routes", {}),
            timing_ms=body.get("timing_ms", {}),
            picture=picture.name,
        )

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name, with the values of its labels behind a space each."""
        text = await self._expect(200, "GET", "/metrics")
        return {
            " ".join([sample.name, *sample.labels.values()]): float(sample.value)
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }

    async def get_p(self) -> float:
        return float((await self.config())["p"])

    async def config(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(await self._expect(200, "GET", "/config"))
        return settings

    async def set_p(self, p: float) -> None:
        await self._expect(200, "PATCH", "/config", json.dumps({"p": p}).encode(), "application/json")

    async def _expect(
        self, wanted: int, method: str, path: str, body: bytes = b"", kind: str | None = None
    ) -> bytes:
        status, answer = await self.request(method, path, body, kind)
        if status != wanted:
            raise RequestFailed(f"{method} {path}: {status} {answer[:200].decode(errors='replace')}")
        return answer


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, and whether the connection stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(first.split()[1]), body, fields.get("connection", "").lower() != "close"


def stage_seconds(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Stage -> time its batches ran between two readings of the metrics."""
    return {
        name.removeprefix(STAGE_SECONDS): after[name] - before.get(name, 0.0)
        for name in after
        if name.startswith(STAGE_SECONDS)
    }
