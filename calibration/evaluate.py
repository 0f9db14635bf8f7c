"""Keypoint AP of the small net, the large net and the routed pair, on the people of a folder with their own
boxes.

    python -m calibration.evaluate DATA [--split val] [--pair embedded] [--p 0.25 0.5 0.75] [--limit 100]

Runs the stage objects that the service runs. Thresholds come from the pair's calibration file, not from the
people measured, so the share sent to the large net is a result. A person's score is the mean of its
keypoint scores above 0.2. Intervals: bootstrap over pictures. Needs the development package pycocotools.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.data import LabelledImage, LabelledPerson, Pictures, has_split, read_split
from calibration.thresholds import thresholds
from models.defaults import THETA
from models.estimator import PoseEstimator
from models.zoo.pairs import Pair, load_pair

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MIN_KEYPOINT_SCORE = 0.2
BOOTSTRAPS = 500


@dataclass(frozen=True)
class Matches:
    """How one picture's predicted people fared, per OKS threshold.

    scores (N,); right and wrong (10, N), neither where a prediction falls on a person that does not count
    (crowd or no keypoints); labelled: the people to be found.
    """

    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    labelled: int


@dataclass(frozen=True)
class Accuracy:
    ap: float
    ap50: float
    ar: float


def match(images: Sequence[LabelledImage], keypoints: dict[int, np.ndarray]) -> list[Matches]:
    """Match predictions with the labels of their picture, as pycocotools does for keypoints.

    keypoints: (17, 3) x, y, score by the id of the person whose box was given. Returns one entry per image.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    people = [(image.id, person) for image in images for person in image.people]
    scored = [(image_id, person.id) for image_id, person in people if person.id in keypoints]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress
        truth, found = COCO(), COCO()
        for coco, annotations in (
            (truth, [_annotation(image_id, person) for image_id, person in people]),
            (found, [_detection(image_id, key, keypoints[key]) for image_id, key in scored]),
        ):
            coco.dataset = {
                "images": [{"id": image.id} for image in images],
                "categories": [{"id": 1}],
                "annotations": annotations,
            }
            coco.createIndex()
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    by_image = {entry["image_id"]: entry for entry in evaluation.evalImgs if entry is not None}
    return [_matches(by_image.get(image.id)) for image in images]


def _annotation(image_id: int, person: LabelledPerson) -> dict[str, object]:
    return {
        "id": person.id,
        "image_id": image_id,
        "category_id": 1,
        "bbox": list(person.bbox),
        "area": person.area,
        "iscrowd": int(person.crowd),
        "keypoints": person.keypoints.flatten().tolist(),
        "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
    }


def _detection(image_id: int, key: int, keypoints: np.ndarray) -> dict[str, object]:
    confident = keypoints[:, 2][keypoints[:, 2] > MIN_KEYPOINT_SCORE]
    low, high = keypoints[:, :2].min(axis=0), keypoints[:, :2].max(axis=0)
    return {
        "id": key,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float(np.prod(high - low)),
        "keypoints": keypoints.flatten().tolist(),
        "score": float(confident.mean()) if len(confident) else 0.0,
    }


def _matches(entry: dict | None) -> Matches:  # type: ignore[type-arg]
    if entry is None:
        nothing = np.zeros((len(OKS_THRESHOLDS), 0), dtype=bool)
        return Matches(np.zeros(0), nothing, nothing, 0)
    counted = ~entry["dtIgnore"].astype(bool)
    matched = entry["dtMatches"] > 0
    return Matches(
        scores=np.array(entry["dtScores"]),
        right=matched & counted,
        wrong=~matched & counted,
        labelled=int((1 - np.array(entry["gtIgnore"])).sum()),
    )


def accuracy(matches: Iterable[Matches]) -> Accuracy:
    """COCO's AP (mean over OKS thresholds), AP at 0.50 and AR over all people of the pictures. NaN with
    nobody.
    """
    matches = list(matches)
    labelled = sum(m.labelled for m in matches)
    if labelled == 0:
        return Accuracy(np.nan, np.nan, np.nan)
    order = np.argsort(-np.concatenate([m.scores for m in matches]), kind="stable")
    right = np.concatenate([m.right for m in matches], axis=1)[:, order].cumsum(axis=1)
    wrong = np.concatenate([m.wrong for m in matches], axis=1)[:, order].cumsum(axis=1)
    if not len(order):
        return Accuracy(0.0, 0.0, 0.0)
    recall = right / labelled
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate((precision, np.zeros((len(precision), 1))), axis=1)
    ap = np.array(
        [row[np.searchsorted(r, RECALLS, side="left")].mean() for row, r in zip(padded, recall, strict=True)]
    )
    return Accuracy(float(ap.mean()), float(ap[0]), float(recall[:, -1].mean()))


