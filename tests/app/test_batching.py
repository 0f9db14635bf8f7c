"""The ten rules of the queues, each by its name, and what surrounds them."""

import asyncio
import threading
import time
import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batching import (
    SHARE,
    BatchQueue,
    ClientGone,
    CostLine,
    DeadlineExceeded,
    Overloaded,
    Stage,
    StageDied,
    StageFailed,
    Ticket,
)
from app.crew import Crew
from tests.process import until

LONG = 30.0


class Observed:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, float]] = []
        self.runs: list[tuple[str, int, float]] = []
        self.failures: Counter[str] = Counter()

    def waited(self, queue: str, seconds: float) -> None:
        self.waits.append((queue, seconds))

    def ran(self, stage: str, size: int, seconds: float) -> None:
        self.runs.append((stage, size, seconds))

    def failed(self, stage: str) -> None:
        self.failures[stage] += 1


class Worker:
    """A stage whose runs are remembered, and which waits while `gate` is closed. `fail` raises for an item."""

    def __init__(
        self, *names: str, buckets=(1, 2, 4, 8), fail=lambda _items: None, places=1, **options
    ) -> None:
        self.queues = [BatchQueue(name) for name in names or ("items",)]
        self.batches: list[list] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail = fail
        self.observed = Observed()
        self.stage = Stage(
            "work", [self._run] * places, self.queues, buckets=buckets, observer=self.observed, **options
        )
        self.stage.start()

    def _run(self, items: list) -> list:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.gate.wait(LONG)
        self.fail(items)
        return [item * 10 for item in items]

    def submit(self, item, ticket=None, queue=0) -> asyncio.Future:
        return self.queues[queue].submit(item, ticket or new_ticket())

    async def hold(self) -> asyncio.Future:
        """Close the gate and let one item run into it, so that what comes next has to wait."""
        self.gate.clear()
        self.entered.clear()
        first = self.submit(0)
        await asyncio.to_thread(self.entered.wait, LONG)
        self.batches.clear()
        return first

    def end(self) -> None:
        self.gate.set()
        self.stage.crew.drain()
        self.stage.crew.join(LONG)


def new_ticket(seconds: float = LONG) -> Ticket:
    return Ticket("request", time.monotonic() + seconds)


async def outcome(future: asyncio.Future) -> object:
    """The result, or the type of the exception."""
    try:
        return await asyncio.wait_for(future, LONG)
    except Exception as error:
        return type(error)


def on_loop(test):
    """Run an async test."""

    def run(*arguments, **options):
        asyncio.run(test(*arguments, **options))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_loop
async def test_rule_1_a_run_has_one_thread_at_a_time_and_the_loop_is_never_blocked():
    def run(_):
        running.append(1)
        at_once.append(len(running))
        time.sleep(0.001)
        running.pop()

    running: list[int] = []
    at_once: list[int] = []
    worker = Worker(crew=Crew(3, LONG), fail=run)
    held = await worker.hold()
    assert not held.done()  # we are here although the stage is busy
    worker.gate.set()
    await asyncio.gather(held, *(worker.submit(item) for item in range(20)))
    assert set(at_once) == {1}
    assert threading.current_thread().name not in worker.threads
    worker.end()


@on_loop
async def test_rule_2_an_idle_stage_starts_at_once_with_what_is_there():
    worker = Worker(buckets=(1, 8))
    assert await outcome(worker.submit(7)) == 70
    assert worker.batches == [[7]]
    worker.end()


@on_loop
async def test_rule_3_batches_grow_under_load_in_order_of_arrival_down_to_a_warmed_size():
    worker = Worker(buckets=(1, 2, 4))
    await worker.hold()
    ticket = new_ticket()
    futures = [worker.submit(item, ticket) for item in range(1, 8)]
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, 20, 30, 40, 50, 60, 70]
    assert worker.batches == [[1, 2, 3, 4], [5, 6], [7]]
    worker.end()


@on_loop
async def test_rule_5_an_item_past_its_deadline_is_answered_and_not_run():
    worker = Worker()
    held = await worker.hold()
    late, timely = worker.submit(1, new_ticket(0.01)), worker.submit(2)
    await asyncio.sleep(0.02)
    worker.gate.set()
    assert await outcome(late) is DeadlineExceeded
    assert await outcome(timely) == 20
    await held
    assert worker.batches == [[2]]
    worker.end()


