"""OpenVINO as a runtime of `models.runtime`: a torch module is converted once and then runs without Python."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.folding import fold

log = logging.getLogger("dynpose.openvino")

TOLERANCE = 1e-3
"""Of a converted network's output in float32, in shares of the largest: its kernels add in another order."""

KEPT = 16
"""Networks that stay in a cache folder, each in a folder of its own, and what stays there of each kind that was
compiled of it; then those go that were not used for longest."""

NETWORK, FLOAT, INT8 = "network.xml", "float", "int8"
DIGEST = hashlib.sha256().digest_size

FREE_SIZE = (256, 320)
"""Height and width with which a network of free input size is converted."""

PIECES = (4, 1)
"""Sizes of the pieces in which a batch of equal inputs runs, each in a network for just that shape. Against one network
for all sizes that takes a fifth less time, and nothing when the next batch is of another size (else 7 ms for the large
net, 2 for the others). Larger pieces save nothing more. And while one thread is in one of them, another can use the
other: a crop alone takes a tenth more than one of four."""

ANY = 0
"""In place of a piece's size: a network for whatever shape there is."""


@functools.cache
def _core() -> Any:
    return package().Core()


def package() -> Any:
    """The package, without its telemetry: it would report its import and every conversion to Google Analytics, and put
    a file for that into the home directory. It does without where openvino_telemetry is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # type: ignore[import-untyped]

    return openvino


def compile_network(
    make: Callable[[], nn.Module],
    dtype: torch.dtype,
    *,
    size: tuple[int, int] | None,
    cache: Path | None,
    quantized: Path | None = None,
    threads: int = 0,
) -> Callable[[Tensor], Tensor] | None:
    """As `models.runtime.compile_network`; None where OpenVINO cannot do what `make()` does.

    A batch runs in `PIECES`, whose networks are made when they are first needed. With `size` None one network takes
    every shape, and one batch at a time.
    """
    model = _read(quantized) if quantized else None
    if quantized and model is None:
        log.warning("%s is of no use to this release of OpenVINO, the network runs as it is", quantized.name)
    compiled = cache and cache / (FLOAT if model is None else INT8)
    if model is None and cache:
        model = _read(cache / NETWORK)
    if model is None:
        model = convert(make(), size)
        if model is not None and cache:
            _keep(functools.partial(_save, model), cache, cache)
    if cache:
        _make_room(cache)
    return None if model is None else _compile(model, dtype, threads, compiled)


def _compile(
    model: Any, dtype: torch.dtype, threads: int = 0, cache: Path | None = None
) -> Callable[[Tensor], Tensor]:
    """cache: folder of what was compiled of this very model."""
    properties: dict[str, Any] = {
        # Arithmetic of what lies before the last convolution; what comes after it, such as decoding boxes, is float32.
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype, "f32"),
        # The calling thread does the work itself where this is 1.
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # Networks of several stages would be pinned to the same cores: four stages of two threads each on two cores
        # took a tenth more processor time. With one thread each, which is the caller's, it changes nothing.
        "ENABLE_CPU_PINNING": False,
    }
    *_, height, width, channels = model.input(0).partial_shape
    sizes = PIECES if height.is_static else (ANY,)
    free = {size: threading.Lock() for size in sizes}

    @functools.cache
    def request(size: int) -> Any:
        shaped = model
        if size != ANY:
            shaped = model.clone()
            shaped.reshape([size, height, width, channels])
        return _compiled(shaped, size, properties, cache).create_infer_request()

    def run_pieces(inputs: NDArray[np.float32]) -> list[Tensor]:
        """Of `inputs` as many as make whole pieces for the largest network that is free; the smallest is waited for."""
        size = next(
            size for size in sizes if size <= len(inputs) and free[size].acquire(blocking=size == sizes[-1])
        )
        try:
            step = size or len(inputs)
            pieces = (inputs[begin : begin + step] for begin in range(0, len(inputs) - step + 1, step))
            # Outputs are copied: the request's own are overwritten by its next run.
            found = [
                request(size).infer({0: each}, share_inputs=True, share_outputs=False)[0] for each in pieces
            ]
            return list(map(torch.from_numpy, found))
        finally:
            free[size].release()

    def run(batch: Tensor) -> Tensor:
        # Crops have their channels last, so that this copies nothing.
        inputs = batch.to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous().numpy()
        outputs = run_pieces(inputs)
        if (done := sum(map(len, outputs))) < len(inputs):
            outputs += run_pieces(inputs[done:])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run


def _compiled(model: Any, size: int, properties: dict[str, Any], cache: Path | None) -> Any:
    """`model` as a CPU of this kind runs it; it need not be compiled again where `cache` has it. (Not by OpenVINO's
    own cache: so it is seen here what a file depends on, virtual CPUs of one name among that, and each is whole.)"""
    if cache is None:
        return _core().compile_model(model, "CPU", properties)
    made_for = json.dumps([size, properties, dict(torch.cpu.get_capabilities())], sort_keys=True)
    path = cache / hashlib.sha256(made_for.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, RuntimeError):  # absent, damaged, or of no use
        content = path.read_bytes()
        if hashlib.sha256(memoryview(content)[DIGEST:]).digest() == content[:DIGEST]:
            compiled = _core().import_model(content[DIGEST:], "CPU", properties)
            with contextlib.suppress(OSError):
                path.touch()
            return compiled
    compiled = _core().compile_model(model, "CPU", properties)
    with contextlib.suppress(RuntimeError):  # it cannot be kept
        content = compiled.export_model().getvalue()

        def write(folder: Path) -> None:
            (folder / path.name).write_bytes(hashlib.sha256(content).digest() + content)

        _keep(write, cache.parent, cache)
        # Read back it takes less memory: 120 MB for all networks of the bundled pair.
        compiled = _core().import_model(content, "CPU", properties)
    return compiled


def convert(module: nn.Module, size: tuple[int, int] | None) -> Any:
    """The model of `module` in OpenVINO, float32 (N, h, w, 3) in; None where there is none that does the same."""
    openvino = package()
    module = module.eval().requires_grad_(False).float()
    height, width = (size[1], size[0]) if size else FREE_SIZE
    try:
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # type: ignore[import-untyped]

        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter(
                "ignore"
            )  # torch.jit.trace is deprecated, and warns of what _agrees tries out
            example = torch.rand(2, 3, height, width)
            # PyTorch would trace everything twice more, and compare: that is a third of the conversion.
            traced = TorchScriptPythonDecoder(
                fold(module), example_input=example, trace_kwargs={"check_trace": False}
            )
            model = openvino.convert_model(traced, example_input=example)
        model.reshape([-1, 3, height, width] if size else [-1, 3, -1, -1])
        layouts = openvino.preprocess.PrePostProcessor(model)
        layouts.input().tensor().set_layout(openvino.Layout("NHWC"))
        layouts.input().model().set_layout(openvino.Layout("NCHW"))
        model = layouts.build()
        # Another batch and size than those of the conversion, of which nothing may have become a constant.
        shape = (sum(PIECES), 3, height, width) if size else (1, 3, height * 3 // 2, width * 2)
        probe = torch.rand(shape)
        if _agrees(model, module, probe):
            return model
        reason = "it would give something else"
    except Exception as error:  # whatever the tracer and the converter raise for what they do not know
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    log.warning("%s runs in PyTorch, OpenVINO cannot take it: %s", type(module).__name__, reason)
    return None


def _agrees(model: Any, module: nn.Module, probe: Tensor) -> bool:
    """Whether both make the same of `probe`. Raises RuntimeError for a model that does not take its shape."""
    with torch.inference_mode():
        expected: Tensor = module(probe)
    # First without running it: kernels trust the shapes they are given, and a wrong one can end the process.
    shaped = model.clone()
    shaped.reshape([len(probe), *probe.shape[2:], probe.shape[1]])
    if tuple(shaped.output(0).shape) != tuple(expected.shape):
        return False
    found = _compile(model, torch.float32)(probe)
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _read(path: Path) -> Any:
    """The model in this .xml and the .bin beside it, None without one that can be read."""
    try:
        sizes = tuple(file.stat().st_size for file in (path, path.with_suffix(".bin")))
        return _read_file(path, sizes)
    except (OSError, RuntimeError):  # absent or damaged
        return None


@functools.lru_cache(maxsize=1)
def _read_file(path: Path, sizes: tuple[int, ...]) -> Any:  # noqa: ARG001
    """A second detector shares the weights of the first: 40 MB in float32. sizes: of the files, which tell a damaged
    one."""
    return _core().read_model(path)


def _save(model: Any, folder: Path) -> None:
    package().save_model(model, folder / NETWORK, compress_to_fp16=False)


def _keep(write: Callable[[Path], object], network: Path, place: Path) -> None:
    """What `write` puts into a folder goes to `place`, in the folder of a network or that itself, each file whole or
    not at all. A folder that cannot be written costs the next start the same again, nothing else."""
    try:
        network.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=network) as folder:
            write(Path(folder))
            for new in sorted(Path(folder).iterdir()):  # the .xml last: without it there is no network
                new.replace(place / new.name)
    except (OSError, RuntimeError) as error:
        _say_once(f"networks are not kept in {network.parent}: {getattr(error, 'strerror', None) or error}")


@functools.cache
def _say_once(message: str) -> None:
    log.info(message)


def _make_room(cache: Path) -> None:
    """Note that the network in `cache` is in use, and remove what was not used for longest."""
    with contextlib.suppress(OSError):  # another process may be at it, too, or none may write here
        os.utime(cache)
        networks = {path.parent for name in (NETWORK, FLOAT, INT8) for path in cache.parent.glob(f"*/{name}")}
        for compiled in (cache / FLOAT, cache / INT8):
            for old in _oldest(compiled.glob("*")):
                old.unlink()
        for old in _oldest(networks):
            shutil.rmtree(old, ignore_errors=True)


def _oldest(paths: Iterable[Path]) -> list[Path]:
    """All but the KEPT newest."""
    return sorted(paths, key=lambda path: path.stat().st_mtime)[:-KEPT]
