"""More than can be served, a stop in the middle of it, and a day of everything at once in a few minutes."""

import asyncio
import base64
import io
import itertools
import json
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.client import Answer, Client
from benchmarks.loops import closed_loop, observe, open_loop, quantile
from benchmarks.pictures import Post
from tests.faults.conftest import Record
from tests.faults.wire import answer, connect, head
from tests.process import PHOTO, Process, Start, until

LOAD_S = float(os.environ.get("LOAD_S", "30"))
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
MAX_PENDING = 16
GROWTH = 1.03
LONG = 60


def photo(width: int, height: int, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(PHOTO)).resize((width, height)).save(buffer, format)
    return buffer.getvalue()


def photos() -> Iterator[Post]:
    made = [Post("photo", photo(width, 4 * width // 3)) for width in (360, 480, 600)]
    return itertools.cycle(made)


@pytest.mark.long
def test_at_four_times_what_can_be_served_some_are_refused_at_once_and_the_others_are_served_in_time(
    start: Start, record: Record
):
    server = start(MAX_PENDING_PICTURES=str(MAX_PENDING))
    server.wait_ready()

    async def nothing() -> None:
        pass

    async def load() -> tuple[float, list[Answer], list[Answer]]:
        client = Client(server.url)
        closed = await observe(
            lambda over: closed_loop(client.pose, photos(), 8, over), nothing, warm_up=3, seconds=LOAD_S
        )
        rate = len(closed.run.good) / closed.run.seconds
        opened = await observe(
            lambda over: open_loop(client.pose, photos(), 4 * rate, over),
            nothing,
            warm_up=MAX_PENDING / rate,  # three times as long as it takes to fill all places
            seconds=LOAD_S,
        )
        await client.close()
        return rate, closed.run.answers, opened.run.answers

    rate, before, during = asyncio.run(load())
    assert {one.status for one in before} == {200}
    assert {one.status for one in during} == {200, 429}
    served = [one.seconds for one in during if one.status == 200]
    refused = [one.end - one.sent for one in during if one.status == 429]
    bound_s = MAX_PENDING * LOAD_S / len(served)  # what waits before who is admitted last
    record(
        sustainable_per_s=round(rate, 1),
        asked_per_s=round(4 * rate, 1),
        served_per_s=round(len(served) / LOAD_S, 1),
        served_p50_ms=round(1000 * quantile(served, 0.5)),
        served_p99_ms=round(1000 * quantile(served, 0.99)),
        bound_ms=round(1000 * bound_s),
        refused=len(refused),
        refused_p50_ms=round(1000 * quantile(refused, 0.5), 1),
        refused_p99_ms=round(1000 * quantile(refused, 0.99), 1),
    )
    assert quantile(served, 0.99) < 2 * bound_s
    assert quantile(refused, 0.99) < quantile(served, 0.5)
    assert until(lambda: server.metric("dynpose_in_flight") == 0)
    assert server.pose()[0] == 200


@pytest.mark.long
def test_a_stop_under_load_answers_all_that_was_admitted_and_ends_within_the_grace(
    start: Start, record: Record
):
    """Also with clients that only sit there, send slowly, or change p all the time."""
    grace_s = 35
    server = start(BODY_TIMEOUT_S="5", SHUTDOWN_GRACE_S=str(grace_s))
    server.wait_ready()
    data = photo(480, 640)
    idle, slow = [connect(server.port) for _ in range(20)], [connect(server.port) for _ in range(20)]
    for client in slow:
        client.sendall(head(1000))
    answered: list[int] = []

    def ask() -> None:
        while True:
            with suppress(OSError), connect(server.port) as client:
                client.sendall(head(len(data), "image/jpeg") + data)
                answered.append(answer(client)[0])
                if answered[-1] == 200:
                    continue
            return

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    admitted: list[float] = []

    def busy() -> bool:
        admitted[:] = server.metrics("dynpose_in_flight", 'dynpose_requests_total{status="200"}')
        return admitted[0] >= 16

    assert until(busy, LONG)
    server.process.send_signal(signal.SIGTERM)
    since = time.monotonic()
    assert server.process.wait(2 * grace_s) == 0
    took_s = time.monotonic() - since
    for thread in threads:
        thread.join(LONG)
    for client in (*idle, *slow):
        client.close()
    statuses = Counter(answered)
    assert set(statuses) <= {200, 503, 0}
    assert statuses[200] >= sum(admitted)
    assert took_s < grace_s
    record(
        in_flight_at_the_signal=int(admitted[0]),
        answered=statuses[200],
        ended_after_s=round(took_s, 1),
        grace_s=grace_s,
    )


class Mix:
    """Clients of every kind, good and bad, drawn at random: what each of them asks, and which answers are right."""

    def __init__(self, server: Process, seed: int) -> None:
        self.server = server
        self.client = Client(server.url)
        self.draw = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        text = base64.b64encode(photo(320, 240)).decode()
        boxes = {"images": [{"data": text, "boxes": [[10, 10, 60, 120], [90, 20, 50, 110]]}]}
        parts = [photo(320, 240), b"no picture", photo(100, 300, "PNG")]
        form = b"".join(
            b'--XX\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + part + b"\r\n"
            for part in parts
        )
        fixed: dict[str, tuple[str, str, bytes, str, int]] = {
            "coco": ("POST", "/pose?format=coco", photo(400, 300, "WEBP"), "image/webp", 200),
            "overlay": ("POST", "/pose?render=overlay", photo(300, 400, "PNG"), "image/png", 200),
            "form": ("POST", "/pose", form + b"--XX--\r\n", "multipart/form-data; boundary=XX", 200),
            "boxes": ("POST", "/pose?estimator=large", json.dumps(boxes).encode(), "application/json", 200),
            "tiny": ("POST", "/pose", photo(1, 1, "PNG"), "image/png", 200),
            "damaged": ("POST", "/pose", PHOTO[:5000], "image/jpeg", 422),
            "text": ("POST", "/pose", b"no picture", "image/jpeg", 415),
            "parameter": ("POST", "/pose?p=nan", PHOTO, "image/jpeg", 422),
            "late": ("POST", "/pose?deadline_ms=1", PHOTO, "image/jpeg", 504),
            "config": ("GET", "/config", b"", "", 200),
            "metrics": ("GET", "/metrics", b"", "", 200),
            "page": ("GET", "/", b"", "", 200),
            "nowhere": ("GET", "/nowhere", b"", "", 404),
        }
        self.asks: dict[str, Callable[[], object]] = {
            name: lambda ask=ask: self.ask(*ask) for name, ask in fixed.items()
        }
        self.asks |= {"photo": self.photo, "patch": self.patch, "hang up": self.hang_up}

    async def ask(self, method: str, path: str, body: bytes, kind: str, wanted: int) -> None:
        status, _ = await self.client.request(method, path, body, kind or None)
        if status not in (wanted, 429):
            self.wrong.append(f"{method} {path}: {status} in place of {wanted}")
        self.seen[str(status)] += 1

    async def photo(self) -> None:
        body = photo(self.draw.randint(64, 1280), self.draw.randint(64, 1280))
        await self.ask("POST", "/pose", body, "image/jpeg", 200)

    async def every_shape(self) -> None:
        """Pictures of every shape that a detector's input can have, each for both of them: they keep something for
        many, and the rare ones would come late."""
        for short in range(32, 513, 32):
            for size in ((512, short), (short, 512)):
                ask = "POST", "/pose", photo(*size), "image/jpeg", 200
                await asyncio.gather(*(self.ask(*ask) for _ in range(8)))

    async def patch(self) -> None:
        body = json.dumps({"p": self.draw.random(), "mode": self.draw.choice(["fixed", "tracking"])}).encode()
        await self.ask("PATCH", "/config", body, "application/merge-patch+json", 200)

    async def hang_up(self) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write((head(len(PHOTO), "image/jpeg") + PHOTO)[: self.draw.randrange(2 * len(PHOTO))])
        await asyncio.sleep(self.draw.random() / 10)
        writer.transport.abort()
        self.seen["hung up"] += 1

    async def run(self, seconds: float, memory: list[int]) -> None:
        """Eight clients at once; `memory` gets the resident bytes of every second."""
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                name = self.draw.choices([*self.asks, "photo"], [1] * len(self.asks) + [len(self.asks)])[0]
                await self.asks[name]()

        async def watch() -> None:
            while time.monotonic() < end:
                memory.append(self.server.memory)
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(one() for _ in range(8)))
        await self.client.close()


@pytest.mark.long
def test_a_long_mixed_load_leaves_neither_memory_nor_open_files_behind(
    start: Start, tmp_path: Path, record: Record
):
    """A fifth of the time to warm up, after pictures of every shape. Then the memory of the last fifth is held against
    that of the first."""
    server = start(STATE_FILE=str(tmp_path / "state.json"), BODY_TIMEOUT_S="5")
    server.wait_ready()
    seconds = 60 * SOAK_MINUTES
    memory: list[int] = []

    def quiet() -> int:
        assert until(lambda: server.metric("dynpose_in_flight") == 0, LONG)
        counts: list[int] = []

        def settled() -> bool:
            counts.append(server.open_files)
            return counts[-10:] == counts[-1:] * 10

        assert until(settled, LONG)
        return counts[-1]

    warming = Mix(server, 0)

    async def warm_up() -> None:
        await warming.every_shape()
        await warming.run(seconds / 5, [])

    asyncio.run(warm_up())
    files = quiet()
    mix = Mix(server, 1)
    asyncio.run(mix.run(4 * seconds / 5, memory))
    files_left = quiet()
    fifth = max(1, len(memory) // 5)
    first, last = statistics.median(memory[:fifth]), statistics.median(memory[-fifth:])
    requests = sum(mix.seen.values())
    record(
        minutes=SOAK_MINUTES,
        requests=requests,
        answers=mix.seen,
        memory_first_mb=round(first / 1e6, 1),
        memory_last_mb=round(last / 1e6, 1),
        growth_percent=round(100 * (last / first - 1), 2),
        memory_mb=[round(at / 1e6) for at in memory[:: max(1, len(memory) // 20)]],
        open_files=[files, files_left],
    )
    assert mix.wrong == warming.wrong == []
    assert files_left <= files
    assert last < GROWTH * first
    assert server.stop() == 0