@on_loop
async def test_rule_5_what_is_past_its_deadline_does_not_bend_the_size_of_the_batch():
    worker = Worker(buckets=(1, 2, 4))
    await worker.hold()
    late = worker.submit(9, new_ticket(-1))
    timely = [worker.submit(item) for item in (1, 2, 3)]
    worker.gate.set()
    assert await outcome(late) is DeadlineExceeded
    await asyncio.gather(*timely)
    assert worker.batches == [[1, 2], [3]]
    worker.end()


@on_loop
async def test_rule_6_an_item_whose_client_is_gone_is_dropped_and_its_place_is_free_at_once():
    worker = Worker()
    await worker.hold()
    gone = new_ticket()
    futures = [worker.submit(item, gone) for item in (1, 2)]
    stays = worker.submit(3)
    gone.cancel()
    assert worker.queues[0].depth == 1  # while the stage is still busy
    assert [await outcome(future) for future in futures] == [ClientGone, ClientGone]
    assert await outcome(worker.submit(4, gone)) is ClientGone
    worker.gate.set()
    assert await outcome(stays) == 30
    assert worker.batches == [[3]]
    worker.end()


@on_loop
async def test_rule_6_who_gives_up_while_the_batch_runs_takes_no_answer_from_the_others():
    running, go_on = threading.Event(), threading.Event()

    def wait(items):
        if 1 in items:
            running.set()
            assert go_on.wait(LONG)

    worker = Worker(fail=wait)
    await worker.hold()
    gone, stays = worker.submit(1), worker.submit(2)
    worker.gate.set()
    await asyncio.to_thread(running.wait, LONG)
    gone.cancel()
    go_on.set()
    assert await outcome(stays) == 20
    assert worker.batches == [[1, 2]]
    worker.end()


@on_loop
async def test_rule_7_a_failing_batch_hurts_only_the_items_that_fail_again():
    def fail(items):
        if 2 in items:
            raise RuntimeError

    worker = Worker(fail=fail)
    await worker.hold()
    futures = [worker.submit(item) for item in (1, 2, 3, 4)]
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, StageFailed, 30, 40]
    assert worker.batches == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert worker.observed.failures["work"] == 2
    assert await outcome(worker.submit(5)) == 50
    worker.end()


@on_loop
async def test_rule_7_an_item_that_fails_once_alone_is_run_again():
    failures = iter([RuntimeError()])

    def fail(_items):
        for error in failures:
            raise error

    worker = Worker(fail=fail)
    assert await outcome(worker.submit(1)) == 10
    worker.end()


@on_loop
async def test_rule_7_a_wrong_number_of_results_is_a_failure_not_a_mix_up():
    queue: BatchQueue = BatchQueue("items")
    stage = Stage("work", [lambda items: items[:-1]], [queue], buckets=(1,), observer=Observed())
    stage.start()
    assert await outcome(queue.submit(1, new_ticket())) is StageFailed
    stage.crew.drain()


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@on_loop
async def test_a_batch_too_large_for_the_device_is_halved_and_then_refused():
    def fail(items):
        if len(items) > 2 or 9 in items:
            raise OutOfMemoryError

    worker = Worker(fail=fail)
    await worker.hold()
    futures = [worker.submit(item) for item in (1, 2, 3, 9)]
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, 20, Overloaded, Overloaded]
    worker.end()


@on_loop
async def test_what_a_failed_run_held_is_free_before_the_next_attempt():
    class Memory:
        pass

    made: list[weakref.ref] = []

    def fail(items):
        assert all(memory() is None for memory in made)
        memory = Memory()
        made.append(weakref.ref(memory))
        if len(items) > 1:
            raise OutOfMemoryError

    worker = Worker(fail=fail)
    await worker.hold()
    futures = [worker.submit(item) for item in (1, 2)]
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, 20]
    assert len(made) == 4
    worker.end()


@on_loop
async def test_rule_8_a_request_of_many_people_does_not_hold_up_a_request_of_one():
    worker = Worker(buckets=(1, 2, 4))
    await worker.hold()
    crowd, single = new_ticket(), new_ticket()
    futures = [worker.submit(item, crowd) for item in range(1, 101)]
    alone = worker.submit(1000, single)
    worker.gate.set()
    assert await outcome(alone) == 10000
    assert [item for batch in worker.batches for item in batch][:9] == [*range(1, 9), 1000]
    assert [await outcome(future) for future in futures] == [item * 10 for item in range(1, 101)]
    worker.end()


