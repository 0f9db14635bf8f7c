"""The bundled nets beside third-party ones that a user could pick instead: same pictures, same boxes, one run.

    python -m benchmarks.peers DATA --peers FOLDER [--split val] [--limit N]

FOLDER holds ONNX files, each with a JSON file beside it that says how the input is made and the output read (see
`models.zoo.sidecar`). The pictures are those of DATA whose people are all annotated. Pose nets get the labelled boxes
of the people with keypoints, one person at a time; detectors the whole pictures. Everything runs on the CPU in one
thread, and all nets take turns on every picture, so that whatever else the machine does slows them alike. Needs the
packages onnx, onnxruntime and pycocotools.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import numpy as np
import torch
from torch import Tensor

from calibration.accuracy import Pose, accuracy, interval, match, without_doubles
from calibration.commands import run_command
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.detection import (
    Boxes,
    Measured,
    assigned,
    at_score,
    box_accuracy,
    complete,
    find,
    score_at,
)
from calibration.estimates import padded_area
from models.defaults import MIN_SCORE
from models.detector import Detector
from models.estimator import PoseEstimator
from models.runtime import resolve_dtype, set_cpu_threads
from models.zoo import (
    DetectorEntry,
    EstimatorEntry,
    load_detector,
    load_estimator,
    load_pair,
    named_entry,
)
from models.zoo.onnx import one_by_one
from models.zoo.options import add_pair_arguments, pair_from
from models.zoo.sidecar import read_sidecar, sidecar_path

Inputs = TypeVarTuple("Inputs")
Output = TypeVar("Output")

WRONG_PER_PICTURE = 0.3
"""At this rate of false boxes the detectors' recalls are compared: their scores mean different things."""

TALL = "64 px and above"


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


def peer_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pose nets and the detectors of a folder, by name. Raises PairError."""
    files = [path for path in sorted(folder.glob("*.onnx")) if sidecar_path(path).exists()]
    detectors = [path for path in files if read_sidecar(path).is_detector]
    return [path for path in files if path not in detectors], detectors


def peer_pose_net(path: Path) -> PoseEstimator:
    """The pose net of an ONNX file, on the CPU. Raises PairError."""
    entry = named_entry(EstimatorEntry, "large", str(path))
    return load_estimator(str(path.parent), entry, torch.device("cpu"), torch.float32)


def peer_detector(path: Path) -> Detector:
    """The detector of an ONNX file, on the CPU. Raises PairError."""
    entry = named_entry(DetectorEntry, "detector", str(path))
    return load_detector(str(path.parent), entry, torch.device("cpu"), torch.float32)


def timed(estimator: PoseEstimator) -> tuple[PoseEstimator, Timed[Tensor, Tensor]]:
    """The same with its net, one person at a time, timed alone."""
    network = Timed(estimator.network)
    same = copy.copy(estimator)
    alone = one_by_one(lambda crop: [network(crop)])
    same.network = lambda crops: alone(crops)[0]
    return same, network


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
    pose_nets, finders = peer_files(options.peers)
    if not pose_nets + finders:
        print(f"skipped: needs ONNX nets with their JSON files in {options.peers}")
        return 0
    set_cpu_threads(1)
    cpu = torch.device("cpu")
    dtype = resolve_dtype(cpu, options.precision)
    pair = load_pair(pair_from(options), cpu, dtype)
    names = pair.manifest.names()
    pictures = Pictures(options.data)
    print(
        f"{len(images)} pictures; one thread; bundled nets in {str(dtype).removeprefix('torch.')}, peers in float32"
    )

    nets = {f"{role} {names[role]}": timed(getattr(pair, role)) for role in ("small", "large")}
    nets |= {path.stem: timed(peer_pose_net(path)) for path in pose_nets}
    poses = estimate({name: estimator for name, (estimator, _) in nets.items()}, pictures, images)
    for line in report_poses(images, poses, {name: net.median_ms for name, (_, net) in nets.items()}):
        print(line, flush=True)

    detectors = {f"bundled {names['detector']}": Timed(pair.detector)}
    detectors |= {path.stem: Timed(peer_detector(path)) for path in finders}
    boxes = detect(detectors, pictures, images)
    for line in report_boxes(images, boxes, {name: each.median_ms for name, each in detectors.items()}):
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
    add_pair_arguments(parser)
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "bf16"], help="of the bundled nets"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
