"""How good person boxes are: COCO's AP, and recall and false boxes at the score at which a service keeps them.

    python -m calibration.detection DATA [--split val] [--pair embedded] [--min-score 0.35]

Runs the pair's own detector stage on the pictures of DATA whose people are all annotated (COCO's, not those of data
sets that label one person a picture). Intervals: bootstrap over pictures. Needs the development package pycocotools.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.accuracy import Matches, accuracy, coco_matches, draws, interval
from calibration.boxes import Array, FoundPerson, assign
from calibration.commands import run_command
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.inputs import missing_split
from models.defaults import MIN_SCORE
from models.detector import Detector
from models.runtime import resolve_device, resolve_dtype, resolve_int8
from models.zoo import load_pair

Boxes = Mapping[int, Array]
"""By image id: (M, 5) x, y, w, h, score in picture pixels, in any order. An image without boxes may be missing."""

FLOOR = 0.01
"""Least score of the boxes that AP is measured with: what lies below adds nothing to its area."""

HEIGHTS = {
    "below 32 px": (0.0, 32.0),
    "32 to 64 px": (32.0, 64.0),
    "64 to 128 px": (64.0, 128.0),
    "128 to 256 px": (128.0, 256.0),
    "256 px and above": (256.0, math.inf),
    "64 px and above": (64.0, math.inf),
    "all": (0.0, math.inf),
}
"""Heights of labelled boxes in picture pixels: the first belongs to the range, the last does not."""


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % bootstrap interval over pictures."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True)
class BoxAccuracy:
    """COCO's person AP (mean over IoU thresholds), AP at IoU 0.50, and AR with at most 100 boxes a picture."""

    ap: Measured
    ap50: float
    ar: float


@dataclass(frozen=True)
class Found:
    """What boxes from one score up find. people and recall: per range of HEIGHTS. wrong: false boxes a picture."""

    people: dict[str, int]
    recall: dict[str, Measured]
    wrong: Measured


