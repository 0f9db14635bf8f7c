"""Routers: one person -> difficulty s in (0, 1).

`Router` is DynPose's (section 3.2), layer by layer the released network, which differs from the paper's text in places
(8 convolutions for 4, a 5x5 first, average for max pooling). 853,219 parameters, 0.122 G multiply-accumulates.

`PoseRouter` sees what a small pose net makes of the crop, and the box: 0.076 G multiply-accumulates.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from models.defaults import ROUTER_SIZE
from models.estimator import PoseEstimator
from models.geometry import center_scale, crop_matrix, cut_crops, normalize, on_crops
from models.runtime import Network
from models.tinypose import CHANNELS, TinyPose

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
        x = x.flatten(1)[:, :, None, None]  # no len(x), which a converted network would keep
        return torch.sigmoid(self.layer2(self.layer1(x).relu())).flatten(1)  # eq. 4

    def forward(self, crops: Tensor) -> Tensor:
        return self.scores(crops)[:, self.config.score_index]


class DifficultyScorer:
    """People in pictures -> difficulty, through the paper's crop (256 x 192, padding 1.25)."""

    input_size = ROUTER_SIZE
    small: PoseEstimator | None = None
    """As of a `PoseScorer`; this one has none in it."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """pictures: N tensors (H, W, 3) uint8 RGB. boxes: (N, 4) x, y, w, h in picture pixels. scores: (N,) of the
        boxes; the paper's router does not look at them. Returns (N,) float32 on the CPU."""
        center, scale = center_scale(boxes)
        return on_crops(pictures, crop_matrix(center, scale, ROUTER_SIZE), ROUTER_SIZE, self._scores).cpu()

    def _scores(self, crops: Tensor) -> Tensor:
        return self.network(normalize(crops))

    def with_keypoints(
        self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As `PoseScorer.with_keypoints`; there are none."""
        return self(pictures, boxes, scores), None


def router_crops(pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(N, 3, 256, 192) uint8: what the router sees."""
    center, scale = center_scale(boxes)
    return cut_crops(pictures, crop_matrix(center, scale, ROUTER_SIZE), ROUTER_SIZE)


POSE_SIZE = (96, 128)
BOX_FEATURES = 9
POSE_FEATURES = sum(CHANNELS) + 2 * CHANNELS[0] + 2 * 17


class PoseFeatures(nn.Module):
    """What a pose net makes of normalised crops (N, 3, 128, 96), pooled, and its heatmaps: (N, POSE_FEATURES + their
    cells) float32, as `features_and_heatmaps` takes them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TinyPose()

    def forward(self, crops: Tensor) -> Tensor:
        branches = self.network.trunk(crops)
        joints = self.network.head.features(branches)
        heatmaps = self.network.head.final(joints).float().flatten(2)
        shares = heatmaps.clamp(min=0) + 1e-6
        shares = shares / shares.sum(2, keepdim=True)
        entropy = -(shares * shares.log()).sum(2)
        pooled = [x.float().mean((2, 3)) for x in (*branches, joints)]
        pooled += [joints.float().amax((2, 3)), heatmaps.amax(2), entropy]
        return torch.cat([*pooled, heatmaps.flatten(1)], dim=1)


def features_and_heatmaps(joined: Tensor) -> tuple[Tensor, Tensor]:
    """Of what `PoseFeatures` gives: (N, POSE_FEATURES) and (N, 17, 32, 24)."""
    width, height = POSE_SIZE
    heatmaps = joined[:, POSE_FEATURES:].reshape(len(joined), -1, height // 4, width // 4)
    return joined[:, :POSE_FEATURES], heatmaps


class GainHead(nn.Module):
    """Features (N, POSE_FEATURES + BOX_FEATURES) -> difficulty (N,), 0 to 1. `mean` and `deviation` are those of the
    features it learned from, (POSE_FEATURES + BOX_FEATURES,)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        count = POSE_FEATURES + BOX_FEATURES
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.hidden = nn.Linear(count, hidden)
        self.output = nn.Linear(hidden, 1)
        self.drop_input, self.drop_hidden = nn.Dropout(0.1), nn.Dropout(0.3)

    def logits(self, features: Tensor) -> Tensor:
        """(N,): the difficulty before its sigmoid."""
        x = ((features - self.mean) / self.deviation).clamp(-5, 5)
        x = self.drop_hidden(self.hidden(self.drop_input(x)).relu())
        return self.output(x).squeeze(1)  # type: ignore[no-any-return]

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(features))


