"""What choosing whom to send to the large net is worth: recovered gain of the router and of rules that need none.

The recovered gain at p is (AP(p) - AP_small) / (AP_large - AP_small) where the share p of the boxes goes to the large
net: 0 is the small net, 1 the large net at its full price. Rules are compared at equal cost, so thresholds come from
the measured scores themselves, as in the paper; what stored thresholds make of it is another table of
`calibration.evaluate`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.accuracy import accuracy, bootstrap, draws
from calibration.data import LabelledImage
from calibration.estimates import Estimates, Mask, Matcher
from calibration.rules import rules

BOOTSTRAPS = 200
MIN_DIFFERENCE = 0.005
"""Of the two nets' APs: below it a share of the difference says nothing."""


@dataclass(frozen=True)
class Gain:
    """Recovered gain at p with its 95 % bootstrap interval over pictures (NaN where the nets are about equal), AP and
    AP50, and the share that was sent."""

    rule: str
    p: float
    share: float
    ap: float
    ap50: float
    gain: float
    low: float
    high: float


def recovered_gains(
    images: Sequence[LabelledImage], estimates: Estimates, shares: Sequence[float], theta: float
) -> Iterator[Gain]:
    """Every rule at every share; the estimates are those of boxes of `images`."""
    matcher = Matcher(images, estimates)
    times = np.concatenate([np.ones((1, len(images)), dtype=np.int64), draws(len(images), BOOTSTRAPS)])

    def aps(masks: Sequence[Mask]) -> np.ndarray:
        """AP of all pictures, then of every draw; the mean over the masks."""
        return np.asarray(np.mean([bootstrap(matcher(mask), times) for mask in masks], axis=0))

    nobody, everybody = (np.full(len(estimates.found), value, dtype=bool) for value in (False, True))
    lower, upper = aps([nobody]), aps([everybody])
    for rule in rules(estimates, theta):
        for p in shares:
            masks = rule.choose(rule.share(p, estimates.costs))
            ap = aps(masks)
            gains = np.full(len(ap), np.nan)
            if upper[0] - lower[0] >= MIN_DIFFERENCE:
                with np.errstate(invalid="ignore", divide="ignore"):
                    gains = (ap - lower) / (upper - lower)
            drawn = gains[1:][np.isfinite(gains[1:])]  # a draw's nets may be equal, or it may have nobody
            low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
            share = float(np.mean(masks))
            ap50 = float(np.mean([accuracy(matcher(mask)).ap50 for mask in masks]))
            yield Gain(rule.name, p, share, float(ap[0]), ap50, float(gains[0]), float(low), float(high))