def complete(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """The pictures that can score a detector: all their people are annotated."""
    return [image for image in images if image.complete]


def find(detector: Detector, pictures: Pictures, images: Sequence[LabelledImage]) -> dict[int, Array]:
    """The detector's boxes of every picture, one picture at a time."""
    return {image.id: detector([pictures(image)], [FLOOR])[0].double().numpy() for image in images}


def box_accuracy(images: Sequence[LabelledImage], boxes: Boxes) -> BoxAccuracy:
    """COCO's numbers over the complete ones of `images`. NaN with nobody."""
    matches = match_boxes(images, boxes)
    result = accuracy(matches)
    low, high = interval(matches) if not math.isnan(result.ap) else (math.nan, math.nan)
    return BoxAccuracy(Measured(result.ap, low, high), result.ap50, result.ar)


def match_boxes(images: Sequence[LabelledImage], boxes: Boxes) -> list[Matches]:
    """Match boxes with the people of their picture, as pycocotools does: a crowd area is neither to be found nor
    wrong to find. One entry per complete image, for the sums of `calibration.accuracy`, which are the same for boxes.
    """
    images = complete(images)
    truth: list[dict[str, object]] = [
        {"image_id": image.id, "iscrowd": int(person.crowd), **_box(list(person.bbox))}
        for image in images
        for person in image.people
    ]
    found: list[dict[str, object]] = [
        {"image_id": image.id, "score": row[4], **_box(row[:4])}
        for image in images
        for row in np.asarray(boxes.get(image.id, np.empty((0, 5)))).tolist()
    ]
    return coco_matches(images, truth, found, "bbox")


def _box(bbox: list[float]) -> dict[str, object]:
    return {"bbox": bbox, "area": bbox[2] * bbox[3]}


def assigned(images: Sequence[LabelledImage], boxes: Boxes) -> list[list[FoundPerson]]:
    """To whom the boxes belong, per complete image (`calibration.boxes.assign`).

    The best box comes first, so the boxes from a score up belong to the same people whether or not the lower ones are
    there, and one assignment serves every score.
    """
    return [assign(np.asarray(boxes.get(image.id, np.empty((0, 5)))), image) for image in complete(images)]


def at_score(
    images: Sequence[LabelledImage], people: Sequence[Sequence[FoundPerson]], min_score: float
) -> Found:
    """Recall per height and false boxes a picture with the boxes from `min_score` up. people: of `assigned`.

    Everybody who is no crowd counts, with and without keypoints. Recall is NaN where there is nobody.
    """
    images = complete(images)
    wanted, met = np.zeros((2, len(images), len(HEIGHTS)))
    wrong = np.zeros((len(images), 1))
    for row, (image, found) in enumerate(zip(images, people, strict=True)):
        kept = [person for person in found if person.score >= min_score]
        labels = [person.label for person in kept if person.label is not None]
        wanted[row] = per_height([person.bbox[3] for person in image.people if not person.crowd])
        met[row] = per_height([label.bbox[3] for label in labels])
        wrong[row] = sum(person.wrong for person in kept)
    recall, rate = ratios(met, wanted), ratios(wrong, np.ones_like(wrong))
    return Found(
        people={name: int(count) for name, count in zip(HEIGHTS, wanted.sum(axis=0), strict=True)},
        recall=dict(zip(HEIGHTS, recall, strict=True)),
        wrong=rate[0],
    )


def per_height(heights: Sequence[float]) -> list[int]:
    """How many lie in each range of HEIGHTS."""
    return [sum(low <= height < high for height in heights) for low, high in HEIGHTS.values()]


def ratios(above: Array, below: Array) -> list[Measured]:
    """Sum over pictures of `above` by that of `below`, both (pictures, K), with bootstrap intervals; K of them."""
    times = draws(len(above))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = above.sum(axis=0) / below.sum(axis=0)
        drawn = (times @ above) / (times @ below)
    measured = []
    for value, column in zip(values, drawn.T, strict=True):
        known = column[np.isfinite(column)]  # a draw may have nobody of a rare height
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (math.nan, math.nan)
        measured.append(Measured(float(value), float(low), float(high)))
    return measured


def score_at(people: Sequence[Sequence[FoundPerson]], wrong_per_picture: float) -> float:
    """The least score from which boxes have at most so many false ones a picture. people: of `assigned`."""
    scores = sorted((person.score for found in people for person in found if person.wrong), reverse=True)
    allowed = math.floor(wrong_per_picture * len(people))
    return float(np.nextafter(scores[allowed], math.inf)) if allowed < len(scores) else 0.0


def report(images: Sequence[LabelledImage], boxes: Boxes, min_score: float) -> Iterator[str]:
    """The table, line by line."""
    found = at_score(images, assigned(images, boxes), min_score)
    yield f"{len(complete(images))} pictures, {found.people['all']} people who are no crowd"
    if not found.people["all"]:
        return
    result = box_accuracy(images, boxes)
    yield f"AP {result.ap}, AP50 {result.ap50:.3f}, AR {result.ar:.3f}"
    yield f"from score {min_score:g}: {found.wrong} false boxes a picture"
    yield f"  {'height':16} {'people':>6} {'recall':>6}"
    for name, people in found.people.items():
        yield f"  {name:16} {people:6} {found.recall[name]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with SPLIT.json and its pictures")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--min-score", type=float, default=MIN_SCORE, help="for recall and false boxes")
    parser.add_argument("--limit", type=int, help="pictures, from the start of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    options = parser.parse_args()
    if not has_split(options.data, options.split):
        return missing_split(options.data, options.split)
    images = complete(read_split(options.data, options.split))[: options.limit]
    if not images:
        print(f"skipped: no picture of split {options.split!r} has all its people labelled")
        return 0
    device = resolve_device(options.device)
    int8 = resolve_int8(device, options.precision, "auto")
    pair = load_pair(options.pair, device, resolve_dtype(device, options.precision), int8=int8)
    form = ", int8" if int8 and pair.manifest.detector.int8 else ""
    print(f"detector {pair.manifest.names()['detector']}{form}")
    for line in report(images, find(pair.detector, Pictures(options.data), images), options.min_score):
        print(line)
    return 0


if __name__ == "__main__":
    run_command(main)
