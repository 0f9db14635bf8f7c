"""NAME.json beside NAME.onnx: how a network of somebody else's wants its input and what its outputs mean.

    {"input": {"shape": [1, 3, 256, 192], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
               "scale": "x/255 first", "channel_order": "RGB"},
     "outputs": [{"kind": "heatmap"}], "codec": "dark", "keypoints": "coco"}

- `input`: `shape` (N, 3, height, width), or for a detector `letterbox`, which begins with WIDTHxHEIGHT; `mean` and
  `std` in the order of the channels, `channel_order` RGB (default) or BGR, and `scale`: `x/255 first` where they are of
  values from 0 to 1, `none` where they are of 0 to 255.
- `outputs`, in the network's order, the `kind` of each. Pose: `heatmap` (N, K, h, w), or `simcc_x` and `simcc_y`
  (N, K, bins). Detectors: `boxes` (N, M, 5) x1, y1, x2, y2, score in input pixels after suppression, and `class`
  (N, M), 0 for a person; or `raw boxes` (N, cells, 5 + classes) as YOLOX gives them.
- `codec`: of `models.codec`. Without it, `simcc` by the kind of the outputs, else what the words of `decoding` name:
  DARK or quarter.
- `keypoints`: `coco` (default), `crowdpose`, or the list of that set's names. `crop.padding`: 1.25 by default.
- `nms_iou`: of raw boxes; without it the number after `NMS IoU` in `decoding`.
- `architecture`, `config`: beside a file of weights, which network they are of, and a router's switches.

Other fields are for people.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from models.codec import Codec
from models.defaults import PADDING
from models.router import RouterConfig
from models.skeleton import SKELETONS
from models.zoo.errors import PairError

Channels = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Deviations = tuple[Positive, Positive, Positive]

SQUARE = "a detector needs a square `letterbox` WIDTHxHEIGHT or `shape`"
HEATMAP, SIMCC, BOXES, RAW_BOXES = ["heatmap"], ["simcc_x", "simcc_y"], ["boxes", "class"], ["raw boxes"]


class _Input(BaseModel):
    shape: list[int | str] = []
    letterbox: str = ""
    layout: Literal["NCHW"] = "NCHW"
    mean: Channels | None = None
    std: Deviations | None = None
    scale: Annotated[str, Field(pattern=r"^(x/255|none)")] | None = None
    channel_order: Literal["RGB", "BGR"] = "RGB"


class _Output(BaseModel):
    kind: str


class _Crop(BaseModel):
    padding: Positive = PADDING


class Sidecar(BaseModel):
    """The file as it stands; absent is what it does not say."""

    architecture: str | None = None
    config: RouterConfig | None = None
    input: _Input = _Input()
    outputs: list[_Output] = []
    crop: _Crop = _Crop()
    codec: Codec | None = None
    decoding: str = ""
    keypoints: str | list[str] = "coco"
    nms_iou: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def kinds(self) -> list[str]:
        return [output.kind for output in self.outputs]

    @property
    def is_detector(self) -> bool:
        return self.kinds[:1] in (["boxes"], ["raw boxes"])


def sidecar_path(net: Path) -> Path:
    """Where the description of `net` lies."""
    return net.with_suffix(".json")


def read_sidecar(net: Path) -> Sidecar:
    """What lies beside `net`. Raises PairError, which names the file and the field."""
    path = sidecar_path(net)
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PairError(
            f"{net.name} needs {path} beside it, which says how to use it: {error.strerror}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PairError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from error


def input_fields(sidecar: Sidecar) -> dict[str, Any]:
    """What a sidecar says of the input: `size` (width, height), `mean` and `std` of red, green, blue on the 0..255
    scale, `channel_order`; what it does not say is left out."""
    given = sidecar.input
    fields: dict[str, Any] = {"channel_order": given.channel_order}
    if boxed := re.match(r"(\d+)x(\d+)", given.letterbox):
        fields["size"] = (int(boxed[1]), int(boxed[2]))
    elif len(given.shape) == 4 and all(isinstance(side, int) for side in given.shape[2:]):
        fields["size"] = (given.shape[3], given.shape[2])
    if given.mean and given.std and given.scale:
        unit = 255 if given.scale.startswith("x/255") else 1
        order = -1 if given.channel_order == "BGR" else 1
        fields["mean"], fields["std"] = (
            [unit * value for value in values][::order] for values in (given.mean, given.std)
        )
    return fields


def pose_fields(sidecar: Sidecar, net: Path) -> dict[str, Any]:
    """The fields of an entry of `pair.json` for a pose net: `input_size`, `codec`, `keypoints`, `mean`, `std`,
    `channel_order`, `padding`. Raises PairError."""
    fields = input_fields(sidecar)
    if "size" in fields:
        fields["input_size"] = fields.pop("size")
    fields["padding"] = sidecar.crop.padding
    fields["keypoints"] = _keypoints(sidecar, net)
    codec = _codec(sidecar, net)
    return fields if codec is None else fields | {"codec": codec}


def detector_size(sidecar: Sidecar, net: Path) -> int | None:
    """The longest side of a detector's input, if the sidecar names one. Raises PairError."""
    size: tuple[int, int] | None = input_fields(sidecar).get("size")
    if size is None:
        return None
    if size[0] != size[1]:
        raise _wrong(net, "input", SQUARE)
    return size[0]


