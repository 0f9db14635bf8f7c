"""Who is measured: each contender as processes of its own, started once and kept beside the others."""

import asyncio
import contextlib
import importlib.util
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.settings import Settings
from benchmarks.client import Client
from benchmarks.pictures import MEDIA_TYPE, Post
from benchmarks.processes import Started, Usage, free_port
from benchmarks.servers import library_files

ROOT = Path(__file__).parents[1]
READY_S = 300


class NotReady(Exception):
    """A contender did not come up; the message names its log."""


@dataclass(frozen=True)
class Setup:
    """What contenders are started with. out: folder of their logs."""

    data: Path
    split: str
    pair: str
    peers: Path
    initial: Path
    out: Path


@dataclass(frozen=True)
class Contender:
    """kind: the service itself, another server with `POST /pose`, or loops without a server, `processes` of them.
    restless: it polls when nobody asks it anything, and is held (SIGSTOP) while others are
    measured. turns: whether p can be turned; fixed: the p that it has where it cannot. how: what it is, as a clause."""

    name: str
    kind: Literal["service", "server", "loops"]
    how: str
    turns: bool = False
    fixed: float | None = None
    processes: int = 1
    packages: tuple[str, ...] = ()
    restless: bool = False

    def missing(self, setup: Setup) -> str | None:
        """Why it cannot be measured here."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                return f"needs the package {package}"
        for path in library_files(self.name, setup.peers, setup.initial):
            if not path.is_file():
                return f"needs {path.name}"
        return None


def contenders(cores: int) -> list[Contender]:
    return [
        Contender("service", "service", "this service over HTTP", turns=True),
        Contender(
            "bound",
            "loops",
            "the service's networks called back to back at their best batch, plus decoding, "
            f"in {cores} processes of one thread, without HTTP, queues or load generator",
            turns=True,
            processes=cores,
        ),
        Contender(
            "naive",
            "server",
            "FastAPI, PyTorch eager float32, the large net only, one crop at a time",
            fixed=1.0,
        ),
        Contender(
            "litserve",
            "server",
            f"LitServe, one LitAPI of batches of 8 pictures waited for at most 10 ms, {cores} workers of one thread, "
            "the same networks in OpenVINO, routed at p = 0.5",
            fixed=0.5,
            packages=("litserve",),
            restless=True,
        ),
        Contender(
            "ray-serve",
            "server",
            "Ray Serve, one deployment for each network with @serve.batch of 8 and one ingress, "
            "the same networks in OpenVINO, routed at p = 0.5",
            fixed=0.5,
            packages=("ray",),
        ),
        Contender(
            "rtmlib",
            "loops",
            "a loop as in rtmlib over ONNX Runtime: RTMDet-nano and PP-TinyPose 256x192, one person at a time",
            packages=("onnxruntime",),
        ),
        Contender("yolo", "loops", "ultralytics' YOLOv8n-pose, `predict` in PyTorch, one picture at a time"),
        Contender("yolo-openvino", "loops", "YOLOv8n-pose in OpenVINO as the service's own networks are"),
    ]


MODULES = {"naive": "naive", "litserve": "lit", "ray-serve": "ray_batch"}


class Running:
    """A contender whose processes run."""

    def __init__(self, contender: Contender, processes: Sequence[Started], setup: Setup) -> None:
        self.contender = contender
        self.processes = processes
        self.setup = setup
        self.started = time.monotonic()

    def look(self) -> None:
        for process in self.processes:
            process.look()

    def usage(self) -> Usage:
        each = [process.usage() for process in self.processes]
        return Usage(sum(use.cpu_seconds for use in each), sum(use.resident_mib for use in each))

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """While it is measured; a restless one is held again afterwards."""
        for process in self.processes if self.contender.restless else ():
            process.go_on()
        try:
            yield
        finally:
            self.hold()

    def hold(self) -> None:
        for process in self.processes if self.contender.restless else ():
            process.hold()

    async def stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in self.processes))

    async def wait_for(self, ready: Callable[[], Awaitable[bool]]) -> float:
        """Seconds from the start until `ready`. Raises NotReady."""
        while time.monotonic() - self.started < READY_S:
            if not all(process.alive for process in self.processes):
                break
            if await ready():
                return time.monotonic() - self.started
            await asyncio.sleep(0.2)
        raise NotReady(f"{self.contender.name} did not start, see {self.processes[0].log}")


class Server(Running):
    """A server with `POST /pose`."""

    def __init__(self, contender: Contender, setup: Setup) -> None:
        port = free_port()
        log = setup.out / f"{contender.name}.log"
        if contender.kind == "service":
            # Defaults but for these, in a folder without `.env`: other contenders have no settings, and a STATE_FILE
            # would be written to.
            environment = {name.upper(): "" for name in Settings.model_fields}
            pair = str(Path(setup.pair).resolve()) if Path(setup.pair).is_dir() else setup.pair
            environment |= {
                "HOST": "127.0.0.1",
                "PORT": str(port),
                "PAIR": pair,
                "PYTHONPATH": str(ROOT),
            }
            process = Started([sys.executable, "-m", "app"], log, environment, folder=setup.out)
        else:
            module = f"benchmarks.servers.{MODULES[contender.name]}"
            command = [sys.executable, "-m", module, "--port", str(port), "--pair", setup.pair]
            process = Started(command, log)
        super().__init__(contender, [process], setup)
        self.client = Client(f"http://127.0.0.1:{port}")

    async def start(self, picture: Post) -> float:
        """Seconds until it is ready. Raises NotReady."""
        if self.contender.kind == "service":
            seconds = await self.wait_for(lambda: self._answers("GET", "/readyz"))
        else:
            seconds = await self.wait_for(lambda: self._answers("POST", "/pose", picture))
        return seconds

    async def warm(self, pictures: Sequence[Post], clients: int) -> None:
        """Have these answered, so many at a time."""
        waiting = iter(pictures)

        async def client() -> None:
            for picture in waiting:
                await self.client.pose(picture)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def _answers(self, method: str, path: str, picture: Post | None = None) -> bool:
        body, kind = (picture.body, MEDIA_TYPE) if picture else (b"", None)
        try:
            return (await self.client.request(method, path, body, kind))[0] == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def stop(self) -> None:
        await self.client.close()
        await super().stop()


class Loops(Running):
    """Processes of `benchmarks.servers.in_process`, which share the pictures out among themselves."""

    def __init__(self, contender: Contender, setup: Setup) -> None:
        count = contender.processes
        command = [
            sys.executable, "-m", "benchmarks.servers.in_process", contender.name, str(setup.data),
            "--split", setup.split, "--pair", setup.pair,
            "--peers", str(setup.peers), "--initial", str(setup.initial),
        ]  # fmt: skip
        log = setup.out / f"{contender.name}.log"
        processes = [
            Started([*command, "--first", str(number), "--every", str(count)], log, pipes=True)
            for number in range(count)
        ]
        super().__init__(contender, processes, setup)

    async def start(self, _: Post) -> float:
        """Seconds until all are ready. Raises NotReady."""
        await asyncio.gather(*(self._read(process) for process in self.processes))
        return time.monotonic() - self.started

    async def ask(self, **question: Any) -> list[Any]:
        """The answers of all processes, which work at the same time."""
        return await asyncio.gather(*(self._ask(process, question) for process in self.processes))

    async def ask_one(self, **question: Any) -> Any:
        return await self._ask(self.processes[0], question)

    async def _ask(self, process: Started, question: dict[str, Any]) -> Any:
        process.pipes[0].write(json.dumps(question).encode() + b"\n")
        process.pipes[0].flush()
        return await self._read(process)

    async def _read(self, process: Started) -> Any:
        line = await asyncio.to_thread(process.pipes[1].readline)
        if not line:
            raise NotReady(f"{self.contender.name} has ended, see {process.log}")
        return json.loads(line)

    async def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                process.pipes[0].close()
        await super().stop()
