"""COCO's keypoint AP and AR, also by CrowdPose's rules, with bootstrap intervals over pictures.

pycocotools (a development package) matches predictions with labels; the sums over pictures are made here, since a
bootstrap needs hundreds of them.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from calibration.data import LabelledImage, LabelledPerson
from calibration.okd import oks
from models.defaults import RESCORING_SCORE
from models.skeleton import by_keypoints

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
BOOTSTRAPS = 500

Area = Literal["all", "medium", "large"]
AREAS: dict[Area, list[float]] = {"all": [0, 1e10], "medium": [32**2, 96**2], "large": [96**2, 1e10]}
"""COCO's sizes of people, square pixels."""

CROWDING = {"easy": (0.0, 0.2), "medium": (0.2, 0.8), "hard": (0.8, float("inf"))}
"""CrowdPose: crowd index of a picture, from the first, below the last. The code of its public evaluation has 0.2 where
the paper is often quoted with 0.1."""


@dataclass(frozen=True)
class Pose:
    """One estimated person: the score of its box, 0 to 1, and keypoints (K, 3) x, y, score in picture pixels."""

    bbox_score: float
    keypoints: np.ndarray

    @property
    def score(self) -> float:
        """By which poses are ranked: the score of the box times the mean score of the joints above 0.2."""
        confident = self.keypoints[:, 2][self.keypoints[:, 2] > RESCORING_SCORE]
        return self.bbox_score * float(confident.mean()) if len(confident) else 0.0


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
    ap75: float
    ar: float


def match(
    images: Sequence[LabelledImage], poses: Mapping[int, Sequence[Pose]], area: Area = "all"
) -> list[Matches]:
    """Match poses with the labels of their picture, as pycocotools does for keypoints (the 20 best of a picture).

    poses: by image id. area: people of another size do not count. Returns one entry per image.
    """
    people = [(image.id, person) for image in images for person in image.people]
    found = [(image.id, pose) for image in images for pose in poses.get(image.id, ())]
    return coco_matches(
        images,
        [_annotation(image_id, person) for image_id, person in people],
        [_detection(image_id, pose) for image_id, pose in found],
        "keypoints",
        area,
    )


