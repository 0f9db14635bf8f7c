"""The parts of a running service and their life: load, warm, serve, drain."""

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch

from app import __version__
from app.admission import Admission, Ahead
from app.batching import BatchQueue, Observer, Stage, StageDied, Work
from app.config import ConfigStore
from app.crew import Crew, in_daemon_thread, in_pool
from app.errors import ApiError
from app.metrics import Metrics
from app.pipeline import DetectItem, PersonItem, Pipeline, Queues, detect_stage, estimate_stage, score_stage
from app.settings import Settings
from models.album import to_device
from models.openvino import PIECES
from models.runtime import (
    cores,
    own_stream,
    resolve_device,
    resolve_dtype,
    resolve_int8,
    resolve_runtime,
    set_cpu_threads,
)
from models.skeleton import COCO
from models.zoo import Manifest, Pair, PairError, load_pair, read_manifest

log = logging.getLogger("dynpose")

T = TypeVar("T")

ON_CPU, UP_TO_64 = (1, 2, 3, 4, 8, 12, 16), (1, 2, 4, 8, 16, 32, 64)
BUCKETS = {
    "cpu": {"detect": (1,), "score": ON_CPU, "small": ON_CPU, "large": ON_CPU[:4]},
    "cuda": {"detect": (1, 2, 4, 8), "score": UP_TO_64, "small": UP_TO_64, "large": UP_TO_64},
}
"""Batch sizes of each stage, all warmed before the service is ready. Those that save nothing cost time then, and memory
all the same: on a CPU 0.2 GB for eight pictures and sixteen people of the large net. HRNet-W32 does twice the people a
second in batches of 64 on an H200 that it does in batches of 16."""

LEAST_BESIDE = {"detect": 1, "score": PIECES[0], "small": PIECES[0], "large": PIECES[0]}
"""Items with which a stage starts a batch beside another. Fewer might need the same one of a network's two sizes, and
wait for it while the thread could do something else; where it could not, and the other batch is all of the larger
pieces, fewer do start. (Small net and bundled router share theirs; but only `flip_test` and `estimator=small` run the
small net then.)"""

ASPECTS = (
    (480, 640),
    (640, 480),
    (480, 720),
    (720, 480),
    (360, 640),
    (640, 360),
    (640, 512),
    (512, 640),
    (640, 640),
)
"""Height and width of pictures as cameras make them, warmed too: a detector's network is fitted to each new shape of
its input when it first sees it. Only what is wider than 16:5 has another (`SHORT_SIDES`), which few will ever send."""

AHEAD = 4
"""Pictures that are decoded for each detector on a CPU, the one that it is at among them."""

CREW_NICENESS = 5
"""Networks take all of a CPU that is to be had. Who asks meanwhile shall not wait for the end of their turn: at twice
the sustainable load refusals take 2.1 instead of 3.8 ms (median), and as many people are served. With 10 they took less
yet, but the networks would have a tenth of a core that another process wants, too, and a quarter with this."""

SWITCH_INTERVAL_S = 0.001
"""For how long a thread may keep the interpreter from others, where a GPU runs the networks and Python is the limit: a
fifth more pictures a second than with Python's own 5 ms, which the stages' many small steps would wait for the event
loop; 0.5 ms give three quarters of that, 0.2 ms a third."""

WATCH_INTERVAL_S = 0.5

MAX_THREAD_WAIT_S = 0.1
"""How long people and pictures wait for a thread while other stages have more work, or larger batches to run."""


def manifest_of(settings: Settings) -> Manifest:
    """The pair that is to be served. Raises PairError."""
    manifest = read_manifest(
        settings.pair,
        small=settings.small,
        large=settings.large,
        detector=settings.detector,
        router=settings.router,
    )
    for role, entry in (("small", manifest.small), ("large", manifest.large)):
        if entry.keypoints != COCO.name:
            raise PairError(f"the {role} net has the keypoints of {entry.keypoints}; COCO's 17 are served")
    return manifest


