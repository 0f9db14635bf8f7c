"""Peak memory of some of a pair's networks, alone in a process of their own (the paper's figure 7).

    python -m calibration.memory [--nets router small large] [--pair embedded] [--batch 64]

Loads the nets, runs each once on a batch and prints the bytes by which the process grew (Linux); on CUDA what torch
allocated at most, so that nets in ONNX files cannot be measured there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import torch

from calibration.estimates import NETS
from models.estimator import PoseEstimator
from models.router import DifficultyScorer, PoseScorer
from models.runtime import Runtime, resolve_device, resolve_dtype
from models.zoo import load_estimator, load_router
from models.zoo.manifest import ONNX
from models.zoo.options import add_pair_arguments, pair_from

CONFIGURATIONS = {"small": ["small"], "large": ["large"], "routed": ["router", "small", "large"]}


def measure(options: argparse.Namespace, batch: int) -> dict[str, int]:
    """Bytes by configuration, each measured in a new process with the same pair, device and precision. Raises
    subprocess.CalledProcessError."""
    names = ("pair", "small", "large", "detector", "router", "device", "precision", "runtime")
    chosen = {name: getattr(options, name) for name in names}
    arguments = [text for name, value in chosen.items() if value for text in (f"--{name}", value)]
    result = {}
    for name, nets in CONFIGURATIONS.items():
        command = [sys.executable, "-m", "calibration.memory", "--batch", str(batch), "--nets", *nets]
        run = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        result[name] = int(json.loads(run.stdout)["bytes"])
    return result


def peak(device: torch.device) -> int:
    """Bytes, of the process's life so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its maximum is handed down by the process that started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the peak memory of networks.")
    parser.add_argument("--nets", choices=NETS, nargs="+", default=list(NETS))
    add_pair_arguments(parser)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--runtime", default="auto", choices=get_args(Runtime))
    options = parser.parse_args()
    device = resolve_device(options.device)
    dtype = resolve_dtype(device, options.precision)
    manifest = pair_from(options)
    entries = {name: getattr(manifest, name) for name in options.nets}
    if device.type == "cuda" and any(entry.architecture == ONNX for entry in entries.values()):
        raise SystemExit("torch does not know what onnxruntime takes on CUDA")
    before = peak(device)
    folder, how = str(manifest.folder), (device, dtype, options.runtime)
    within = False  # whether the router has the small net in it, as in `load_pair`
    for name, entry in entries.items():
        net: DifficultyScorer | PoseScorer | PoseEstimator
        if name == "router":
            net = load_router(folder, entry, *how, manifest.small)
            within = device.type == "cpu" and net.small is not None
        elif name == "small" and within:
            continue
        else:
            net = load_estimator(folder, entry, *how)
        width, height = net.input_size
        net.network(torch.zeros(options.batch, 3, height, width))
    print(json.dumps({"bytes": peak(device) - before}))


if __name__ == "__main__":
    main()
