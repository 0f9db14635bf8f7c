"""Pairs by name: which networks they are of, where those are published, and where `models.zoo.fetch` keeps them.

The addresses of the weights are those of MMPose's tables. RTMPose is not among our networks: its pairs are made of the
ONNX files on the same server, as rtmlib and others download them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.zoo.errors import PairError
from models.zoo.networks import SPECS

BUNDLED = "embedded"

PAIRS = {
    "r50-h32": ("resnet50", "hrnet-w32"),
    "r101-swinl": ("resnet101", "swin-l"),
    "r152-vitl": ("resnet152", "vitpose-l"),
    "m2-h32": ("mobilenetv2", "hrnet-w32"),
    "m2-h48": ("mobilenetv2", "hrnet-w48"),
    "s2-h48": ("shufflenetv2", "hrnet-w48"),
    "r50-h48": ("resnet50", "hrnet-w48"),
    "m2-swinl": ("mobilenetv2", "swin-l"),
    "s2-swinl": ("shufflenetv2", "swin-l"),
    "r50-swinl": ("resnet50", "swin-l"),
    "m2-vitl": ("mobilenetv2", "vitpose-l"),
    "s2-vitl": ("shufflenetv2", "vitpose-l"),
    "r50-vitl": ("resnet50", "vitpose-l"),
    "rtmpose-t-m": ("rtmpose-t", "rtmpose-m"),
    "rtmpose-s-l": ("rtmpose-s", "rtmpose-l"),
}
"""Small and large network of every pair that can be fetched; BUNDLED is there already."""

MMPOSE = "https://download.openmmlab.com/mmpose/"

_RTMPOSE = {"t": "026a1439", "s": "acd4a1ef", "m": "e48f03d0", "l": "4dba18fc"}

RTMPOSE_SIDECAR: dict[str, Any] = {
    "input": {
        "shape": [1, 3, 256, 192],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "scale": "none",
        "channel_order": "RGB",
    },
    "outputs": [{"kind": "simcc_x"}, {"kind": "simcc_y"}],
    "codec": "simcc",
    "keypoints": "coco",
}
"""What goes beside an RTMPose network (`models.zoo.sidecar`)."""


@dataclass(frozen=True)
class Published:
    """A network's file at `url`: weights of `torch.save`, or a zip with one ONNX network that `sidecar` describes.

    digits: how the file's sha256 begins; empty where the publisher does not say.
    """

    url: str
    digits: str = ""
    sidecar: dict[str, Any] | None = None

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def kept(self) -> str:
        """The name of what is made of the file and read from then on."""
        return str(Path(self.file).with_suffix(".onnx" if self.sidecar else ".safetensors"))


def _mmpose(path: str) -> Published:
    digits = re.search(r"-([0-9a-f]{8})_\d{8}\.pth$", path)
    return Published(MMPOSE + path, digits[1] if digits else "")


def _rtmpose(size: str, digits: str) -> Published:
    # The digits in the name of such a zip are those of the weights that its network was made from.
    name = f"rtmpose-{size}_simcc-body7_pt-body7_420e-256x192-{digits}_20230504.zip"
    return Published(f"{MMPOSE}v1/projects/rtmposev1/onnx_sdk/{name}", sidecar=RTMPOSE_SIDECAR)


PUBLISHED = {name: _mmpose(spec.weights) for name, spec in SPECS.items()} | {
    f"rtmpose-{size}": _rtmpose(size, digits) for size, digits in _RTMPOSE.items()
}
"""Every network that a pair of PAIRS may name."""


def cache_folder() -> Path:
    """$DYNPOSE_CACHE, or `dynpose` in the user's folder for such files. It need not be there."""
    if own := os.environ.get("DYNPOSE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynpose"


def fetched_folder(pair: str) -> Path:
    """Where a pair of PAIRS lies once it was fetched."""
    return cache_folder() / "pairs" / pair


def find_fetched(pair: str) -> Path:
    """The folder of a pair of PAIRS. Raises PairError when it was not fetched."""
    folder = fetched_folder(pair)
    if not (folder / "pair.json").is_file():
        raise PairError(f"pair {pair!r} is not in {cache_folder()}: python -m models.zoo fetch {pair}")
    return folder