@on_loop
async def test_rule_8_a_request_of_many_people_gives_way_to_another_in_an_earlier_stage():
    order: list[int] = []
    crew = Crew(1, 0.0)
    detects, estimates = (Worker(buckets=(1,), crew=crew, fail=order.extend) for _ in range(2))
    held = await detects.hold()
    crowd = new_ticket()
    futures = [estimates.submit(item, crowd) for item in range(100)]
    alone = detects.submit(1000, new_ticket())
    detects.gate.set()
    await asyncio.gather(held, alone, *futures)
    assert order.index(1000) == 1 + SHARE  # the first is the held one
    detects.end()


@on_loop
async def test_rule_8_small_requests_are_served_in_the_order_of_their_coming():
    worker = Worker(buckets=(1, 2))
    held = await worker.hold()
    tickets = [new_ticket() for _ in range(3)]
    futures = [
        worker.submit(10 * number + item, ticket) for item in (1, 2) for number, ticket in enumerate(tickets)
    ]
    worker.gate.set()
    await asyncio.gather(held, *futures)
    assert worker.batches == [[1, 2], [11, 12], [21, 22]]
    worker.end()


@on_loop
async def test_the_first_queue_goes_first_and_the_second_tops_it_up():
    worker = Worker("easy", "extremely_hard", buckets=(1, 2, 4), max_passed_over_s=LONG)
    await worker.hold()
    ticket = new_ticket()
    futures = [worker.submit(item, ticket, queue=1) for item in (101, 102, 103)]
    futures += [worker.submit(item, ticket, queue=0) for item in (1, 2, 3)]
    worker.gate.set()
    await asyncio.gather(*futures)
    assert worker.batches == [[1, 2, 3, 101], [102, 103]]
    worker.end()


@on_loop
async def test_what_was_passed_over_for_long_goes_first():
    worker = Worker("easy", "extremely_hard", buckets=(1,), max_passed_over_s=0.01)
    await worker.hold()
    old = worker.submit(101, queue=1)
    await asyncio.sleep(0.05)
    new = worker.submit(1, queue=0)
    worker.gate.set()
    await asyncio.gather(old, new)
    assert worker.batches == [[101], [1]]
    worker.end()


@on_loop
async def test_where_everything_has_waited_long_the_oldest_goes_first():
    worker = Worker("easy", "extremely_hard", buckets=(1,), max_passed_over_s=0)
    await worker.hold()
    futures = []
    for item, queue in ((1, 0), (101, 1), (2, 0), (102, 1)):
        futures.append(worker.submit(item, queue=queue))
        await asyncio.sleep(0.001)
    worker.gate.set()
    await asyncio.gather(*futures)
    assert worker.batches == [[1], [101], [2], [102]]
    worker.end()


@on_loop
async def test_rule_9_a_drained_stage_answers_what_it_has_and_then_ends():
    worker = Worker()
    held = await worker.hold()
    futures = [worker.submit(item) for item in (1, 2, 3)]
    worker.stage.crew.drain()
    worker.gate.set()
    assert [await outcome(future) for future in (held, *futures)] == [0, 10, 20, 30]
    await asyncio.to_thread(worker.stage.crew.join, LONG)
    assert not worker.stage.alive
    assert await outcome(worker.submit(4)) is StageDied


@on_loop
async def test_rule_10_waits_sizes_run_times_and_depths_are_seen():
    worker = Worker()
    held = await worker.hold()
    ticket = new_ticket()
    futures = [worker.submit(item, ticket) for item in (1, 2)]
    assert worker.queues[0].depth == 2
    assert worker.stage.busy_since is not None
    worker.gate.set()
    await asyncio.gather(held, *futures)
    assert until(lambda: len(worker.observed.runs) == 2)  # reported after the answers are given
    assert [queue for queue, _ in worker.observed.waits] == ["items"] * 3
    assert all(seconds >= 0 for _, seconds in worker.observed.waits)
    assert [(stage, size) for stage, size, _ in worker.observed.runs] == [("work", 1), ("work", 2)]
    assert [(run.stage, run.size) for run in ticket.runs] == [("work", 2)]
    assert all(run.queued <= run.started <= run.ended for run in ticket.runs)
    assert worker.queues[0].depth == 0
    worker.end()


@on_loop
async def test_when_a_network_dies_everything_it_held_and_all_that_comes_is_answered():
    def die(items):
        if 2 in items:
            raise SystemExit

    worker = Worker(buckets=(1,), fail=die)
    await worker.hold()
    futures = [worker.submit(item) for item in (1, 2, 3)]
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, StageDied, StageDied]
    assert await outcome(worker.submit(4)) is StageDied
    assert not worker.stage.alive


