"""OpenVINO as a runtime of `models.runtime`: a torch module is converted once and then runs without Python."""

import contextlib
import functools
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.tinypose import join_units

log = logging.getLogger("dynpose.openvino")

TOLERANCE = 1e-3
"""Of a converted network's output in float32, in shares of the largest: its kernels add in another order."""

KEPT = 16
"""Networks that stay in a cache folder; then those go that were not read for longest."""

FREE_SIZE = (256, 320)
"""Height and width with which a network of free input size is converted."""

PIECES = (4, 1)
"""Sizes of the pieces in which a batch of equal inputs runs, each in a network for just that shape. Against one network
for all sizes that takes a fifth less time, and nothing when the next batch is of another size (else 7 ms for the large
net, 2 for the others). Larger pieces save nothing more."""


@functools.cache
def _core() -> Any:
    return _package().Core()


def _package() -> Any:
    """The package, without its telemetry: it would report its import and every conversion to Google Analytics, and put
    a file for that into the home directory. It does without where openvino_telemetry is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # type: ignore[import-untyped]

    return openvino


def compile_network(
    make: Callable[[], nn.Module], dtype: torch.dtype, *, size: tuple[int, int] | None, cache: Path | None
) -> Callable[[Tensor], Tensor] | None:
    """As `models.runtime.compile_network`, for one thread at a time; None where OpenVINO cannot do what `make()` does.

    A batch runs in `PIECES`, whose networks are made when they are first needed. With `size` None one network takes
    every shape: a detector's many shapes would gain nothing.
    """
    model = _read(cache) if cache else None
    if model is None:
        model = _convert(make(), size)
        if model is not None and cache:
            _keep(model, cache)
    return None if model is None else _compile(model, dtype)


def _compile(model: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    properties = {
        # Arithmetic of what lies before the last convolution; what comes after it, such as decoding boxes, is float32.
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype, "f32"),
        # A stage calls from its own thread, which does the work itself where this is 1.
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        # Networks of several stages would be pinned to the same cores: four stages of two threads each on two cores
        # took a tenth more processor time. With one thread each, which is the stage's own, it changes nothing.
        "ENABLE_CPU_PINNING": False,
    }
    *_, height, width, channels = model.input(0).partial_shape
    fixed = height.is_static

    @functools.cache
    def request(size: int) -> Any:
        """Of the network for batches of `size`, or of any size where the inputs differ."""
        shaped = model
        if fixed:
            shaped = model.clone()
            shaped.reshape([size, height, width, channels])
        return _core().compile_model(shaped, "CPU", properties).create_infer_request()

    def run(batch: Tensor) -> Tensor:
        # Crops have their channels last, so that this copies nothing.
        inputs = batch.to("cpu", torch.float32).permute(0, 2, 3, 1).contiguous().numpy()
        outputs, begin = [], 0
        for size in pieces(len(inputs)) if fixed else [len(inputs)]:
            piece = inputs[begin : begin + size]
            # Outputs are copied: the request's own are overwritten by its next run.
            found = request(size if fixed else 0).infer({0: piece}, share_inputs=True, share_outputs=False)
            outputs.append(torch.from_numpy(found[0]))
            begin += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run


def pieces(size: int) -> list[int]:
    """`size` as a sum of as few of `PIECES` as possible, the largest first."""
    found = []
    for piece in PIECES:
        number, size = divmod(size, piece)
        found += [piece] * number
    return found


def _convert(module: nn.Module, size: tuple[int, int] | None) -> Any:
    """The model of `module` in OpenVINO, float32 (N, h, w, 3) in; None where there is none that does the same."""
    openvino = _package()
    module = module.eval().requires_grad_(False).float()
    join_units(module)
    height, width = (size[1], size[0]) if size else FREE_SIZE
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter(
                "ignore"
            )  # torch.jit.trace is deprecated, and warns of what _agrees tries out
            model = openvino.convert_model(module, example_input=torch.rand(2, 3, height, width))
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


def _read(cache: Path) -> Any:
    """The model that `_keep` put there, None without one that can be read."""
    path = cache / "network.xml"
    try:
        model = _core().read_model(path) if path.is_file() else None
    except (OSError, RuntimeError):  # damaged
        return None
    with contextlib.suppress(OSError):
        path.touch()
    return model


def _keep(model: Any, cache: Path) -> None:
    """Write the model to `cache`, whole or not at all. A folder that cannot be written costs the next start the
    conversion, nothing else."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=cache.parent, ignore_cleanup_errors=True) as folder:
            new = Path(folder) / "new"
            new.mkdir()
            _package().save_model(model, new / "network.xml", compress_to_fp16=False)
            shutil.rmtree(cache, ignore_errors=True)
            os.rename(new, cache)
        kept = sorted(cache.parent.glob("*/network.xml"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT]:
            shutil.rmtree(old.parent, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        log.info("converted networks are not kept: %s", error)
