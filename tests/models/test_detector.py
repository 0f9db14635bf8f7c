from pathlib import Path

import cv2
import pytest
import torch
import ultralytics
from torch import Tensor

from models.detector import YoloDetector, letterbox, to_boxes
from models.zoo import load_detector, read_manifest

ASSETS = Path(ultralytics.__file__).parent / "assets"


def photo(name: str) -> Tensor:
    return torch.from_numpy(cv2.cvtColor(cv2.imread(str(ASSETS / name)), cv2.COLOR_BGR2RGB))


@pytest.fixture(scope="module")
def detector() -> YoloDetector:
    entry = read_manifest("embedded").detector
    return load_detector("embedded", entry, torch.device("cpu"), torch.float32)


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def test_the_people_of_two_photos_are_found(detector: YoloDetector):
    bus, zidane = detector([photo("bus.jpg"), photo("zidane.jpg")], [0.5, 0.5])
    # Drawn by hand on the photos.
    assert len(bus) == 4
    people = ([48, 398, 197, 505], [670, 392, 140, 485], [221, 406, 124, 452], [0, 551, 75, 320])
    for person in people:
        assert max(overlap(person, box[:4].tolist()) for box in bus) > 0.85
    assert len(zidane) == 2
    assert (bus[:, 4].diff() <= 0).all()


def test_boxes_lie_in_the_picture(detector: YoloDetector):
    (boxes,) = detector([photo("bus.jpg")], [0.05])
    x, y, w, h, _ = boxes.unbind(1)
    assert x.min() >= 0
    assert y.min() >= 0
    assert (x + w).max() <= 810
    assert (y + h).max() <= 1080


def test_a_picture_does_not_depend_on_its_batch_and_keeps_its_own_threshold(detector: YoloDetector):
    pictures = [
        photo("bus.jpg"),
        photo("zidane.jpg"),
        photo("bus.jpg").flip(1).contiguous(),
        photo("bus.jpg"),
    ]
    together = detector(pictures, [0.3, 0.3, 0.3, 0.84])
    alone = [
        detector([picture], [score])[0]
        for picture, score in zip(pictures, [0.3, 0.3, 0.3, 0.84], strict=True)
    ]
    for batched, single in zip(together, alone, strict=True):
        assert torch.allclose(batched, single, atol=1e-2)
    assert 0 < len(together[3]) < len(together[0])


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 20000), (65500, 1)])
def test_odd_pictures_have_no_people(detector: YoloDetector, size: tuple[int, int]):
    (boxes,) = detector([torch.zeros(*size, 3, dtype=torch.uint8)], [0.3])
    assert boxes.shape == (0, 5)


def test_a_letterbox_keeps_the_aspect_and_pads_to_the_stride():
    image = letterbox(torch.full((300, 900, 3), 7, dtype=torch.uint8), 640)
    assert image.shape == (3, 224, 640)
    assert (image[:, :213] == 7).all()
    assert (image[:, 213:] == 114).all()


def test_boxes_keep_full_precision_when_the_convolutions_run_in_half(detector: YoloDetector):
    entry = read_manifest("embedded").detector
    half = load_detector("embedded", entry, torch.device("cpu"), torch.bfloat16)
    (exact,), (found,) = detector([photo("bus.jpg")], [0.5]), half([photo("bus.jpg")], [0.5])
    assert len(found) == len(exact)
    for box in exact:
        assert max(overlap(box[:4].tolist(), other[:4].tolist()) for other in found) > 0.98
    boxes = half.network(torch.rand(1, 3, 64, 64))[
        0, :4
    ]  # decoded in bfloat16, 400 px would be a multiple of 2
    assert (boxes != boxes.bfloat16().float()).float().mean() > 0.9


def test_zero_area_boxes_and_boxes_below_the_score_are_dropped():
    rows = torch.tensor(
        [
            [10.0, 10.0, 50.0, 90.0, 0.9, 0.0],
            [-30.0, 10.0, -5.0, 90.0, 0.8, 0.0],  # left of the picture
            [10.0, 10.0, 50.0, 90.0, 0.2, 0.0],
        ]
    )
    boxes = to_boxes(rows, torch.zeros(200, 100, 3, dtype=torch.uint8), 100, 0.3)
    assert boxes.tolist() == [pytest.approx([20, 20, 80, 160, 0.9])]
