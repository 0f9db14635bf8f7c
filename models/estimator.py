"""One pose network with its own crop size and codec: people in pictures -> keypoints in picture pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.codec import Codec, decode, decode_simcc, flip_heatmaps, flip_simcc
from models.defaults import PADDING
from models.geometry import (
    IMAGENET,
    Normalization,
    center_scale,
    crop_matrix,
    cut_crops,
    normalize,
    to_picture,
)
from models.runtime import Network
from models.skeleton import COCO, Skeleton


class PoseEstimator:
    """Crop, network, decoding; the two nets of a pair may differ in everything.

    `network` gives heatmaps (N, K, h, w) or, for the codec `simcc`, both vectors joined, (N, K, bins of x + bins of y),
    the same number of bins for a pixel of either axis. `input_size` is (width, height) in pixels, `padding` the crop's
    size in boxes. `codec` is the decoding of `models.codec`; a UDP codec implies the UDP crop matrix and an unshifted
    flip, as MMPose pairs them.
    """

    def __init__(
        self,
        network: Network,
        *,
        input_size: tuple[int, int],
        codec: Codec,
        normalization: Normalization = IMAGENET,
        padding: float = PADDING,
        skeleton: Skeleton = COCO,
    ) -> None:
        self.network = network
        self.input_size = input_size
        self.codec: Codec = codec
        self.normalization = normalization
        self.padding = padding
        self.skeleton = skeleton
        self.udp = codec == "dark_udp"

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, *, flip_test: bool = False) -> Tensor:
        """Estimate one person per (picture, box).

        pictures: N tensors (H, W, 3) uint8 RGB, the same object may repeat. boxes: (N, 4) x, y, w, h in picture pixels.
        flip_test: average with what the net says of the mirrored crop (twice the cost).
        Returns (N, K, 3) float32 on the CPU: x, y in picture pixels, score the peak of the heatmap or the lower of a
        SimCC net's two peaks. Peaks are raw, as MMPose ranks poses by them, not probabilities: trained towards 1, they
        pass it now and then, and may be below 0.
        """
        width, height = self.input_size
        center, scale = center_scale(boxes, aspect=width / height, padding=self.padding)
        crops = normalize(
            cut_crops(pictures, crop_matrix(center, scale, self.input_size, udp=self.udp), self.input_size),
            self.normalization,
        )
        output = self.network(crops)
        mirrored = self.network(crops.flip(3)) if flip_test else None
        if self.codec == "simcc":
            points, scores = self._read_vectors(output, mirrored)
            size = self.input_size
        else:
            if mirrored is not None:
                output = (output + flip_heatmaps(mirrored, not self.udp, self.skeleton)) / 2
            points, scores = decode(output, self.codec)
            size = (output.shape[3], output.shape[2])
        points = to_picture(points.cpu(), center, scale, size, udp=self.udp)
        return torch.cat([points, scores.cpu().unsqueeze(-1)], dim=-1).float()

    def _read_vectors(self, joined: Tensor, mirrored: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (N, K, 2) in crop pixels and scores (N, K)."""
        split_ratio = joined.shape[2] / sum(self.input_size)
        bins = round(self.input_size[0] * split_ratio)
        x, y = joined[:, :, :bins], joined[:, :, bins:]
        if mirrored is not None:
            flipped = flip_simcc(mirrored[:, :, :bins], mirrored[:, :, bins:], self.skeleton)
            x, y = (x + flipped[0]) / 2, (y + flipped[1]) / 2
        return decode_simcc(x, y, split_ratio)
