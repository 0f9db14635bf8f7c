"""The command line against the arithmetic networks of tests/app/conftest.py, in this process and over real sockets."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner, Result

import app.service
from app.cli.commands import app as commands
from app.main import create_app
from app.service import Service
from app.settings import Settings
from tests.app.conftest import FakePair, Serve

START_S = 120

Dynpose = Callable[..., Result]


class LiveServer:
    """A service behind a port of its own, in a thread."""

    def __init__(self, service: Service, port: int = 0) -> None:
        self.service = service
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning"))
        self._thread = threading.Thread(target=lambda: self._server.run(sockets=[self._socket]))
        self._thread.start()
        end = time.monotonic() + START_S
        while service.unready() is not None:
            assert service.failure is None
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


Live = Callable[..., LiveServer]


@pytest.fixture
def dynpose() -> Dynpose:
    """Runs `dynpose` with these arguments."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(commands, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def calls(
    serve: Serve,  # noqa: ARG001  it puts the arithmetic networks in the place of the bundled ones
    pair_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> dict[str, Callable[[], None]]:
    """Settings for the arithmetic networks in the environment. A function put in under a stage's name is called for
    each picture or person that the stage is given."""
    hooks: dict[str, Callable[[], None]] = {}

    def load(*_: Any) -> FakePair:
        pair = FakePair(None)
        for stage in ("detect", "score", "small", "large"):

            def called(pictures: list[Any], stage: str = stage) -> None:
                for _ in pictures:
                    hooks.get(stage, lambda: None)()

            pair.faults[stage] = called
        return pair

    monkeypatch.setattr(app.service, "load_pair", load)
    for name, value in {
        "PAIR": str(pair_folder),
        "MODE": "fixed",
        "POLICY": "band",
        "MIN_SCORE": "0.3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return hooks


@pytest.fixture
def looked_at(calls: dict[str, Callable[[], None]]) -> Counter[str]:
    """How many pictures and people the stages of this process were given."""
    counted: Counter[str] = Counter()
    for stage in ("detect", "score", "small", "large"):

        def count(stage: str = stage) -> None:
            counted[stage] += 1

        calls[stage] = count
    return counted


@pytest.fixture
def live(calls: dict[str, Callable[[], None]], pair_folder: Path) -> Iterator[Live]:  # noqa: ARG001
    """`live(p=0.3, ...)`: a server with the arithmetic networks and these settings."""
    started: list[LiveServer] = []

    def start(*, port: int = 0, **settings: Any) -> LiveServer:
        service = Service(Settings(_env_file=None, pair=str(pair_folder), **settings))
        started.append(LiveServer(service, port))
        return started[-1]

    yield start
    for server in started:
        server.stop()
