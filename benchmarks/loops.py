"""Closed and open loops of requests, and what is seen of them in a window of time."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from benchmarks.client import Answer
from benchmarks.pictures import Post

LOOK_S = 0.002
"""Between two looks at how many answers there are."""

Seen = TypeVar("Seen")

Over = Callable[[list[Answer]], bool]
"""Whether a load has come to its end, by its answers up to now."""

Load = Callable[[Over], Awaitable[list[Answer]]]


class Pose(Protocol):
    async def __call__(self, picture: Post, due: float | None = None) -> Answer: ...


@dataclass(frozen=True)
class Run:
    """The answers that came within `seconds`, in order of arrival."""

    answers: list[Answer]
    seconds: float

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    @property
    def people(self) -> int:
        return sum(answer.people for answer in self.answers)


@dataclass(frozen=True)
class Observed(Generic[Seen]):
    """A run, and what was read at its begin and end."""

    run: Run
    before: Seen
    after: Seen


async def closed_loop(pose: Pose, pictures: Iterator[Post], clients: int, over: Over) -> list[Answer]:
    """Each client posts a picture, waits for the answer, and posts the next."""
    answers: list[Answer] = []

    async def one_client() -> None:
        while not over(answers):
            answers.append(await pose(next(pictures)))

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return answers


async def open_loop(pose: Pose, pictures: Iterator[Post], rate: float, over: Over) -> list[Answer]:
    """`rate` pictures a second at equal distances, whether or not the answers keep up."""
    answers: list[Answer] = []

    async def arrive(due: float) -> None:
        answers.append(await pose(next(pictures), due))

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as arrivals:
        for number in itertools.count():
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if over(answers):
                break
            arrivals.create_task(arrive(due))
    return answers


async def observe(
    load: Load, watch: Callable[[], Awaitable[Seen]], *, warm_up: float, seconds: float
) -> Observed[Seen]:
    """Let `load` run for `warm_up` and then `seconds`, of which alone the answers count. Waits for all of them."""
    ended = False
    task = asyncio.ensure_future(load(lambda _: ended))
    try:
        await asyncio.wait([task], timeout=warm_up)
        before, begin = await watch(), time.perf_counter()
        await asyncio.wait([task], timeout=seconds)
        end, after = time.perf_counter(), await watch()
    finally:
        ended = True
        answers = await task
    counted = [answer for answer in answers if begin <= answer.end < end]
    return Observed(Run(counted, end - begin), before, after)


async def observe_pictures(
    load: Load, watch: Callable[[], Awaitable[Seen]], *, first: int, count: int
) -> Observed[Seen]:
    """Let `load` run until `first` and then `count` answers have come, of which alone the latter count: whoever is
    asked for pictures in the same order is measured on the same ones, but for a few at either end. first: at least 1.
    """
    ended = False
    came: list[Answer] = []

    def over(answers: list[Answer]) -> bool:
        nonlocal came
        came = answers
        return ended

    task = asyncio.ensure_future(load(over))

    async def reached(number: int) -> Seen:
        while len(came) < number and not task.done():
            await asyncio.sleep(LOOK_S)
        return await watch()

    try:
        before, after = await reached(first), await reached(first + count)
    finally:
        ended = True
        answers = await task
    counted = answers[first : first + count]
    return Observed(Run(counted, counted[-1].end - answers[first - 1].end), before, after)


def shuffled_forever(pictures: Sequence[Post], seed: int) -> Iterator[Post]:
    """Every picture once, in an order of its own for each pass."""
    order = random.Random(seed)
    for _ in itertools.count():
        yield from order.sample(pictures, len(pictures))


def quantile(values: Sequence[float], q: float) -> float:
    """NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")
