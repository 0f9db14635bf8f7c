"""The trunks that torchvision has: ResNet (He et al., CVPR 2016), MobileNetV2 (Sandler et al., CVPR 2018) and
ShuffleNetV2 (Ma et al., ECCV 2018), without their classifiers.

(N, 3, h, w), h and w multiples of 32 -> (N, CHANNELS, h/32, w/32).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def torchvision_models() -> Any:
    """Imported only where a network is built: it takes 160 MB of memory."""
    from torchvision import models  # type: ignore[import-untyped]

    return models


class ResNet(nn.Module):
    """50, 101 or 152 layers."""

    CHANNELS = 2048

    def __init__(self, depth: int) -> None:
        super().__init__()
        trunk = getattr(torchvision_models(), f"resnet{depth}")()
        self.conv1, self.bn1 = trunk.conv1, trunk.bn1
        self.layer1, self.layer2 = trunk.layer1, trunk.layer2
        self.layer3, self.layer4 = trunk.layer3, trunk.layer4

    def forward(self, crops: Tensor) -> Tensor:
        x = functional.max_pool2d(self.bn1(self.conv1(crops)).relu(), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    CHANNELS = 1280

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision_models().mobilenet_v2().features

    def forward(self, crops: Tensor) -> Tensor:
        return self.features(crops)  # type: ignore[no-any-return]


class ShuffleNetV2(nn.Module):
    """Width 1.0."""

    CHANNELS = 1024

    def __init__(self) -> None:
        super().__init__()
        trunk = torchvision_models().shufflenet_v2_x1_0()
        self.conv1, self.conv5 = trunk.conv1, trunk.conv5
        self.stage2, self.stage3, self.stage4 = trunk.stage2, trunk.stage3, trunk.stage4

    def forward(self, crops: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(crops), 3, 2, 1)
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))  # type: ignore[no-any-return]
