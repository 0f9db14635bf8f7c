"""A pair is everything one way of a picture needs: detector, router, small and large net, calibration scores.

It is a folder with `pair.json` and the files named there. Weights are fp16 safetensors (no pickle), and a file is
opened only after its sha256 was found to be the one in the manifest.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from models.codec import Method
from models.detector import YoloDetector
from models.estimator import PoseEstimator
from models.router import DifficultyScorer, PoseRouter, PoseScorer, Router, RouterConfig
from models.runtime import compile_network
from models.tinypose import TinyPose, TwoScaleTinyPose

EMBEDDED = Path(__file__).parent.parent / "weights"

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "tinypose": TinyPose,
    "tinypose-two-scale": TwoScaleTinyPose,
}


class PairError(Exception):
    """The pair cannot be used; the message is one line that says why."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _File(_Entry):
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DetectorEntry(_File):
    architecture: Literal["yolov8n", "yolov8s"]
    input_size: int


class RouterEntry(_File):
    """`dynpose` is the paper's router, with its switches in `config`; `pose` has none."""

    architecture: Literal["dynpose", "pose"] = "dynpose"
    config: RouterConfig = RouterConfig()


class EstimatorEntry(_File):
    architecture: Literal["tinypose", "tinypose-two-scale"]
    input_size: tuple[int, int]
    codec: Method


class Manifest(_Entry):
    """`pair.json`."""

    pair: str
    detector: DetectorEntry
    router: RouterEntry
    small: EstimatorEntry
    large: EstimatorEntry
    calibration: str

    def names(self) -> dict[str, str]:
        """What an answer calls the networks: architecture, input size and the first digits of the file's hash."""

        def estimator(entry: EstimatorEntry) -> str:
            return f"{entry.architecture}-{entry.input_size[0]}x{entry.input_size[1]}-{entry.sha256[:8]}"

        return {
            "pair": self.pair,
            "detector": f"{self.detector.architecture}-{self.detector.input_size}-{self.detector.sha256[:8]}",
            "router": f"router-{self.router.sha256[:8]}",
            "small": estimator(self.small),
            "large": estimator(self.large),
        }


@dataclass(frozen=True)
class Pair:
    """A loaded pair. The networks belong to whoever calls them: one thread each."""

    manifest: Manifest
    device: torch.device
    calibration: Path
    detector: YoloDetector
    router: DifficultyScorer | PoseScorer
    small: PoseEstimator
    large: PoseEstimator


def pair_folder(pair: str) -> Path:
    """`embedded` is the bundled pair; anything else is the folder of one's own."""
    return EMBEDDED if pair == "embedded" else Path(pair)


def read_manifest(pair: str) -> Manifest:
    """Read and check `pair.json`. Raises PairError."""
    path = pair_folder(pair) / "pair.json"
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PairError(f"pair {pair!r}: cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PairError(f"pair {pair!r}: pair.json: {place}: {first['msg']}") from error


def read_weights(pair: str, entry: _File) -> dict[str, Tensor]:
    """The tensors of one file, which is opened only once its hash is right. Raises PairError."""
    path = pair_folder(pair) / entry.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PairError(f"pair {pair!r}: cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise PairError(f"pair {pair!r}: {entry.file} is not the file that pair.json names (sha256 differs)")
    return load(content)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write what `read_weights` reads: fp16 safetensors (counters stay integers), whole or not at all."""
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in network.state_dict().items()
    }
    temporary = path.with_suffix(".new")
    save_file(weights, temporary)
    temporary.replace(path)


def load_estimator(
    pair: str, entry: EstimatorEntry, device: torch.device, dtype: torch.dtype
) -> PoseEstimator:
    """One net of a pair. Raises PairError."""
    network = ARCHITECTURES[entry.architecture]()
    with _fitting(entry):
        network.load_state_dict(read_weights(pair, entry), strict=True)
    return PoseEstimator(
        compile_network(network, device, dtype), input_size=entry.input_size, codec=entry.codec
    )


def load_detector(pair: str, entry: DetectorEntry, device: torch.device, dtype: torch.dtype) -> YoloDetector:
    """The person detector of a pair. Raises PairError."""
    with _fitting(entry):
        return YoloDetector.from_weights(
            read_weights(pair, entry),
            architecture=entry.architecture,
            input_size=entry.input_size,
            device=device,
            dtype=dtype,
        )


def load_router(
    pair: str, entry: RouterEntry, device: torch.device, dtype: torch.dtype
) -> DifficultyScorer | PoseScorer:
    """The router of a pair. The paper's runs in float32 whatever `dtype` is: its scores lie so close together that
    small errors would change routes. Raises PairError."""
    if entry.architecture == "pose":
        router = PoseRouter()
        with _fitting(entry):
            router.load_state_dict(read_weights(pair, entry), strict=True)
        return PoseScorer(compile_network(router.pose, device, dtype), router.head)
    paper = Router(entry.config)
    with _fitting(entry):
        paper.load_state_dict(read_weights(pair, entry), strict=True)
    return DifficultyScorer(compile_network(paper, device, torch.float32))


def load_pair(pair: str, device: torch.device, dtype: torch.dtype) -> Pair:
    """Load the networks of `pair` onto `device`. Raises PairError."""
    manifest = read_manifest(pair)
    return Pair(
        manifest=manifest,
        device=device,
        calibration=pair_folder(pair) / manifest.calibration,
        detector=load_detector(pair, manifest.detector, device, dtype),
        router=load_router(pair, manifest.router, device, dtype),
        small=load_estimator(pair, manifest.small, device, dtype),
        large=load_estimator(pair, manifest.large, device, dtype),
    )


@contextmanager
def _fitting(entry: _File) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises for missing, unexpected or misshapen tensors
        raise PairError(f"{entry.file} does not fit its architecture") from error
