"""Clients that hang up, dawdle or only sit there: they cost nobody else anything, and nothing is left of them."""

import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from app.intake import to_picture
from tests.app.conftest import picture_of
from tests.faults.conftest import FakeServer, Live, Record
from tests.faults.wire import answer, connect, head
from tests.process import PHOTO, Start, until

LONG = 60
EASY, HARD = 0.41, 0.47
PEOPLE = picture_of([EASY, HARD])


class Gate:
    """Holds whoever comes through until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.entered.set()
        assert self.open.wait(LONG)


def metric(server: FakeServer, name: str) -> float:
    return server.service.metrics.registry.get_sample_value(f"dynpose_{name}") or 0.0


def idle(server: FakeServer) -> bool:
    """Nothing is left of anybody's request: neither room, nor a place in a queue."""
    service = server.service
    depths = [service.ahead.depth, *(queue.depth for stage in service.stages for queue in stage.queues)]
    held = (service.admission.pictures, service.admission.bytes, metric(server, "in_flight"))
    return held == (0, 0, 0) and not any(depths)


def ask(server: FakeServer, data: bytes = PEOPLE) -> int:
    with connect(server.port) as client:
        client.sendall(head(len(data)) + data)
        return answer(client)[0]


STAGES = ("detect", "score", "small", "large")


@pytest.mark.parametrize("stage", ["decode", *STAGES])
def test_a_client_that_hangs_up_while_its_picture_is_worked_on_leaves_nothing_behind(
    live: Live, monkeypatch: pytest.MonkeyPatch, stage: str
):
    server, gate = live(), Gate()
    ran: list[str] = []
    if stage == "decode":
        monkeypatch.setattr("app.routes.pose.to_picture", lambda *work: gate(*work) or to_picture(*work))
    for name in STAGES:
        count = lambda pictures, name=name: ran.extend([name] * len(pictures))  # noqa: E731
        server.pair.faults[name] = gate if name == stage else count
    with connect(server.port) as client:
        client.sendall(head(len(PEOPLE)) + PEOPLE)
        assert gate.entered.wait(LONG)
    assert until(lambda: idle(server))  # while the stage is still busy
    assert metric(server, "cancelled_total") == 1
    gate.open.set()
    assert ask(server) == 200
    whole = Counter(detect=1, score=2, small=1, large=1)
    before = {"decode": Counter(), "detect": Counter(), "score": Counter(detect=1)}
    most = whole + before.get(stage, Counter(detect=1, score=2))
    if stage in ("small", "large"):
        most["large" if stage == "small" else "small"] += 1  # it may have run while the other one was held
    del whole[stage]
    assert whole <= Counter(ran) <= most


@pytest.mark.parametrize(
    ("settings", "path"), [({}, "/pose?deadline_ms=1000"), ({"deadline_ms": 1000}, "/pose")]
)
def test_nobody_waits_for_a_stage_at_work_beyond_the_deadline(
    live: Live, settings: dict[str, int], path: str
):
    server, gate = live(**settings), Gate()
    server.pair.faults["large"] = gate
    try:
        with connect(server.port) as client:
            client.settimeout(LONG / 2)  # before the gate gives way
            client.sendall(head(len(PEOPLE), path=path) + PEOPLE)
            assert answer(client)[0] == 504
    finally:
        gate.open.set()
    assert until(lambda: idle(server))
    assert ask(server) == 200


def test_a_client_that_hangs_up_before_its_body_is_whole_leaves_nothing_behind(live: Live):
    server = live()
    for sent in (1, len(PEOPLE) // 2, len(PEOPLE) - 1):
        with connect(server.port) as client:
            client.sendall(head(len(PEOPLE)) + PEOPLE[:sent])
            assert until(lambda: server.service.admission.bytes > 0)
        assert until(lambda: idle(server))
    assert metric(server, "cancelled_total") == 3
    assert ask(server) == 200


def test_requests_in_one_go_are_answered_in_their_order(live: Live):
    server = live()
    asked = [picture_of([HARD] * people) for people in (1, 2, 3, 2)]
    with connect(server.port) as client:
        client.sendall(b"".join(head(len(data)) + data for data in asked))
        file = client.makefile("rb")
        found = []
        for _ in asked:
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.strip().lower().split(b": ") for line in iter(file.readline, b"\r\n"))
            document = json.loads(file.read(int(headers[b"content-length"])))
            found.append(len(document["images"][0]["people"]))
    assert found == [1, 2, 3, 2]


