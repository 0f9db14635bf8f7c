"""What runs the service is read from deploy/, and tried on two processes with the arithmetic networks of tests/app."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.app.conftest import client, pair_folder, serve, write_pair  # noqa: F401  fixtures

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
START_S = 120


def documents(*path: str) -> list[Any]:
    """The YAML documents of a file in deploy/."""
    return list(yaml.safe_load_all(DEPLOY.joinpath(*path).read_text()))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = START_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The URLs of two processes that listen on the same port of two addresses, as pods do."""
    folder = tmp_path_factory.mktemp("fleet")
    hosts, port = ("127.0.0.1", "127.0.0.2"), free_port()
    settings = {
        "PORT": str(port),
        "PAIR": str(write_pair(folder / "pair")),
        "DEVICE": "cpu",
        "MODE": "fixed",
        "POLICY": "band",
        "MIN_SCORE": "0.3",
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for host in hosts:
        with (folder / host).open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.deploy.server"],
                    cwd=ROOT,
                    env=os.environ | settings | {"HOST": host},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for host, process in zip(hosts, started, strict=True):
            url = f"http://{host}:{port}/readyz"
            wait_for(lambda url=url, process=process: process.poll() is not None or answers(url))
            assert process.poll() is None, (folder / host).read_text()
        yield [f"http://{host}:{port}" for host in hosts]
    finally:
        for process in started:
            process.kill()
            process.wait()
