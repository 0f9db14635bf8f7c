"""torchvision's Faster R-CNN with ResNet-50 and FPN (Ren et al., 2015; Lin et al., 2017) as a person detector."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN  # type: ignore[import-untyped]
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # type: ignore[import-untyped]
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

PERSON = 1  # 0 is background


class FasterRCNNDetector:
    """A `models.detector.Detector`. In float32, one picture at a time: torchvision pads pictures of a batch to the
    largest, and boxes would depend on the company. It gives nothing below a score of 0.05."""

    def __init__(self, network: FasterRCNN, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    @classmethod
    def from_weights(
        cls, weights: dict[str, Tensor], *, input_size: int, device: torch.device
    ) -> "FasterRCNNDetector":
        """Load weights of torchvision's fasterrcnn_resnet50_fpn, of any number of classes with person first.

        input_size: pixels of the shorter side of what the network sees, 800 as trained. Raises RuntimeError when they
        do not fit.
        """
        scores = weights.get("roi_heads.box_predictor.cls_score.bias", torch.empty(91))
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
        network = FasterRCNN(backbone, len(scores), min_size=input_size, max_size=input_size * 5 // 3)
        for module in network.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0  # as torchvision sets it for its released weights
        network.load_state_dict(weights, strict=True)
        return cls(network, device)

    def __call__(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        return [self._people(*each) for each in zip(pictures, min_scores, strict=True)]

    def _people(self, picture: Tensor, min_score: float) -> Tensor:
        longest, shortest = max(picture.shape[:2]), min(picture.shape[:2])
        if shortest * self.network.transform.max_size < longest:  # it would be resized to nothing
            return torch.empty(0, 5)
        with torch.inference_mode():
            (found,) = self.network([picture.permute(2, 0, 1).to(self.device).float() / 255])
        people = (found["labels"] == PERSON) & (found["scores"] >= min_score)
        corners, scores = found["boxes"][people].cpu(), found["scores"][people].cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2], scores[:, None]], dim=1)
        return boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)]