def test_who_sends_a_large_body_slowly_keeps_nobody_else_out(live: Live):
    server = live(max_body_bytes=10_000_000, max_image_bytes=10_000_000, max_pending_bytes=30_000_000)
    clients = [connect(server.port) for _ in range(10)]
    for client in clients:
        client.sendall(head(10_000_000) + b"\xff\xd8")
    assert until(lambda: server.service.admission.bytes > 0)
    assert ask(server) == 200
    for client in clients:
        client.close()
    assert until(lambda: idle(server))


def trickle(clients: list[socket.socket], data: bytes, over: Callable[[], bool]) -> None:
    """Each client sends a byte a second, until the server has had enough of it."""
    left = list(clients)
    for at in range(len(data)):
        for client in list(left):
            try:
                client.sendall(data[at : at + 1])
            except OSError:
                left.remove(client)
        if not left or over():
            return
        time.sleep(1)


@pytest.mark.long
def test_slow_clients_are_given_up_while_others_are_served(start: Start, record: Record):
    """A byte a second in the head, a byte a second in the body, and answers that nobody reads."""
    patience_s = 4
    server = start(BODY_TIMEOUT_S=str(patience_s), MAX_PENDING_PICTURES="16")
    server.wait_ready()
    assert server.pose()[0] == 200
    assert until(lambda: server.metric("dynpose_in_flight") == 0)
    files = server.open_files
    bodies, heads = [connect(server.port) for _ in range(50)], [connect(server.port) for _ in range(50)]
    deaf = [connect(server.port, window=4096) for _ in range(10)]
    for client in bodies:
        client.sendall(head(len(PHOTO)))
    for client in deaf:
        client.sendall(head(len(PHOTO), "image/jpeg", "/pose?render=overlay") + PHOTO)
    begun = time.monotonic()
    served: list[tuple[int, float]] = []
    over = threading.Event()

    def others() -> None:
        while not over.is_set():
            since = time.monotonic()
            served.append((server.pose()[0], time.monotonic() - since))

    threads = [
        threading.Thread(target=others),
        threading.Thread(target=trickle, args=(bodies, PHOTO, over.is_set)),
        threading.Thread(target=trickle, args=(heads, head(0), over.is_set)),
    ]
    for thread in threads:
        thread.start()
    gone = until(lambda: server.open_files <= files + 1, LONG)  # one for the other's request
    gone_s = time.monotonic() - begun
    over.set()
    for thread in threads:
        thread.join(LONG)
    assert gone
    assert {answer(client)[0] for client in bodies} <= {408, 0}
    for client in (*bodies, *heads, *deaf):
        client.close()
    assert {status for status, _ in served} == {200}
    assert until(lambda: server.metric("dynpose_in_flight") == 0)
    record(
        slow_clients=len(bodies) + len(heads) + len(deaf),
        patience_s=patience_s,
        all_closed_after_s=round(gone_s, 1),
        others_served=len(served),
        others_slowest_s=round(max(seconds for _, seconds in served), 2),
    )


@pytest.mark.long
def test_two_thousand_idle_connections_keep_nobody_out(start: Start, record: Record):
    """The service begins with the usual limit of 1,024 open files."""
    many, patience_s = 2000, 10
    allow(2 * many)
    server = start(prefix=["prlimit", "--nofile=1024:"], BODY_TIMEOUT_S=str(patience_s))
    server.wait_ready()
    assert server.pose()[0] == 200
    files, memory = server.open_files, server.memory
    clients = [connect(server.port) for _ in range(many)]
    assert until(lambda: server.open_files >= files + many)
    used = server.memory - memory
    statuses = Counter(server.pose()[0] for _ in range(10))
    assert statuses == {200: 10}
    assert until(lambda: server.open_files <= files, 4 * patience_s)
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    record(
        idle_connections=many,
        served_meanwhile=statuses[200],
        bytes_each=round(used / many),
        memory_mb=round(memory / 1e6),
        closed_within_s=2 * patience_s,
    )


def allow(files: int) -> None:
    """Let this process have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        pytest.skip(f"needs {files} open files, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))


def test_a_deadline_that_a_client_asks_for_counts_while_its_body_arrives(live: Live):
    server = live()
    with connect(server.port) as client:
        client.sendall(head(len(PEOPLE), path="/pose?deadline_ms=200") + PEOPLE[:100])
        assert answer(client)[0] == 504
        assert answer(client) == (0, None)  # the connection has ended: the rest of the body is not waited for
    assert until(lambda: idle(server))
