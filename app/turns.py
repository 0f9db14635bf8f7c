"""Whose turn it is, where there are fewer cores than stages would use at once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class _Claim(NamedTuple):
    work: Callable[[], float]
    since: float


class Turns:
    """Lets at most `places` threads run at once; the one with the most work goes first, until another has waited for
    longer than `max_passed_over_s`.

    More at once would only slow each other down, and what has to wait here gathers into a larger batch.
    """

    def __init__(self, places: float, max_passed_over_s: float) -> None:
        self._free = places
        self._max_passed_over_s = max_passed_over_s
        self._claims: list[_Claim] = []
        self._granted = threading.Condition()

    @property
    def waiting(self) -> int:
        """Threads that wait for a place."""
        return len(self._claims)

    @contextmanager
    def take(self, work: Callable[[], float]) -> Iterator[None]:
        """Wait for a place, and hold it. work: seconds of work that this thread has now; called from any thread."""
        claim = _Claim(work, time.monotonic())
        with self._granted:
            self._claims.append(claim)
            self._grant()
            self._granted.wait_for(lambda: all(other is not claim for other in self._claims))
        try:
            yield
        finally:
            with self._granted:
                self._free += 1
                self._grant()

    def _grant(self) -> None:
        while self._claims and self._free > 0:
            oldest = self._claims[0]
            late = time.monotonic() - oldest.since > self._max_passed_over_s
            self._claims.remove(oldest if late else max(self._claims, key=lambda claim: claim.work()))
            self._free -= 1
        self._granted.notify_all()
