import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from app.crew import Crew, Mailbox, in_pool, mailbox
from tests.process import until

LONG = 30.0


class Batches:
    """A stage of the crew: `waiting` batches, each of which says its name and waits to be let go."""

    def __init__(self, crew: Crew, order: list[str], name: str, *, work: float = 1, since: float = 0) -> None:
        self.name = name
        self.seconds_waiting = work
        self.oldest = self.oldest_request = time.monotonic() - since
        self.waiting = 0
        self.for_idle = False
        self.worth_it = True
        self.alone: list[bool] = []
        self.ended = 0
        self.let_go = threading.Semaphore(0)
        self._order = order
        self._crew = crew
        crew.add(self)

    @property
    def ready(self) -> bool:
        return self.waiting > 0 and not self.for_idle

    @property
    def ready_for_idle(self) -> bool:
        return self.waiting > 0

    def take(self, alone: bool) -> Callable[[], None]:
        self.alone.append(alone)
        self.waiting -= 1
        self._order.append(self.name)
        return partial(self.work)

    def work(self, *_: object) -> None:
        assert self.let_go.acquire(timeout=LONG)

    def end(self) -> None:
        self.ended += 1

    def add(self, batches: int = 1) -> None:
        with self._crew.wake:
            self.waiting += batches
            self._crew.wake.notify()


def end(crew: Crew, *stages: Batches) -> None:
    for stage in stages:
        stage.let_go.release(99)
    crew.drain()
    crew.join(LONG)
    assert not crew.alive


def test_so_many_batches_run_at_once_as_there_are_threads() -> None:
    crew, order = Crew(2, LONG), []
    stage = Batches(crew, order, "only")
    crew.start()
    stage.add(3)  # one notice is enough for all threads
    assert until(lambda: len(order) == 2)
    time.sleep(0.02)
    assert len(order) == 2
    stage.let_go.release()
    assert until(lambda: len(order) == 3)
    end(crew, stage)


@pytest.mark.parametrize(("waited", "expected"), [(0, "full"), (9, "small")])
def test_a_small_batch_leaves_others_the_way_but_not_for_long(waited: float, expected: str) -> None:
    crew, order = Crew(1, 5.0), []
    small, full = Batches(crew, order, "small", work=9, since=waited), Batches(crew, order, "full")
    small.worth_it = False
    with crew.wake:
        small.add()
        full.add()
    crew.start()
    assert until(lambda: order[:1] == [expected])
    end(crew, small, full)
    assert len(order) == 2


def test_what_is_for_idle_threads_goes_last() -> None:
    crew, order = Crew(1, 0.0), []
    first, second = (Batches(crew, order, name, work=9, since=9) for name in ("for idle", "ready"))
    first.for_idle = True
    with crew.wake:
        first.add()
        second.add(2)
    first.let_go.release()
    second.let_go.release(2)
    crew.start()
    assert until(lambda: order == ["ready", "ready", "for idle"])
    end(crew, first, second)


def test_of_what_waits_the_stage_with_the_most_work_goes_first() -> None:
    crew, order = Crew(1, LONG), []
    running, little, growing, much = (
        Batches(crew, order, name, work=work)
        for name, work in {"running": 1, "little": 1, "growing": 2, "much": 3}.items()
    )
    crew.start()
    running.add()
    assert until(lambda: order == ["running"])
    for stage in (little, growing, much):
        stage.add()
    growing.seconds_waiting = 4  # what came since counts, too
    end(crew, running, little, growing, much)
    assert order == ["running", "growing", "much", "little"]


@pytest.mark.parametrize(("patience_s", "first"), [(LONG, "begun"), (0.0, "finishing")])
def test_what_has_waited_long_goes_by_the_age_of_its_request(patience_s: float, first: str) -> None:
    crew, order = Crew(1, patience_s), []
    running = Batches(crew, order, "running")
    begun = Batches(crew, order, "begun", work=2, since=2)  # longer in its queue, but of a younger request
    finishing = Batches(crew, order, "finishing", work=1, since=1)
    finishing.oldest_request -= 3
    crew.start()
    running.add()
    assert until(lambda: order == ["running"])
    for stage in (begun, finishing):
        stage.add()
    end(crew, running, begun, finishing)
    assert order[1] == first


def test_a_stage_hears_whether_the_other_threads_have_nothing_to_do() -> None:
    crew, order = Crew(2, LONG), []
    first, second = (Batches(crew, order, name) for name in ("first", "second"))
    crew.start()

    def one_after_the_other() -> bool:
        first.add()
        first.let_go.release()
        assert until(lambda: first.waiting == 0)
        return first.alone[-1]

    assert until(one_after_the_other)  # the other thread may still be starting, or about to wait
    first.add()
    assert until(lambda: first.waiting == 0)
    second.add()
    assert until(lambda: second.waiting == 0)
    assert second.alone == [False]
    end(crew, first, second)


def test_what_was_passed_over_for_long_goes_first() -> None:
    crew, order = Crew(1, 5.0), []
    running, much, old, older = (
        Batches(crew, order, name, work=work, since=since)
        for name, work, since in (("running", 1, 0), ("much", 3, 0), ("old", 2, 6), ("older", 1, 7))
    )
    crew.start()
    running.add()
    assert until(lambda: order == ["running"])
    for stage in (much, old, older):
        stage.add()
    end(crew, running, much, old, older)
    assert order == ["running", "older", "old", "much"]


