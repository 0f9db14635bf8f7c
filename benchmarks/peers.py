"""The bundled nets beside third-party ones that a user could pick instead: same pictures, same boxes, one run.

    python -m benchmarks.peers DATA --peers FOLDER [--split val] [--limit N]

FOLDER holds ONNX files, each with a JSON file beside it that says how the input is made and the output read (see
`read_peers`). The pictures are those of DATA whose people are all annotated. Pose nets get the labelled boxes of the
people with keypoints, one person at a time; detectors the whole pictures. Everything runs on the CPU in one thread, and
all nets take turns on every picture, so that whatever else the machine does slows them alike. Needs the packages
onnxruntime and pycocotools.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibration.accuracy import Pose, accuracy, interval, match, without_doubles
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.detection import (
    Boxes,
    Detector,
    Measured,
    assigned,
    at_score,
    box_accuracy,
    complete,
    find,
    score_at,
)
from calibration.gain import padded_area
from models.codec import Method
from models.defaults import MIN_SCORE
from models.detector import FILL, MAX_DETECTIONS, letterbox, to_boxes
from models.estimator import PoseEstimator
from models.geometry import MEAN, STD
from models.runtime import Network, resolve_dtype, set_cpu_threads
from models.zoo import load_pair

from ultralytics.utils.nms import non_max_suppression  # isort: skip  # after models.detector has set its environment
from ultralytics.utils.tal import make_anchors  # isort: skip

Inputs = TypeVarTuple("Inputs")
Output = TypeVar("Output")

WRONG_PER_PICTURE = 0.3
"""At this rate of false boxes the detectors' recalls are compared: their scores mean different things."""

TALL = "64 px and above"
YOLOX_STRIDES = (8, 16, 32)
KINDS = ("heatmap", "boxes", "raw boxes")


@dataclass(frozen=True)
class Peer:
    """One third-party net. size: (width, height) of its input. mean, std: of red, green, blue on the 0..255 scale.
    kind: of its first output, one of KINDS. decoding: how to read it, in words."""

    name: str
    path: Path
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    kind: str
    decoding: str


@dataclass
class Timed(Generic[*Inputs, Output]):
    """A function that remembers how long each of its calls took, in seconds."""

    function: Callable[[*Inputs], Output]
    seconds: list[float] = field(default_factory=list)

    def __call__(self, *inputs: *Inputs) -> Output:
        begin = time.perf_counter()
        output = self.function(*inputs)
        self.seconds.append(time.perf_counter() - begin)
        return output

    @property
    def median_ms(self) -> float:
        return 1e3 * float(np.median(self.seconds))


def read_peers(folder: Path) -> list[Peer]:
    """The nets of a folder, by name. Empty where there are none.

    Of each NAME.json are read: `file`; `input` with `shape` (1, 3, height, width) or, for a detector, `letterbox` that
    begins with WIDTHxHEIGHT, `mean` and `std` in `channel_order` (RGB or BGR), and `scale` (`x/255 first`, else
    0..255); the `kind` of the first of `outputs`: `heatmap` (1, 17, h, w), `boxes` (1, n, 5) with their classes (1, n)
    as second output, or `raw boxes` as YOLOX gives them; and `decoding` in words. Raises ValueError for another kind.
    """
    return [_peer(path) for path in sorted(folder.glob("*.json"))]


def _peer(path: Path) -> Peer:
    sidecar: dict[str, Any] = json.loads(path.read_text())
    given = sidecar["input"]
    if boxed := re.match(r"(\d+)x(\d+)", given.get("letterbox", "")):
        width, height = int(boxed[1]), int(boxed[2])
    else:
        height, width = given["shape"][2:]
    unit = 255 if given["scale"].startswith("x/255") else 1
    bgr = given["channel_order"] == "BGR"
    kind = sidecar["outputs"][0]["kind"]
    if kind not in KINDS:
        raise ValueError(f"{path.name}: unknown kind of output {kind!r}")
    mean, std = ([unit * value for value in given[key]][:: -1 if bgr else 1] for key in ("mean", "std"))
    return Peer(
        name=path.stem,
        path=path.with_name(sidecar["file"]),
        size=(width, height),
        mean=tuple(mean),
        std=tuple(std),
        bgr=bgr,
        kind=kind,
        decoding=sidecar["decoding"],
    )


def open_net(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """An ONNX net with one input as a function of it, in one thread; all its outputs."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: [torch.from_numpy(output) for output in session.run(None, {name: batch.numpy()})]


def prepared(pixels: Tensor, peer: Peer) -> Tensor:
    """(N, 3, h, w) RGB on the 0..255 scale -> what the net takes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (peer.mean, peer.std))
    standard = (pixels - mean) / std
    return (standard.flip(1) if peer.bgr else standard).contiguous()


