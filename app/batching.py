"""Queues between requests and networks: `BatchQueue` holds items, a `Stage` runs them in batches.

Requests live on the event loop, networks in the threads of a `Crew`; futures are the only bridge. A stage is given a
function `list[item] -> list[result]` that knows nothing of queues, and a queue knows nothing of poses.
"""

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from app.crew import Crew, Mailbox, let_go, mailbox

log = logging.getLogger("dynpose.batching")

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[list[Any]], Sequence[Any]]

TURN = 8
"""Items of one request that go in a row. Turns after every single item would let all requests finish late together:
with 32 clients a quarter of the p95 latency was lost to that."""

QUIET_S = 1.0
"""An item has the cores to itself only where for so long each of its kind has found them idle. More cores for one item
are less work for each: where others are about to come, they would wait for it."""

SHARE = 2 * TURN
"""Items of one request, of all stages, for which it counts as old as it is: a picture of ten people at p = 0.5."""


class DeadlineExceeded(Exception):
    """The item was not run because its request's deadline had passed."""


class ClientGone(Exception):
    """The item was not run because its client had hung up."""


class StageFailed(Exception):
    """The item failed twice."""


class StageDied(Exception):
    """A network of the stage cannot be used any more, or has been stuck for too long."""


class Overloaded(Exception):
    """No room now. `retry_after_s`: whole seconds after which there should be."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"no room now, try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Run(NamedTuple):
    """Work for a request that is done, alone or in a batch with that of others. Times in `time.monotonic` seconds."""

    stage: str
    queued: float
    """When the first of the request's items in the batch came."""
    started: float
    ended: float
    size: int
    """Items of the batch, of whichever request."""


class Ticket:
    """One request's place in the queues. `deadline` is in `time.monotonic` seconds."""

    def __init__(self, request_id: str, deadline: float) -> None:
        self.request_id = request_id
        self.deadline = deadline
        self.since = time.monotonic()
        """When its body was there, or its last `SHARE` of items had their turn: who brings many does not stay the
        oldest."""
        self.taken = 0
        self.cancelled = False
        self.runs: list[Run] = []
        """The batches that held an item of this request; whoever does work for it elsewhere adds that."""
        self._queues: set[BatchQueue[Any, Any]] = set()

    def count(self) -> None:
        """Another item has its turn. Under a crew's lock; where stages have several crews nobody asks for the age."""
        self.taken += 1
        if self.taken % SHARE == 0:
            self.since = time.monotonic()

    def cancel(self) -> None:
        """Give back the places of everything that does not run yet. On the event loop."""
        self.cancelled = True
        for queue in self._queues:
            queue.discard(self)


class Observer(Protocol):
    """Where waits, batches and failures are counted (`app.metrics`). Called from the crew's threads."""

    def waited(self, queue: str, seconds: float) -> None: ...
    def ran(self, stage: str, size: int, seconds: float) -> None: ...
    def failed(self, stage: str) -> None: ...


class _Entry:
    __slots__ = ("future", "item", "queue", "since", "ticket")

    def __init__(self, item: Any, ticket: Ticket, queue: "BatchQueue[Any, Any]") -> None:
        self.item = item
        self.ticket = ticket
        self.queue = queue
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.since = time.monotonic()


class _Lane(deque[_Entry]):
    """What waits for one request. taken: how many items of it had their turn."""

    taken = 0


