"""Networks that raise and stages that die: who is hurt, and what the service says of itself."""

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch import Tensor

from tests.app.conftest import picture_of
from tests.faults.conftest import FakeServer, Live
from tests.faults.wire import answer, connect, head
from tests.process import until

LONG = 60
EASY, HARD, POISON = 0.41, 0.47, 0.5
STAGES = ("detect", "score", "small", "large")


def ask(server: FakeServer, data: bytes) -> tuple[int, Any]:
    with connect(server.port) as client:
        client.sendall(head(len(data)) + data)
        return answer(client)


def get(server: FakeServer, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=LONG) as answered:
            return answered.status, json.load(answered)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Held:
    """A stage whose first batch waits until `queue` others have come, and which then does `work` with each batch."""

    def __init__(self, server: FakeServer, stage: str, work: Any) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        self._work = work
        server.pair.faults[stage] = self
        self._queues: list[Any] = [q for s in server.service.stages if s.name == stage for q in s.queues]
        if stage == "detect":
            self._queues.append(server.service.ahead)

    def __call__(self, pictures: list[Tensor]) -> None:
        self.entered.set()
        assert self.release.wait(LONG)
        self.sizes.append(len(pictures))
        self._work(pictures)

    def waiting(self) -> int:
        return sum(queue.depth for queue in self._queues)


@pytest.fixture(autouse=True)
def one_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every thread would soon be held in the stage, and nobody could come to its queue."""
    monkeypatch.setattr("app.service.side_by_side", lambda _: 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_network_that_raises_on_one_item_of_a_batch_fails_only_whose_item_it_is(live: Live, stage: str):
    server = live()
    difficulty = EASY if stage == "small" else HARD
    good, bad = picture_of([difficulty]), picture_of([difficulty] * 2)

    def raise_on_the_wide_one(pictures: list[Tensor]) -> None:
        if any(picture.shape[1] > 60 for picture in pictures):
            raise RuntimeError("a device error of /secret/path")

    held = Held(server, stage, raise_on_the_wide_one)
    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(ask, server, good)
        assert held.entered.wait(LONG)
        poisoned = clients.submit(ask, server, bad)
        others = [clients.submit(ask, server, good) for _ in range(6)]
        assert until(lambda: held.waiting() >= 7)
        held.release.set()
        assert [one.result()[0] for one in (first, *others)] == [200] * 7
        status, told = poisoned.result()
    assert (
        max(held.sizes) > 1 or stage == "detect"
    )  # they did share a batch; a CPU's detector takes one at a time
    assert (status, told["code"]) == (500, "internal")
    assert "secret" not in json.dumps(told)
    assert get(server, "/readyz")[0] == 200


@pytest.mark.parametrize("stage", STAGES)
def test_when_a_stage_dies_all_that_waits_is_answered_and_the_service_says_why(live: Live, stage: str):
    server = live()
    data = picture_of([EASY if stage == "small" else HARD])

    def die(_: list[Tensor]) -> None:
        raise SystemExit

    held = Held(server, stage, die)
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(ask, server, data)]
        assert held.entered.wait(LONG)
        asked += [clients.submit(ask, server, data) for _ in range(7)]
        assert until(lambda: held.waiting() == 7)
        held.release.set()
        answers = [one.result() for one in asked]
    assert {(status, told["code"]) for status, told in answers} == {(500, "internal")}
    for path in ("/readyz", "/healthz"):
        status, told = get(server, path)
        assert status == 503
        assert stage in told["reason"]
    status, told = ask(server, data)
    assert (status, told["code"]) == (503, "not_ready")
    assert server.service.admission.pictures == server.service.admission.bytes == 0
