import os
from pathlib import Path

import cv2
import pytest
import torch
from torch import nn

from models.runtime import (
    Precision,
    Runtime,
    compile_network,
    cores,
    resolve_device,
    resolve_dtype,
    resolve_int8,
    set_cpu_threads,
)

CPU = torch.device("cpu")


def test_auto_takes_the_device_that_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error():
    with pytest.raises(ValueError, match="no usable CUDA device"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_named_precision_is_taken_as_it_is(precision, dtype):
    assert resolve_dtype(CPU, precision) == dtype


def test_auto_precision_on_a_cpu_is_one_it_computes_with():
    assert resolve_dtype(CPU, "auto") in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("precision", "runtime", "avx2", "expected"),
    [
        ("auto", "auto", True, True),
        ("auto", "openvino", True, True),
        ("auto", "auto", False, False),
        ("auto", "eager", True, False),
        ("bf16", "auto", True, False),
        ("fp32", "auto", True, False),
    ],
)
def test_int8_is_for_cpus_that_multiply_bytes_and_where_no_precision_was_named(
    precision: Precision, runtime: Runtime, avx2: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: avx2)
    assert resolve_int8(CPU, precision, runtime) is expected
    assert not resolve_int8(torch.device("cuda"), precision, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_network_takes_and_gives_float32_without_gradients(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    expected = module.eval()(torch.ones(2, 3, 8, 8)).detach()
    output = compile_network(module.train(), CPU, dtype)(torch.ones(2, 3, 8, 8))
    assert output.dtype == torch.float32
    assert not output.requires_grad
    assert torch.allclose(output, expected, atol=0.02)


def test_threads_are_set_for_torch():
    before = torch.get_num_threads()
    try:
        set_cpu_threads(3)
        assert torch.get_num_threads() == cv2.getNumThreads() == 3
        set_cpu_threads(0)
        assert torch.get_num_threads() == max(1, cores() // 4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("6400000 100000", 8),
        ("", 8),
    ],
)
def test_a_containers_quota_counts_in_whole_cores(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("models.runtime.QUOTA", tmp_path / "cpu.max")
    assert cores() == expected


def test_without_quotas_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    monkeypatch.setattr("models.runtime.QUOTA", tmp_path / "absent")
    assert cores() == 3