def unnormalized(crops: Tensor) -> Tensor:
    """The inverse of `models.geometry.normalize`."""
    return crops * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def codec(decoding: str) -> Method:
    """Which of the project's decodings a net's words mean. Raises ValueError for none."""
    if "DARK" in decoding:
        return "dark"
    if "quarter" in decoding:
        return "quarter"
    raise ValueError(f"unknown decoding {decoding!r}")


def one_by_one(network: Network) -> Network:
    """Batches of 1: all that some of the files take, and how long one person takes."""
    return lambda crops: torch.cat([network(crop) for crop in crops[:, None]])


def pose_net(peer: Peer) -> tuple[PoseEstimator, Timed[Tensor, Tensor]]:
    """The peer in the project's crop and decoding, and its net alone, timed."""
    net = open_net(peer.path)
    timed = Timed(lambda crop: net(crop)[0])
    per_person = one_by_one(timed)

    def network(crops: Tensor) -> Tensor:
        return per_person(prepared(unnormalized(crops), peer))

    return PoseEstimator(network, input_size=peer.size, codec=codec(peer.decoding)), timed


def bundled_pose_net(estimator: PoseEstimator) -> tuple[PoseEstimator, Timed[Tensor, Tensor]]:
    """The same for a net of the pair."""
    timed = Timed(estimator.network)
    return PoseEstimator(one_by_one(timed), input_size=estimator.input_size, codec=estimator.codec), timed