class Service:
    """Everything behind the routes. The constructor reads what is cheap to read and fails on what is wrong with it
    (PairError, ConfigError, ValueError); networks load in the background, while the port is open already."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = resolve_device(settings.device)
        self.dtype = resolve_dtype(self.device, settings.precision)
        self.runtime = resolve_runtime(self.device, settings.runtime)
        self.int8 = resolve_int8(self.device, settings.precision, settings.runtime)
        if self.device.type == "cpu":
            set_cpu_threads(settings.threads)
        else:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.manifest = manifest_of(settings)
        self.config = ConfigStore(settings, self.manifest)
        self.metrics = Metrics(
            version=__version__,
            pair=self.manifest.names()["pair"],
            device=self.device.type,
            runtime=f"{self.runtime}-{str(self.dtype).removeprefix('torch.')}",
        )
        self.admission = Admission(settings.max_pending_pictures, settings.max_pending_bytes)
        on_cpu = self.device.type == "cpu"
        self.ahead = Ahead(AHEAD * side_by_side(self.device) if on_cpu else settings.max_pending_pictures)
        self.workers = ThreadPoolExecutor(cores(), thread_name_prefix="worker")
        self.status: Literal["loading", "warming", "ready", "draining"] = "loading"
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.stages: list[Stage] = []
        self.pipeline: Pipeline | None = None
        self.metrics.ready.set_function(lambda: self.unready() is None)

    async def load(self) -> None:
        """Load and warm the networks, start the stages, then be ready. A failure is kept in `failure`."""
        try:
            started = time.monotonic()
            stages = await self.open_stages()
            queues = Queues(**{queue.name: queue for stage in stages for queue in stage.queues})
            self.metrics.bind(lambda: self.config.policy, stages, [self.ahead])
            for stage in stages:
                stage.start()
        except Exception as error:  # whatever it is: a process that stays at "loading" would help nobody
            if not isinstance(error, PairError):
                log.exception("the networks cannot be loaded")
            self.failure = str(error) or type(error).__name__
            self.on_failure()
            return
        self.stages = stages
        self.pipeline = Pipeline(queues, self.config.policy, self.metrics)
        gc.collect()
        gc.freeze()  # what is there now stays; to look through all of it again would halt every thread for long
        if self.status == "warming":
            self.status = "ready"
            log.info("ready on %s after %.1f s", self.device, time.monotonic() - started)
            for route, token in (("POST /pose", "pose_token"), ("PATCH /config", "admin_token")):
                needs = (
                    f"needs {token.upper()}"
                    if getattr(self.settings, token)
                    else "is open to whoever can reach it"
                )
                log.info("%s %s", route, needs)

    async def open_stages(self) -> list[Stage]:
        """The stages, loaded and warm, not yet started."""
        at_once = side_by_side(self.device)
        pair = await in_daemon_thread(
            load_pair,
            self.manifest,
            self.device,
            self.dtype,
            self.runtime,
            at_once,
            self.int8,
        )
        if self.status == "loading":
            self.status = "warming"
        stages = build_stages(pair, self.metrics, self.settings.max_passed_over_ms / 1000, at_once)
        await in_daemon_thread(warm, pair, stages, self.config.live.flip_test)
        return stages

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run what takes long and is no network's work (decoding, drawing) beside the event loop."""
        return await in_pool(self.workers, work, *arguments)

    def drain(self) -> None:
        """Refuse new work; what was admitted is still answered. Safe in a signal handler."""
        self.status = "draining"

    async def watch(self) -> None:
        """Give up on a stage that is stuck in one batch, so that nobody waits for it."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for stage in self.stages:
                since = stage.busy_since
                if stage.alive and since is not None and time.monotonic() - since > self.settings.stall_s:
                    log.error("stage %s has been in one batch for %g s", stage.name, self.settings.stall_s)
                    stage.abandon(StageDied(stage.name))

    async def close(self) -> None:
        """End the threads, after the last request."""
        gc.unfreeze()
        for crew in {stage.crew for stage in self.stages}:
            crew.drain()
            await asyncio.to_thread(crew.join, 1.0)
        self.workers.shutdown(wait=False, cancel_futures=True)

    @property
    def detector_precision(self) -> str:
        """Of a detector that runs in our runtimes: int8 where the CPU has use for it and the pair brings it."""
        return "int8" if self.int8 and self.manifest.detector.int8 else str(self.dtype).removeprefix("torch.")

    def unhealthy(self) -> str | None:
        """Why the process should be restarted, if it should."""
        dead = [stage.name for stage in self.stages if not stage.alive]
        return f"the stage {dead[0]} has died or is stuck" if dead else None

    def unready(self) -> str | None:
        """Why no request should be sent here, if none should."""
        return self.unhealthy() or (None if self.status == "ready" else self.status)

    def ready_pipeline(self) -> Pipeline:
        """The pipeline, or ApiError 503 (`not_ready`, `draining`)."""
        reason = self.unready()
        if reason is None and self.pipeline is not None:
            return self.pipeline
        code = "draining" if self.status == "draining" else "not_ready"
        self.metrics.rejected(code)
        raise ApiError(503, code, f"the service is not ready: {reason}", {"Retry-After": "1"})


def build_stages(pair: Pair, observer: Observer, max_passed_over_s: float, at_once: int) -> list[Stage]:
    """The four stages and their five queues. On a CPU one crew runs them all, on a GPU each has its own thread.
    at_once: batches of one stage that may run side by side, 1 on a GPU; as many detectors as `pair` has."""
    queues: dict[str, BatchQueue[Any, Any]] = {name: BatchQueue(name) for name in Queues.__annotations__}
    size = min(crew_size(), len(BUCKETS["cpu"]) * at_once)
    crew = Crew(size, MAX_THREAD_WAIT_S, CREW_NICENESS) if pair.device.type == "cpu" else None

    def stage(name: str, runs: Sequence[Work], *serves: str, run_alone: Work | None = None) -> Stage:
        return Stage(
            name,
            [own_stream(run, pair.device) for run in runs],
            [queues[queue] for queue in serves],
            buckets=BUCKETS[pair.device.type][name],
            observer=observer,
            max_passed_over_s=max_passed_over_s,
            least_beside=LEAST_BESIDE[name],
            run_alone=run_alone,
            crew=crew,
        )

    detectors = [detect_stage(each) for each in (pair.detector, *pair.more_detectors)]
    wide = detect_stage(pair.wide_detector) if pair.wide_detector else None
    return [
        stage("detect", detectors, "detect", run_alone=wide),
        stage("score", [score_stage(pair)] * at_once, "score"),
        stage("small", [estimate_stage(pair.small)] * at_once, "easy", "extremely_hard"),
        stage("large", [estimate_stage(pair.large)] * at_once, "hard"),
    ]


def crew_size() -> int:
    """How many networks may run at once on a CPU: as many as there are cores for their threads."""
    return max(1, cores() // torch.get_num_threads())


def side_by_side(device: torch.device) -> int:
    """How many batches of a stage may run at once. On a CPU finding people takes about half of all work, and in a crowd
    the large net does, which one core cannot do for two; and while both detect, people gather into larger batches."""
    return min(2, crew_size()) if device.type == "cpu" else 1


def warm(pair: Pair, stages: Sequence[Stage], flip_test: bool = False) -> None:
    """Run every network at every batch size, so that the first requests do not pay for it; and once more, so that each
    stage knows what batching saves. flip_test: whether people will be asked for with it."""
    pictures = [to_device(torch.zeros(*shape, 3, dtype=torch.uint8), pair.device) for shape in ASPECTS]
    person = PersonItem(pictures[0], (100.0, 100.0, 150.0, 300.0), 1.0, flip_test)

    def items(stage: Stage) -> list[Any]:
        return [DetectItem(picture, 0.5) for picture in pictures] if stage.name == "detect" else [person]

    on_cpu = pair.device.type == "cpu"
    # The large net takes longest, and so goes first; but on a GPU last, as it can do best with what memory is left.
    order = [stages[-1], *stages[:-1]] if on_cpu else stages
    with ThreadPoolExecutor(crew_size() if on_cpu else 1) as threads:
        list(threads.map(lambda stage: stage.warm(*items(stage)), order))
        # What else runs on the machine shall not decide how large batches are. A network of one thread runs in its
        # caller's, whose time is its own even while the next stage is measured beside it.
        apart = on_cpu and torch.get_num_threads() == 1
        clock = time.thread_time if apart else time.process_time if on_cpu else time.monotonic
        each = threads.map if apart else map
        list(each(lambda stage: stage.measure(items(stage)[0], clock), order))