@on_loop
async def test_a_stage_that_is_given_up_on_answers_while_it_is_stuck():
    worker = Worker()
    held = await worker.hold()
    waiting = worker.submit(1)
    worker.stage.abandon(StageDied("work"))
    assert [await outcome(held), await outcome(waiting)] == [StageDied, StageDied]
    assert await outcome(worker.submit(2)) is StageDied
    assert not worker.stage.alive
    worker.end()


def test_the_cost_line_is_the_line_that_batches_lie_on():
    cost = CostLine()
    assert cost.terms == (0.0, 0.0)
    cost.add(4, 0.02)
    assert cost.terms == (pytest.approx(0.005), 0.0)
    for size in (1, 2, 4, 8) * 5:
        cost.add(size, 0.003 * size + 0.008)
    assert cost.terms == pytest.approx((0.003, 0.008))
    assert cost.seconds(16) == pytest.approx(0.056)
    assert [cost.dear(size, 16) for size in (1, 4, 8, 16)] == [True, True, False, False]


COSTS = {
    "nearly nothing is saved": (lambda n: 0.0330 * n + 0.001, 1),
    "a few together save enough": (lambda n: 0.018 * n + 0.0025, 4),
    "every doubling saves": (lambda n: 0.0017 * n + 0.0028, 16),
    "any batch takes the same time": (lambda _: 0.005, 16),
    "and a little less by chance": (lambda n: 0.005 - 0.00001 * n, 16),
    "a batch is slower than a loop": (lambda n: 0.010 * n + 0.001 * n**2, 1),
    "only very large batches are slower": (lambda n: {1: 0.023, 16: 0.303}.get(n, 0.0182 * n + 0.0035), 8),
}


@pytest.mark.parametrize(("seconds", "useful"), COSTS.values(), ids=COSTS)
def test_the_largest_useful_batch_is_the_smallest_at_which_an_item_costs_hardly_more(seconds, useful):
    cost = CostLine()
    for size in (1, 2, 4, 8, 16):
        cost.add(size, seconds(size))
    assert cost.useful((1, 2, 4, 8, 16)) == useful


def test_rule_3_a_stage_measures_when_it_is_warmed_how_large_a_batch_is_worth_running():
    now, warmed = [0.0], []

    def run(items):
        warmed.append(items)
        now[0] += 0.018 * len(items) + 0.0025
        if warmed.count(items) == 1:  # what is done only once, such as compiling
            now[0] += 10
        return items

    stage = Stage("work", [run], [BatchQueue("items")], buckets=(1, 2, 4, 8), observer=Observed())
    assert stage.limit == 8
    stage.warm("a", "b")
    assert warmed == [["a"] * size for size in (1, 2, 4, 8)] + [["b"]]
    stage.measure("a", clock=lambda: now[0])
    assert warmed[5:] == warmed[:4]
    assert stage.limit == 4
    assert stage.cost.seconds(1) > 0


@on_loop
async def test_rule_3_a_batch_is_no_larger_than_is_worth_it():
    worker = Worker(buckets=(1, 2, 4, 8))
    await worker.hold()
    worker.stage.limit = 2
    futures = [worker.submit(item) for item in range(1, 6)]
    worker.gate.set()
    await asyncio.gather(*futures)
    assert worker.batches == [[1, 2], [3, 4], [5]]
    worker.end()


@on_loop
async def test_what_comes_while_a_stage_waits_for_a_thread_joins_its_batch():
    crew = Crew(1, LONG)
    busy, waits = Worker(buckets=(1,), crew=crew), Worker(buckets=(1, 2, 4), crew=crew)
    held = await busy.hold()
    futures = [waits.submit(item) for item in (1, 2, 3, 4)]
    assert waits.batches == []
    busy.gate.set()
    await asyncio.gather(held, *futures)
    assert waits.batches == [[1, 2, 3, 4]]
    busy.end()


@on_loop
async def test_a_stage_that_dies_takes_no_thread_from_the_others():
    def die(_):
        raise SystemExit

    crew = Crew(1, LONG)
    dies, lives = Worker(crew=crew, fail=die), Worker(crew=crew)
    assert await outcome(dies.submit(1)) is StageDied
    assert not dies.stage.alive
    assert lives.stage.alive
    assert await outcome(lives.submit(2)) == 20
    lives.end()


