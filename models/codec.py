"""What nets say to keypoints and back, batched, on any device. Points of heatmaps are (x, y) in cells.

Methods:
- `argmax`: the highest cell.
- `quarter`: moved a quarter of a cell towards the higher neighbour (Newell et al., ECCV 2016; MMPose's
  default).
- `dark`: second-order step on the log of the smoothed heatmap (Zhang et al., CVPR 2020).
- `dark_udp`: the same with one-cell differences and unbiased coordinates (Huang et al., CVPR 2020).

`simcc` has two vectors instead of a heatmap, one along each axis, finer than pixels (Li et al., ECCV 2022; RTMPose).
"""

import functools
from typing import Literal

import torch
from torch import Tensor

from models.cuda import recorded_on_cuda
from models.skeleton import COCO, Skeleton

Method = Literal["argmax", "quarter", "dark", "dark_udp"]
Codec = Literal["argmax", "quarter", "dark", "dark_udp", "simcc"]


@recorded_on_cuda
def decode(heatmaps: Tensor, method: Method = "dark") -> tuple[Tensor, Tensor]:
    """Location and height of each heatmap's peak.

    heatmaps: (N, K, h, w) float. Returns points (N, K, 2) in cells and scores (N, K), the maxima. Among
    equal maxima the first in row order wins; a map without a positive value has its point at (-1, -1).
    """
    heatmaps = heatmaps.float().contiguous()  # networks hand over channels-last memory
    width = heatmaps.shape[3]
    scores, index = _peaks(heatmaps.flatten(2))
    x, y = index % width, index // width
    cells = torch.stack((x, y), dim=2)
    if method == "argmax":
        points = cells.float()
    elif method == "quarter":
        points = cells + _quarter_step(heatmaps, x, y)
    elif method == "dark":
        points = cells + _dark_step(
            _smooth_around(heatmaps, x, y).clamp(min=1e-10).log(), x, y, heatmaps.shape
        )
    elif method == "dark_udp":
        points = cells + _udp_step(_smooth_around(heatmaps, x, y).clamp(1e-3, 50).log(), x, y, heatmaps.shape)
    else:
        raise ValueError(f"unknown decoding method {method!r}")
    return torch.where(scores.unsqueeze(2) > 0, points, -1.0).float(), scores


def _peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """maps (N, K, cells): their maxima and where they are, (N, K) each."""
    if maps.device.type != "cpu":
        return maps.max(dim=2)
    index = torch.from_numpy(maps.detach().numpy().argmax(2))  # torch's takes four times as long
    return maps.gather(2, index.unsqueeze(2)).squeeze(2), index


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


@functools.cache
def _differences(device: torch.device) -> Tensor:
    """(25, 5): from the 5 x 5 cells around a peak to its differences x, y, xx, xy and yy, over two cells each."""
    here = torch.tensor([0.0, 0, 1, 0, 0], dtype=torch.float64)
    slope = torch.tensor([0.0, -1, 0, 1, 0], dtype=torch.float64) / 2
    bend = torch.tensor([1.0, 0, -2, 0, 1], dtype=torch.float64) / 4
    pairs = ((here, slope), (slope, here), (here, bend), (slope, slope), (bend, here))  # along y, along x
    return torch.stack([torch.outer(*pair).flatten() for pair in pairs], dim=1).to(device)


def _dark_step(log: Tensor, x: Tensor, y: Tensor, shape: torch.Size) -> Tensor:
    """log: (N, K, 5, 5) around the peak. No step within two cells of the border."""
    height, width = shape[2:]
    dx, dy, dxx, dxy, dyy = (log.flatten(2) @ _differences(log.device)).unbind(2)
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    return _newton((dx, dy), (dxx, dxy, dyy)) * inside.unsqueeze(2)


def _udp_step(log: Tensor, x: Tensor, y: Tensor, shape: torch.Size) -> Tensor:
    """log: (N, K, 5, 5) around the peak. One-cell differences, the map continued by its border cells."""
    height, width = shape[2:]
    first, last = 2 - (x > 0).long(), 2 + (x < width - 1).long()
    columns = torch.stack((first, torch.full_like(x, 2), last), dim=2)
    first, last = 2 - (y > 0).long(), 2 + (y < height - 1).long()
    rows = torch.stack((first, torch.full_like(y, 2), last), dim=2)
    cells = (rows.unsqueeze(3) * 5 + columns.unsqueeze(2)).flatten(2)
    log = log.flatten(2).gather(2, cells)
    above_left, above, _, left, center, right, _, below, below_right = log.unbind(2)
    dxx, dyy = right - 2 * center + left, below - 2 * center + above
    dxy = (above_left + below_right + 2 * center - right - left - below - above) / 2
    epsilon = torch.finfo(torch.float32).eps
    return _newton(((right - left) / 2, (below - above) / 2), (dxx + epsilon, dxy, dyy + epsilon))


