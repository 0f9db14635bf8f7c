"""A pair, loaded: detector, router, small and large net, and where its calibration scores lie."""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from models.defaults import PADDING, ROUTER_SIZE
from models.detector import YOLOS, Detector, YoloDetector, load_yolo, read_ultralytics
from models.estimator import PoseEstimator
from models.geometry import IMAGENET
from models.router import (
    POSE_SIZE,
    DifficultyScorer,
    PoseRouter,
    PoseScorer,
    Router,
    RouterConfig,
    features_and_heatmaps,
)
from models.runtime import Network, Runtime, compile_network, resolve_runtime
from models.skeleton import SKELETONS
from models.zoo import checkpoints, onnx
from models.zoo.catalog import cache_folder
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
    """A loaded pair. On a CPU several threads may call a network at once, but for the detectors; elsewhere one."""

    manifest: Manifest
    device: torch.device
    detector: Detector
    router: DifficultyScorer | PoseScorer
    small: PoseEstimator
    large: PoseEstimator
    more_detectors: tuple[Detector, ...] = ()
    """The detector once more, for further threads."""
    wide_detector: Detector | None = None
    """And once more on as many cores as all of those together, for a picture that has them to itself. In OpenVINO."""


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
    return _verified(pair, entry.path(pair), entry.sha256)


def _verified(pair: str, path: Path, sha256: str) -> Path:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PairError(f"pair {pair!r}: cannot read {path}: {error.strerror}") from error
    if digest != sha256:
        raise PairError(f"pair {pair!r}: {path.name} is not the file that pair.json names (sha256 differs)")
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
    pair: str, entry: EstimatorEntry, device: torch.device, dtype: torch.dtype, runtime: Runtime = "auto"
) -> PoseEstimator:
    """One net of a pair. ONNX nets run in onnxruntime and their own arithmetic whatever `dtype` and `runtime` are.
    Raises PairError."""
    return _estimator(entry, _pose_network(pair, entry, device, dtype, runtime))


def _estimator(entry: EstimatorEntry, network: Network) -> PoseEstimator:
    return PoseEstimator(
        network,
        input_size=entry.input_size,
        codec=entry.codec,
        normalization=entry.normalization,
        padding=entry.padding,
        skeleton=SKELETONS[entry.keypoints],
    )


def _pose_network(
    pair: str, entry: EstimatorEntry, device: torch.device, dtype: torch.dtype, runtime: Runtime
) -> Network:
    keypoints = len(SKELETONS[entry.keypoints].keypoints)
    if entry.architecture == ONNX:
        path = verified(pair, entry)
        return onnx.pose_network(path, device, size=entry.input_size, codec=entry.codec, keypoints=keypoints)
    weights = read_weights(pair, entry)

    def build() -> nn.Module:
        if entry.architecture in ARCHITECTURES:
            network = ARCHITECTURES[entry.architecture]()
        else:
            network = build_network(entry.architecture, keypoints)
        with _fitting(entry):
            checkpoints.load_checkpoint(network, weights)
        return network

    return compile_network(build, device, dtype, runtime, size=entry.input_size, cache=_cache(entry))


def load_detector(
    pair: str,
    entry: DetectorEntry,
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime = "auto",
    int8: bool = False,
    threads: int = 0,
) -> Detector:
    """The person detector of a pair. Only YOLOs run in `dtype` and `runtime`. int8: where the pair brings it so.
    threads: as of `compile_network`. Raises PairError."""
    if entry.architecture == ONNX and entry.onnx is not None:
        return onnx.OnnxDetector(
            onnx.open_net(verified(pair, entry), device),
            side=entry.input_size,
            normalization=entry.onnx.normalization,
            iou=entry.onnx.nms_iou if entry.onnx.output == "raw boxes" else None,
        )
    weights = read_weights(pair, entry)
    if entry.architecture == FASTER_RCNN:
        from models.faster_rcnn import FasterRCNNDetector

        with _fitting(entry):
            return FasterRCNNDetector.from_weights(weights, input_size=entry.input_size, device=device)

    def build() -> nn.Module:
        with _fitting(entry):
            return load_yolo(weights, entry.architecture)

    quantized = verified_int8(pair, entry) if int8 else None
    network = compile_network(
        build,
        device,
        dtype,
        runtime,
        cache=_cache(entry),
        quantized=quantized,
        threads=threads,
    )
    return YoloDetector(network, input_size=entry.input_size)


def verified_int8(pair: str, entry: DetectorEntry) -> Path | None:
    """The .xml of a detector's network in int8, if it has one; its hash and that of the .bin are right. Raises
    PairError."""
    if entry.int8 is None:
        return None
    folder = entry.path(pair).parent
    _verified(pair, folder / entry.int8.weights_file, entry.int8.weights_sha256)
    return _verified(pair, folder / entry.int8.file, entry.int8.sha256)


