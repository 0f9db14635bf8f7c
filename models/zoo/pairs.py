"""A pair, loaded: detector, router, small and large net, and where its calibration scores lie."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from models.detector import YOLOS, Detector, YoloDetector, read_ultralytics
from models.estimator import PoseEstimator
from models.router import DifficultyScorer, PoseRouter, PoseScorer, Router, RouterConfig
from models.runtime import Network, compile_network
from models.skeleton import SKELETONS
from models.zoo import checkpoints, onnx
from models.zoo.checkpoints import CheckpointError
from models.zoo.errors import PairError
from models.zoo.manifest import (
    ARCHITECTURES,
    FASTER_RCNN,
    ONNX,
    DetectorEntry,
    EstimatorEntry,
    FileEntry,
    Manifest,
    RouterEntry,
    read_manifest,
)
from models.zoo.networks import build_network


@dataclass(frozen=True)
class Pair:
    """A loaded pair. The networks belong to whoever calls them: one thread each."""

    manifest: Manifest
    device: torch.device
    calibration: Path
    detector: Detector
    router: DifficultyScorer | PoseScorer
    small: PoseEstimator
    large: PoseEstimator


def read_weights(pair: str, entry: FileEntry) -> dict[str, Tensor]:
    """The tensors of one file, which is opened only once its hash is right. Raises PairError."""
    path = verified(pair, entry)
    try:
        if path.suffix == ".pt" and entry.architecture in YOLOS:
            return read_ultralytics(path)
        if path.suffix in (".pt", ".pth", ".bin", ".tar"):
            return checkpoints.read_checkpoint(path)
        return load(path.read_bytes())
    except (ValueError, SafetensorError, CheckpointError) as error:
        raise PairError(f"{path}: {error}") from error


def verified(pair: str, entry: FileEntry) -> Path:
    """The file of an entry, whose hash is right. Raises PairError."""
    path = entry.path(pair)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PairError(f"pair {pair!r}: cannot read {path}: {error.strerror}") from error
    if digest != entry.sha256:
        raise PairError(f"pair {pair!r}: {entry.file} is not the file that pair.json names (sha256 differs)")
    return path


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
    """One net of a pair. ONNX nets run in their own arithmetic whatever `dtype` is. Raises PairError."""
    return PoseEstimator(
        _pose_network(pair, entry, device, dtype),
        input_size=entry.input_size,
        codec=entry.codec,
        normalization=entry.normalization,
        padding=entry.padding,
        skeleton=SKELETONS[entry.keypoints],
    )


def _pose_network(pair: str, entry: EstimatorEntry, device: torch.device, dtype: torch.dtype) -> Network:
    keypoints = len(SKELETONS[entry.keypoints].keypoints)
    if entry.architecture == ONNX:
        path = verified(pair, entry)
        return onnx.pose_network(path, device, size=entry.input_size, codec=entry.codec, keypoints=keypoints)
    if entry.architecture in ARCHITECTURES:
        network = ARCHITECTURES[entry.architecture]()
    else:
        network = build_network(entry.architecture, keypoints)
    with _fitting(entry):
        checkpoints.load_checkpoint(network, read_weights(pair, entry))
    return compile_network(network, device, dtype)


def load_detector(pair: str, entry: DetectorEntry, device: torch.device, dtype: torch.dtype) -> Detector:
    """The person detector of a pair. Only YOLOs run in `dtype`. Raises PairError."""
    if entry.architecture == ONNX and entry.onnx is not None:
        return onnx.OnnxDetector(
            onnx.open_net(verified(pair, entry), device),
            side=entry.input_size,
            normalization=entry.onnx.normalization,
            iou=entry.onnx.nms_iou if entry.onnx.output == "raw boxes" else None,
        )
    weights = read_weights(pair, entry)
    with _fitting(entry):
        if entry.architecture == FASTER_RCNN:
            from models.faster_rcnn import FasterRCNNDetector

            return FasterRCNNDetector.from_weights(weights, input_size=entry.input_size, device=device)
        return YoloDetector.from_weights(
            weights,
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
    weights = read_weights(pair, entry)
    if entry.architecture == "pose":
        router = PoseRouter()
        with _fitting(entry):
            router.load_state_dict(weights, strict=True)
        return PoseScorer(compile_network(router.pose, device, dtype), router.head)
    paper = Router(entry.config if "config" in entry.model_fields_set else _config_of(weights))
    with _fitting(entry):
        checkpoints.load_checkpoint(paper, weights)
    return DifficultyScorer(compile_network(paper, device, torch.float32))


def _config_of(weights: dict[str, Tensor]) -> RouterConfig:
    """The authors' released file has three outputs, of which 1 is the difficulty; ours have one."""
    biases = [value for key, value in weights.items() if key.endswith("layer2.bias")]
    return RouterConfig(outputs=3, score_index=1) if biases and len(biases[0]) == 3 else RouterConfig()


def load_pair(pair: str | Manifest, device: torch.device, dtype: torch.dtype) -> Pair:
    """Load the networks of a pair, by its name or folder or by its manifest, onto `device`. Raises PairError."""
    manifest = pair if isinstance(pair, Manifest) else read_manifest(pair)
    folder = str(manifest.folder)
    return Pair(
        manifest=manifest,
        device=device,
        calibration=manifest.folder / manifest.calibration,
        detector=load_detector(folder, manifest.detector, device, dtype),
        router=load_router(folder, manifest.router, device, dtype),
        small=load_estimator(folder, manifest.small, device, dtype),
        large=load_estimator(folder, manifest.large, device, dtype),
    )


@contextmanager
def _fitting(entry: FileEntry) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise PairError(f"{entry.file}: {error}") from error
    except RuntimeError as error:  # what torch raises for missing, unexpected or misshapen tensors
        raise PairError(f"{entry.file} does not fit its architecture, {entry.architecture}") from error
