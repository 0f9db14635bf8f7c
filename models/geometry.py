"""From a bbox to a crop, and from a crop's heatmap back to the picture.

x goes right, y goes down, and a pixel's centre has integer coordinates. Sizes are (width, height). The
conventions are those of MMPose's top-down nets: `plain` matrices have one scale for both axes; `udp` ones
(Huang et al., CVPR 2020) map pixel centres to pixel centres, hence the `size - 1`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from models.album import Album, places
from models.cuda import recorded_on_cuda
from models.defaults import ASPECT, PADDING

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""Of RGB values on the 0..255 scale (ImageNet)."""


@dataclass(frozen=True)
class Normalization:
    """How a net wants its input: (value - mean) / std of red, green and blue on the 0..255 scale, then the channels as
    R, G, B or, `bgr`, as B, G, R."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    bgr: bool = False


IMAGENET = Normalization()

CV2_MAX_SIDE = 32766  # OpenCV addresses the source of a warp with 16-bit integers
MIN_EXTENT = 1e-3

CROP_ROW = 9
"""Numbers that say where a crop lies."""


def center_scale(boxes: Tensor, aspect: float = ASPECT, padding: float = PADDING) -> tuple[Tensor, Tensor]:
    """Centre and size of the crop of each box.

    boxes: (N, 4) x, y, w, h in picture pixels. Returns center (N, 2) and scale (N, 2), the crop's width and
    height in picture pixels: the padded box, enlarged along one side to the aspect (width / height). An
    extent of zero counts as 0.001 px, so that the result is always invertible.
    """
    # Here and below small steps in NumPy: each of torch's would let go of the interpreter, and wait to have it again.
    values = boxes.numpy()
    center = values[:, :2] + values[:, 2:] / 2
    width, height = (values[:, 2:] * padding).clip(min=MIN_EXTENT).T
    scale = np.stack((np.maximum(width, aspect * height), np.maximum(width / aspect, height)), axis=1)
    return torch.from_numpy(center), torch.from_numpy(scale)


def crop_matrix(
    center: Tensor,
    scale: Tensor,
    size: tuple[int, int],
    *,
    rotation: Tensor | None = None,
    udp: bool = False,
) -> Tensor:
    """Affine matrices (N, 2, 3), float64, from picture pixels to the pixels of a crop of `size`.

    center, scale: (N, 2) from `center_scale`. rotation: (N,) degrees about the centre. A positive rotation
    turns the picture counter-clockwise (as seen) with the plain matrix and clockwise with the UDP one, as
    MMPose does.
    """
    centers, extents = center.double().numpy(), scale.double().numpy()
    width, height = size
    angle = np.zeros(len(centers)) if rotation is None else np.deg2rad(rotation.double().numpy())
    if udp:
        factor = np.array([width - 1, height - 1]) / extents
        middle = extents / 2 * factor
    else:
        factor = np.repeat(width / extents[:, :1], 2, axis=1)
        middle = np.array([width / 2, height / 2])
        angle = -angle
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.stack((np.stack((cos, -sin), 1), np.stack((sin, cos), 1)), 1)
    linear = factor[:, :, None] * turn
    shift = middle - (linear @ centers[:, :, None])[:, :, 0]
    return torch.from_numpy(np.concatenate((linear, shift[:, :, None]), axis=2))


def cut_crops(
    pictures: Sequence[Tensor], matrices: Tensor, size: tuple[int, int], *, fill: int = 0
) -> Tensor:
    """Bilinear crops, `fill` outside the picture.

    pictures: N tensors (H, W, 3) uint8, all on one device; the same object may repeat. matrices: (N, 2, 3)
    from picture to crop, picture i goes with matrix i. Returns (N, 3, h, w) uint8 in channels-last memory
    on that device.
    """
    width, height = size
    if pictures and pictures[0].is_cuda:
        return sample_crops(pictures, matrices, size, fill=fill)
    crops = np.empty((len(pictures), height, width, 3), dtype=np.uint8)
    warps = matrices.cpu().numpy()
    for picture, matrix, crop in zip(pictures, warps, crops, strict=True):
        if max(picture.shape[:2]) > CV2_MAX_SIDE:
            sampled = sample_crops([picture], torch.from_numpy(matrix)[None], size, fill=fill)
            crop[:] = sampled[0].permute(1, 2, 0).numpy()
        else:
            grey = (fill, fill, fill)
            cv2.warpAffine(picture.numpy(), matrix, size, dst=crop, flags=cv2.INTER_LINEAR, borderValue=grey)
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def on_crops(
    pictures: Sequence[Tensor],
    matrices: Tensor,
    size: tuple[int, int],
    then: Callable[..., Tensor],
    *more: Tensor,
    fill: int = 0,
) -> Tensor:
    """`then`, usually a network with what goes before and after it, of the crops that `cut_crops` makes.

    On CUDA all of it is one recording (`models.cuda`), where the pictures lie in the album. then: (N, 3, h, w) uint8 to
    (N, ...), with no choice that depends on a value, and equal to itself at every call. more: (N, F) float32 on the
    CPU, which `then` gets beside the crops, in a recording on CUDA.
    """
    found = places(pictures)
    if found is None:
        return then(cut_crops(pictures, matrices, size, fill=fill), *more)
    album, starts = found
    rows = torch.cat([_crop_rows(pictures, matrices, starts), *more], dim=1)
    rows = rows.to(album.pixels.device, non_blocking=True)
    return _from_album(rows, album, size, fill, then, *(each.shape[1] for each in more))[0]


@recorded_on_cuda
def _from_album(
    rows: Tensor, album: Album, size: tuple[int, int], fill: int, then: Callable[..., Tensor], *widths: int
) -> tuple[Tensor, ...]:
    """rows: those of `_crop_rows`, and beside them what `then` gets besides, of so many columns each."""
    crops, *more = torch.split(rows, [CROP_ROW, *widths], dim=1)
    return (then(_gather(album.pixels, crops, size, fill), *(each.float() for each in more)),)


def sample_crops(
    pictures: Sequence[Tensor], matrices: Tensor, size: tuple[int, int], *, fill: int = 0
) -> Tensor:
    """`cut_crops` as one batched gather in torch, for CUDA: one flat buffer of pictures, four taps a pixel."""
    unique = {id(picture): picture for picture in pictures}
    buffer = torch.cat([picture.reshape(-1, 3) for picture in unique.values()])
    starts, total = {}, 0
    for key, picture in unique.items():
        starts[key] = total
        total += picture.shape[0] * picture.shape[1]
    rows = _crop_rows(pictures, matrices, [starts[id(picture)] for picture in pictures])
    return _gather(buffer, rows.to(buffer.device), size, fill)


def _crop_rows(pictures: Sequence[Tensor], matrices: Tensor, starts: Sequence[int]) -> Tensor:
    """What `_gather` must know of each crop, (N, CROP_ROW) float64 on the CPU, which holds every start exactly: the
    four elements of the matrix from crop to picture and its shift, and the picture's start in the buffer, columns and
    rows."""
    back = np.linalg.inv(matrices[:, :, :2].cpu().double().numpy())
    origin = -(back @ matrices[:, :, 2:].cpu().double().numpy())
    layout = [(start, *picture.shape[1::-1]) for start, picture in zip(starts, pictures, strict=True)]
    rows = np.concatenate([back.reshape(-1, 4), origin.reshape(-1, 2), np.array(layout, np.float64)], axis=1)
    return torch.from_numpy(rows)


def _gather(buffer: Tensor, rows: Tensor, size: tuple[int, int], fill: int) -> Tensor:
    """Crops (N, 3, h, w) uint8 in channels-last memory. buffer: (pixels, 3) uint8, in which all pictures lie."""
    index, weight = _taps(rows, *size)
    values = (buffer[index] * weight.unsqueeze(4)).sum(3)
    if fill:
        values += fill * (1 - weight.sum(3, keepdim=True))
    return values.round().to(torch.uint8).permute(0, 3, 1, 2)


@recorded_on_cuda
def _taps(crops: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of a crop comes from: the flat indices of four pixels and their weights, (N, height, width, 4).

    crops: (N, CROP_ROW) float64 as of `_crop_rows`.
    """
    xx, xy, yx, yy, x0, y0, start, columns, rows = crops.view(-1, 9, 1, 1).unbind(1)
    y = torch.arange(height, device=crops.device, dtype=torch.float64).unsqueeze(1)
    x = torch.arange(width, device=crops.device, dtype=torch.float64)
    source_x, source_y = (xx * x + xy * y + x0).unsqueeze(3), (yx * x + yy * y + y0).unsqueeze(3)
    tap = torch.arange(4, device=crops.device)
    tap_x, tap_y = source_x.floor() + tap % 2, source_y.floor() + tap // 2
    weight = (1 - (source_x - tap_x).abs()) * (1 - (source_y - tap_y).abs())
    inside = (tap_x >= 0) & (tap_x < columns.unsqueeze(3)) & (tap_y >= 0) & (tap_y < rows.unsqueeze(3))
    index = torch.where(inside, start.unsqueeze(3) + tap_y * columns.unsqueeze(3) + tap_x, 0)
    return index.long(), (weight * inside).float()


