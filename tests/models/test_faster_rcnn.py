import pytest
import torch
from torch import Tensor

from models.faster_rcnn import FasterRCNNDetector

from torchvision.models.detection import FasterRCNN  # isort: skip
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # isort: skip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a random network of COCO's 91 classes that takes every region for a person."""
    torch.manual_seed(0)
    network = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 91)
    head = network.roi_heads.box_predictor
    for layer in (network.rpn.head.bbox_pred, head.bbox_pred, head.cls_score):
        layer.weight.data.zero_()
    head.cls_score.bias.data[1] = 5
    return network.state_dict()


def test_people_are_found_in_the_pictures_pixels_one_picture_at_a_time(weights: dict[str, Tensor]):
    detector = FasterRCNNDetector.from_weights(weights, input_size=64, device=CPU)
    pictures = [
        torch.randint(0, 256, (50, 90, 3), dtype=torch.uint8),
        torch.zeros(40, 30, 3, dtype=torch.uint8),
    ]
    found = detector(pictures, [0.3, 1.0])
    assert len(found[0]) > 0
    assert len(found[1]) == 0  # no score reaches 1
    x, y, w, h, scores = found[0].unbind(1)
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert ((x + w) <= 90).all()
    assert ((y + h) <= 50).all()
    assert (scores.diff() <= 0).all()
    assert torch.equal(detector(pictures[:1], [0.3])[0], found[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (600, 1)])
def test_odd_pictures_break_nothing(weights: dict[str, Tensor], size: tuple[int, int]):
    detector = FasterRCNNDetector.from_weights(weights, input_size=64, device=CPU)
    (boxes,) = detector([torch.zeros(*size, 3, dtype=torch.uint8)], [0.3])
    assert boxes.shape[1] == 5


def test_other_weights_are_refused():
    with pytest.raises(RuntimeError):
        FasterRCNNDetector.from_weights({}, input_size=64, device=CPU)
