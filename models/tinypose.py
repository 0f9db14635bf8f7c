"""TinyPose: the "naive" (attention-free) Lite-HRNet that PaddleDetection calls PP-TinyPose.

Four branches at strides 4, 8, 16 and 32 with 40, 80, 160 and 320 channels exchange features eight times; a
light top-down head brings them back to stride 4. 1.3 million parameters. Batch normalisation is folded into
the convolutions, so every convolution has a bias and training is plain fine-tuning.

Architecture: Lite-HRNet (Yu et al., CVPR 2021, naive variant); PP-TinyPose (PaddleDetection, Apache-2.0).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (40, 80, 160, 320)
STEM_CHANNELS = 32
MODULES = (2, 4, 2)  # exchange modules in the stages with 2, 3 and 4 branches
BLOCKS = 2  # shuffle units of a branch in one module


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Depthwise 3x3 then pointwise, with no activation in between."""
    return nn.Sequential(depthwise(inputs, stride), pointwise(inputs, outputs))


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels (ShuffleNet's channel shuffle with two groups)."""
    return functional.channel_shuffle(x, 2)


class Stem(nn.Module):
    """3 x H x W -> 32 x H/4 x W/4."""

    def __init__(self) -> None:
        super().__init__()
        half = STEM_CHANNELS // 2
        self.conv = nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1)
        self.short = separable(half, half, 2)
        self.expand = pointwise(half, STEM_CHANNELS)
        self.reduce = separable(STEM_CHANNELS, half, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).relu().chunk(2, dim=1)
        left = self.short(left).relu()
        right = self.reduce(self.expand(right).relu()).relu()
        return shuffle(torch.cat((left, right), dim=1))