def load_router(
    pair: str,
    entry: RouterEntry,
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime = "auto",
    small: EstimatorEntry | None = None,
) -> DifficultyScorer | PoseScorer:
    """The router of a pair; with `small` one that hands over that net's keypoints, if it has them. The paper's runs in
    float32 whatever `dtype` is: its scores lie so close together that small errors would change routes. Raises
    PairError."""
    weights = read_weights(pair, entry)
    if entry.architecture == "pose":
        router = PoseRouter()
        with _fitting(entry):
            router.load_state_dict(weights, strict=True)
        shared = small if small and _is_within(router, pair, small) else None  # before it is converted
        network = compile_network(router.pose, device, dtype, runtime, size=POSE_SIZE, cache=_cache(entry))
        head = router.head.to(device)
        if shared is None:
            return PoseScorer(network, head)
        own = _estimator(shared, lambda crops: features_and_heatmaps(network(crops))[1])
        return PoseScorer(network, head, own)
    paper = Router(entry.config if "config" in entry.model_fields_set else _config_of(weights))
    with _fitting(entry):
        checkpoints.load_checkpoint(paper, weights)
    return DifficultyScorer(
        compile_network(paper, device, torch.float32, runtime, size=ROUTER_SIZE, cache=_cache(entry))
    )


def _is_within(router: PoseRouter, pair: str, small: EstimatorEntry) -> bool:
    """Whether the pose net in `router` is the pair's small net, and sees the same crops."""
    crops = (small.architecture, small.input_size, small.padding, small.normalization)
    if crops != ("tinypose", POSE_SIZE, PADDING, IMAGENET) or small.codec == "dark_udp":
        return False
    own, weights = router.pose.network.state_dict(), read_weights(pair, small)
    return own.keys() == weights.keys() and all(
        torch.equal(value, weights[key].to(value.dtype)) for key, value in own.items()
    )


def _config_of(weights: dict[str, Tensor]) -> RouterConfig:
    """The authors' released file has three outputs, of which 1 is the difficulty; ours have one."""
    biases = [value for key, value in weights.items() if key.endswith("layer2.bias")]
    return RouterConfig(outputs=3, score_index=1) if biases and len(biases[0]) == 3 else RouterConfig()


def load_pair(
    pair: str | Manifest,
    device: torch.device,
    dtype: torch.dtype,
    runtime: Runtime = "auto",
    detectors: int = 1,
    int8: bool = False,
) -> Pair:
    """Load the networks of a pair, by its name or folder or by its manifest, onto `device`. detectors: how many are
    to run at once; more than one come with a wide one, too. int8: as of `load_detector`.
    Raises PairError."""
    manifest = pair if isinstance(pair, Manifest) else read_manifest(pair)
    folder = str(manifest.folder)
    load = functools.partial(load_detector, folder, manifest.detector, device, dtype, runtime, int8)
    detector, *more_detectors = (load() for _ in range(detectors))
    turns_wide = manifest.detector.architecture in YOLOS and resolve_runtime(device, runtime) == "openvino"
    wide_detector = None
    if turns_wide and detectors > 1:
        wide_detector = load(threads=detectors * torch.get_num_threads())
    router = load_router(folder, manifest.router, device, dtype, runtime, manifest.small)
    # Where several threads may call a network, one will do for both: 65 MB.
    within = router.small if device.type == "cpu" else None
    return Pair(
        manifest=manifest,
        device=device,
        detector=detector,
        router=router,
        small=within or load_estimator(folder, manifest.small, device, dtype, runtime),
        large=load_estimator(folder, manifest.large, device, dtype, runtime),
        more_detectors=tuple(more_detectors),
        wide_detector=wide_detector,
    )


def _cache(entry: FileEntry) -> Path | None:
    """Folder of a network converted for OpenVINO, under a name that no other network, weights, program or release of
    the packages that make it would have; None where there is no home directory, or no OpenVINO."""
    try:
        made = hashlib.sha256(f"{_program()} {entry.model_dump_json()}".encode())
        return cache_folder() / "openvino" / f"{entry.architecture}-{made.hexdigest()[:32]}"
    except (RuntimeError, metadata.PackageNotFoundError):
        return None


@functools.cache
def _program() -> str:
    """The packages' releases, and the hash of everything in `models` that may have a part in what a network does."""
    releases = [f"{package} {metadata.version(package)}" for package in ("openvino", "torch", "ultralytics")]
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(path.read_bytes())
    return " ".join([*releases, sources.hexdigest()])


@contextmanager
def _fitting(entry: FileEntry) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise PairError(f"{entry.file}: {error}") from error
    except RuntimeError as error:  # what torch raises for missing, unexpected or misshapen tensors
        raise PairError(f"{entry.file} does not fit its architecture, {entry.architecture}") from error