class PoseRouter(nn.Module):
    """Expects the large net's gain from what the small one makes of the crop.

    `pose` is a copy of the small net of the pair; `head` learns. The score of a person grows with the OKS that the
    large net is expected to add, and is low for what is probably nobody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pose = PoseFeatures()
        self.head = GainHead()


class PoseScorer:
    """People in pictures -> difficulty, by a PoseRouter. `network` is its `pose`, `head` its head in float32, on the
    device of what the network gives.

    small: the pair's small net, where `network` holds the very same and sees the same crops; then what it says of a
    person need not be computed again.
    """

    input_size = POSE_SIZE

    def __init__(self, network: Network, head: nn.Module, small: PoseEstimator | None = None) -> None:
        self.network = network
        self.head = head.eval().requires_grad_(False)
        self.small = small

    def features(self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
        """(N, POSE_FEATURES + BOX_FEATURES) float32 on the CPU."""
        return self._on_crops(pictures, boxes, scores, self._features)

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
        """As DifficultyScorer; scores: (N,) of the boxes, 1 for a box that is known to be right."""
        return self.with_keypoints(pictures, boxes, scores)[0]

    def with_keypoints(
        self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Difficulties, and the small net's keypoints (N, K, 3) as of a `PoseEstimator`; None where it is another."""
        with torch.inference_mode():
            found = self._on_crops(pictures, boxes, scores, self._difficulty_and_keypoints)
            if self.small is None:
                return found[:, 0], None
            return found[:, 0], self.small.in_picture(found[:, 1:].reshape(len(found), -1, 3), boxes)

    def _on_crops(
        self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor, then: Callable[..., Tensor]
    ) -> Tensor:
        center, scale = center_scale(boxes)
        matrices = crop_matrix(center, scale, POSE_SIZE)
        return on_crops(pictures, matrices, POSE_SIZE, then, box_features(pictures, boxes, scores)).cpu()

    def _features(self, crops: Tensor, box: Tensor) -> Tensor:
        pose, _ = features_and_heatmaps(self.network(normalize(crops)))
        return torch.cat([pose, box.to(pose.device)], dim=1)

    def _difficulty_and_keypoints(self, crops: Tensor, box: Tensor) -> Tensor:
        """(N, 1 + 3 K), K = 0 without a small net: one transfer from the device instead of two."""
        pose, heatmaps = features_and_heatmaps(self.network(normalize(crops)))
        difficulty = self.head(torch.cat([pose, box.to(pose.device)], dim=1))[:, None]
        if self.small is None:
            return difficulty  # type: ignore[no-any-return]
        return torch.cat([difficulty, self.small.decoded(heatmaps).flatten(1)], dim=1)


def box_features(pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
    """What a crop hides of a box: how many pixels the person had, whether the picture's border cuts it, how sure the
    detector was.

    pictures: N tensors (H, W, 3). boxes: (N, 4) x, y, w, h in picture pixels. scores: (N,) of the boxes, 0 to 1.
    Returns (N, BOX_FEATURES) float32 without unit: logarithm of the crop's height in 200 pixels, of the box's aspect,
    the crop's height in longest sides of the picture, whether the left, top, right and bottom edge lie within 3 pixels
    of the border, and the score, plain and as logarithm.
    """
    height, width = np.array([picture.shape[:2] for picture in pictures], np.float32).reshape(-1, 2).T
    boxes = boxes.float()
    x, y, w, h = boxes.numpy().T
    side = center_scale(boxes)[1].numpy()[:, 1].clip(min=1)
    sure = scores.float().numpy()
    columns = [
        np.log(side / 200),
        np.log(w.clip(min=1) / h.clip(min=1)),
        side / np.maximum(width, height),
        x < 3,
        y < 3,
        x + w > width - 3,
        y + h > height - 3,
        sure,
        np.log(sure + 0.01),
    ]
    return torch.from_numpy(np.stack(columns, axis=1, dtype=np.float32, casting="same_kind"))
