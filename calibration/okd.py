"""How wrong a pose is: OKS, and the paper's object keypoint distance OKD (eq. 5)."""

import numpy as np
from numpy.typing import NDArray

from models.skeleton import SIGMAS

Array = NDArray[np.float64]

RHO = 1 / (2 * np.array(SIGMAS)) ** 2
"""Eq. 5's "hyperparameters in OKS", read as 1 / (2 sigma)^2: a joint counts as much as annotators agree on it."""


def okd(predicted: Array, truth: Array, visible: Array) -> Array:
    """Eq. 5: the mean distance of the visible joints, weighted by rho.

    predicted, truth: (N, 17, 2) pixels. visible: (N, 17), 0 or more; each joint above 0 counts once. Returns (N,) in
    weighted pixels; the ratio of two of them has no unit. NaN for a person without a visible joint.
    """
    seen = visible > 0
    distance = np.linalg.norm(predicted - truth, axis=2)
    with np.errstate(invalid="ignore"):
        return np.asarray((distance * RHO * seen).sum(1) / seen.sum(1))


def oks(predicted: Array, truth: Array, visible: Array, area: Array) -> Array:
    """Object keypoint similarity of COCO, (N,) in 0..1. area: (N,) of the person in square pixels. NaN for a person
    without a visible joint."""
    seen = visible > 0
    squared = ((predicted - truth) ** 2).sum(2)
    # COCO's variance is (2 sigma)^2, and the area twice in the exponent.
    similarity = np.exp(-squared * RHO / (2 * np.maximum(area, np.spacing(1.0))[:, None]))
    with np.errstate(invalid="ignore"):
        return np.asarray((similarity * seen).sum(1) / seen.sum(1))


def gain_target(okd_small: Array, okd_large: Array) -> Array:
    """Eq. 6's target (D_s - D_l) / D_s: the share of the small net's error that the large net removes; at most 1,
    negative where the large net is worse, NaN where the small net has no error."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(okd_small > 1e-9, (okd_small - okd_large) / okd_small, np.nan)