class BatchQueue(Generic[Item, Result]):
    """Items that wait for a stage, in one lane per request: first come, first served, but that lanes take turns after
    every few items (`TURN`), so that a request of a hundred people does not hold up a request of one. Unbounded by
    itself; `Admission` bounds what can get here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.wake = threading.Condition()  # replaced by that of the stage's crew
        self.closed: BaseException | None = None
        self._lanes: OrderedDict[Ticket, _Lane] = OrderedDict()
        self._depth = 0

    @property
    def depth(self) -> int:
        """Items waiting."""
        return self._depth

    def submit(self, item: Item, ticket: Ticket) -> "asyncio.Future[Result]":
        """Queue `item`; on the event loop. The future is completed exactly once, with the result or with
        DeadlineExceeded, ClientGone, StageFailed, StageDied or Overloaded."""
        entry = _Entry(item, ticket, self)
        with self.wake:
            if self.closed is not None:
                entry.future.set_exception(self.closed)
            elif ticket.cancelled:
                entry.future.set_exception(ClientGone())
            else:
                self._lanes.setdefault(ticket, _Lane()).append(entry)
                self._depth += 1
                ticket._queues.add(self)
                self.wake.notify()
        return entry.future

    def discard(self, ticket: Ticket) -> None:
        """Drop what waits here for `ticket`. On the event loop."""
        with self.wake:
            lane = self._lanes.pop(ticket, _Lane())
            self._depth -= len(lane)
        for entry in lane:
            if not entry.future.done():
                entry.future.set_exception(ClientGone())

    def expire(self, now: float) -> list[_Entry]:
        """Take out everything whose deadline has passed. Under the lock."""
        late = [ticket for ticket in self._lanes if ticket.deadline <= now]
        entries = [entry for ticket in late for entry in self._lanes.pop(ticket)]
        self._depth -= len(entries)
        return entries

    def earliest_deadline(self, after: float) -> float:
        """Of what waits, in monotonic seconds; infinity without any that is later than `after`. Under the lock."""
        return min((ticket.deadline for ticket in self._lanes if ticket.deadline > after), default=math.inf)

    def oldest(self) -> float:
        """When the longest waiting item came, in monotonic seconds; infinity without items. Under the lock."""
        return min((lane[0].since for lane in self._lanes.values()), default=math.inf)

    def oldest_request(self) -> float:
        """The earliest `since` of the requests here, in monotonic seconds; infinity without items. Under the lock."""
        return min((ticket.since for ticket in self._lanes), default=math.inf)

    def take(self) -> _Entry:
        """The next item: one of the lane whose turn it is. Under the lock."""
        ticket, lane = next(iter(self._lanes.items()))
        entry = lane.popleft()
        lane.taken += 1
        ticket.count()
        if not lane:
            del self._lanes[ticket]
        elif lane.taken % TURN == 0:
            self._lanes.move_to_end(ticket)
        self._depth -= 1
        return entry


class CostLine:
    """Line seconds = slope * size + base through a stage's batches, the newest few hundred counting most: least squares
    of the seconds per item, so that a batch of one counts as much as a large one."""

    DECAY = 0.995
    WORTH = 0.03
    DEAR = 0.25

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, size: int, seconds: float) -> None:
        share, per_item = 1 / size, seconds / size
        self._n, self._x, self._y, self._xx, self._xy = (
            self.DECAY * old + new
            for old, new in (
                (self._n, 1),
                (self._x, share),
                (self._y, per_item),
                (self._xx, share * share),
                (self._xy, share * per_item),
            )
        )

    @property
    def terms(self) -> tuple[float, float]:
        """(slope, base) in seconds; base 0 as long as only one size was seen."""
        spread = self._n * self._xx - self._x**2
        if spread > 1e-9 * self._n**2 and self._n > 0:
            base = (self._n * self._xy - self._x * self._y) / spread
            return (self._y - base * self._x) / self._n, base
        return (self._y / self._n if self._n else 0.0), 0.0

    def seconds(self, size: int) -> float:
        """What a batch will take, 0 before any was seen."""
        slope, base = self.terms
        return slope * size + base

    def useful(self, sizes: Sequence[int]) -> int:
        """The smallest of `sizes` at which an item costs at most 3 % (`WORTH`) more than at the largest."""
        slope, base = self.terms
        bound = (1 + self.WORTH) * (slope + base / max(sizes))
        return min((size for size in sizes if slope + base / size <= bound), default=max(sizes))

    def dear(self, size: int, limit: int) -> bool:
        """Whether an item costs over 25 % (`DEAR`) more in a batch of `size` than in one of `limit`."""
        slope, base = self.terms
        return slope + base / size > (1 + self.DEAR) * (slope + base / limit)


class _Slot:
    """Where a batch of a stage can run, and what is in hand there."""

    def __init__(self, run: Work) -> None:
        self.run = run
        self.held: list[_Entry] = []
        self.busy_since: float | None = None


class Stage:
    """Work of one kind, done in batches, and the queues that it serves, the first of them first.

    runs: the stage's work, `list[item] -> list[result]` of equal length, once for each batch that may run at the same
    time. buckets: the batch sizes to choose from; a batch is the largest of them that is there, is worth it (`limit`)
    and ends before the earliest deadline that the smallest could keep. max_passed_over_s: once an item has waited
    longer, the queue of the oldest goes first, whichever it is. least_beside: items that must wait for a batch to start
    while another runs; a thread that would stand idle starts with fewer, beside batches of a multiple of that.
    run_alone: the same work on more cores, for an item that comes while the crew has nothing else to do, and when none
    has come otherwise for a while (`QUIET_S`); what it fails at is tried again as usual. crew: the threads, shared by
    stages that share cores; without it as many as there are runs.
    """

    def __init__(
        self,
        name: str,
        runs: Sequence[Work],
        queues: Sequence[BatchQueue[Any, Any]],
        *,
        buckets: Sequence[int],
        observer: Observer,
        max_passed_over_s: float = 0.2,
        least_beside: int = 1,
        run_alone: Work | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.name = name
        self.queues = tuple(queues)
        self.cost = CostLine()
        self._buckets = sorted(buckets)
        self.limit = self._buckets[-1]
        """The largest batch worth running, once `measure` has seen what batches save."""
        self._observer = observer
        self._max_passed_over_s = max_passed_over_s
        self._least_beside = least_beside
        self._run_alone = run_alone
        self._had_company = -math.inf
        """When an item was last taken while something else was in hand, in monotonic seconds."""
        self._slots = [_Slot(run) for run in runs]
        self._free = list(self._slots)
        self._mailbox: Mailbox | None = None
        self.crew = crew or Crew(len(runs), max_passed_over_s)
        self.crew.add(self)
        self._wake = self.crew.wake
        for queue in self.queues:
            queue.wake = self._wake

    def warm(self, item: Any, *others: Any) -> None:
        """Run every bucket, filled with `item`, and each of `others` alone, so that the first requests do not pay for
        what is done once. Before `start`."""
        for run in self._runs:
            for size in list(self._buckets):
                if not self._fits(run, [item] * size):
                    break
            for other in others:
                run([other])
        if self._run_alone:
            for each in (item, *others):
                self._run_alone([each])

    def measure(self, item: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Time every bucket, filled with `item`. After `warm`. clock: seconds, of this stage's work alone where it can
        be told apart.

        The limit is chosen here and for good, on an idle device. Under load stages share the processor, and how long a
        batch then takes says little of what batching saves.
        """
        alone = CostLine()
        for run in self._runs:
            for size in self._buckets:
                started, begun = time.monotonic(), clock()
                if not self._fits(run, [item] * size):  # others have taken memory since
                    break
                self.cost.add(size, time.monotonic() - started)
                alone.add(size, clock() - begun)
        self.limit = max(alone.useful(self._buckets), min(self._least_beside, self._buckets[-1]))

    def _fits(self, run: Work, items: list[Any]) -> bool:
        """Run a bucket. One that is too much for the device's memory is none of the buckets any more, nor are larger
        ones; the smallest must fit."""
        try:
            run(items)
        except Exception as error:
            if len(items) == self._buckets[0] or not _out_of_memory(error):
                raise
            self._buckets = [smaller for smaller in self._buckets if smaller < len(items)]
            return False
        return True

    @property
    def _runs(self) -> Iterable[Work]:
        """Each once, though several slots may have the same."""
        return dict.fromkeys(slot.run for slot in self._slots)

    def start(self) -> None:
        """Start the crew, if that has not been done. On the event loop whose futures the queues complete."""
        self._mailbox = mailbox()
        self.crew.start()

    @property
    def slots(self) -> int:
        """How many batches may run at once."""
        return len(self._slots)

    @property
    def alive(self) -> bool:
        return self.crew.alive and all(queue.closed is None for queue in self.queues)

    @property
    def busy_since(self) -> float | None:
        """When the longest running batch began, in monotonic seconds; None while none runs."""
        return min((since for slot in self._slots if (since := slot.busy_since) is not None), default=None)

    def abandon(self, error: BaseException) -> None:
        """Answer everything that the stage holds with `error`, and all that comes later. Any thread."""
        with self._wake:
            for queue in self.queues:
                queue.closed = error
            entries = [entry for slot in self._slots for entry in slot.held]
            entries += [queue.take() for queue in self.queues for _ in range(queue.depth)]
        self._deliver([(entry, error) for entry in entries])

    # What a crew asks (`app.crew.Member`).

    @property
    def ready(self) -> bool:
        alone = len(self._free) == len(self._slots)
        return bool(self._free) and self._waiting >= (1 if alone else self._least_beside)

    @property
    def ready_for_idle(self) -> bool:
        whole = all(len(slot.held) % self._least_beside == 0 for slot in self._slots)
        return bool(self._free) and self._waiting > 0 and whole

    @property
    def worth_it(self) -> bool:
        return not self.cost.dear(min(self._waiting, self.limit), self.limit)

    @property
    def oldest(self) -> float:
        return min(queue.oldest() for queue in self.queues)

    @property
    def oldest_request(self) -> float:
        return min(queue.oldest_request() for queue in self.queues)

    @property
    def seconds_waiting(self) -> float:
        """As if all ran in batches of the largest useful size."""
        return self._waiting * self.cost.seconds(self.limit) / self.limit

    def take(self, alone: bool) -> Callable[[], None]:
        slot = self._free.pop()
        now = time.monotonic()
        expired = [entry for queue in self.queues for entry in queue.expire(now)]
        run = None
        if not alone or self._waiting > 1:
            self._had_company = now
        elif now - self._had_company > QUIET_S:
            run = self._run_alone
        size = self._size(now)
        while len(slot.held) < size and (queue := self._next_queue(now)) is not None:
            entry = queue.take()
            if not entry.future.done():  # else whoever waited for it has given up
                slot.held.append(entry)
        return lambda: self._serve(slot, expired, now, run)

    def end(self) -> None:
        self.abandon(StageDied(self.name))

    @property
    def _waiting(self) -> int:
        return sum(queue.depth for queue in self.queues)

    def _serve(self, slot: _Slot, expired: list[_Entry], taken: float, run_alone: Work | None) -> None:
        try:
            self._deliver([(entry, DeadlineExceeded()) for entry in expired])
            for entry in slot.held:
                self._observer.waited(entry.queue.name, taken - entry.since)
            if slot.held:
                self._run_batch(slot, run_alone)
        except BaseException as cause:
            log.exception("stage %s died", self.name)
            error = StageDied(self.name)
            error.__cause__ = cause
            self.abandon(error)
        else:
            with self._wake:
                self._free.append(slot)

    def _size(self, now: float) -> int:
        room = min(self.limit, self._waiting)
        soonest = now + self.cost.seconds(self._buckets[0])  # who cannot make it even so hurries nobody
        deadline = min(queue.earliest_deadline(after=soonest) for queue in self.queues)
        sizes = (size for size in self._buckets if size <= room)
        return max((size for size in sizes if now + self.cost.seconds(size) <= deadline), default=0)

    def _next_queue(self, now: float) -> BatchQueue[Any, Any] | None:
        waiting = [queue for queue in self.queues if queue.depth]
        if len(waiting) > 1:
            oldest = min(waiting, key=lambda queue: queue.oldest())
            if now - oldest.oldest() > self._max_passed_over_s:
                return oldest
        return waiting[0] if waiting else None

    def _run_batch(self, slot: _Slot, run_alone: Work | None) -> None:
        entries = slot.held
        started = slot.busy_since = time.monotonic()
        results = self._attempt(run_alone or slot.run, slot.run, entries)
        ended = time.monotonic()
        slot.busy_since = None
        for ticket in {entry.ticket for entry in entries}:
            queued = min(entry.since for entry in entries if entry.ticket is ticket)
            ticket.runs.append(Run(self.name, queued, started, ended, len(entries)))
        with self._wake:
            slot.held = []
        self._deliver(list(zip(entries, results, strict=True)))
        # Only now, while the event loop wakes up: with one client that saves a tenth of a millisecond for each stage.
        self._observer.ran(self.name, len(entries), ended - started)
        if not run_alone:
            with self._wake:
                self.cost.add(len(entries), ended - started)

    def _attempt(self, run: Work, again: Work, entries: list[_Entry]) -> list[Any]:
        """Results in order, an exception in the place of what failed. A failed batch is run again, by `again`, item by
        item; one that was too much for the device's memory in two halves."""
        try:
            return self._call(run, entries)
        except Exception as error:
            self._failed(error)
            if not _out_of_memory(error):
                return [self._again(again, [entry], StageFailed(self.name))[0] for entry in entries]
            half = (len(entries) + 1) // 2
            parts = [part for part in (entries[:half], entries[half:]) if part]
            return [result for part in parts for result in self._again(again, part, Overloaded(1))]

    def _again(self, run: Work, entries: list[_Entry], failure: Exception) -> list[Any]:
        if all(entry.future.done() for entry in entries):  # the client has gone meanwhile
            return [failure] * len(entries)
        try:
            return self._call(run, entries)
        except Exception as error:
            self._failed(error)
            failure.__cause__ = error
            return [failure] * len(entries)

    def _call(self, run: Work, entries: list[_Entry]) -> list[Any]:
        results = list(run([entry.item for entry in entries]))
        if len(results) != len(entries):
            raise RuntimeError(f"stage {self.name}: {len(results)} results for {len(entries)} items")
        return results

    def _failed(self, error: Exception) -> None:
        log.error("stage %s: a batch failed", self.name, exc_info=error)
        self._observer.failed(self.name)
        let_go(error)  # of every tensor of the failed run: the next attempt needs their memory
        if _device_lost(error):
            raise error  # the stage dies, so that the service says it is unhealthy and is started anew

    def _deliver(self, outcomes: Sequence[tuple[_Entry, Any]]) -> None:
        """Complete futures, all of a batch in one call to the event loop."""

        def complete() -> None:
            for entry, outcome in outcomes:
                if entry.future.done():
                    continue
                if isinstance(outcome, BaseException):
                    entry.future.set_exception(outcome)
                else:
                    entry.future.set_result(outcome)

        if outcomes and self._mailbox is not None:
            self._mailbox.post(complete)


def _device_lost(error: Exception) -> bool:
    """After an illegal access every further call of the process to the device fails."""
    return type(error).__name__ == "AcceleratorError" and "out of memory" not in str(error)


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch here
