"""Heatmaps to keypoints and back, batched, on any device. Points are (x, y) in heatmap cells.

Methods:
- `argmax`: the highest cell.
- `quarter`: moved a quarter of a cell towards the higher neighbour (Newell et al., ECCV 2016; MMPose's
  default).
- `dark`: second-order step on the log of the smoothed heatmap (Zhang et al., CVPR 2020).
- `dark_udp`: the same with one-cell differences and unbiased coordinates (Huang et al., CVPR 2020).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.skeleton import FLIP_INDEX

Method = Literal["argmax", "quarter", "dark", "dark_udp"]


def decode(heatmaps: Tensor, method: Method = "dark") -> tuple[Tensor, Tensor]:
    """Location and height of each heatmap's peak.

    heatmaps: (N, K, h, w) float. Returns points (N, K, 2) in cells and scores (N, K), the maxima. Among
    equal maxima the first in row order wins; a map without a positive value has its point at (-1, -1).
    """
    heatmaps = heatmaps.float()
    width = heatmaps.shape[3]
    scores, index = heatmaps.flatten(2).max(dim=2)
    x, y = index % width, index // width
    cells = torch.stack((x, y), dim=2)
    if method == "argmax":
        points = cells.float()
    elif method == "quarter":
        points = cells + _quarter_step(heatmaps, x, y)
    elif method == "dark":
        points = cells + _dark_step(_smooth(heatmaps).clamp(min=1e-10).log(), x, y)
    elif method == "dark_udp":
        points = cells + _udp_step(_smooth(heatmaps).clamp(1e-3, 50).log(), x, y)
    else:
        raise ValueError(f"unknown decoding method {method!r}")
    return torch.where(scores.unsqueeze(2) > 0, points, -1.0), scores


def _values(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """maps (N, K, h, w) read at cells x, y (N, K), clamped to the map."""
    height, width = maps.shape[2:]
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(2, index.unsqueeze(2)).squeeze(2)


def _quarter_step(heatmaps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    height, width = heatmaps.shape[2:]
    dx = (_values(heatmaps, x + 1, y) - _values(heatmaps, x - 1, y)).sign()
    dy = (_values(heatmaps, x, y + 1) - _values(heatmaps, x, y - 1)).sign()
    dx = dx * ((x > 1) & (x < width - 1) & (y > 0) & (y < height))
    dy = dy * ((y > 1) & (y < height - 1) & (x > 0) & (x < width))
    return 0.25 * torch.stack((dx, dy), dim=2)


def _newton(gradient: tuple[Tensor, Tensor], hessian: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Minus inverse Hessian (xx, xy, yy) times gradient (x, y); zero where the Hessian is singular."""
    dx, dy = gradient
    dxx, dxy, dyy = hessian
    determinant = dxx * dyy - dxy * dxy
    usable = determinant != 0
    determinant = torch.where(usable, determinant, 1)
    step = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), dim=2) / determinant.unsqueeze(2)
    return step * usable.unsqueeze(2)


def _dark_step(log: Tensor, x: Tensor, y: Tensor) -> Tensor:
    height, width = log.shape[2:]
    log = log.double()  # the Hessian is a small difference of logs
    center = _values(log, x, y)
    right, left = _values(log, x + 1, y), _values(log, x - 1, y)
    below, above = _values(log, x, y + 1), _values(log, x, y - 1)
    diagonal = _values(log, x + 1, y + 1) + _values(log, x - 1, y - 1)
    diagonal = diagonal - _values(log, x - 1, y + 1) - _values(log, x + 1, y - 1)
    dxx = (_values(log, x + 2, y) - 2 * center + _values(log, x - 2, y)) / 4
    dyy = (_values(log, x, y + 2) - 2 * center + _values(log, x, y - 2)) / 4
    step = _newton(((right - left) / 2, (below - above) / 2), (dxx, diagonal / 4, dyy))
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    return (step * inside.unsqueeze(2)).float()