def interval(matches: Sequence[Matches], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the AP, pictures drawn with replacement."""
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(matches), (BOOTSTRAPS, len(matches)))
    aps = [accuracy(matches[i] for i in draw).ap for draw in draws]
    low, high = np.nanpercentile(aps, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Estimates:
    """Of every person with keypoints, by id: both nets' keypoints (17, 3) and the router's difficulty."""

    small: dict[int, np.ndarray]
    large: dict[int, np.ndarray]
    difficulty: dict[int, float]

    def routed(self, k1: float, k2: float) -> dict[int, np.ndarray]:
        """Eq. 2: the large net where k1 < s < k2."""
        return {
            key: self.large[key] if k1 < score < k2 else self.small[key]
            for key, score in self.difficulty.items()
        }


def estimate(pair: Pair, pictures: Pictures, images: Sequence[LabelledImage], batch: int = 32) -> Estimates:
    """Run router and both nets on every person with keypoints, boxes as labelled."""
    estimates = Estimates({}, {}, {})
    pending: list[tuple[int, Tensor, tuple[float, float, float, float]]] = []

    def flush() -> None:
        keys, tensors, boxes = zip(*pending, strict=True)
        box_tensor = torch.tensor(boxes)
        estimates.difficulty.update(zip(keys, pair.router(tensors, box_tensor).tolist(), strict=True))
        for net, results in ((pair.small, estimates.small), (pair.large, estimates.large)):
            results.update(zip(keys, _run(net, tensors, box_tensor), strict=True))
        pending.clear()

    for image in images:
        picture = pictures(image)
        for person in image.people:
            if person.has_pose:
                pending.append((person.id, picture, person.bbox))
                if len(pending) == batch:
                    flush()
    if pending:
        flush()
    return estimates


def _run(net: PoseEstimator, pictures: Sequence[Tensor], boxes: Tensor) -> list[np.ndarray]:
    return list(net(pictures, boxes).numpy())


def report(
    images: Sequence[LabelledImage], rows: dict[str, tuple[float, dict[int, np.ndarray]]]
) -> list[str]:
    """The table as lines. rows: name -> (share of the large net, keypoints by person)."""
    lines = []
    for part, chosen in (
        ("COCO", [image for image in images if image.source.startswith("coco")]),
        ("all", list(images)),
    ):
        people = sum(person.has_pose for image in chosen for person in image.people)
        lines.append(f"{part}: {people} people with keypoints in {len(chosen)} pictures")
        if not people:
            continue
        lines.append(f"  {'':16} {'large':>6} {'AP':>6} {'95 %':>13} {'AP50':>6} {'AR':>6}")
        for name, (share, keypoints) in rows.items():
            matches = match(chosen, keypoints)
            result, (low, high) = accuracy(matches), interval(matches)
            lines.append(
                f"  {name:16} {share:6.3f} {result.ap:6.3f} {low:6.3f}-{high:.3f}"
                f" {result.ap50:6.3f} {result.ar:6.3f}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with SPLIT.json and its pictures")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--p", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--theta", type=float, default=THETA)
    parser.add_argument("--limit", type=int, help="pictures, from the start of the file")
    options = parser.parse_args()
    if not has_split(options.data, options.split):
        print(f"skipped: needs pictures with people in {options.data}")
        return
    images = read_split(options.data, options.split)[: options.limit]
    pair = load_pair(options.pair, torch.device("cpu"), torch.float32)
    scores = json.loads(pair.calibration.read_text())["scores"]
    estimates = estimate(pair, Pictures(options.data), images)

    rows = {"small": (0.0, estimates.small), "large": (1.0, estimates.large)}
    for p in options.p:
        limits = thresholds(scores, p, options.theta)
        routed = estimates.routed(limits.k1, limits.k2)
        share = sum(limits.k1 < s < limits.k2 for s in estimates.difficulty.values()) / len(routed)
        rows[f"routed, p = {p}"] = (share, routed)
    print(", ".join(f"{role} {name}" for role, name in pair.manifest.names().items()))
    print("\n".join(report(images, rows)))


if __name__ == "__main__":
    main()
