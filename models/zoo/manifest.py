"""What a pair is made of: `pair.json`, read and checked, with parts of it replaced by files from elsewhere.

It is a folder with `pair.json` and the files named there. A file is opened only after its sha256 was found to be the
one in the manifest. Each of the four networks can be replaced by a file from elsewhere, which has no hash to be held
to: its own is computed and stands in the network's name.

What a file may be, with `architecture` in `pair.json` or `NAME=FILE`:

- pose nets: `tinypose`, `tinypose-two-scale`, one of `models.zoo.networks`, or `onnx`;
- detectors: a YOLO of `models.detector.YOLOS`, `fasterrcnn_resnet50_fpn`, or `onnx`;
- routers: `dynpose`, the paper's, or `pose`.

ONNX nets are described by a file beside them (`models.zoo.sidecar`). Weights are safetensors, or what `torch.save` and
ultralytics write, of which nothing but tensors is read. A detector may come in int8, too, in OpenVINO's two files.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import nn

from models.codec import Codec
from models.defaults import DETECTOR_SIZE, PADDING
from models.detector import LIGHT, YOLOS
from models.geometry import MEAN, STD, Normalization
from models.router import RouterConfig
from models.tinypose import TinyPose, TwoScaleTinyPose
from models.zoo.catalog import PAIRS, find_fetched
from models.zoo.errors import PairError
from models.zoo.networks import NETWORKS, SPECS
from models.zoo.sidecar import (
    Channels,
    Deviations,
    check_complete,
    detector_fields,
    detector_size,
    pose_fields,
    read_sidecar,
    sidecar_path,
)

EMBEDDED = Path(__file__).parent.parent / "weights"

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "tinypose": TinyPose,
    "tinypose-two-scale": TwoScaleTinyPose,
}
FASTER_RCNN = "fasterrcnn_resnet50_fpn"
ONNX = "onnx"

Role = Literal["detector", "router", "small", "large"]
ROLES: tuple[Role, ...] = ("detector", "router", "small", "large")
KNOWN: dict[Role, tuple[str, ...]] = {
    "detector": (*YOLOS, FASTER_RCNN, ONNX),
    "router": ("dynpose", "pose"),
    "small": (*ARCHITECTURES, *NETWORKS, ONNX),
    "large": (*ARCHITECTURES, *NETWORKS, ONNX),
}

Side = Annotated[int, Field(gt=0)]
FileName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    file: FileName
    sha256: Sha256
    architecture: str
    _folder: Path | None = PrivateAttr(None)  # where `file` lies, if not in the pair's folder

    def path(self, pair: str) -> Path:
        return (self._folder or pair_folder(pair)) / self.file

    @property
    def name(self) -> str:
        """What people call the network."""
        return Path(self.file).stem if self.architecture == ONNX else self.architecture


class _Input(_Entry):
    """mean, std: of red, green, blue on the 0..255 scale. channel_order: in which the network wants them."""

    mean: Channels = MEAN
    std: Deviations = STD
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std, bgr=self.channel_order == "BGR")


class OnnxBoxes(_Input):
    """What the file beside an ONNX detector says. nms_iou: of raw boxes."""

    output: Literal["boxes", "raw boxes"]
    nms_iou: float | None = None


class Quantized(_Entry):
    """A YOLO's network in int8, as `training.quantize` writes it: OpenVINO's .xml and .bin."""

    file: FileName
    sha256: Sha256
    weights_file: FileName
    weights_sha256: Sha256


class DetectorEntry(FileEntry):
    """input_size: pixels of the longest side of what the network sees, for Faster R-CNN of the shortest. int8: the same
    network once more, for CPUs that multiply bytes."""

    input_size: Side
    onnx: OnnxBoxes | None = None
    int8: Quantized | None = None


class RouterEntry(FileEntry):
    """`dynpose` is the paper's router, with its switches in `config`; `pose` has none."""

    architecture: str = "dynpose"
    config: RouterConfig = RouterConfig()


class EstimatorEntry(FileEntry, _Input):
    """input_size: (width, height) in pixels. padding: the crop's size in boxes. keypoints: a set of models.skeleton."""

    input_size: tuple[Side, Side]
    codec: Codec
    keypoints: Literal["coco", "crowdpose"] = "coco"
    padding: Annotated[float, Field(gt=0, allow_inf_nan=False)] = PADDING


Kind = TypeVar("Kind", bound=FileEntry)
_ENTRIES: dict[Role, type[DetectorEntry] | type[RouterEntry] | type[EstimatorEntry]] = {
    "detector": DetectorEntry,
    "router": RouterEntry,
    "small": EstimatorEntry,
    "large": EstimatorEntry,
}


class Manifest(_Entry):
    """`pair.json`, and where its files lie."""

    pair: str
    detector: DetectorEntry
    router: RouterEntry
    small: EstimatorEntry
    large: EstimatorEntry
    calibration: str
    _folder: Path = PrivateAttr(EMBEDDED)
    _replaced: tuple[Role, ...] = PrivateAttr(())

    @property
    def folder(self) -> Path:
        """The pair's folder."""
        return self._folder

    @property
    def calibration_path(self) -> Path:
        """Of the scores that come with the pair."""
        return self._folder / self.calibration

    @property
    def replaced(self) -> tuple[Role, ...]:
        """What is not as `pair.json` has it."""
        return self._replaced

    def names(self) -> dict[str, str]:
        """What an answer calls the networks: architecture, input size and the first digits of the file's hash."""

        def estimator(entry: EstimatorEntry) -> str:
            return f"{entry.name}-{entry.input_size[0]}x{entry.input_size[1]}-{entry.sha256[:8]}"

        others = f" with another {', '.join(self.replaced)}" if self.replaced else ""
        return {
            "pair": self.pair + others,
            "detector": f"{self.detector.name}-{self.detector.input_size}-{self.detector.sha256[:8]}",
            "router": f"router-{self.router.sha256[:8]}",
            "small": estimator(self.small),
            "large": estimator(self.large),
        }