def detector_fields(sidecar: Sidecar, net: Path) -> dict[str, Any]:
    """The fields `input_size` and `onnx` of an entry of `pair.json` for an ONNX detector. Raises PairError."""
    width = detector_size(sidecar, net)
    if width is None:
        raise _wrong(net, "input", SQUARE)
    fields = input_fields(sidecar)
    fields.pop("size")
    if sidecar.kinds[:2] == BOXES:
        return {"input_size": width, "onnx": fields | {"output": "boxes"}}
    if sidecar.kinds[:1] != RAW_BOXES:
        raise _wrong(net, "outputs", f"a detector has {BOXES} or {RAW_BOXES}, not {sidecar.kinds}")
    words = re.search(r"NMS IoU (\d?\.\d+)", sidecar.decoding)
    iou = sidecar.nms_iou or (float(words[1]) if words else None)
    if iou is None:
        raise _wrong(net, "nms_iou", "missing, and `decoding` names no NMS IoU")
    return {"input_size": width, "onnx": fields | {"output": "raw boxes", "nms_iou": iou}}


def check_complete(fields: dict[str, Any], net: Path) -> None:
    """That nothing has to be guessed of an ONNX net's input. Raises PairError."""
    for name, place in (("mean", "input.mean, input.std and input.scale"), ("input_size", "input.shape")):
        if name not in fields:
            raise _wrong(net, place, "missing")


def _codec(sidecar: Sidecar, net: Path) -> str | None:
    kinds = sidecar.kinds
    if kinds[:2] == SIMCC:
        if sidecar.codec not in (None, "simcc"):
            raise _wrong(net, "codec", f"{sidecar.codec} does not read outputs {SIMCC}")
        return "simcc"
    if kinds and kinds[:1] != HEATMAP:
        raise _wrong(
            net, "outputs", f"unknown kind of output {kinds[0]!r}; a pose net has {HEATMAP} or {SIMCC}"
        )
    if kinds and sidecar.codec == "simcc":
        raise _wrong(net, "codec", f"simcc needs outputs {SIMCC}")
    if sidecar.codec is not None:
        return sidecar.codec
    if "DARK" in sidecar.decoding:
        return "dark"
    if "quarter" in sidecar.decoding:
        return "quarter"
    if kinds:
        raise _wrong(net, "codec", "missing, and `decoding` names none")
    return None


def _keypoints(sidecar: Sidecar, net: Path) -> str:
    for name, skeleton in SKELETONS.items():
        if sidecar.keypoints in (name, list(skeleton.keypoints)):
            return name
    raise _wrong(
        net, "keypoints", f"neither of the known sets, {' and '.join(SKELETONS)}, with names in their order"
    )


def _wrong(net: Path, field: str, what: str) -> PairError:
    return PairError(f"{sidecar_path(net)}: {field}: {what}")