def coco_matches(
    images: Sequence[LabelledImage],
    truth: Sequence[dict[str, object]],
    found: Sequence[dict[str, object]],
    kind: Literal["keypoints", "bbox"],
    area: Area = "all",
) -> list[Matches]:
    """pycocotools' matching at its ten thresholds, one entry per image. truth and found: COCO annotations and results
    without id and category."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress
        labelled, detected = COCO(), COCO()
        for coco, rows in ((labelled, truth), (detected, found)):
            coco.dataset = {
                "images": [{"id": image.id} for image in images],
                "categories": [{"id": 1}],
                # Numbered from 1, whatever ids the labels have: pycocotools takes 0 for "matched nobody".
                "annotations": [{"id": key, "category_id": 1} | row for key, row in enumerate(rows, 1)],
            }
            coco.createIndex()
        evaluation = COCOeval(labelled, detected, kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [AREAS[area]], [area]
        if kind == "keypoints" and found:
            keypoints = len(cast(list[float], found[0]["keypoints"])) // 3
            evaluation.params.kpt_oks_sigmas = np.array(by_keypoints(keypoints).sigmas)
        evaluation.evaluate()
    by_image = {entry["image_id"]: entry for entry in evaluation.evalImgs if entry is not None}
    return [_matches(by_image.get(image.id)) for image in images]


def without_doubles(poses: Sequence[Pose], areas: Sequence[float], limit: float = 0.9) -> list[int]:
    """OKS-NMS: indices of the poses of one picture that no better pose resembles by an OKS above `limit`.

    areas: of the padded boxes, square pixels. MMPose's protocol, with which the paper's AP is measured.
    """
    kept: list[int] = []
    if not poses:
        return kept
    points = np.array([pose.keypoints[:, :2] for pose in poses], dtype=np.float64)
    joints = points.shape[1]
    sigmas = by_keypoints(joints).sigmas
    for index in sorted(range(len(poses)), key=lambda i: -poses[i].score):
        # The suppressed pose's own area counts as well: MMPose takes the mean of both.
        mean = (np.array([areas[k] for k in kept]) + areas[index]) / 2
        alike = oks(
            np.repeat(points[index][None], len(kept), 0),
            points[kept],
            np.ones((len(kept), joints)),
            mean,
            sigmas,
        )
        if not (alike > limit).any():
            kept.append(index)
    return kept


def _annotation(image_id: int, person: LabelledPerson) -> dict[str, object]:
    return {
        "image_id": image_id,
        "bbox": list(person.bbox),
        "area": person.area,
        "iscrowd": int(person.crowd),
        "keypoints": person.keypoints.flatten().tolist(),
        "num_keypoints": int(person.has_pose and (person.keypoints[:, 2] > 0).sum()),
    }


def _detection(image_id: int, pose: Pose) -> dict[str, object]:
    low, high = pose.keypoints[:, :2].min(axis=0), pose.keypoints[:, :2].max(axis=0)
    return {
        "image_id": image_id,
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float(np.prod(high - low)),
        "keypoints": pose.keypoints.flatten().tolist(),
        "score": pose.score,
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
    """COCO's AP (mean over OKS thresholds), AP at 0.50 and 0.75, and AR over all people of the pictures. NaN with
    nobody.
    """
    matches = list(matches)
    ap, recall = next(_sums(matches, np.ones((1, len(matches)), dtype=np.int64)))
    return Accuracy(float(ap.mean()), float(ap[0]), float(ap[5]), float(recall.mean()))


def bootstrap(matches: Sequence[Matches], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """(D,) APs of D samples of the pictures. times: (D, pictures), how often a sample has each picture."""
    return np.array([ap.mean() for ap, _ in _sums(matches, times)])


def draws(pictures: int, count: int = BOOTSTRAPS, seed: int = 0) -> NDArray[np.int64]:
    """(count, pictures) for `bootstrap`: as many pictures as there are, drawn with replacement."""
    random = np.random.default_rng(seed)
    return random.multinomial(pictures, np.full(pictures, 1 / pictures), size=count)


def interval(matches: Sequence[Matches]) -> tuple[float, float]:
    """95 % bootstrap interval of the AP, pictures drawn with replacement; NaN where nobody is labelled."""
    aps = bootstrap(matches, draws(len(matches)))
    if np.isnan(aps).all():
        return np.nan, np.nan
    low, high = np.nanpercentile(aps, (2.5, 97.5))
    return float(low), float(high)


def _sums(
    matches: Sequence[Matches], times: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """AP (10,) and highest recall (10,) per OKS threshold, of every sample of the pictures."""
    nothing = np.zeros((len(OKS_THRESHOLDS), 0), dtype=bool)
    scores = np.concatenate([np.zeros(0), *(m.scores for m in matches)])
    order = np.argsort(-scores, kind="stable")
    picture = np.repeat(np.arange(len(matches)), [len(m.scores) for m in matches])[order]
    right = np.concatenate([nothing, *(m.right for m in matches)], axis=1)[:, order]
    wrong = np.concatenate([nothing, *(m.wrong for m in matches)], axis=1)[:, order]
    labelled = np.array([m.labelled for m in matches], dtype=np.int64)
    for drawn in times:
        people = int(drawn @ labelled)
        if people == 0:
            yield np.full(len(nothing), np.nan), np.full(len(nothing), np.nan)
        elif not len(order):
            yield np.zeros(len(nothing)), np.zeros(len(nothing))
        else:
            weight = drawn[picture]
            hits, misses = (right * weight).cumsum(axis=1), (wrong * weight).cumsum(axis=1)
            recall = hits / people
            precision = hits / np.maximum(hits + misses, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            padded = np.concatenate((precision, np.zeros((len(precision), 1))), axis=1)
            at = [np.searchsorted(row, RECALLS, side="left") for row in recall]
            yield np.array([row[cells].mean() for row, cells in zip(padded, at, strict=True)]), recall[:, -1]
