import asyncio
import itertools
import math

import pytest

from benchmarks.client import Answer
from benchmarks.loops import (
    Over,
    closed_loop,
    observe,
    observe_pictures,
    open_loop,
    quantile,
    shuffled_forever,
)
from tests.benchmarks.fake_service import PICTURES, FakeService


def test_a_closed_loop_has_so_many_requests_under_way_and_no_more() -> None:
    async def scenario() -> None:
        under_way = most = 0

        async def pose(_: object, due: float | None = None) -> Answer:
            nonlocal under_way, most
            assert due is None
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return Answer(200, 0, 0, 0)

        answers = await closed_loop(pose, shuffled_forever(PICTURES, 0), 3, lambda seen: len(seen) >= 10)
        assert most == 3
        assert 10 <= len(answers) <= 12

    asyncio.run(scenario())


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def scenario() -> None:
        dues: list[float] = []
        finish = asyncio.Event()

        async def pose(_: object, due: float | None = None) -> Answer:
            assert due is not None
            dues.append(due)
            if len(dues) == 6:
                finish.set()
            await finish.wait()
            return Answer(200, due, due, due)

        answers = await open_loop(pose, shuffled_forever(PICTURES, 0), 200.0, lambda seen: len(seen) >= 6)
        assert len(answers) == len(dues) >= 6
        steps = [after - before for before, after in itertools.pairwise(dues)]
        assert steps == pytest.approx([1 / 200] * len(steps))

    asyncio.run(scenario())


def test_only_what_is_answered_within_the_window_counts() -> None:
    async def scenario() -> None:
        readings = iter(["before", "after"])

        async def watch() -> str:
            return next(readings)

        async with FakeService(delay=0.005).client() as client:

            async def load(over: Over) -> list[Answer]:
                return await closed_loop(client.pose, shuffled_forever(PICTURES, 0), 1, over)

            seen = await observe(load, watch, warm_up=0.03, seconds=0.25)
        assert (seen.before, seen.after) == ("before", "after")
        assert seen.run.good
        first, last = seen.run.answers[0], seen.run.answers[-1]
        assert last.end - first.end <= seen.run.seconds

    asyncio.run(scenario())


def test_so_many_pictures_are_counted_from_the_last_one_before_them() -> None:
    async def scenario() -> None:
        readings = iter(["before", "after"])

        async def watch() -> str:
            return next(readings)

        async with FakeService(delay=0.002).client() as client:

            async def load(over: Over) -> list[Answer]:
                return await closed_loop(client.pose, shuffled_forever(PICTURES, 0), 2, over)

            seen = await observe_pictures(load, watch, first=3, count=10)
        assert (seen.before, seen.after) == ("before", "after")
        answers, seconds = seen.run.answers, seen.run.seconds
        assert len(answers) == 10
        assert answers[-1].end - answers[0].end < seconds
        assert seconds <= answers[-1].end - min(answer.begin for answer in answers)

    asyncio.run(scenario())


def test_a_load_that_fails_ends_the_observation() -> None:
    async def scenario() -> None:
        async def load(_: Over) -> list[Answer]:
            raise ZeroDivisionError

        async def watch() -> None: ...

        with pytest.raises(ZeroDivisionError):
            await observe(load, watch, warm_up=60, seconds=60)
        with pytest.raises(ZeroDivisionError):
            await observe_pictures(load, watch, first=1, count=60)

    asyncio.run(scenario())


def test_every_picture_comes_once_in_a_pass_and_the_same_way_each_time() -> None:
    orders = [shuffled_forever(PICTURES, 1) for _ in range(2)]
    passes = [[next(order).name for _ in range(6)] for order in orders]
    assert passes[0] == passes[1]
    assert [sorted(passes[0][i : i + 2]) for i in (0, 2, 4)] == [["a.webp", "b.jpg"]] * 3


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile([4, 1, 3, 2], q) for q in (0, 0.5, 0.99, 1)] == [1, 3, 4, 4]
    assert math.isnan(quantile([], 0.5))
