"""What a person costs a pair, in multiply-accumulates."""

from pathlib import Path

import torch
from torch import nn

from models.defaults import ROUTER_SIZE
from models.router import POSE_SIZE, PoseRouter, Router
from models.skeleton import SKELETONS
from models.zoo import onnx
from models.zoo.manifest import ARCHITECTURES, ONNX, EstimatorEntry, Manifest, RouterEntry
from models.zoo.networks import build_network, count_macs


def pair_macs(manifest: Manifest) -> dict[str, float]:
    """By net, `router`, `small` and `large`; the convolutions and matrix products of one crop. Raises PairError."""
    folder = str(manifest.folder)
    nets = {"small": manifest.small, "large": manifest.large}
    return {"router": _router(manifest.router)} | {
        name: _estimator(entry, entry.path(folder)) for name, entry in nets.items()
    }


def _router(entry: RouterEntry) -> float:
    with torch.device("meta"):
        if entry.architecture == "pose":
            return count_macs(PoseRouter().pose, POSE_SIZE)
        return count_macs(Router(entry.config), ROUTER_SIZE)


def _estimator(entry: EstimatorEntry, path: Path) -> float:
    if entry.architecture == ONNX:
        return onnx.count_macs(path, entry.input_size)
    with torch.device("meta"):
        network: nn.Module = (
            ARCHITECTURES[entry.architecture]()
            if entry.architecture in ARCHITECTURES
            else build_network(entry.architecture, len(SKELETONS[entry.keypoints].keypoints))
        )
        return count_macs(network, entry.input_size)
