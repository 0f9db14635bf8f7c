"""Who should go to the large net, and what choosing them is worth: recovered gain of the router and of rules that cost
nothing (the sceptic's baselines).

The recovered gain at p is (AP(p) - AP_small) / (AP_large - AP_small) where exactly the share p of the boxes goes to the
large net: 0 is the small net, 1 the large net at its full price. Rules are compared at equal shares, so thresholds come
from the measured scores themselves, as in the paper; what stored thresholds make of it is `calibration.evaluate`'s
table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import Matches, Pose, accuracy, match, without_doubles
from calibration.boxes import Array, Bbox, FoundPerson
from calibration.data import LabelledImage
from calibration.okd import oks
from calibration.thresholds import thresholds
from models.defaults import ASPECT, PADDING

BOOTSTRAPS = 200


@dataclass(frozen=True)
class Estimates:
    """What router and nets make of N boxes. small, large: (N, 17, 3). difficulty: (N,)."""

    found: Sequence[FoundPerson]
    small: Array
    large: Array
    difficulty: Array

    def routed(self, to_large: NDArray[np.bool_]) -> Array:
        """(N, 17, 3) keypoints when the people of the mask go to the large net."""
        return np.where(to_large[:, None, None], self.large, self.small)

    def matched(self, images: Sequence[LabelledImage], keypoints: Array) -> list[Matches]:
        """Match keypoints (N, 17, 3) with the labels of `images`, after OKS-NMS."""
        poses: dict[int, list[tuple[Pose, float]]] = {image.id: [] for image in images}
        for person, points in zip(self.found, keypoints, strict=True):
            if person.image_id in poses:
                poses[person.image_id].append((Pose(person.score, points), padded_area(person.bbox)))
        kept = {}
        for key, pairs in poses.items():
            candidates, areas = [pose for pose, _ in pairs], [area for _, area in pairs]
            kept[key] = [candidates[index] for index in without_doubles(candidates, areas)]
        return match(images, kept)


def padded_area(bbox: Bbox) -> float:
    """Square pixels of the crop that a box is cut with."""
    height = max(bbox[3], bbox[2] / ASPECT) * PADDING
    return height * height * ASPECT


def similarity(keypoints: Array, found: Sequence[FoundPerson]) -> Array:
    """(N,) OKS of keypoints (N, 17, 3) with the labelled person of each box; NaN without one, or without a labelled
    keypoint."""
    result = np.full(len(found), np.nan)
    labels = {row: p.label for row, p in enumerate(found) if p.label is not None and p.label.has_pose}
    if labels:
        rows = list(labels)
        truth = np.array([label.keypoints for label in labels.values()], dtype=np.float64)
        areas = np.array([label.area for label in labels.values()])
        result[rows] = oks(keypoints[rows][:, :, :2], truth[:, :, :2], truth[:, :, 2], areas)
    return result


def oks_gain(estimates: Estimates) -> Array:
    """(N,) OKS of the large net minus that of the small one; 0 for a box that no labelled person belongs to."""
    small, large = (
        similarity(keypoints, estimates.found) for keypoints in (estimates.small, estimates.large)
    )
    return np.nan_to_num(large - small)


def priorities(estimates: Estimates) -> dict[str, Array]:
    """(N,) per rule: who comes first to the large net has the highest value."""
    confidence = np.array([Pose(1.0, points).score for points in estimates.small])
    rules = {
        "router, highest score (`top`)": estimates.difficulty,
        "biggest box": np.array([person.bbox[3] for person in estimates.found]),
        "small net's lowest confidence": -confidence,
        "oracle: OKS gain": oks_gain(estimates),
    }
    score = np.array([person.score for person in estimates.found])
    if len(np.unique(score)) > 1:  # a detector's boxes
        rules |= {
            "box score": score,
            "box score x area": score * [padded_area(person.bbox) for person in estimates.found],
            "small net's lowest confidence x box score": (1 - confidence) * score,
            "oracle: boxes with a person": np.array([float(p.label is not None) for p in estimates.found]),
        }
    return rules


def highest(priority: Array, p: float) -> NDArray[np.bool_]:
    """The share p of highest priority; equals in a fixed random order."""
    order = np.lexsort((np.random.default_rng(0).random(len(priority)), -priority))
    mask = np.zeros(len(priority), dtype=bool)
    mask[order[: round(len(priority) * p)]] = True
    return mask


def band(difficulty: Array, p: float, theta: float) -> NDArray[np.bool_]:
    """Eq. 2 with k1 and k2 by eq. 7 and 8 from these scores themselves."""
    split = thresholds(difficulty, p, theta)
    return np.asarray((difficulty > split.k1) & (difficulty < split.k2))


def choices(estimates: Estimates, theta: float) -> dict[str, Callable[[float], NDArray[np.bool_]]]:
    """Per rule: the mask of those who go to the large net at p."""

    def chooser(priority: Array) -> Callable[[float], NDArray[np.bool_]]:
        return lambda p: highest(priority, p)

    rules = {name: chooser(priority) for name, priority in priorities(estimates).items()}
    random = np.random.default_rng(1).random(len(estimates.found))
    return {
        "router, middle band (`band`)": lambda p: band(estimates.difficulty, p, theta),
        "random": chooser(random),
        **rules,
    }


@dataclass(frozen=True)
class Gain:
    """Recovered gain at p with its 95 % bootstrap interval over pictures, the AP, and the share that was sent."""

    rule: str
    p: float
    share: float
    ap: float
    gain: float
    low: float
    high: float


def recovered_gains(
    images: Sequence[LabelledImage], estimates: Estimates, shares: Sequence[float], theta: float
) -> Iterator[Gain]:
    """Every rule at every share, on the people of `images`."""
    present = {image.id for image in images}
    rows = [row for row, person in enumerate(estimates.found) if person.image_id in present]
    part = Estimates(
        [estimates.found[row] for row in rows],
        estimates.small[rows],
        estimates.large[rows],
        estimates.difficulty[rows],
    )
    small, large = (part.matched(images, keypoints) for keypoints in (part.small, part.large))
    draws = np.random.default_rng(0).integers(0, len(images), (BOOTSTRAPS, len(images)))

    def aps(matches: list[Matches]) -> Array:
        """AP of all pictures, then of every draw."""
        return np.array(
            [accuracy(matches).ap, *(accuracy(matches[index] for index in draw).ap for draw in draws)]
        )

    lower, upper = aps(small), aps(large)
    for rule, choose in choices(part, theta).items():
        for p in shares:
            mask = choose(p)
            ap = aps(part.matched(images, part.routed(mask)))
            with np.errstate(invalid="ignore", divide="ignore"):
                gains = (ap - lower) / (upper - lower)
            low, high = np.nanpercentile(gains[1:], (2.5, 97.5))
            yield Gain(rule, p, float(mask.mean()), float(ap[0]), float(gains[0]), float(low), float(high))