def normalize(crops: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """(N, 3, h, w) RGB on the 0..255 scale -> float32 as a net wants it."""
    width = crops.shape[3]
    mean, std = _mean_and_std(normalization, width, crops.device)
    # Whole rows of RGB: long inner loops, and a view where channels are last.
    rows = crops.permute(0, 2, 3, 1).flatten(2)
    values = rows.float().sub_(mean).div_(std)
    values = values.view(len(crops), crops.shape[2], width, 3).permute(0, 3, 1, 2)
    return values.flip(1) if normalization.bgr else values


@functools.cache
def _mean_and_std(normalization: Normalization, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a row of `width` pixels, (3 * width,) each."""
    values = torch.tensor([normalization.mean, normalization.std], device=device)
    mean, std = values.repeat(1, width).unbind()
    return mean, std


def to_picture(
    points: Tensor, center: Tensor, scale: Tensor, heatmap_size: tuple[int, int], *, udp: bool = False
) -> Tensor:
    """Heatmap cells (N, K, 2) -> picture pixels (N, K, 2), the inverse of an unrotated `crop_matrix`.

    center, scale: (N, 2) of the crops. heatmap_size: (width, height) in cells.
    """
    cells = np.array(heatmap_size, np.float32) - udp
    extents = scale.numpy()
    corner = center.numpy() - extents / 2
    return torch.from_numpy(points.numpy() / cells * extents[:, None] + corner[:, None])
