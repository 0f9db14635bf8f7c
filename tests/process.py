"""The service as a process of its own: `python -m app` with settings from the environment, on a free port."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ultralytics

ROOT = Path(__file__).parents[1]
PHOTO = (Path(ultralytics.__file__).parent / "assets" / "bus.jpg").read_bytes()
START_S = 120


class Process:
    """Its standard error goes to the file `log`. prefix: a command that starts it, such as `prlimit`."""

    def __init__(self, log: Path, prefix: Sequence[str] = (), **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        settings = {"PORT": str(self.port), "HOST": "127.0.0.1", "DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "app"],
                cwd=ROOT,
                env=os.environ | settings | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            if self.get("/readyz")[0] == 200:
                return
            time.sleep(0.1)
        pytest.fail(f"not ready within {START_S} s: {self.log.read_text()[-3000:]}")

    def get(self, path: str) -> tuple[int, str]:
        return self.ask(urllib.request.Request(self.url + path))

    def pose(self, data: bytes = PHOTO) -> tuple[int, str]:
        return self.ask(urllib.request.Request(self.url + "/pose", data, {"Content-Type": "image/jpeg"}))

    def ask(self, request: urllib.request.Request) -> tuple[int, str]:
        """(status, body), or (0, reason) when the connection was refused."""
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError as error:
            # A reset is what a connection gets that waits to be accepted when the port is closed.
            if isinstance(error.reason, ConnectionRefusedError | ConnectionResetError):
                return 0, "refused"
            raise
        except ConnectionResetError:
            return 0, "refused"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=START_S)

    def metrics(self, *names: str) -> list[float]:
        """Values of samples, all of one moment."""
        lines = dict(line.rsplit(" ", 1) for line in self.get("/metrics")[1].splitlines() if line[0] != "#")
        return [float(lines[name]) for name in names]

    def metric(self, name: str) -> float:
        return self.metrics(name)[0]

    @property
    def memory(self) -> int:
        """Resident bytes."""
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    @property
    def open_files(self) -> int:
        number: int = psutil.Process(self.process.pid).num_fds()
        return number

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Process]


@contextmanager
def processes(folder: Path) -> Iterator[Start]:
    """`start(NAME=value, ...)` starts one; all are gone afterwards."""
    started: list[Process] = []

    def start(prefix: Sequence[str] = (), **environment: str) -> Process:
        started.append(Process(folder / f"server-{len(started)}.log", prefix, **environment))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False
