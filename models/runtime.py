"""Where networks run: the one seam between a torch module and the device that executes it.

Everything that runs a network (detector, router, estimators; in the service, in evaluation, in benchmarks) gets it
from `compile_network`. There are two runtimes: `eager`, PyTorch as it is, the reference; and `openvino`, which on a CPU
does the same several times as fast (`models.openvino`).
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runtime = Literal["auto", "eager", "openvino"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: Device) -> torch.device:
    """`auto` is CUDA where there is one. Raises ValueError when CUDA is asked for and absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE=cuda, but this machine has no usable CUDA device")
    return torch.device(device)


def resolve_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The arithmetic of the networks. `auto` is bf16 where the device computes with it, else fp16 on CUDA and fp32 on
    the CPU."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def resolve_runtime(device: torch.device, runtime: Runtime) -> Literal["eager", "openvino"]:
    """`auto` is OpenVINO on a CPU where the package is there. Raises ValueError when OpenVINO is asked for and cannot
    run."""
    if runtime == "eager" or (runtime == "auto" and device.type != "cpu"):
        return "eager"
    if device.type != "cpu":
        raise ValueError(f"RUNTIME=openvino, but it runs on the CPU only and DEVICE is {device.type}")
    if importlib.util.find_spec("openvino") is not None:
        return "openvino"
    if runtime == "openvino":
        raise ValueError("RUNTIME=openvino, but the package is not there: pip install openvino")
    return "eager"


def set_cpu_threads(threads: int) -> int:
    """Let every network run on so many threads; 0 is a quarter of the cores, for four stages run side by side. Before
    the first network is compiled. Returns the number."""
    threads = threads or max(1, (os.cpu_count() or 1) // 4)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return threads


def compile_network(
    module: nn.Module | Callable[[], nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime = "eager",
    *,
    size: tuple[int, int] | None = None,
    cache: Path | None = None,
) -> Network:
    """Make `module` callable on `device`: float32 (N, 3, h, w) in, float32 out on that device, no gradients.

    The module is moved and converted in place (channels-last, `dtype`) and belongs to the returned function; what makes
    one is called only when it is needed. size: (width, height) in pixels of all inputs, None where they differ, in
    multiples of 32. cache: folder of what is kept of this very module between starts, None for nothing; it need be
    neither there nor writable. Without OpenVINO's help both mean nothing. A network that OpenVINO cannot take, or of
    which it makes something else, runs eagerly, and the log says so. Raises ValueError as `resolve_runtime`.
    """

    @functools.cache
    def make() -> nn.Module:
        return module if isinstance(module, nn.Module) else module()

    if resolve_runtime(device, runtime) == "openvino":
        from models import openvino

        network = openvino.compile_network(make, dtype, size=size, cache=cache)
        if network is not None:
            return network
    return _eager(make(), device, dtype)


def _eager(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
    module = module.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            inputs = batch.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
            output: Tensor = module(inputs)
            return output.float()

    return run
