"""STATE_FILE under kill -9, a full disk and two operators at once: always whole, never a lost change."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.config import ConfigStore
from app.settings import Settings
from models.zoo import read_manifest
from tests.faults.conftest import Live, Record
from tests.process import Process, Start, until

LONG = 60


def change(url: str, p: float, if_match: str = "*") -> tuple[int, dict]:
    """(status, document) of PATCH /config."""
    headers = {"Content-Type": "application/merge-patch+json", "If-Match": if_match}
    request = urllib.request.Request(url + "/config", json.dumps({"p": p}).encode(), headers, method="PATCH")
    try:
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def config(url: str) -> tuple[str, dict]:
    """(ETag, document) of GET /config."""
    with urllib.request.urlopen(url + "/config", timeout=LONG) as answer:
        return answer.headers["ETag"], json.load(answer)


def test_two_who_change_at_once_lose_no_change(live: Live, tmp_path: Path):
    """Each adds a thousandth to p, twenty times, and tries again when the other was faster."""
    server = live(p=0.1, state_file=tmp_path / "state.json")
    refused: list[int] = []

    def add(times: int) -> None:
        while times:
            tag, now = config(server.url)
            status, _ = change(server.url, round(now["p"] + 0.001, 3), tag)
            if status == 200:
                times -= 1
            else:
                refused.append(status)

    both = [threading.Thread(target=add, args=(20,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(LONG)
    _, now = config(server.url)
    assert (now["p"], now["version"]) == (0.14, 41)
    assert set(refused) <= {412}
    assert json.loads((tmp_path / "state.json").read_text()).items() >= {"p": 0.14, "version": 41}.items()


def test_on_a_full_disk_the_change_holds_and_the_old_file_stays_whole(live: Live, tmp_path: Path):
    state = tmp_path / "state.json"
    server = live(state_file=state)
    assert change(server.url, 0.2)[1]["warnings"] == []
    full = tmp_path / "state.json.new"
    full.symlink_to("/dev/full")
    status, now = change(server.url, 0.3)
    assert (status, now["p"]) == (200, 0.3)
    assert "No space left on device" in now["warnings"][0]
    assert json.loads(state.read_text())["p"] == 0.2
    full.unlink()
    assert change(server.url, 0.4)[1]["warnings"] == []
    assert json.loads(state.read_text())["p"] == 0.4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "dynpose-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))


@pytest.mark.long
def test_a_disk_that_fills_up_under_the_service_costs_only_a_warning(
    start: Start, small_disk: Path, record: Record
):
    server = start(STATE_FILE=str(small_disk / "state.json"))
    server.wait_ready()
    assert change(server.url, 0.2)[1]["warnings"] == []
    filler = small_disk / "filler"
    fill(filler)
    status, now = change(server.url, 0.3)
    assert (status, now["p"]) == (200, 0.3)
    (warning,) = now["warnings"]
    assert server.pose()[0] == 200
    assert json.loads((small_disk / "state.json").read_text())["p"] == 0.2
    filler.unlink()
    assert change(server.url, 0.4)[1]["warnings"] == []
    assert server.stop() == 0
    again = start(STATE_FILE=str(small_disk / "state.json"))
    assert until(lambda: again.get("/config")[0] == 200, LONG)
    assert config(again.url)[1].items() >= {"p": 0.4, "source": "state", "warnings": []}.items()
    record(warning=warning, kept_after_room=0.4)


def store(pair_folder: Path, state: Path) -> ConfigStore:
    settings = Settings(_env_file=None, pair=str(pair_folder), state_file=state)
    return ConfigStore(settings, read_manifest(str(pair_folder)))


def killed_while_it_changes(pair_folder: Path, state: Path, after_s: float) -> int:
    """Fork a process that changes p as fast as it can, kill it after some time, and return the last version that it had
    told of."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(told)
            kept = store(pair_folder, state)
            for number in range(1, 10**6):
                kept.patch(json.dumps({"p": number % 1000 / 1000}).encode(), None)
                os.write(tells, f"{kept.policy.snapshot.version}\n".encode())
        finally:
            os._exit(1)
    os.close(tells)
    with os.fdopen(told, "rb") as file:
        first = file.readline()  # it is at work
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = (first + file.read()).split(b"\n")
    whole = [int(line) for line in lines[:-1]]
    return whole[-1] if whole else 0


def survive(pair_folder: Path, state: Path, kills: int) -> tuple[int, int]:
    """(kills, changes that were told of), with a look at what is left after each kill."""
    draw = random.Random(0)
    told = 0
    for _ in range(kills):
        told = max(told, killed_while_it_changes(pair_folder, state, draw.uniform(0, 0.02)))
        left = store(pair_folder, state)
        assert left.source == "state"
        assert left.warnings == []
        assert left.policy.snapshot.version >= told
    return kills, told


def test_a_process_that_is_killed_while_it_changes_leaves_the_last_change_whole(
    pair_folder: Path, tmp_path: Path
):
    assert survive(pair_folder, tmp_path / "state.json", 5)[1] > 0


@pytest.mark.long
def test_hundreds_of_kills_never_leave_half_a_state(pair_folder: Path, tmp_path: Path, record: Record):
    kills, changes = survive(pair_folder, tmp_path / "state.json", 300)
    record(kills=kills, changes=changes, damaged=0, lost=0)


@pytest.mark.long
def test_a_service_killed_while_it_is_patched_comes_back_with_what_it_had_answered(
    start: Start, tmp_path: Path, record: Record
):
    state = tmp_path / "state.json"
    answered = [1]

    def patch(server: Process) -> None:
        for number in range(10**6):
            try:
                answered.append(change(server.url, number % 1000 / 1000)[1]["version"])
            except OSError:
                return

    found = []
    for _ in range(3):
        server = start(STATE_FILE=str(state))
        assert until(lambda: server.get("/config")[0] == 200, LONG)  # noqa: B023
        found.append(config(server.url)[1]["version"])
        assert found[-1] >= max(answered)
        threads = [threading.Thread(target=patch, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        server.process.kill()
        for thread in threads:
            thread.join(LONG)
    last = start(STATE_FILE=str(state))
    assert until(lambda: last.get("/config")[0] == 200, LONG)
    kept = config(last.url)[1]
    assert (kept["source"], kept["warnings"]) == ("state", [])
    assert kept["version"] >= max(answered)
    record(kills=3, changes_answered=max(answered), version_afterwards=kept["version"])