def detector(peer: Peer) -> Detector:
    """The peer as the service's detector stage: pictures in, boxes in their pixels out, best first."""
    net = open_net(peer.path)
    width, height = peer.size
    if width != height:
        raise ValueError(f"{peer.name}: its input is not square")

    def detect(pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        results = []
        for picture, min_score in zip(pictures, min_scores, strict=True):
            image = letterbox(picture, width)
            image = functional.pad(image, (0, width - image.shape[2], 0, width - image.shape[1]), value=FILL)
            outputs = net(prepared(image[None].float(), peer))
            found = read_boxes(outputs, peer, min_score)
            results.append(to_boxes(found, picture, width, min_score))
        return results

    return detect


def read_boxes(outputs: Sequence[Tensor], peer: Peer, min_score: float) -> Tensor:
    """The people in a detector's outputs for one picture: (M, 6) x1, y1, x2, y2 in input pixels, score, class 0; best
    first."""
    if peer.kind == "boxes":
        return listed_people(outputs[0][0], outputs[1][0])
    kept: list[Tensor] = non_max_suppression(
        yolox_candidates(outputs[0][0], peer.size[0]),
        min_score,
        nms_iou(peer.decoding),
        max_det=MAX_DETECTIONS,
        max_time_img=60.0,
    )
    return kept[0]


def listed_people(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes (n, 5) x1, y1, x2, y2, score whose duplicates the net itself has removed, and their classes (n,)."""
    people = boxes[labels == 0]
    people = people[people[:, 4].argsort(descending=True, stable=True)]
    return torch.cat([people, torch.zeros(len(people), 1)], dim=1)


def yolox_candidates(rows: Tensor, side: int) -> Tensor:
    """YOLOX's raw output (Ge et al., 2021) as one tensor (1, 5, anchors): x, y (centre), w, h in input pixels, score.

    rows: (anchors, 5 + classes), one per cell of the grids of stride 8, 16 and 32 over a side x side input, row by row:
    centre from the cell's corner, in cells; logarithms of width and height in cells; probability of an object and of
    every class, person first.
    """
    grids = [torch.empty(1, 1, side // stride, side // stride) for stride in YOLOX_STRIDES]
    cells, strides = make_anchors(grids, YOLOX_STRIDES, 0.0)
    center, extent = (rows[:, :2] + cells) * strides, rows[:, 2:4].exp() * strides
    return torch.cat([center, extent, rows[:, 4:5] * rows[:, 5:6]], dim=1).T.unsqueeze(0)


def nms_iou(decoding: str) -> float:
    """The number after `NMS IoU`. Raises ValueError without one."""
    found = re.search(r"NMS IoU (\d?\.\d+)", decoding)
    if found is None:
        raise ValueError(f"no NMS IoU in {decoding!r}")
    return float(found[1])


def estimate(
    estimators: Mapping[str, PoseEstimator], pictures: Pictures, images: Sequence[LabelledImage]
) -> dict[str, dict[int, list[Pose]]]:
    """Poses in the labelled boxes, by net and image; doubles removed as in `calibration.evaluate`."""
    poses: dict[str, dict[int, list[Pose]]] = {name: {} for name in estimators}
    for image in images:
        boxes = [person.bbox for person in image.people if person.has_pose]
        if not boxes:
            continue
        picture = pictures(image)
        for name, estimator in estimators.items():
            answers = estimator([picture] * len(boxes), torch.tensor(boxes, dtype=torch.float32))
            found = [Pose(1.0, keypoints) for keypoints in answers.double().numpy()]
            kept = without_doubles(found, [padded_area(box) for box in boxes])
            poses[name][image.id] = [found[index] for index in kept]
    return poses


def detect(
    detectors: Mapping[str, Detector], pictures: Pictures, images: Sequence[LabelledImage]
) -> dict[str, Boxes]:
    """Boxes by detector and image."""
    boxes: dict[str, dict[int, Any]] = {name: {} for name in detectors}
    for image in images:
        for name, each in detectors.items():
            boxes[name].update(find(each, pictures, [image]))
    return dict(boxes)


def report_poses(
    images: Sequence[LabelledImage],
    poses: Mapping[str, Mapping[int, Sequence[Pose]]],
    ms: Mapping[str, float],
) -> Iterator[str]:
    """The table of pose nets, line by line. ms: a person, net alone."""
    people = sum(person.has_pose for image in images for person in image.people)
    yield f"pose nets: {people} people with keypoints, in their labelled boxes"
    yield f"  {'':42} {'AP (95 %)':19} {'AP50':>6} {'AR':>6} {'ms':>6}"
    for name, found in poses.items():
        matches = match(images, found)
        result = accuracy(matches)
        ap = Measured(result.ap, *interval(matches))
        yield f"  {name:42} {ap} {result.ap50:6.3f} {result.ar:6.3f} {ms[name]:6.1f}"


def report_boxes(
    images: Sequence[LabelledImage], boxes: Mapping[str, Boxes], ms: Mapping[str, float]
) -> Iterator[str]:
    """The table of detectors, line by line. ms: a picture, from its pixels to boxes."""
    people = {name: assigned(images, found) for name, found in boxes.items()}
    anyone = at_score(images, next(iter(people.values())), MIN_SCORE).people
    yield f"detectors: {anyone['all']} people who are no crowd, {anyone[TALL]} of them of {TALL}"
    yield f"  {'':42} {'':33} {f'at {WRONG_PER_PICTURE:g} false a picture':>26} {f'from score {MIN_SCORE:g}':>26}"
    recall = f"{'recall (95 %)':19}"
    yield (
        f"  {'':42} {'AP (95 %)':19} {'AP50':>6} {'AR':>6} {'score':>6} {recall} {'false':>6} {recall} {'ms':>6}"
    )
    for name, found in boxes.items():
        result = box_accuracy(images, found)
        score = score_at(people[name], WRONG_PER_PICTURE)
        equal, usual = (at_score(images, people[name], least) for least in (score, MIN_SCORE))
        yield (
            f"  {name:42} {result.ap} {result.ap50:6.3f} {result.ar:6.3f} {score:6.3f} {equal.recall[TALL]}"
            f" {usual.wrong.value:6.3f} {usual.recall[TALL]} {ms[name]:6.1f}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    labelled = read_split(options.data, options.split) if has_split(options.data, options.split) else []
    images = complete(labelled)[: options.limit]
    if not images:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    peers = read_peers(options.peers)
    if not peers:
        print(f"skipped: needs ONNX nets with their JSON files in {options.peers}")
        return 0
    set_cpu_threads(1)
    cpu = torch.device("cpu")
    dtype = resolve_dtype(cpu, options.precision)
    pair = load_pair(options.pair, cpu, dtype)
    names = pair.manifest.names()
    pictures = Pictures(options.data)
    print(
        f"{len(images)} pictures; one thread; bundled nets in {str(dtype).removeprefix('torch.')}, peers in float32"
    )

    nets = {f"{role} {names[role]}": bundled_pose_net(getattr(pair, role)) for role in ("small", "large")}
    nets |= {peer.name: pose_net(peer) for peer in peers if peer.kind == "heatmap"}
    poses = estimate({name: estimator for name, (estimator, _) in nets.items()}, pictures, images)
    for line in report_poses(images, poses, {name: timed.median_ms for name, (_, timed) in nets.items()}):
        print(line, flush=True)

    detectors = {f"bundled {names['detector']}": Timed(pair.detector)}
    detectors |= {peer.name: Timed(detector(peer)) for peer in peers if peer.kind != "heatmap"}
    boxes = detect(detectors, pictures, images)
    for line in report_boxes(images, boxes, {name: timed.median_ms for name, timed in detectors.items()}):
        print(line, flush=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the bundled nets and third-party ones side by side."
    )
    parser.add_argument("data", type=Path, help="folder with SPLIT.json and its pictures")
    parser.add_argument(
        "--peers", type=Path, required=True, help="folder with ONNX nets and their JSON files"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, help="pictures, from the start of the file")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of the bundled nets"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
