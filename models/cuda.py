"""CUDA graphs as a runtime of `models.runtime`: the kernels of a network are recorded once for each shape of its input
and then launched together, without Python in between."""

import contextlib
import functools
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

log = logging.getLogger("dynpose.cuda")

MOST = 64
"""Recordings of a network; inputs of further shapes run without one."""

MAX_BATCH = 64
"""Larger batches run without a recording."""

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""In what CUDA, cuBLAS and cuDNN say who got no memory. PyTorch has a class for its own allocator's."""

_recording = threading.Lock()
_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs that could not be recorded, kept for good: with one that goes, the workspaces of all others of its stream go,
and those would write into memory that is not theirs any more (https://github.com/pytorch/pytorch/issues/193402)."""
_wanted = False  # until a network is to be recorded


class _State(threading.local):
    """recording: whether this thread is at a recording."""

    recording = False

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


_state = _State()


class Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    input: Tensor
    outputs: tuple[Tensor, ...]


class Recorded:
    """A function of one tensor (N, ...) to one or more (N, ...) as CUDA graphs, for one thread at a time.

    Batches are filled up to a power of two. What lies between input and output shares its memory with other recordings,
    as only one of them runs at a time. What cannot be recorded runs as it is, and the log says so; so do shapes beyond
    the first `MOST`, and sizes for whose recording there was no memory once. Within the recording of another function
    it is a part of that.
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], name: str) -> None:
        self._run = run
        self._name = name
        self._recordings: dict[tuple[object, ...], Recording] = {}
        self._too_large: set[tuple[object, ...]] = set()
        self._pool: Any = None
        self._recordable = True

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Raises torch.OutOfMemoryError, whoever it was that got no memory."""
        try:
            with torch.inference_mode():
                wanted = not _state.recording and 0 < len(batch) <= MAX_BATCH
                recording = self._recording(batch) if wanted else None
                if recording is None:
                    return self._run(batch)
                recording.input[: len(batch)].copy_(batch, non_blocking=True)
                recording.graph.replay()
                return tuple(output[: len(batch)].clone() for output in recording.outputs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not _out_of_memory(error):
                raise
            traceback.clear_frames(
                error.__traceback__
            )  # they hold memory, which whoever tries again will need
            raise torch.OutOfMemoryError(str(error)) from None

    def _recording(self, batch: Tensor) -> Recording | None:
        size = 1 << (len(batch) - 1).bit_length()
        key = (size, *batch.shape[1:], batch.dtype)
        room = len(self._recordings) < MOST and key not in self._too_large
        if key not in self._recordings and self._recordable and room:
            try:
                self._recordings[key] = self._record(batch, size)
            except RuntimeError as error:
                if _out_of_memory(error):
                    self._too_large.add(key)
                    raise
                self._recordable = False
                reason = " ".join(str(error).split())[:300]
                log.warning("%s runs without CUDA graphs, it cannot be recorded: %s", self._name, reason)
        return self._recordings.get(key)

    def _record(self, batch: Tensor, size: int) -> Recording:
        static = batch.new_zeros(size, *batch.shape[1:])
        if static.ndim == 4:
            static = static.contiguous(memory_format=torch.channels_last)
        static[: len(batch)].copy_(batch)
        # One at a time in the process: a recording begins by waiting for the device, which another one forbids.
        with (
            _recording,
            _state.within(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
        ):
            stream = _recording_stream(batch.device)
            stream.wait_stream(torch.cuda.current_stream())
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.stream(stream):
                for _ in range(2):  # kernels are chosen, and workspaces made, before anything is recorded
                    self._run(static)
                stream.synchronize()
                graph = torch.cuda.CUDAGraph()
                _failed.append(graph)
                # thread_local: other stages go on allocating memory meanwhile.
                with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                    outputs = self._run(static)
                _failed.pop()
        return Recording(graph, static, outputs)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The caller's, unless it is the default one, on which nothing can be recorded.

    Matrix products get a workspace for each stream on which they are recorded. Recordings of one stream would spoil
    each other's when they run at the same time, and PyTorch's own choice is one stream for all: a ViT and a router of
    which each was recorded there stopped for ever within a minute (https://github.com/pytorch/pytorch/issues/193402).
    """
    current = torch.cuda.current_stream(device)
    return _beside(device) if current == torch.cuda.default_stream(device) else current


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def compile_network(
    module: nn.Module, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """As `models.runtime.compile_network`, for one thread at a time."""
    global _wanted
    _wanted = True
    module = module.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        output: Tensor = module(batch.to(dtype, memory_format=torch.channels_last))
        return (output.float(),)

    recorded = Recorded(run, type(module).__name__)
    return lambda batch: recorded(batch.to(device, non_blocking=True))[0]


Function = TypeVar("Function", bound=Callable[..., tuple[Tensor, ...]])


def recorded_on_cuda(run: Function) -> Function:
    """`run(tensor, *constants)`, many small steps and no choice that depends on a value, as CUDA graphs where networks
    run as such and the tensor lies on CUDA: launching the steps one by one would take longer than running them. Each
    stream has its own recordings, so that threads with a stream each (`models.runtime.own_stream`) do not share them.
    """
    recordings: dict[tuple[Any, ...], Recorded] = {}

    @functools.wraps(run)
    def call(batch: Tensor, *constants: Any) -> tuple[Tensor, ...]:
        if not (_wanted and batch.is_cuda):
            return run(batch, *constants)
        key = (torch.cuda.current_stream(batch.device).cuda_stream, *constants)
        if key not in recordings:
            recordings[key] = Recorded(lambda batch: run(batch, *constants), run.__name__)
        return recordings[key](batch)

    return cast(Function, call)