def test_a_drained_crew_runs_what_waits_and_then_says_once_that_it_has_ended() -> None:
    crew, order = Crew(2, LONG), []
    stages = [Batches(crew, order, name) for name in ("first", "second")]
    crew.start()
    for stage in stages:
        stage.add(2)
    assert until(lambda: len(order) == 2)
    crew.drain()
    assert [stage.ended for stage in stages] == [0, 0]
    end(crew, *stages)
    assert sorted(order) == ["first", "first", "second", "second"]
    assert [stage.ended for stage in stages] == [1, 1]


def test_joining_takes_no_longer_than_it_was_given() -> None:
    crew, order = Crew(2, LONG), []
    stage = Batches(crew, order, "stuck")
    crew.start()
    stage.add(2)
    assert until(lambda: len(order) == 2)
    crew.drain()
    started = time.monotonic()
    crew.join(0.05)
    assert time.monotonic() - started < LONG / 2
    assert stage.ended == 0
    end(crew, stage)


class Held:
    """What a batch refers to."""


def test_a_thread_that_waits_keeps_nothing_of_its_last_batch() -> None:
    crew, order = Crew(1, LONG), []
    stage, held = Batches(crew, order, "only"), Held()
    gone = weakref.ref(held)
    stage.work = partial(stage.work, held)
    del held
    crew.start()
    stage.add()
    stage.let_go.release()
    assert until(lambda: order == ["only"])
    del stage.work
    assert until(lambda: gone() is None)
    end(crew, stage)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_a_thread_ends_all_is_over_although_others_are_left() -> None:
    crew = Crew(2, LONG)
    stages = [Batches(crew, [], name) for name in ("first", "second")]
    del stages[0].name  # so that taking a batch raises
    crew.start()
    stages[0].add()
    assert until(lambda: all(stage.ended for stage in stages))
    assert until(lambda: not crew.alive)
    crew.drain()
    crew.join(LONG)


def test_calls_from_threads_run_on_the_loop_in_order_and_wake_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> list[int]:
        loop, seen = asyncio.get_running_loop(), list[int]()
        letters = mailbox()
        assert letters is mailbox()
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda call: woken.append(loop.call_soon(call)))
        with ThreadPoolExecutor(1) as thread:  # the loop is held up until all have come
            thread.submit(lambda: [letters.post(partial(seen.append, number)) for number in range(100)])
        await asyncio.sleep(0)
        letters.post(partial(seen.append, 100))
        await asyncio.sleep(0)
        return seen

    woken: list[asyncio.Handle] = []
    assert asyncio.run(run()) == list(range(101))
    assert len(woken) == 2


def test_no_call_is_lost_however_many_threads_post() -> None:
    async def run() -> int:
        seen: list[int] = []
        letters = mailbox()
        with ThreadPoolExecutor(4) as threads:
            for number in range(2000):
                threads.submit(letters.post, partial(seen.append, number))
                if number % 50 == 0:
                    await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        return len(seen)

    assert asyncio.run(run()) == 2000


def test_a_loop_that_has_ended_hears_nothing_more() -> None:
    loop = asyncio.new_event_loop()
    letters = Mailbox(loop)
    loop.close()
    letters.post(lambda: pytest.fail("called"))
    assert not letters._calls
    del loop
    letters.post(lambda: pytest.fail("called"))


def test_work_in_a_pool_gives_its_result_or_its_error() -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1) as pool:
            assert await in_pool(pool, pow, 2, 5) == 32
            with pytest.raises(ZeroDivisionError):
                await in_pool(pool, divmod, 1, 0)

    asyncio.run(run())


def test_a_call_that_fails_keeps_no_other_from_being_heard(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> list[int]:
        seen: list[int] = []
        mailbox().post(lambda: 1 / 0)
        mailbox().post(partial(seen.append, 1))
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(run()) == [1]
    assert "ZeroDivisionError" in caplog.text


def test_work_that_a_closing_pool_drops_is_waited_for_no_longer() -> None:
    async def run() -> None:
        go_on, pool = threading.Event(), ThreadPoolExecutor(1)
        first, dropped = in_pool(pool, go_on.wait, LONG), in_pool(pool, pow, 2, 2)
        pool.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await dropped
        go_on.set()
        assert await first is True

    asyncio.run(run())


def test_who_stops_waiting_leaves_nothing_of_the_work_behind() -> None:
    async def run() -> None:
        go_on, upload = threading.Event(), asyncio.Event()
        kept = weakref.ref(upload)
        with ThreadPoolExecutor(1) as pool:
            first, second = in_pool(pool, go_on.wait, LONG), in_pool(pool, id, upload)
            del upload
            second.cancel()
            await asyncio.sleep(0)
            assert kept() is None  # while the pool has not come to it
            go_on.set()
            await first

    asyncio.run(run())


def test_what_fails_leaves_nothing_of_its_work_behind() -> None:
    kept: list[weakref.ref[object]] = []

    def decode() -> None:
        picture = threading.Event()
        kept.append(weakref.ref(picture))
        try:
            raise ValueError("cut off")
        except ValueError as error:
            raise RuntimeError(f"{picture} is damaged") from error

    async def run() -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="damaged"):
            await in_pool(pool, decode)
        assert kept[0]() is None

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_work_that_nobody_waits_for_any_more_is_not_begun() -> None:
    begun: list[str] = []

    async def run() -> None:
        go_on = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            first, second = in_pool(pool, go_on.wait, LONG), in_pool(pool, begun.append, "second")
            second.cancel()
            go_on.set()
            assert await first is True
            first = in_pool(pool, begun.append, "third")
            first.cancel()  # perhaps while it runs: then its end changes nothing
        await asyncio.sleep(0)

    asyncio.run(run())
    assert "second" not in begun
