"""Where networks run: the one seam between a torch module and the device that executes it.

Everything that runs a network (detector, router, estimators; in the service, in evaluation, in benchmarks) gets it
from `compile_network`. There are three runtimes: `eager`, PyTorch as it is, the reference; `openvino`, which on a CPU
does the same several times as fast (`models.openvino`); and `cudagraphs`, which on CUDA launches a network's kernels
without Python in between (`models.cuda`).
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]

T = TypeVar("T")
R = TypeVar("R")

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in so many, or `max`; of the container, inside one."""

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runtime = Literal["auto", "eager", "openvino", "cudagraphs"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DeviceError(ValueError):
    """What was asked for does not run on this machine; the message is one line."""


def resolve_device(device: Device) -> torch.device:
    """`auto` is CUDA where there is one. Raises DeviceError when CUDA is asked for and absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("DEVICE=cuda, but this machine has no usable CUDA device")
    return torch.device(device)


def resolve_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """The arithmetic of the networks. `auto` is fp16 on CUDA, as fast as bf16 and ten times as exact (99 % of the small
    net's joints within 0.2 px of fp32 instead of 3), and on the CPU bf16 where it computes with that, else fp32."""
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def resolve_runtime(device: torch.device, runtime: Runtime) -> Literal["eager", "openvino", "cudagraphs"]:
    """`auto` is CUDA graphs on CUDA, and OpenVINO on a CPU where the package is there. Raises DeviceError for what
    cannot run there."""
    if runtime == "auto":
        if device.type == "cuda":
            return "cudagraphs"
        return "openvino" if importlib.util.find_spec("openvino") is not None else "eager"
    if runtime == "cudagraphs" and device.type != "cuda":
        raise DeviceError(f"RUNTIME=cudagraphs, but DEVICE is {device.type}")
    if runtime == "openvino":
        if device.type != "cpu":
            raise DeviceError(f"RUNTIME=openvino, but it runs on the CPU only and DEVICE is {device.type}")
        if importlib.util.find_spec("openvino") is None:
            raise DeviceError("RUNTIME=openvino, but the package is not there: pip install openvino")
    return runtime


def resolve_int8(device: torch.device, precision: Precision, runtime: Runtime) -> bool:
    """Whether a network that comes in int8, too, runs so: with `auto` in OpenVINO, on a CPU that multiplies bytes
    faster (AVX2; AVX-512 VNNI was measured, too)."""
    return (
        precision == "auto"
        and resolve_runtime(device, runtime) == "openvino"
        and torch.cpu._is_avx2_supported()
    )


def cores() -> int:
    """That this process may use, by its affinity and its container's quota (`--cpus`, under cgroup v2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # another system, or "max"
        return allowed


def set_cpu_threads(threads: int) -> None:
    """Let every network run on so many threads; 0 is a quarter of the cores, so that four run at once. Before
    the first network is compiled."""
    threads = threads or max(1, cores() // 4)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def own_stream(run: Callable[[T], R], device: torch.device) -> Callable[[T], R]:
    """`run` on a CUDA stream of its own, so that stages in several threads share the device; on a CPU `run` itself."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on_stream(argument: T) -> R:
        with torch.cuda.stream(stream):
            return run(argument)

    return on_stream


def compile_network(
    module: nn.Module | Callable[[], nn.Module],
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime = "eager",
    *,
    size: tuple[int, int] | None = None,
    cache: Path | None = None,
    quantized: Path | None = None,
    threads: int = 0,
) -> Network:
    """Make `module` callable on `device`: float32 (N, 3, h, w) in, float32 out on that device, no gradients. On a CPU
    several threads may call it at once, elsewhere one.

    The module is moved and converted in place (channels-last, `dtype`) and belongs to the returned function; what makes
    one is called only when it is needed. size: (width, height) in pixels of all inputs, None where they differ, in
    multiples of 32. cache: folder of what is kept of this very module between starts, None for nothing; it need be
    neither there nor writable. quantized: the .xml of the same network in int8, which takes its place. threads: for
    each call, 0 for as many as PyTorch takes. All of these are for OpenVINO alone. A network that the runtime cannot
    take, or of which it makes something else, runs eagerly, and the log says so. Raises DeviceError as
    `resolve_runtime`.
    """

    @functools.cache
    def make() -> nn.Module:
        return module if isinstance(module, nn.Module) else module()

    resolved = resolve_runtime(device, runtime)
    if resolved == "openvino":
        from models import openvino

        network = openvino.compile_network(
            make,
            dtype,
            size=size,
            cache=cache,
            quantized=quantized,
            threads=threads,
        )
        if network is not None:
            return network
    if resolved == "cudagraphs":
        from models import cuda

        return cuda.compile_network(make(), device, dtype)
    return _eager(make(), device, dtype)


def _eager(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
    module = module.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            inputs = batch.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
            output: Tensor = module(inputs)
            return output.float()

    return run
