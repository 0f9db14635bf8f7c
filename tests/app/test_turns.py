import threading
import time
from contextlib import suppress

from app.turns import Turns

LONG = 30.0


class Runner:
    """A thread that waits for its turn with so much work, says so, and runs until it is told to end."""

    def __init__(self, turns: Turns, name: str, work: float, order: list[str], *, fails: bool = False):
        self.work = work
        self.runs, self.may_end = threading.Event(), threading.Event()

        def run() -> None:
            with suppress(RuntimeError), turns.take(lambda: self.work):
                order.append(name)
                self.runs.set()
                assert self.may_end.wait(LONG)
                if fails:
                    raise RuntimeError

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self) -> None:
        self.may_end.set()
        self.thread.join(LONG)


def runners(turns: Turns, works: dict[str, float], order: list[str]) -> list[Runner]:
    """One after the other, each only once the one before has a place or waits for one."""
    made = []
    for name, work in works.items():
        waiting = turns.waiting
        made.append(Runner(turns, name, work, order))
        deadline = time.monotonic() + LONG
        while not made[-1].runs.is_set() and turns.waiting == waiting:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    return made


def test_so_many_run_at_once_as_there_are_places():
    order: list[str] = []
    first, second, third = runners(Turns(2, LONG), {"first": 1, "second": 1, "third": 1}, order)
    assert order == ["first", "second"]
    second.end()
    assert third.runs.wait(LONG)
    first.end()
    third.end()


def test_of_those_that_wait_the_one_with_the_most_work_goes_first():
    order: list[str] = []
    works = {"running": 1, "little": 1, "growing": 2, "much": 3}
    running, *waiting = runners(Turns(1, LONG), works, order)
    waiting[1].work = 4  # what came since counts, too
    for runner in waiting:
        runner.may_end.set()
    running.end()
    for runner in waiting:
        runner.end()
    assert order == ["running", "growing", "much", "little"]


def test_who_was_passed_over_for_long_goes_first():
    order: list[str] = []
    running, *waiting = runners(Turns(1, 0), {"running": 1, "little": 1, "much": 3}, order)
    for runner in waiting:
        runner.may_end.set()
    running.end()
    for runner in waiting:
        runner.end()
    assert order == ["running", "little", "much"]


def test_who_fails_leaves_its_place_to_the_next():
    order: list[str] = []
    turns = Turns(1, LONG)
    failing = Runner(turns, "failing", 1, order, fails=True)
    assert failing.runs.wait(LONG)
    (after,) = runners(turns, {"after": 1}, order)
    failing.end()
    after.end()
    assert order == ["failing", "after"]
