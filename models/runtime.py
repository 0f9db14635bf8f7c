"""Where networks run: the one seam between a torch module and the device that executes it.

Everything that runs a network (detector, router, estimators; in the service, in evaluation, in benchmarks) gets it
from `compile_network`, so that a faster runtime is one change here.
"""

import os
from collections.abc import Callable
from typing import Literal

import cv2
import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

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


def set_cpu_threads(threads: int) -> int:
    """Let every network run on so many threads; 0 is a quarter of the cores, for four stages run side by side. Before
    the first network runs. Returns the number."""
    threads = threads or max(1, (os.cpu_count() or 1) // 4)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    return threads


def compile_network(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Network:
    """Make `module` callable on `device`: float32 (N, C, H, W) in, float32 out on that device, no gradients.

    The module is moved and converted in place (channels-last, `dtype`) and belongs to the returned function.
    """
    module = module.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            inputs = batch.to(device, dtype, memory_format=torch.channels_last, non_blocking=True)
            output: Tensor = module(inputs)
            return output.float()

    return run
