"""HRNet (Sun et al., CVPR 2019): branches at strides 4, 8, 16 and 32 side by side, of which the first is answered.

The names are those of MMPose's checkpoints.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from models.zoo.networks.convnets import torchvision_models

MODULES = (1, 4, 3)  # exchange modules in the stages with 2, 3 and 4 branches
BLOCKS = 4  # residual blocks of a branch in one module, and of the first stage
STEM_CHANNELS = 64
FIRST_CHANNELS = 256  # behind the first stage


def convolution(inputs: int, outputs: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    """3x3, normalised."""
    steps = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*steps, nn.ReLU(inplace=True)) if relu else nn.Sequential(*steps)


def upward(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """From a coarser branch to a finer one."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Upsample(scale_factor=factor, mode="nearest"),
    )


def downward(inputs: int, outputs: int, steps: int) -> nn.Sequential:
    """From a finer branch to a coarser one: the last step of stride 2 changes the width and has no ReLU."""
    before = [convolution(inputs, inputs, 2) for _ in range(steps - 1)]
    return nn.Sequential(*before, convolution(inputs, outputs, 2, relu=False))


class Exchange(nn.Module):
    """Residual blocks on every branch, then each of the first `answered` branches is the sum of all."""

    def __init__(self, channels: Sequence[int], answered: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(torchvision_models().resnet.BasicBlock(width, width) for _ in range(BLOCKS)))
            for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict({str(j): self._path(channels, j, i) for j in range(len(channels)) if j != i})
            for i in range(answered)
        )

    @staticmethod
    def _path(channels: Sequence[int], source: int, target: int) -> nn.Sequential:
        if source > target:
            return upward(channels[source], channels[target], 2 ** (source - target))
        return downward(channels[source], channels[target], target - source)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(map_) for branch, map_ in zip(self.branches, maps, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            total = maps[i]
            for j, path in row.items():  # type: ignore[operator]
                total = total + path(maps[int(j)])
            fused.append(total.relu())
        return fused


class HRNet(nn.Module):
    """Crops (N, 3, h, w), h and w multiples of 32 -> (N, width, h/4, w/4)."""

    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential
    transition2: nn.ModuleDict
    transition3: nn.ModuleDict

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(4)]
        self.conv1, self.bn1 = nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        widen = nn.Sequential(
            nn.Conv2d(STEM_CHANNELS, FIRST_CHANNELS, 1, bias=False), nn.BatchNorm2d(FIRST_CHANNELS)
        )
        self.layer1 = nn.Sequential(
            torchvision_models().resnet.Bottleneck(STEM_CHANNELS, STEM_CHANNELS, downsample=widen),
            *(
                torchvision_models().resnet.Bottleneck(FIRST_CHANNELS, STEM_CHANNELS)
                for _ in range(BLOCKS - 1)
            ),
        )
        self.transition1 = nn.ModuleList(
            [
                convolution(FIRST_CHANNELS, channels[0]),
                nn.Sequential(convolution(FIRST_CHANNELS, channels[1], 2)),
            ]
        )
        for branches, (above, below) in enumerate(pairwise(channels[1:]), start=2):
            opened = nn.Sequential(convolution(above, below, 2))
            self.add_module(f"transition{branches}", nn.ModuleDict({str(branches): opened}))
        for branches, modules in enumerate(MODULES, start=2):
            answered = [branches] * modules
            if branches == len(channels):
                answered[-1] = 1
            stage = nn.Sequential(*(Exchange(channels[:branches], count) for count in answered))
            self.add_module(f"stage{branches}", stage)

    def forward(self, crops: Tensor) -> Tensor:
        x = self.bn1(self.conv1(crops)).relu()
        x = self.layer1(self.bn2(self.conv2(x)).relu())
        maps: list[Tensor] = self.stage2([transition(x) for transition in self.transition1])
        maps = self.stage3([*maps, self.transition2["2"](maps[-1])])
        maps = self.stage4([*maps, self.transition3["3"](maps[-1])])
        return maps[0]