@on_loop
async def test_a_stage_that_is_stuck_leaves_the_others_the_other_threads():
    crew = Crew(2, LONG)
    stuck, lives = Worker(crew=crew), Worker(crew=crew)
    await stuck.hold()
    assert await outcome(lives.submit(2)) == 20
    stuck.end()


class TenSecondsEach(CostLine):
    def seconds(self, size: int) -> float:
        return 10.0 * size


@pytest.mark.parametrize(
    ("seconds_left", "batches"),
    [
        (1000, [[1, 2, 3, 4]]),
        (35, [[1, 2], [3, 4]]),  # together they would take 40 s
        (15, [[1], [2], [3], [4]]),
        (5, [[1, 2, 3, 4]]),  # who cannot make it even alone hurries nobody
    ],
)
def test_rule_5_a_batch_ends_before_the_earliest_deadline_that_can_be_kept(seconds_left, batches):
    @on_loop
    async def run():
        worker = Worker(buckets=(1, 2, 4))
        await worker.hold()
        worker.stage.cost = TenSecondsEach()
        futures = [worker.submit(item, new_ticket(1000)) for item in (1, 2, 3)]
        futures.append(worker.submit(4, new_ticket(seconds_left)))
        worker.gate.set()
        await asyncio.gather(*futures)
        assert worker.batches == batches
        worker.end()

    run()


LATE = 4
"""The request whose deadline has passed before it comes."""

Event = st.tuples(
    st.integers(0, LATE),
    st.sampled_from(["submit", "submit", "submit", "cancel", "hold", "release", "yield"]),
    st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(Event, max_size=60), st.sets(st.integers(0, 59)))
def test_every_item_is_answered_once_and_run_only_in_time_in_turn_and_for_somebody(events, poisoned):
    @on_loop
    async def run():
        def fail(items):
            if poisoned & set(items):
                raise RuntimeError

        trouble: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        worker = Worker("first", "second", fail=fail)
        tickets = [new_ticket() for _ in range(LATE)] + [new_ticket(-1)]
        futures: dict[int, asyncio.Future] = {}
        cancelled: set[int] = set()
        for number, (who, what, second) in enumerate(events):
            if what == "submit":
                futures[number] = worker.submit(number, tickets[who], queue=int(second))
            elif what == "cancel":
                tickets[who].cancel()
                cancelled.add(who)
            elif what == "yield":
                await asyncio.sleep(0)
            elif what == "hold":
                worker.gate.clear()
            else:
                worker.gate.set()
        worker.gate.set()
        outcomes = {number: await outcome(future) for number, future in futures.items()}
        await asyncio.sleep(0)
        assert trouble == []
        assert [queue.depth for queue in worker.queues] == [0, 0]

        ran = list(dict.fromkeys(item for batch in worker.batches for item in batch))
        assert {len(batch) for batch in worker.batches} <= {1, 2, 4, 8}
        for number, found in outcomes.items():
            who = events[number][0]
            if found is ClientGone:
                assert who in cancelled
                assert number not in ran
            elif who == LATE:
                assert found is DeadlineExceeded
                assert number not in ran
            else:
                assert found == (StageFailed if number in poisoned else number * 10)
        for who in range(LATE):
            for second in (False, True):
                own = [item for item in ran if events[item][0] == who and events[item][2] == second]
                assert own == sorted(own)
        worker.end()

    run()


class Twins:
    """A stage of two networks, whose runs wait until their item is let go. `deadly` ends the stage."""

    def __init__(self, deadly: int = 0) -> None:
        self.queue = BatchQueue("items")
        self.running: set[int] = set()
        self.deadly = deadly
        self.let_go = {1: threading.Event(), 2: threading.Event()}
        self.stage = Stage("work", [self._run, self._run], [self.queue], buckets=(1,), observer=Observed())
        self.stage.start()

    def _run(self, items: list) -> list:
        self.running.add(items[0])
        assert self.let_go[items[0]].wait(LONG)
        if items[0] == self.deadly:
            raise SystemExit
        return [item * 10 for item in items]

    async def hold_both(self) -> list[asyncio.Future]:
        futures = [self.queue.submit(item, new_ticket()) for item in (1, 2)]
        while self.running != {1, 2}:
            await asyncio.sleep(0.001)
        return futures


@on_loop
async def test_two_networks_of_a_stage_run_two_batches_at_once_and_a_drained_one_answers_both():
    twins = Twins()
    first, second = await twins.hold_both()
    twins.stage.crew.drain()
    twins.let_go[1].set()
    assert await outcome(first) == 10
    twins.let_go[2].set()
    assert await outcome(second) == 20
    await asyncio.to_thread(twins.stage.crew.join, LONG)
    assert not twins.stage.alive


