"""What goes wrong on a bad day. What takes minutes is marked `long` and left to `make faults`; what that measures goes,
a line of JSON a fault, into runs/faults.jsonl."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.service import Service
from app.settings import Settings
from tests.app.cli.conftest import LiveServer
from tests.app.conftest import FakePair, pair_folder
from tests.process import ROOT, Start, processes

__all__ = ["pair_folder"]

RECORD = ROOT / "runs" / "faults.jsonl"

Record = Callable[..., None]
Live = Callable[..., "FakeServer"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(NAME=value, ...)`: the service as it is delivered, in a process of its own."""
    with processes(tmp_path) as start:
        yield start


class FakeServer(LiveServer):
    """A service behind a port of its own whose networks are arithmetic and fail as told."""

    pair: FakePair


@pytest.fixture
def live(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """`live(max_pending_pictures=4, ...)`: one whose thresholds at p = 0.5 are k1 = 0.42 and k2 = 0.52."""
    monkeypatch.setattr("app.service.warm", lambda *_: None)
    started: list[FakeServer] = []

    def start(**settings: Any) -> FakeServer:
        pair = FakePair(None)
        monkeypatch.setattr("app.service.load_pair", lambda *_: pair)
        usual = {"mode": "fixed", "policy": "band", "min_score": 0.3}
        service = Service(Settings(_env_file=None, pair=str(pair_folder), **usual | settings))
        started.append(FakeServer(service))
        started[-1].pair = pair
        return started[-1]

    yield start
    for server in started:
        server.pair.faults.clear()
        server.stop()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """`record(refused_p99_ms=3.1, ...)`: keep what this test measured."""

    def write(**measured: Any) -> None:
        line = {"test": request.node.name, "at": time.strftime("%Y-%m-%dT%H:%M:%S"), **measured}
        RECORD.parent.mkdir(exist_ok=True)
        with RECORD.open("a") as file:
            file.write(json.dumps(line) + "\n")

    return write