def smoothing_taps(height: int) -> int:
    """Width in cells of the Gaussian that precedes DARK: 11 for a map 64 cells high, others in proportion."""
    return 2 * round(height * 5 / 64) + 1


@functools.cache
def _gaussian_band(height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(5, taps + 4), which blurs along one axis and keeps the 5 cells in the middle, and the offsets of the taps + 4
    cells from there."""
    taps = smoothing_taps(height)
    sigma = 0.3 * ((taps - 1) / 2 - 1) + 0.8  # OpenCV's sigma for a kernel of this width
    offset = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    band = torch.zeros(5, taps + 4, dtype=torch.float64)
    for row in range(5):
        band[row, row : row + taps] = kernel / kernel.sum()
    return band.to(device), (torch.arange(taps + 4) - (taps // 2 + 2)).to(device)


def _smooth_around(heatmaps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The 5 x 5 cells around each peak x, y (N, K) of the blurred heatmaps, zeros outside, as (N, K, 5, 5)
    double.

    The reference blurs the whole map and scales it back to its old maximum; the scale matters to nothing
    but the limits that the caller puts before the logarithm, so the peak's own surroundings are enough.
    """
    height, width = heatmaps.shape[2:]
    band, around = _gaussian_band(height, heatmaps.device)
    rows, columns = y.unsqueeze(2) + around, x.unsqueeze(2) + around
    near_rows, near_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    cells = (near_rows * width).unsqueeze(3) + near_columns.unsqueeze(2)
    inside = (rows == near_rows).unsqueeze(3) & (columns == near_columns).unsqueeze(2)
    window = heatmaps.flatten(2).gather(2, cells.flatten(2)).view_as(cells) * inside
    blurred = band @ window.double() @ band.T
    old, new = window.amax(dim=(2, 3), keepdim=True), blurred.amax(dim=(2, 3), keepdim=True)
    return blurred * (old / torch.where(new > 0, new, 1))


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


@functools.cache
def _mirror(skeleton: Skeleton, device: torch.device) -> Tensor:
    """Which keypoint is where each was, in a mirrored picture."""
    return torch.tensor(skeleton.flip_index, device=device)


def flip_heatmaps(heatmaps: Tensor, shift: bool, skeleton: Skeleton = COCO) -> Tensor:
    """Heatmaps (N, K, h, w) of a mirrored crop as if of the crop itself: columns mirrored, left and right
    swapped.

    shift: move them one cell right (column 0 stays), which mends the half-cell bias of a plain, non-UDP
    codec.
    """
    flipped = heatmaps[:, _mirror(skeleton, heatmaps.device)].flip(3)
    if shift:
        flipped = torch.cat((flipped[..., :1], flipped[..., :-1]), dim=3)
    return flipped


def decode_simcc(x: Tensor, y: Tensor, split_ratio: float = 2) -> tuple[Tensor, Tensor]:
    """Highest bin along each axis.

    x: (N, K, width * split_ratio), y: (N, K, height * split_ratio), float. Returns points (N, K, 2) in pixels of the
    crop and scores (N, K), the smaller of the two maxima. Among equal maxima the first wins; without a positive score
    the point is bin -1 of both axes, as in MMPose.
    """
    (score_x, bin_x), (score_y, bin_y) = x.float().max(dim=2), y.float().max(dim=2)
    scores = torch.minimum(score_x, score_y)
    bins = torch.stack((bin_x, bin_y), dim=2).float()
    return torch.where(scores.unsqueeze(2) > 0, bins, -1.0) / split_ratio, scores


def flip_simcc(x: Tensor, y: Tensor, skeleton: Skeleton = COCO) -> tuple[Tensor, Tensor]:
    """Vectors (N, K, bins) of a mirrored crop as if of the crop itself: x reversed, left and right swapped."""
    index = _mirror(skeleton, x.device)
    return x[:, index].flip(2), y[:, index]
