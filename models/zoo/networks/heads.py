"""What turns a trunk's features into heatmaps at a quarter of the crop's size, and the two put together.

`backbone`, `head` and the names inside the heads are those of MMPose's checkpoints.
"""

from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 256  # of every deconvolution


class DeconvHead(nn.Module):
    """Transposed convolutions that double the size, then 1x1: (N, inputs, h, w) -> (N, keypoints, h 2^layers, ...).

    SimpleBaseline (Xiao et al., ECCV 2018) with three layers, ViTPose's classic decoder with two.
    """

    def __init__(self, inputs: int, keypoints: int, layers: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for width in (inputs, *[CHANNELS] * (layers - 1)):
            steps += [
                nn.ConvTranspose2d(width, CHANNELS, 4, 2, 1, bias=False),
                nn.BatchNorm2d(CHANNELS),
                nn.ReLU(inplace=True),
            ]
        self.deconv_layers = nn.Sequential(*steps)
        self.final_layer = nn.Conv2d(CHANNELS, keypoints, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(features))  # type: ignore[no-any-return]


class SimpleHead(nn.Module):
    """ViTPose's simple decoder (Xu et al., NeurIPS 2022): (N, inputs, h, w) -> (N, keypoints, 4h, 4w)."""

    def __init__(self, inputs: int, keypoints: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(inputs, keypoints, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        enlarged = functional.interpolate(features.relu(), scale_factor=4, mode="bilinear")
        return self.final_layer(enlarged)  # type: ignore[no-any-return]


class PointwiseHead(nn.Module):
    """For features that have the heatmaps' size: (N, inputs, h, w) -> (N, keypoints, h, w)."""

    def __init__(self, inputs: int, keypoints: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(inputs, keypoints, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.final_layer(features)  # type: ignore[no-any-return]


class PoseNetwork(nn.Module):
    """Normalised crops (N, 3, h, w) -> heatmaps (N, keypoints, h/4, w/4)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.backbone(crops))  # type: ignore[no-any-return]
