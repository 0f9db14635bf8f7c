import argparse
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calibration import memory
from calibration.memory import measure, peak
from models.zoo import read_manifest

OPTIONS = {"pair": "embedded", "small": None, "large": None, "detector": None, "router": None}
OPTIONS |= {"device": "cpu", "precision": "fp32", "runtime": "eager"}


def bytes_of(net: str, *, batch: int) -> int:
    command = [sys.executable, "-m", "calibration.memory", "--nets", net, "--batch", str(batch)]
    command += ["--device", "cpu", "--precision", "fp32", "--runtime", "eager"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    return int(json.loads(run.stdout)["bytes"])


@pytest.mark.parametrize("net", ["small", "large"])
def test_a_net_in_a_process_of_its_own_needs_its_weights_and_not_much_more(net: str) -> None:
    """The file as read, the same in float32, and what a single crop passes through."""
    manifest = read_manifest("embedded")
    file = getattr(manifest, net).path("embedded").stat().st_size  # of float16
    assert 2 * file < bytes_of(net, batch=1) < 2 * file + 64 * 2**20


def test_a_batch_needs_its_activations_too() -> None:
    """Each of 48 crops of 96 x 128 has 32 channels or more at half the size: 393 kB."""
    assert bytes_of("small", batch=48) - bytes_of("small", batch=1) > 47 * 32 * 48 * 64 * 4


def test_what_onnxruntime_takes_on_cuda_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest("embedded")
    onnx = manifest.small.model_copy(update={"architecture": "onnx"})
    monkeypatch.setattr(memory, "pair_from", lambda _: manifest.model_copy(update={"small": onnx}))
    monkeypatch.setattr(memory, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(memory, "resolve_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(memory, "load_estimator", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("sys.argv", ["memory", "--nets", "small"])
    with pytest.raises(SystemExit, match="onnxruntime takes on CUDA"):
        memory.main()
    assert capsys.readouterr().out == ""


def test_the_peak_of_a_process_is_what_it_once_had() -> None:
    size = 2**27
    with mmap.mmap(-1, size) as held:  # what an allocator holds it may keep
        held.write(b"1" * size)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    taken = pages * os.sysconf("SC_PAGE_SIZE")
    assert taken > size
    assert int(Path("/proc/self/statm").read_text().split()[1]) < pages
    assert peak(torch.device("cpu")) > 0.99 * taken  # Linux counts pages in batches


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run; the n-th needs n bytes."""
    run: list[list[str]] = []

    def fake(command: Sequence[str], **_: object) -> SimpleNamespace:
        run.append(list(command))
        return SimpleNamespace(stdout=json.dumps({"bytes": len(run)}))

    monkeypatch.setattr("calibration.memory.subprocess.run", fake)
    return run


def test_each_net_alone_and_the_routed_pair_are_measured_apart(commands: list[list[str]]) -> None:
    assert measure(argparse.Namespace(**OPTIONS), 7) == {"small": 1, "large": 2, "routed": 3}
    nets = [command[command.index("--nets") + 1 : command.index("--pair")] for command in commands]
    assert nets == [["small"], ["large"], ["router", "small", "large"]]
    for command in commands:
        assert command[:5] == [sys.executable, "-m", "calibration.memory", "--batch", "7"]
        assert command[command.index("--pair") :] == [
            "--pair",
            "embedded",
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--runtime",
            "eager",
        ]


def test_replaced_networks_are_the_ones_measured(commands: list[list[str]]) -> None:
    given = argparse.Namespace(**OPTIONS | {"large": "resnet50=file.pth", "router": "r.safetensors"})
    measure(given, 64)
    for command in commands:
        assert command[command.index("--large") + 1] == "resnet50=file.pth"
        assert command[command.index("--router") + 1] == "r.safetensors"
        assert "--small" not in command
        assert "--detector" not in command
