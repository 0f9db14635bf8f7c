"""From the share p that the operator asks for to the thresholds that give it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.thresholds import Scores, floor_share, thresholds

Policy = Literal["band", "top"]


@dataclass(frozen=True, slots=True)
class Split:
    """Thresholds for one share, and the share of the sample that they send to the large net."""

    k1: float
    k2: float
    k1_lowered: bool
    share: float


def split_for(window: Scores, p: float, theta: float, policy: Policy) -> Split:
    """Thresholds that send the share of `window` (sorted) nearest to p to the large net.

    `band` is eq. 7 and 8, with p = 0 and p = 1 exact, and k1 lowered where eq. 8 runs out of scores. `top` is
    one-sided: k2 is +inf and k1 the 1 - p quantile. Where scores are equal, the thresholds move to the nearest share
    on either side.
    """
    literal = thresholds(window, p, theta)
    n = len(window)
    if p == 1:
        return Split(-math.inf, math.inf, False, 1.0)
    if p == 0:
        if policy == "top":  # which knows no extremely hard people, so that all are easy then
            return Split(1.0, math.inf, False, 0.0)
        nearest = float(window[literal.j - 1])
        return Split(nearest, nearest, False, 0.0)
    wanted = floor_share(n, p)
    easy = int(np.searchsorted(window, literal.k1, side="right"))
    if policy == "top" or easy + wanted > n:
        k1, share = _one_sided(window, wanted)
        return Split(k1, math.inf, policy == "band", share)
    return _band(window, literal.k1, literal.k2, easy, wanted)


def _one_sided(window: Scores, wanted: int) -> tuple[float, float]:
    """k1 such that about `wanted` scores are above it, and their share."""
    n = len(window)
    edge = window[n - wanted - 1] if wanted < n else -math.inf
    below = window[window < edge]
    candidates = [float(edge), float(below[-1]) if len(below) else -math.inf]
    above = [n - int(np.searchsorted(window, k1, side="right")) for k1 in candidates]
    best = min((0, 1), key=lambda i: (abs(above[i] - wanted), i))
    return candidates[best], above[best] / n


def _band(window: Scores, k1: float, k2: float, easy: int, wanted: int) -> Split:
    """Eq. 8's k2 or, where scores as good as equal make it far too low, the score that leaves `wanted` between, or the
    next one above that."""
    n = len(window)

    def hard(threshold: float) -> int:
        return max(0, int(np.searchsorted(window, threshold, side="left")) - easy)

    # Eq. 8 itself may be one short of `wanted` (see `thresholds`); that is no reason to leave it.
    if wanted - hard(k2) > 1:
        exact = _at(window, easy + wanted)
        above = _at(window, int(np.searchsorted(window, exact, side="right")))
        k2 = min(exact, above, key=lambda threshold: abs(hard(threshold) - wanted))
    return Split(k1, k2, False, hard(k2) / n)


def _at(window: Scores, index: int) -> float:
    return float(window[index]) if index < len(window) else math.inf
