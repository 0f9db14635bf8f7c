"""The threads that run the stages' batches, the one that loads their networks, and how threads tell the event loop."""

import asyncio
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NoReturn, Protocol, TypeVar

log = logging.getLogger("dynpose.crew")

T = TypeVar("T")

LOADER = "loader"


class Member(Protocol):
    """What a crew needs to know of a stage. All under the crew's lock, but for `end`."""

    @property
    def ready(self) -> bool:
        """Whether a batch could start now."""

    @property
    def ready_for_idle(self) -> bool:
        """Whether one could, if only for a thread that has nothing else to do."""

    @property
    def worth_it(self) -> bool:
        """Whether a batch now would cost an item hardly more than one that waits for further items."""

    @property
    def oldest(self) -> float:
        """Since when something waits, in monotonic seconds."""

    @property
    def oldest_request(self) -> float:
        """The earliest `since` of the requests with something here, in monotonic seconds."""

    @property
    def seconds_waiting(self) -> float:
        """Seconds, roughly, that what waits will take."""

    def take(self, alone: bool) -> Callable[[], None]:
        """The next batch, which runs when it is called (without the lock) and then raises nothing. alone: the other
        threads have nothing to do."""

    def end(self) -> None:
        """There will be no more batches."""


class Crew:
    """As many threads as may run networks at once. Each takes the next batch of whichever stage is ready: the one with
    the most work, until something has waited in its queue for longer than `max_wait_s`, and then that of the
    oldest request, so that what was begun is finished before more is. For so long a batch that is not worth it yet
    gives way to others.

    More threads than cores would only slow each other down, and a thread for each stage would often have to be woken
    while another runs out of work. What waits meanwhile gathers into a larger batch.

    niceness: by how much the threads give way to others of the process, such as the event loop, and of the machine.
    """

    def __init__(self, threads: int, max_wait_s: float, niceness: int = 0) -> None:
        self.wake = threading.Condition()
        """Guards all queues of all stages; notified when there may be something to do."""
        self._size = threads
        self._max_wait_s = max_wait_s
        self._niceness = niceness
        self._stages: list[Member] = []
        self._threads: list[threading.Thread] = []
        self._working = 0
        self._idle = 0
        self._draining = False

    def add(self, stage: Member) -> None:
        """Before `start`."""
        self._stages.append(stage)

    def start(self) -> None:
        """Start the threads, unless they are."""
        if not self._threads:
            self._working = self._size
            self._threads = [
                threading.Thread(target=self._work, name=f"crew-{number}", daemon=True)
                for number in range(self._size)
            ]
            for thread in self._threads:
                thread.start()

    def drain(self) -> None:
        """Let the threads end once no batch can start. Returns at once; see `join`."""
        with self.wake:
            self._draining = True
            self.wake.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads' end, for so long in all."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def alive(self) -> bool:
        """Whether none of the threads has ended."""
        return all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        _give_way(self._niceness)
        drained = False
        try:
            while (run := self._next()) is not None:
                run()
                del run  # it holds the batch, and the next may be long in coming
            drained = True
        finally:
            with self.wake:
                self._working -= 1
                over = self._working == 0 or not drained
            if over:
                for stage in self._stages:
                    stage.end()

    def _next(self) -> Callable[[], None] | None:
        """The next batch, when there is one; None once drained."""
        with self.wake:
            while not (ready := self._ready()):
                if self._draining:
                    return None
                self._idle += 1
                self.wake.wait()
                self._idle -= 1
            run = self._choose(ready).take(alone=len(ready) == 1 and self._idle == self._size - 1)
            if self._ready():
                self.wake.notify()
            return run

    def _ready(self) -> list[Member]:
        return [stage for stage in self._stages if stage.ready] or [
            stage for stage in self._stages if stage.ready_for_idle
        ]

    def _choose(self, ready: list[Member]) -> Member:
        since = time.monotonic() - self._max_wait_s
        stages = [stage for stage in ready if stage.worth_it or stage.oldest < since] or ready
        if any(stage.oldest < since for stage in stages):
            return min(stages, key=lambda stage: stage.oldest_request)
        return max(stages, key=lambda stage: stage.seconds_waiting)


def _give_way(niceness: int) -> None:
    """Let this thread run after others. Only Linux has a niceness for each thread."""
    if niceness and sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)


class Mailbox:
    """Calls from other threads to an event loop. However many come before it is awake, they wake it once: to be woken
    costs a system call, in which it would let go of the interpreter. After the loop's end they are dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def post(self, call: Callable[[], object]) -> None:
        """Any thread."""
        self._calls.append(call)
        if not self._woken and (loop := self._loop()) is not None:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self._open)
            except RuntimeError:  # closed
                self._calls.clear()

    def _open(self) -> None:
        self._woken = False  # first: whatever comes from now on may wake the loop once more
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception:  # the others shall be heard
                log.exception("a call from another thread failed")


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = weakref.WeakKeyDictionary()


def mailbox() -> Mailbox:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _mailboxes:
        _mailboxes[loop] = Mailbox(loop)
    return _mailboxes[loop]


def let_go(error: BaseException | None) -> None:
    """Of what the frames hold that `error` and its causes came through, a picture perhaps: it would stay until the
    garbage collector comes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def in_pool(pool: Executor, work: Callable[..., T], *arguments: Any) -> "asyncio.Future[T]":
    """As `loop.run_in_executor`, by way of the mailbox."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    letters = mailbox()
    call = [functools.partial(work, *arguments)]
    # Whoever has gone leaves nothing behind, while what the pool is to do may wait for long yet.
    future.add_done_callback(lambda done: call.clear() if done.cancelled() else None)

    def run() -> None:
        try:
            begun = call.pop()
        except IndexError:
            return
        if future.cancelled():
            return
        try:
            letters.post(functools.partial(_settle, future, begun(), None))
        except BaseException as error:  # whatever it is, whoever waits is told
            let_go(error)
            letters.post(functools.partial(_settle, future, None, error))

    def dropped(submitted: Future[None]) -> None:
        if submitted.cancelled():
            letters.post(future.cancel)

    pool.submit(run).add_done_callback(dropped)
    return future


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


async def in_daemon_thread(work: Callable[..., T], *arguments: Any) -> T:
    """As `asyncio.to_thread`, but the loop's end does not wait for it: what converts and compiles networks takes up to
    a minute and cannot be stopped. Who uses it ends the process by `leave`."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # whatever it is, whoever waits is told
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name=LOADER).start()
    return await asyncio.wrap_future(future)


def leave(code: int) -> NoReturn:
    """As `sys.exit`. Where a loader runs, without the interpreter's own end, below which it would abort the process."""
    if any(thread.name == LOADER for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
