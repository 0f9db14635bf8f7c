"""Room for requests, taken at the door: what was admitted is never refused further in, but may have to wait there."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from app.batching import Overloaded

HEAVY_AT_ONCE = 2
"""Pictures that are decoded at once of those that take several times the memory that is counted of them."""


class TooLarge(Exception):
    """The request alone is larger than everything that may be pending at once."""


class Admission:
    """Room for pictures and their bytes, taken for a whole request: for its body before that is read, for its pictures
    before any is decoded.

    On the event loop only.
    """

    def __init__(self, max_pictures: int, max_bytes: int) -> None:
        self.pictures = 0
        self.bytes = 0
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self._finished: deque[tuple[float, int]] = deque(maxlen=64)

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """Count an answer of `size` bytes for as long as its client takes them. Nobody is refused his answer, but
        others their requests."""
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size

    def check(self, pictures: int, size: int) -> None:
        """Raises Overloaded without room for so many pictures and `size` bytes more."""
        if self.pictures + pictures > self._max_pictures or self.bytes + size > self._max_bytes:
            raise Overloaded(self.retry_after_s())

    def fits(self, pictures: int, size: int) -> bool:
        """Whether an idle service would have room for so many pictures and `size` bytes."""
        return pictures <= self._max_pictures and size <= self._max_bytes

    def change(self, pictures: int, size: int) -> None:
        """Count pictures and `size` bytes that are taken or, below 0, given back."""
        if self.pictures == 0:  # the time without work says nothing of how fast work is done
            self._finished.clear()
        self.pictures += pictures
        self.bytes += size
        if pictures < 0:
            self._finished.append((time.monotonic(), -pictures))

    def retry_after_s(self) -> int:
        """Seconds until half of what is pending will be done at the present rate, 1 to 60."""
        if len(self._finished) < 2:
            return 1
        seconds = time.monotonic() - self._finished[0][0]
        rate = sum(pictures for _, pictures in self._finished) / max(seconds, 1e-3)
        return min(60, max(1, math.ceil(self.pictures / 2 / rate)))


class Room:
    """Pictures and bytes that one request holds of an `Admission`, until it is left."""

    def __init__(self, admission: Admission) -> None:
        self.pictures = 0
        self.bytes = 0
        self._admission = admission

    def take(self, pictures: int, size: int) -> None:
        """Hold so much more. Raises Overloaded, and TooLarge where even an idle service would have no room for it
        beside what is held already."""
        if not self._admission.fits(self.pictures + pictures, self.bytes + size):
            raise TooLarge
        self._admission.check(pictures, size)
        self._admission.change(pictures, size)
        self.pictures += pictures
        self.bytes += size

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.change(-self.pictures, -self.bytes)


class Ahead:
    """Pictures that are decoded ahead of the detector: `size` at a time. The others wait as they were sent, which takes
    a tenth of the memory, and go first come, first served.

    On the event loop only.
    """

    name = "decode"
    """Of the queue, in the metrics."""

    def __init__(self, size: int) -> None:
        self.depth = 0
        """Pictures that wait."""
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)

    def turn(self) -> asyncio.Semaphore:
        """For the pictures of one request: it may have half of the places, so that it leaves some to others."""
        return asyncio.Semaphore(max(1, self._size // 2))

    @asynccontextmanager
    async def place(self, turn: asyncio.Semaphore, *, heavy: bool = False) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the people of the picture are found. Heavy pictures wait for each other
        before they take one."""
        self.depth += 1
        waits = True
        try:
            async with turn, self._heavy if heavy else nullcontext(), self._places:
                self.depth -= 1
                waits = False
                yield
        finally:
            self.depth -= waits