class ShuffleUnit(nn.Module):
    """Half of the channels pass, the others go through 1x1, depthwise 3x3, 1x1; then interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.expand = pointwise(half, half)
        self.mix = separable(half, half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = self.mix(self.expand(right).relu()).relu()
        return shuffle(torch.cat((left, right), dim=1))


class Downsample(nn.Module):
    """Branch `source` down to branch `target`: separable convolutions of stride 2, ReLU only between them."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        inputs = CHANNELS[source]
        steps = [separable(inputs, inputs, 2) for _ in range(target - source - 1)]
        self.steps = nn.ModuleList([*steps, separable(inputs, CHANNELS[target], 2)])

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps[:-1]:
            x = step(x).relu()
        return self.steps[-1](x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """From branch `source` up to branch `target`: 1x1 convolution, then nearest neighbour."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.conv = pointwise(CHANNELS[source], CHANNELS[target])
        self.factor = 2 ** (source - target)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.conv(x), scale_factor=self.factor, mode="nearest")


class Exchange(nn.Module):
    """One multi-resolution module: shuffle units on every branch, then every branch receives all the others.

    Two habits of the published network are kept because its weights depend on them: the first branch counts
    twice in every sum, and the lower branches receive the first one as already summed (before its ReLU).
    """

    def __init__(self, branches: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(ShuffleUnit(CHANNELS[i]) for _ in range(BLOCKS))) for i in range(branches)
        )
        self.fuse = nn.ModuleList(
            nn.ModuleDict({str(j): _connect(j, i) for j in range(branches) if j != i})
            for i in range(branches)
        )

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(map_) for branch, map_ in zip(self.branches, x, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse):
            parts = [x[j] if j == i else row[str(j)](x[j]) for j in range(len(x))]  # type: ignore[index]
            total = parts[0] + parts[0]
            for part in parts[1:]:
                total = total + part
            if i == 0:
                x[0] = total
            fused.append(total.relu())
        return fused


def _connect(source: int, target: int) -> nn.Module:
    return Upsample(source, target) if source > target else Downsample(source, target)


class Head(nn.Module):
    """From the coarsest branch to the finest, adding each on the way; then 1x1 to the heatmaps."""

    def __init__(self, keypoints: int) -> None:
        super().__init__()
        widths = (*reversed(CHANNELS), CHANNELS[0])
        self.project = nn.ModuleList(separable(a, b) for a, b in pairwise(widths))
        self.final = pointwise(CHANNELS[0], keypoints)

    def features(self, branches: list[Tensor]) -> Tensor:
        """(N, 40, h/4, w/4): what the heatmaps are a linear function of."""
        *finer, x = branches
        for project in self.project[:-1]:
            x = functional.interpolate(project(x).relu(), scale_factor=2, mode="bilinear", align_corners=True)
            x = x + finer.pop()
        return self.project[-1](x).relu()  # type: ignore[no-any-return]

    def forward(self, branches: list[Tensor]) -> Tensor:
        return self.final(self.features(branches))  # type: ignore[no-any-return]


class TinyPose(nn.Module):
    """Normalised crops (N, 3, h, w), h and w multiples of 32 -> heatmaps (N, keypoints, h/4, w/4)."""

    def __init__(self, keypoints: int = 17) -> None:
        super().__init__()
        self.stem = Stem()
        self.transitions = nn.ModuleList(
            [
                separable(STEM_CHANNELS, CHANNELS[0]),
                separable(STEM_CHANNELS, CHANNELS[1], 2),
                separable(CHANNELS[1], CHANNELS[2], 2),
                separable(CHANNELS[2], CHANNELS[3], 2),
            ]
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Exchange(branches) for _ in range(modules))
            for branches, modules in enumerate(MODULES, start=2)
        )
        self.head = Head(keypoints)

    def trunk(self, crops: Tensor) -> list[Tensor]:
        """The four branches, finest first."""
        stem = self.stem(crops)
        branches = [self.transitions[0](stem).relu()]
        deepest = stem
        for transition, stage in zip(self.transitions[1:], self.stages, strict=True):
            branches.append(transition(deepest).relu())
            for module in stage:  # type: ignore[attr-defined]
                branches = module(branches)
            deepest = branches[-1]
        return branches

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.trunk(crops))  # type: ignore[no-any-return]


class TwoScaleTinyPose(nn.Module):
    """Two TinyPose nets, one at the size of the crop and one at two thirds of it: the mean of their heatmaps.

    Normalised crops (N, 3, h, w), h and w multiples of 96 -> heatmaps (N, keypoints, h/4, w/4). The nets err on
    different people, so the mean is better than either.
    """

    taps: Tensor

    def __init__(self, keypoints: int = 17) -> None:
        super().__init__()
        self.fine = TinyPose(keypoints)
        self.coarse = TinyPose(keypoints)
        self.register_buffer("taps", torch.tensor(REDUCTION), persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        reduced = reduce(crops.float(), self.taps.float()).to(crops.dtype, memory_format=torch.channels_last)
        both: Tensor = self.fine(crops).float() + enlarge(self.coarse(reduced).float())
        return both / 2


REDUCTION = ((1.0, 5.0, 3.0, 0.0, 0.0), (0.0, 0.0, 3.0, 5.0, 1.0))
"""The two values that `reduce` makes of three, as shares of the five around them; exact in bfloat16 too."""


def reduce(crops: Tensor, taps: Tensor) -> Tensor:
    """(N, C, 3m, 3n) -> (N, C, 2m, 2n): torch's bilinear resizing with `antialias`, up to rounding. taps: REDUCTION.

    Every three pixels of a row give two, by the same weights all along: a strided convolution, which a compiled runtime
    does ten times as fast as the resizing. At the border the weights inside the crop count alone.
    """
    n, channels, height, width = crops.shape
    kernels = (taps[:, None, :, None] * taps[None, :, None, :]).reshape(4, 1, 5, 5)
    sums = functional.conv2d(crops.reshape(n * channels, 1, height, width), kernels, stride=3, padding=1)
    weights = functional.conv2d(crops.new_ones(1, 1, height, width), kernels, stride=3, padding=1)
    smaller = functional.pixel_shuffle(sums / weights, 2)
    return smaller.reshape(n, channels, height * 2 // 3, width * 2 // 3)


def enlarge(heatmaps: Tensor) -> Tensor:
    """(N, K, h, w) -> (N, K, 3h/2, 3w/2), cell 0 staying where it is: a keypoint at cell x comes to lie at 1.5 x."""
    height, width = heatmaps.shape[2] * 3 // 2, heatmaps.shape[3] * 3 // 2
    padded = functional.pad(heatmaps, (0, 1, 0, 1), mode="replicate")
    larger: Tensor = functional.interpolate(
        padded, (height + 1, width + 1), mode="bicubic", align_corners=True
    )
    inside: Tensor = larger[:, :, :height, :width]
    return inside
