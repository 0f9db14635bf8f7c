"""`Server` alone, around a tiny application in a process of its own: signals, the port, and who still gets an answer.

The application holds `GET /hold` until SIGUSR1, answers anything else at once, and 503 once it was told to drain. What
the process prints says how far it is, so that no test depends on time but that of uvicorn's own clock.
"""

import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG = 30

PROGRAM = """
import asyncio, signal, sys
from app.server import Server

draining = False
release = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, release.set)
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/hold":
        print("held", flush=True)
        await release.wait()
    status = 503 if draining and scope["path"] != "/hold" else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})

class Told(Server):
    def _log_started_message(self, listeners):
        print(listeners[0].getsockname()[1], flush=True)

def drain():
    global draining
    draining = True
    print("draining", flush=True)

delay, grace = map(int, sys.argv[1:])
times = {"drain_delay_s": delay, "grace_s": grace, "patience_s": 30, "keep_alive_s": 5}
Told(app, host="127.0.0.1", port=0, on_drain=drain, **times).run()
print("ended", flush=True)
"""


class Process:
    def __init__(self, delay_s: int, grace_s: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(delay_s), str(grace_s)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.connections: list[http.client.HTTPConnection] = []
        self.port = int(self.line())

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        self.connections.append(connection)
        connection.connect()
        return connection

    def wait_closed(self) -> None:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            try:
                self.connect()
            except ConnectionRefusedError:
                return
            time.sleep(0.02)
        pytest.fail("the port stays open")

    def held(self) -> http.client.HTTPConnection:
        """A connection whose request is being worked on."""
        connection = self.connect()
        connection.request("GET", "/hold")
        assert self.line() == "held"
        return connection


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def run(delay_s: int = 0, grace_s: int = LONG) -> Process:
        started.append(Process(delay_s, grace_s))
        return started[-1]

    yield run
    for server in started:
        for connection in server.connections:
            connection.close()
        server.process.kill()
        server.process.communicate()


def ask(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_admitted_is_answered_after_the_port_has_closed(start: Start, number: int):
    server = start()
    admitted = server.held()
    server.signal(number)
    assert server.line() == "draining"
    server.wait_closed()
    server.signal(signal.SIGUSR1)
    assert admitted.getresponse().status == 200
    assert server.line() == "ended"
    assert server.process.wait(LONG) == 0


def test_who_was_admitted_long_before_is_told_to_close(start: Start):
    server = start(delay_s=10 * LONG)
    admitted = server.held()
    time.sleep(1.5)  # uvicorn makes its headers anew every second
    server.signal(signal.SIGTERM)
    assert server.line() == "draining"
    time.sleep(1.5)  # it looks ten times a second
    server.signal(signal.SIGUSR1)
    assert admitted.getresponse().getheader("connection") == "close"


def test_an_idle_connection_does_not_hold_up_the_end(start: Start):
    server = start()
    idle, fresh = server.connect(), server.connect()
    assert ask(idle) == 200
    server.signal(signal.SIGTERM)
    assert server.process.wait(LONG) == 0
    assert idle.sock.recv(1) == b""
    assert fresh.sock.recv(1) == b""


def test_during_the_delay_old_and_new_connections_are_answered_and_soon_told_to_close(start: Start):
    server = start(delay_s=10 * LONG)
    kept = server.connect()
    assert ask(kept) == 200
    server.signal(signal.SIGTERM)
    assert server.line() == "draining"
    assert ask(kept) == ask(server.connect()) == 503
    end = time.monotonic() + LONG
    while kept.sock is not None and time.monotonic() < end:  # http.client drops a connection told to close
        assert ask(kept) == 503
    assert kept.sock is None


def test_a_second_signal_ends_the_delay_and_waits_for_nobody(start: Start):
    server = start(delay_s=10 * LONG, grace_s=10 * LONG)
    admitted = server.held()
    server.signal(signal.SIGTERM)
    assert server.line() == "draining"
    server.signal(signal.SIGTERM)
    server.process.wait(LONG)
    assert admitted.getresponse().status == 500


def test_what_takes_longer_than_the_grace_is_cut_off_and_logged(start: Start):
    server = start(grace_s=1)
    server.held()
    server.signal(signal.SIGTERM)
    _, log = server.process.communicate(timeout=LONG)
    assert server.process.returncode == 0
    assert "Cancel 1 running task(s)" in log
