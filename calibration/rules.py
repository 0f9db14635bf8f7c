"""Who goes to the large net: the router's policies, and the rules that a sceptic compares them with, which need no
router. A rule names a mask (N,) for a share p of N boxes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.accuracy import Pose
from calibration.boxes import Array
from calibration.estimates import Costs, Estimates, Mask, oks_gain, padded_area
from calibration.okd import oks
from calibration.thresholds import thresholds
from models.skeleton import by_keypoints

DRAWS = 10
"""Of the random rule, whose AP is their mean."""

TOP, BAND, LOWEST = "router, highest (`top`)", "router, middle band (`band`)", "router, lowest"
WIDEST = "router, middle band, theta 0"
RANDOM, ORACLE = "random", "oracle: OKS gain"
RANDOM_PERSON, TOP_PERSON = "random, boxes with a person first", "router, highest, boxes with a person first"
"""Is anything left of the router's gain once boxes of nobody are out of its way?"""


@dataclass(frozen=True)
class Rule:
    """`choose(p)`: masks of whom to send, several where the AP is to be their mean. small_passes: of the small net,
    which it needs before it can choose, in place of the router; at equal cost it may send so many fewer (or more)."""

    name: str
    choose: Callable[[float], list[Mask]]
    small_passes: int | None = None

    def share(self, p: float, costs: Costs) -> float:
        """Which share of people costs as many multiply-accumulates as the router's pair at p."""
        if self.small_passes is None or not all(costs.macs.get(name) for name in ("small", "large")):
            return p
        rest = costs.macs_at(p) - self.small_passes * costs.macs["small"]
        return float(np.clip(rest / costs.macs["large"], 0, 1))


def highest(priority: Array, p: float) -> Mask:
    """The share p of highest priority; equals in a fixed random order."""
    order = np.lexsort((np.random.default_rng(0).random(len(priority)), -priority))
    mask = np.zeros(len(priority), dtype=bool)
    mask[order[: round(len(priority) * p)]] = True
    return mask


def band(difficulty: Array, p: float, theta: float) -> Mask:
    """Eq. 2 with k1 and k2 by eq. 7 and 8 from these scores themselves."""
    split = thresholds(difficulty, p, theta)
    return np.asarray((difficulty > split.k1) & (difficulty < split.k2))


def rules(estimates: Estimates, theta: float) -> list[Rule]:
    """The router's rules first, then those without a router that these boxes allow, the best possible one last."""
    difficulty = estimates.difficulty
    confidence = np.array([Pose(1.0, points).score for points in estimates.small])
    score = np.array([person.score for person in estimates.found])
    area = np.array([padded_area(person.bbox) for person in estimates.found])
    draws = np.random.default_rng(1).random((DRAWS, len(score)))

    def random(name: str, first: Array | float = 0.0) -> Rule:
        return Rule(name, lambda p: [highest(first + draw, p) for draw in draws])

    def banded(name: str, values: Array) -> Rule:
        return Rule(name, lambda p: [band(values, p, theta)])

    def by(name: str, priority: Array, small_passes: int | None = None) -> Rule:
        return Rule(name, lambda p: [highest(priority, p)], small_passes)

    result = [
        by(TOP, difficulty),
        banded(BAND, difficulty),
        *([Rule(WIDEST, lambda p: [band(difficulty, p, 0.0)])] if theta else []),
        by(LOWEST, -difficulty),
        random(RANDOM),
        by("biggest box", area),
        by("small net first, lowest confidence", -confidence, small_passes=1),
    ]
    if estimates.small_flipped is not None:
        agreement = oks(
            estimates.small[:, :, :2],
            estimates.small_flipped[:, :, :2],
            np.ones(estimates.small.shape[:2]),
            area,
            by_keypoints(estimates.small.shape[1]).sigmas,
        )
        passes = 1 if estimates.costs.flip_test else 2  # with the flip test a pass is one of either side
        result.append(by("small net twice, least flip consistency", -agreement, small_passes=passes))
    if len(np.unique(score)) > 1:  # a detector's boxes
        person = np.array([float(p.label is not None) for p in estimates.found])
        result += [
            by("box score", score),
            banded("box score, two-sided", 1 - score),
            by("box score x area", score * area),
            by("small net first, lowest confidence x box score", (1 - confidence) * score, small_passes=1),
            random(RANDOM_PERSON, person),
            by(TOP_PERSON, person + difficulty),
        ]
    for name, scores in estimates.others.items():
        result += [by(f"{name}, highest", scores), banded(f"{name}, middle band", scores)]
    return [*result, by(ORACLE, oks_gain(estimates))]