def pair_folder(pair: str) -> Path:
    """`embedded` is the bundled pair; anything else is the folder of one's own, or the name of a pair that was fetched.
    Raises PairError for one that can be fetched and was not."""
    if pair == "embedded":
        return EMBEDDED
    return find_fetched(pair) if pair in PAIRS and not Path(pair).is_dir() else Path(pair)


def read_manifest(
    pair: str,
    *,
    small: str | None = None,
    large: str | None = None,
    detector: str | None = None,
    router: str | None = None,
) -> Manifest:
    """Read and check `pair.json`, and what lies beside the ONNX nets it names.

    small, large, detector, router: take the place of the pair's own; `FILE` or `NAME=FILE`, see `named_entry`. Raises
    PairError.
    """
    folder = pair_folder(pair)
    path = folder / "pair.json"
    given: dict[Role, str | None] = {"detector": detector, "router": router, "small": small, "large": large}
    replaced = tuple(role for role in ROLES if given[role])
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise PairError(f"pair {pair!r}: pair.json: not an object")
        entries = {
            role: named_entry(_ENTRIES[role], role, value)
            if (value := given[role])
            else _completed(role, content.get(role), folder)
            for role in ROLES
        }
        manifest = Manifest.model_validate(content | entries)
    except OSError as error:
        raise PairError(f"pair {pair!r}: cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise PairError(f"pair {pair!r}: pair.json: {_first(error)}") from error
    except ValueError as error:
        raise PairError(f"pair {pair!r}: pair.json is not JSON: {error}") from error
    manifest._folder = folder
    manifest._replaced = replaced
    return manifest


def named_entry(kind: type[Kind], role: Role, given: str) -> Kind:
    """The entry of a file that lies anywhere: `FILE` or `NAME=FILE` with the name of its network.

    Without NAME it is what the file beside it names as `architecture`, or the known name that the file's own begins
    with. Sizes and codec come from the file beside it where there is one, else they are the network's usual ones.
    Raises PairError.
    """
    name, equals, rest = given.partition("=")
    named = bool(equals) and not Path(given).is_file()
    path = Path(rest if named else given)
    entry: dict[str, Any] = {"file": path.name}
    try:
        with path.open("rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".onnx":
            architecture: str | None = ONNX
        else:
            sidecar = read_sidecar(path) if sidecar_path(path).is_file() else None
            architecture = sidecar.architecture if sidecar else None
            if sidecar and role == "router" and sidecar.config:
                entry["config"] = sidecar.config
            elif sidecar and role in ("small", "large"):
                entry |= pose_fields(sidecar, path)
            elif sidecar and role == "detector" and (size := detector_size(sidecar, path)):
                entry["input_size"] = size
        entry["architecture"] = (name if named else architecture) or _known_beginning(role, path.name)
        result = kind.model_validate(_completed(role, entry, path.parent))
    except OSError as error:
        hint = "" if named else f"; give FILE or NAME=FILE, NAME one of {', '.join(KNOWN[role])}"
        raise PairError(f"{role.upper()}: cannot read {path}: {error.strerror}{hint}") from error
    except ValidationError as error:
        raise PairError(
            f"{role.upper()}: {path}: {_first(error)}; {sidecar_path(path).name} can say"
        ) from error
    result._folder = path.parent.absolute()
    return result


def _known_beginning(role: Role, file: str) -> str:
    """The longest known name that `file` begins with. Raises PairError."""
    found = [name for name in KNOWN[role] if file.startswith(name)]
    if not found:
        raise PairError(
            f"{role.upper()}: {file} does not say which network it holds; give NAME=FILE, "
            f"NAME one of {', '.join(KNOWN[role])}"
        )
    return max(found, key=len)


def _completed(role: Role, entry: Any, folder: Path) -> Any:
    """A raw entry with what its network's own description adds. Raises PairError."""
    if not isinstance(entry, dict):
        return entry
    architecture = entry.get("architecture", "dynpose" if role == "router" else None)
    if architecture not in KNOWN[role]:
        raise PairError(f"{role}.architecture: {architecture!r} is none of {', '.join(KNOWN[role])}")
    if architecture == ONNX:
        net = folder / str(entry.get("file"))
        sidecar = read_sidecar(net)
        if role == "detector":
            fields = detector_fields(sidecar, net)
            check_complete(fields["onnx"] | fields, net)
        else:
            fields = pose_fields(sidecar, net)
            check_complete(fields, net)
        return fields | entry
    if architecture in SPECS:
        return {"input_size": (192, 256), "codec": SPECS[architecture].codec} | entry
    if role == "detector":
        return {"input_size": {FASTER_RCNN: 800, LIGHT: DETECTOR_SIZE}.get(architecture, 640)} | entry
    return entry


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
