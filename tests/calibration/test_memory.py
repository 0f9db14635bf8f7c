import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calibration.memory import measure, peak

OPTIONS = {"pair": "embedded", "small": None, "large": None, "detector": None, "router": None}
OPTIONS |= {"device": "cpu", "precision": "fp32"}


def test_a_net_in_a_process_of_its_own_needs_more_than_its_weights_and_less_than_a_gigabyte() -> None:
    command = [sys.executable, "-m", "calibration.memory", "--nets", "small", "--batch", "2"]
    command += ["--device", "cpu", "--precision", "fp32"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    assert 2**20 < json.loads(run.stdout)["bytes"] < 2**30


def test_the_peak_of_a_process_is_what_it_once_had() -> None:
    held = torch.ones(2**25)  # 128 MiB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    taken = pages * os.sysconf("SC_PAGE_SIZE")
    assert taken > held.numel() * held.element_size()
    del held
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
        ]


def test_replaced_networks_are_the_ones_measured(commands: list[list[str]]) -> None:
    given = argparse.Namespace(**OPTIONS | {"large": "resnet50=file.pth", "router": "r.safetensors"})
    measure(given, 64)
    for command in commands:
        assert command[command.index("--large") + 1] == "resnet50=file.pth"
        assert command[command.index("--router") + 1] == "r.safetensors"
        assert "--small" not in command
        assert "--detector" not in command
