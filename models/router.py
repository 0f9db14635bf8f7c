"""The router of DynPose (section 3.2): one person crop -> difficulty s in (0, 1).

Layer by layer it is the released network, which differs from the paper's text in places (8 convolutions for 4, a 5x5
first, average for max pooling). 853,219 parameters, 0.122 G multiply-accumulates.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from models.defaults import ROUTER_SIZE
from models.geometry import center_scale, crop_matrix, cut_crops, normalize
from models.runtime import Network

FLAT = 128 * 4 * 3  # features of a 256 x 192 crop behind the last convolution


class RouterConfig(BaseModel):
    """The switches of table 5, and the outputs: the released file has three, of which 1 is the difficulty.

    pooling: how resolution is halved first, `none` feeds the convolutions at full resolution (and pools before the
    flattening instead). pconv, sge: without them plain convolutions and no attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: Literal["avg", "max", "none"] = "avg"
    pconv: bool = True
    sge: bool = True
    outputs: int = 1
    score_index: int = 0


class SGE(nn.Module):
    """Spatial group-wise enhancement (Li et al., 2019): each group gated where it resembles its own mean."""

    def __init__(self, groups: int = 8) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        grouped = x.reshape(n * self.groups, c // self.groups, h, w)
        t = (grouped * grouped.mean(dim=(2, 3), keepdim=True)).sum(dim=1).flatten(1)
        t = (t - t.mean(dim=1, keepdim=True)) / (t.std(dim=1, keepdim=True) + 1e-5)
        gate = torch.sigmoid(t.view(n, self.groups, h, w) * self.weight + self.bias)
        return (grouped * gate.reshape(n * self.groups, 1, h, w)).view(n, c, h, w)


class PConv(nn.Module):
    """Partial convolution (Chen et al., FasterNet, CVPR 2023): 3x3 over the first quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.part = channels // 4
        self.partial_conv3 = nn.Conv2d(self.part, self.part, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.partial_conv3(x[:, : self.part]), x[:, self.part :]], dim=1)


class Router(nn.Module):
    """(N, 3, 256, 192) normalised crops -> (N,) difficulty. The names are those of the released weights."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config

        def mix(channels: int) -> nn.Module:
            return PConv(channels) if config.pconv else nn.Conv2d(channels, channels, 3, 1, 1)

        def attend() -> nn.Module:
            return SGE() if config.sge else nn.Identity()

        self.conv1, self.bn1 = nn.Conv2d(1, 32, 5, 1, 1), nn.BatchNorm2d(32)
        self.conv2, self.sge1, self.bn2 = nn.Conv2d(32, 64, 3, 2, 1), attend(), nn.BatchNorm2d(64)
        self.conv3_1, self.bn7 = nn.Conv2d(64, 64, 3, 2, 1), nn.BatchNorm2d(64)
        self.pconv3, self.conv3, self.bn3 = mix(64), nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64)
        self.conv4, self.sge2, self.bn4 = nn.Conv2d(64, 128, 3, 2, 1), attend(), nn.BatchNorm2d(128)
        self.conv5_1, self.bn8 = nn.Conv2d(128, 128, 3, 2, 1), nn.BatchNorm2d(128)
        self.pconv5, self.conv5, self.bn5 = mix(128), nn.Conv2d(128, 128, 1), nn.BatchNorm2d(128)
        self.conv6, self.bn6 = nn.Conv2d(128, 128, 3, 2, 1), nn.BatchNorm2d(128)
        self.layer1 = nn.Conv2d(FLAT, 256, 1)
        self.layer2 = nn.Conv2d(256, config.outputs, 1)

    def scores(self, crops: Tensor) -> Tensor:
        """All outputs, (N, outputs)."""
        x = crops.mean(dim=1, keepdim=True)
        if self.config.pooling != "none":
            pool = functional.avg_pool2d if self.config.pooling == "avg" else functional.max_pool2d
            x = pool(x, 2)
        x = self.bn1(self.conv1(x)).relu()  # F0
        x = self.bn2(self.sge1(self.conv2(x))).relu()  # eq. 3, F1
        x = self.bn7(self.conv3_1(x)).relu()
        x = self.bn3(self.conv3(self.pconv3(x))).relu()  # eq. 3, F2
        x = self.bn4(self.sge2(self.conv4(x))).relu()  # eq. 3, F3
        x = self.bn8(self.conv5_1(x)).relu()
        x = self.bn5(self.conv5(self.pconv5(x))).relu()  # eq. 3, F4
        x = self.bn6(self.conv6(x)).relu()
        if self.config.pooling == "none":
            x = functional.avg_pool2d(x, 2)
        x = x.flatten(1).view(len(x), FLAT, 1, 1)
        return torch.sigmoid(self.layer2(self.layer1(x).relu())).flatten(1)  # eq. 4

    def forward(self, crops: Tensor) -> Tensor:
        return self.scores(crops)[:, self.config.score_index]


class DifficultyScorer:
    """People in pictures -> difficulty, through the router's own crop (256 x 192, padding 1.25)."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """pictures: N tensors (H, W, 3) uint8 RGB. boxes: (N, 4) x, y, w, h in picture pixels.
        Returns (N,) float32 on the CPU."""
        return self.network(normalize(router_crops(pictures, boxes))).cpu()


def router_crops(pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(N, 3, 256, 192) uint8: what the router sees."""
    center, scale = center_scale(boxes)
    return cut_crops(pictures, crop_matrix(center, scale, ROUTER_SIZE), ROUTER_SIZE)
