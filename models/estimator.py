"""One pose network with its own crop size and codec: people in pictures -> keypoints in picture pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.codec import Method, decode, flip_heatmaps
from models.geometry import center_scale, crop_matrix, cut_crops, normalize, to_picture
from models.runtime import Network


class PoseEstimator:
    """Crop, network, decoding; the two nets of a pair may differ in all three.

    `input_size` is (width, height) in pixels. `codec` is the decoding of `models.codec`; a UDP codec implies the UDP
    crop matrix and an unshifted flip, as MMPose pairs them.
    """

    def __init__(self, network: Network, *, input_size: tuple[int, int], codec: Method) -> None:
        self.network = network
        self.input_size = input_size
        self.codec = codec
        self.udp = codec == "dark_udp"

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, *, flip_test: bool = False) -> Tensor:
        """Estimate one person per (picture, box).

        pictures: N tensors (H, W, 3) uint8 RGB, the same object may repeat. boxes: (N, 4) x, y, w, h in picture pixels.
        flip_test: average with the heatmaps of the mirrored crop (twice the cost).
        Returns (N, 17, 3) float32 on the CPU: x, y in picture pixels, score the heatmap's peak, kept
        within 0..1.
        """
        width, height = self.input_size
        center, scale = center_scale(boxes, aspect=width / height)
        crops = normalize(
            cut_crops(pictures, crop_matrix(center, scale, self.input_size, udp=self.udp), self.input_size)
        )
        heatmaps = self.network(crops)
        if flip_test:
            flipped = flip_heatmaps(self.network(crops.flip(3)), shift=not self.udp)
            heatmaps = (heatmaps + flipped) / 2
        points, scores = decode(heatmaps, self.codec)
        heatmap_size = (heatmaps.shape[3], heatmaps.shape[2])
        points = to_picture(points.cpu(), center, scale, heatmap_size, udp=self.udp)
        return torch.cat([points, scores.cpu().clamp(0, 1).unsqueeze(-1)], dim=-1).float()
