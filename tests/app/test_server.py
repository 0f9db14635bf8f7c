"""The life of the real process: start, drain, stop. A bundled pair, a port of its own, signals and sockets."""

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.zoo.catalog import cache_folder
from models.zoo.manifest import EMBEDDED
from tests.process import PHOTO, START_S, Process, Start, processes, until

NO_NETWORK = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
        with open({log!r}, "a") as log:
            log.write(repr(address) + "\\n")
        raise OSError("no network in this test")
    return _connect(self, address)
socket.socket.connect = connect
def getaddrinfo(host, *arguments, _real=socket.getaddrinfo, **options):
    if host not in (None, "", "127.0.0.1", "localhost", "0.0.0.0"):
        with open({log!r}, "a") as log:
            log.write(repr(host) + "\\n")
        raise socket.gaierror("no network in this test")
    return _real(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with processes(tmp_path) as start:
        yield start


def test_sigterm_under_load_answers_all_that_was_admitted_and_refuses_the_rest(start: Start):
    server = start()
    server.wait_ready()
    answers: list[tuple[int, str]] = []
    clients = [threading.Thread(target=lambda: answers.append(server.pose())) for _ in range(16)]
    admitted: list[float] = []

    def busy() -> bool:
        admitted[:] = server.metrics("dynpose_in_flight", 'dynpose_requests_total{status="200"}')
        return admitted[0] >= 8

    for thread in clients:
        thread.start()
    assert until(busy)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    for thread in clients:
        thread.join(60)
    statuses = Counter(status for status, _ in answers)
    assert statuses[200] >= sum(admitted)
    assert set(statuses) <= {200, 503, 0}
    assert len(answers) == len(clients)
    assert all(json.loads(body)["images"][0]["people"] for status, body in answers if status == 200)


def test_a_delay_keeps_the_port_open_and_says_draining(start: Start):
    server = start(DRAIN_DELAY_S="60")
    server.wait_ready()
    server.process.send_signal(signal.SIGTERM)
    assert until(lambda: server.get("/readyz")[0] == 503)
    status, body = server.pose()
    assert (status, json.loads(body)["code"]) == (503, "draining")
    assert server.get("/healthz")[0] == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0


def test_a_signal_while_modules_are_imported_ends_the_process(start: Start):
    """The kernel drops a signal to the first process of a container that has no handler for it."""
    server = start()
    status = Path(f"/proc/{server.process.pid}/status")

    def caught() -> int:
        (mask,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        return int(mask, 16) >> (signal.SIGTERM - 1) & 1

    assert until(caught)
    assert server.log.read_text() == ""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0


def test_a_signal_while_networks_are_loaded_waits_for_none_of_them(start: Start, tmp_path: Path):
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))
    (folder / "detector.safetensors").unlink()
    os.mkfifo(folder / "detector.safetensors")  # whoever reads it waits for ever
    server = start(PAIR=str(folder))
    assert until(lambda: server.get("/healthz")[0] == 200)
    assert server.get("/readyz")[0] == 503
    assert server.stop() == 0


def test_it_serves_without_network_and_home_and_leaves_only_converted_networks_behind(
    start: Start, tmp_path: Path
):
    home, site, attempts = tmp_path / "home", tmp_path / "site", tmp_path / "attempts"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    site.mkdir()
    home.mkdir(mode=0o500)
    (site / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(attempts)))
    server = start(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / "config"),
        DYNPOSE_CACHE=str(cache_folder()),
        PYTHONPATH=str(site),
        TMPDIR=str(temporary),
    )
    server.wait_ready()
    assert server.pose()[0] == 200
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"uvicorn.error", "dynpose", "dynpose.server"} <= {line["logger"] for line in lines}
    assert [line["status"] for line in lines if line.get("path") == "/pose"] == [200]
    assert not attempts.exists()
    assert list(home.iterdir()) == list(temporary.iterdir()) == []


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with room for four pictures, half a second of patience with bodies, and one with idle connections."""
    with processes(tmp_path_factory.mktemp("strict")) as start:
        server = start(MAX_PENDING_PICTURES="4", BODY_TIMEOUT_S="0.5", KEEP_ALIVE_S="1", WEB_CONCURRENCY="")
        server.wait_ready()
        yield server


def test_a_client_that_hangs_up_frees_its_place(strict: Process):
    server = strict
    head = (
        f"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
    )
    before = server.metric("dynpose_cancelled_total")
    left = 0.0
    for _ in range(20):  # whether a request is still running when its client leaves is a race; a few will be
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
        for connection in connections:
            connection.sendall(head.encode() + PHOTO)
        until(lambda: server.metric("dynpose_in_flight") > 0, 2)
        for connection in connections:
            connection.close()
        assert until(lambda: server.metric("dynpose_in_flight") == 0)
        left = server.metric("dynpose_cancelled_total") - before
        if left:
            break
    assert left > 0
    assert server.pose()[0] == 200


def test_a_body_that_trickles_in_is_408_and_one_cut_short_is_forgotten(strict: Process):
    server = strict
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\nab"
        )
        answer = connection.makefile("rb").read().decode()
    assert answer.startswith("HTTP/1.1 408")
    assert '"timeout"' in answer
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\nab"
        )
    assert server.pose()[0] == 200


def test_a_connection_rests_for_as_long_as_was_set(strict: Process):
    with socket.create_connection(("127.0.0.1", strict.port), timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        assert connection.recv(4096) == b""
        assert time.monotonic() - begun > 0.9


def exchange(folder: Path, one: str, other: str) -> None:
    """Let the manifest name `other`, with its right hash, where it named `one`."""
    manifest = json.loads((folder / "pair.json").read_text())
    entries = {entry["file"]: entry for entry in manifest.values() if isinstance(entry, dict)}
    entries[one] |= {key: entries[other][key] for key in ("file", "sha256")}
    (folder / "pair.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "pair.json").write_text("{}"), "pair.json"),
        (lambda folder: exchange(folder, "small.safetensors", "router.safetensors"), "does not fit"),
        (lambda folder: (folder / "calibration.json").write_text("{}"), "calibration"),
    ],
)
def test_a_damaged_pair_ends_the_process_with_one_clear_line(start: Start, tmp_path: Path, damage, says: str):
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))
    damage(folder)
    server = start(PAIR=str(folder))
    assert server.process.wait(START_S) == 1
    last = server.log.read_text().splitlines()[-1]
    assert last.startswith("dynpose cannot start: ")
    assert says in last
    assert "Traceback" not in server.log.read_text()


def test_a_wrong_setting_ends_the_process_with_one_line_that_names_it(start: Start):
    server = start(P="50")
    assert server.process.wait(START_S) == 1
    text = server.log.read_text().strip()
    assert text.startswith("dynpose cannot start: P: ")
    assert len(text.splitlines()) == 1


def test_a_port_that_is_taken_ends_the_process_and_is_named(start: Start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start(PORT=str(port))
        assert server.process.wait(START_S) == 1
    assert f"{port}" in server.log.read_text()
