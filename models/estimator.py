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
    normalize,
    on_crops,
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
        matrices = crop_matrix(*self._frame(boxes), self.input_size, udp=self.udp)
        then = self._of_both if flip_test else self._of_crops
        return self.in_picture(on_crops(pictures, matrices, self.input_size, then), boxes)

    def in_picture(self, found: Tensor, boxes: Tensor) -> Tensor:
        """What `decoded` gives for the crops of `boxes` (N, 4), as `__call__` returns it."""
        found = found.cpu()
        points = to_picture(found[:, :, :2], *self._frame(boxes), (1, 1))
        return torch.cat([points, found[:, :, 2:]], dim=2)

    def decoded(self, output: Tensor) -> Tensor:
        """The network's output (N, ...) -> (N, K, 3) float32 where it lies: x and y in widths and heights of the crop,
        and score."""
        if self.codec == "simcc":
            x, y = self._vectors(output)
            points, scores = decode_simcc(x, y, output.shape[2] / sum(self.input_size))
            width, height = self.input_size
        else:
            points, scores = decode(output, self.codec)
            height, width = output.shape[2:]
            if self.udp:  # between the centres of the first and the last cell
                width, height = width - 1, height - 1
        x, y = points.unbind(2)
        return torch.stack((x / width, y / height, scores), dim=2).float()

    def _of_crops(self, crops: Tensor) -> Tensor:
        return self.decoded(self.network(normalize(crops, self.normalization)))

    def _of_both(self, crops: Tensor) -> Tensor:
        """With what the net says of the mirrored crops."""
        crops = normalize(crops, self.normalization)
        return self.decoded((self.network(crops) + self._flipped(self.network(crops.flip(3)))) / 2)

    def _frame(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and size of the crops."""
        width, height = self.input_size
        return center_scale(boxes, aspect=width / height, padding=self.padding)

    def _flipped(self, output: Tensor) -> Tensor:
        """The network's output for mirrored crops as if for the crops themselves."""
        if self.codec == "simcc":
            return torch.cat(flip_simcc(*self._vectors(output), self.skeleton), dim=2)
        return flip_heatmaps(output, not self.udp, self.skeleton)

    def _vectors(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """Both vectors of a SimCC net's output."""
        width, height = self.input_size
        bins = round(joined.shape[2] * width / (width + height))
        return joined[:, :, :bins], joined[:, :, bins:]