@on_loop
async def test_when_one_of_two_networks_dies_the_stage_has_died_and_everybody_is_answered():
    twins = Twins(deadly=2)
    futures = await twins.hold_both()
    twins.let_go[2].set()
    assert [await outcome(future) for future in futures] == [StageDied, StageDied]
    assert not twins.stage.alive
    assert await outcome(twins.queue.submit(3, new_ticket())) is StageDied
    twins.let_go[1].set()


@on_loop
async def test_a_batch_beside_another_needs_so_many_items():
    worker = Worker(crew=Crew(2, LONG), places=2, least_beside=3)
    await worker.hold()  # one, not a multiple of three
    futures = [worker.submit(item) for item in (1, 2)]
    await asyncio.sleep(0.02)
    assert worker.batches == []
    futures.append(worker.submit(3))
    while not worker.batches:
        await asyncio.sleep(0.001)
    assert worker.batches == [[1, 2]]  # rounded down to a bucket
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, 20, 30]
    worker.end()


@on_loop
async def test_an_idle_thread_takes_what_a_whole_batch_has_left_over():
    worker = Worker(crew=Crew(2, LONG), places=2, least_beside=2)
    await both_wait(worker)
    worker.gate.clear()
    with worker.stage.crew.wake:
        futures = [worker.submit(item) for item in (1, 2, 3)]
    assert await asyncio.to_thread(until, lambda: sorted(worker.batches) == [[1, 2], [3]])
    worker.gate.set()
    assert [await outcome(future) for future in futures] == [10, 20, 30]
    worker.end()


@on_loop
async def test_an_item_that_has_the_crew_to_itself_runs_on_more_cores():
    def run_alone(items):
        alone.append(items)
        return worker._run(items)

    alone: list[list] = []
    worker = Worker(crew=Crew(2, LONG), places=2, run_alone=run_alone)
    await both_wait(worker)
    first = await worker.hold()
    assert alone == [[0]]
    beside = worker.submit(2)
    assert await asyncio.to_thread(until, lambda: worker.batches == [[2]])
    worker.gate.set()
    assert [await outcome(future) for future in (first, beside)] == [0, 20]
    await both_wait(worker)
    with worker.stage.crew.wake:
        two = [worker.submit(item) for item in (3, 4)]
    assert [await outcome(future) for future in two] == [30, 40]
    await both_wait(worker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.batching.QUIET_S", LONG)  # since the others came
        assert await outcome(worker.submit(5)) == 50
        assert alone == [[0]]
        await both_wait(worker)
        patch.setattr("app.batching.QUIET_S", 0)
        assert await outcome(worker.submit(6)) == 60
    assert alone == [[0], [6]]
    worker.end()


@on_loop
async def test_what_fails_on_more_cores_is_tried_again_on_the_usual_ones():
    def run_alone(_items):
        raise RuntimeError("broken")

    worker = Worker(crew=Crew(2, LONG), places=2, run_alone=run_alone)
    await both_wait(worker)
    assert await outcome(worker.submit(1)) == 10
    assert worker.observed.failures == {"work": 1}
    worker.end()


async def both_wait(worker: Worker) -> None:
    """Until both threads of the crew have nothing to do."""
    assert await asyncio.to_thread(until, lambda: worker.stage.crew._idle == 2)


class AcceleratorError(RuntimeError):
    """Called as torch's, which is raised once and for all when the device is lost."""


@on_loop
async def test_a_lost_device_ends_the_stage_so_that_the_service_is_started_anew():
    def fail(_items):
        raise AcceleratorError("an illegal memory access was encountered")

    worker = Worker(fail=fail)
    assert await outcome(worker.submit(1)) is StageDied
    assert not worker.stage.alive


@pytest.mark.parametrize("when", ["warmed", "measured"])
def test_a_batch_that_does_not_fit_the_device_is_not_among_those_to_choose_from(when):
    class OutOfMemoryError(RuntimeError):
        """Called as torch's."""

    room = {"warmed": 2, "measured": 8}[when]

    def run(items):
        if len(items) > room:
            raise OutOfMemoryError
        return items

    stage = Stage("work", [run], [BatchQueue("items")], buckets=(1, 2, 4, 8), observer=Observed())
    stage.warm("a")
    room = 2  # others have taken memory
    stage.measure("a", clock=lambda: 0.0)
    assert stage.limit <= 2
