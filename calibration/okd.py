"""How wrong a pose is: OKS, the paper's object keypoint distance OKD (eq. 5), and the router's target (eq. 6).

Paper and released code differ, and the paper leaves things open; `Reading` has a switch for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.defaults import ROUTER_SIZE
from models.skeleton import by_keypoints

Array = NDArray[np.float64]

CELL = 4
"""Crop pixels of one cell of the released nets' heatmaps, 48 x 64 for a crop of 192 x 256."""

CROP_AREA = float(ROUTER_SIZE[0] * ROUTER_SIZE[1])

JOINT_WEIGHTS = (1.0,) * 5 + (1.2, 1.2, 1.5, 1.5, 2.0, 2.0) * 2
"""What the released code multiplies rho with: more the further out a joint of the 17 lies."""


@dataclass(frozen=True)
class Reading:
    """How eq. 5 and 6 are read. The default is the recommended reading, RELEASED what the authors' code does.

    oks_filter: a person counts only where the nets' OKS differ by more than the first and less than the second number;
    None: everybody counts, as in the paper. filter_area: the area in that OKS, the crop's (released) or the person's.
    clamp: the target is kept within 0..1. total: over the visible joints; makes no difference to the ratio. axes:
    distances in pixels; or x by the crop's width and y by its height; or swapped, x by the height. cells: points are
    rounded to heatmap cells first. joint_weights: rho is multiplied by JOINT_WEIGHTS. no_error: a smaller D_s counts
    as 0, which eq. 6 cannot divide by.
    """

    oks_filter: tuple[float, float] | None = (0.05, 0.3)
    filter_area: Literal["crop", "person"] = "crop"
    clamp: bool = False
    total: Literal["mean", "sum"] = "mean"
    axes: Literal["pixels", "size", "swapped"] = "pixels"
    cells: bool = False
    joint_weights: bool = False
    no_error: float = 1e-9


RECOMMENDED = Reading()
RELEASED = Reading(total="sum", axes="swapped", cells=True, joint_weights=True, no_error=1e-3)


def rho(keypoints: int, sigmas: Sequence[float] | None = None) -> Array:
    """(K,) eq. 5's "hyperparameters in OKS", read as 1 / (2 sigma)^2: a joint counts as much as annotators agree on it.

    sigmas: of the K keypoints, by default those of the known set of so many. Raises ValueError for another number.
    """
    values = np.array(by_keypoints(keypoints).sigmas if sigmas is None else sigmas)
    if len(values) != keypoints:
        raise ValueError(f"{keypoints} keypoints, but {len(values)} sigmas")
    return np.asarray(1 / (2 * values) ** 2)


def okd(
    predicted: Array,
    truth: Array,
    visible: Array,
    reading: Reading = RECOMMENDED,
    sigmas: Sequence[float] | None = None,
) -> Array:
    """Eq. 5: the distance of the visible joints, weighted by rho.

    predicted, truth: (N, K, 2) pixels, of the 192 x 256 crop if `reading` looks at cells or axes. visible: (N, K), 0 or
    more; each joint above 0 counts once. Returns (N,) in weighted pixels, or without unit if each axis is divided by a
    side; the ratio of two of them never has one. NaN for a person without a visible joint.
    """
    seen = visible > 0
    weights = rho(predicted.shape[1], sigmas)
    if reading.joint_weights:
        weights = weights * np.array(JOINT_WEIGHTS)
    if reading.cells:
        predicted, truth = (CELL * np.floor(points / CELL + 0.5) for points in (predicted, truth))
    sides = {"pixels": (1, 1), "size": ROUTER_SIZE, "swapped": ROUTER_SIZE[::-1]}[reading.axes]
    distance = np.linalg.norm((predicted - truth) / sides, axis=2)
    count = seen.sum(1) if reading.total == "mean" else np.where(seen.any(1), 1, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((distance * weights * seen).sum(1) / count)


def oks(
    predicted: Array, truth: Array, visible: Array, area: Array, sigmas: Sequence[float] | None = None
) -> Array:
    """Object keypoint similarity of COCO, (N,) in 0..1. Points as for `okd`; area: (N,) of the person in square pixels.
    NaN for a person without a visible joint."""
    seen = visible > 0
    squared = ((predicted - truth) ** 2).sum(2)
    # COCO's variance is (2 sigma)^2, and the area twice in the exponent.
    exponent = squared * rho(predicted.shape[1], sigmas) / (2 * np.maximum(area, np.spacing(1.0))[:, None])
    with np.errstate(invalid="ignore"):
        return np.asarray((np.exp(-exponent) * seen).sum(1) / seen.sum(1))


def gain_target(okd_small: Array, okd_large: Array, reading: Reading = RECOMMENDED) -> Array:
    """Eq. 6's target (D_s - D_l) / D_s: the share of the small net's error that the large net removes; at most 1,
    negative where the large net is worse (unless clamped), NaN where the small net has no error."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (okd_small - okd_large) / okd_small
        return np.where(okd_small >= reading.no_error, share.clip(0, 1) if reading.clamp else share, np.nan)


def counted(oks_small: Array, oks_large: Array, reading: Reading = RECOMMENDED) -> NDArray[np.bool_]:
    """(N,) whether a person passes the filter on the difference of the nets' OKS; nobody without OKS does."""
    difference = np.abs(oks_large - oks_small)
    if reading.oks_filter is None:
        return np.asarray(np.isfinite(difference))
    low, high = reading.oks_filter
    return np.asarray((difference > low) & (difference < high))


def released_losses(
    scores: Tensor,
    okd_small: Tensor,
    okd_large: Tensor,
    oks_small: Tensor,
    active: Tensor,
) -> Tensor:
    """The three terms of the authors' loss; they train the router on their sum.

    scores: (N, 3) of a router with three outputs, of which 1 is the difficulty. okd_*, oks_small: (N,) by RELEASED.
    active: (N,) bool, `counted`. Returns (N, 3): a term in s0 whose two brackets are equal, so that it has no gradient;
    eq. 6; and s2 against 2 (1 - OKS) of the small net, which counts for everybody.
    """
    half = (okd_small - okd_large) / 2
    idle = (1 - scores[:, 0]) * (okd_small - half) + scores[:, 0] * (okd_large + half)
    divisor = okd_small.clamp(min=RELEASED.no_error)
    gain = (scores[:, 1] - (okd_small - okd_large) / divisor) ** 2 * (okd_small >= RELEASED.no_error)
    failure = (scores[:, 2] - 2 * (1 - oks_small)) ** 2
    return torch.stack([idle * active, gain * active, failure], dim=1)