def _udp_step(log: Tensor, x: Tensor, y: Tensor) -> Tensor:
    log = log.double()
    center = _values(log, x, y)
    right, left = _values(log, x + 1, y), _values(log, x - 1, y)
    below, above = _values(log, x, y + 1), _values(log, x, y - 1)
    dxx, dyy = right - 2 * center + left, below - 2 * center + above
    diagonal = _values(log, x + 1, y + 1) + _values(log, x - 1, y - 1)
    dxy = (diagonal + 2 * center - right - left - below - above) / 2
    epsilon = torch.finfo(torch.float32).eps
    step = _newton(((right - left) / 2, (below - above) / 2), (dxx + epsilon, dxy, dyy + epsilon))
    return step.float()


def smoothing_taps(height: int) -> int:
    """Width in cells of the Gaussian that precedes DARK: 11 for a map 64 cells high, others in proportion."""
    return 2 * round(height * 5 / 64) + 1


def _smooth(heatmaps: Tensor) -> Tensor:
    """Gaussian blur with zeros outside, each map scaled back to its old maximum."""
    taps = smoothing_taps(heatmaps.shape[2])
    sigma = 0.3 * ((taps - 1) / 2 - 1) + 0.8  # OpenCV's sigma for a kernel of this width
    offset = torch.arange(taps, device=heatmaps.device, dtype=heatmaps.dtype) - taps // 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    maps = heatmaps.flatten(0, 1).unsqueeze(1)
    blurred = functional.conv2d(maps, kernel.view(1, 1, 1, -1), padding=(0, taps // 2))
    blurred = functional.conv2d(blurred, kernel.view(1, 1, -1, 1), padding=(taps // 2, 0)).view_as(heatmaps)
    old, new = heatmaps.amax(dim=(2, 3), keepdim=True), blurred.amax(dim=(2, 3), keepdim=True)
    return blurred * old / torch.where(new > 0, new, 1)


def encode(
    points: Tensor, visible: Tensor, size: tuple[int, int], sigma: float = 2, method: Method = "dark"
) -> tuple[Tensor, Tensor]:
    """Gaussian target heatmaps with peak 1.

    points: (N, K, 2) in cells. visible: (N, K), the weight of each keypoint; below 0.5 it has an empty map.
    size: (width, height) in cells. sigma in cells. `argmax` and `quarter`: centred on the nearest cell and
    cut off at three sigma; `dark`: centred on the point itself, whole map; `dark_udp`: centred on the
    point, cut off at three sigma. Returns heatmaps (N, K, h, w) float32 and weights (N, K): `visible`, but
    0 where three sigma miss the map.
    """
    width, height = size
    points = points.float()
    limits = points.new_tensor([width, height])
    nearest = (points + 0.5).trunc()
    radius = 3 * sigma
    reach = points if method == "dark" else nearest
    hits = (((reach - radius).trunc() < limits) & ((reach + radius + 1).trunc() >= 0)).all(dim=2)
    weights = visible.float() * hits
    mean = nearest if method in ("argmax", "quarter") else points
    profiles = []
    for axis, length in enumerate(size):
        cell = torch.arange(length, device=points.device, dtype=points.dtype)
        profile = torch.exp(-((cell - mean[:, :, axis, None]) ** 2) / (2 * sigma**2))
        if method != "dark":
            profile = profile * ((cell - nearest[:, :, axis, None]).abs() <= radius)
        profiles.append(profile)
    heatmaps = profiles[1].unsqueeze(3) * profiles[0].unsqueeze(2)
    return heatmaps * (weights >= 0.5)[:, :, None, None], weights


def flip_heatmaps(heatmaps: Tensor, shift: bool) -> Tensor:
    """Heatmaps (N, K, h, w) of a mirrored crop as if of the crop itself: columns mirrored, left and right
    swapped.

    shift: move them one cell right (column 0 stays), which mends the half-cell bias of a plain, non-UDP
    codec.
    """
    flipped = heatmaps[:, list(FLIP_INDEX)].flip(3)
    if shift:
        flipped = torch.cat((flipped[..., :1], flipped[..., :-1]), dim=3)
    return flipped
