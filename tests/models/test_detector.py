import collections
import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import ultralytics
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from models.detector import (
    LIGHT,
    YoloDetector,
    build_network,
    letterbox,
    load_yolo,
    read_ultralytics,
    suppress,
    to_boxes,
)
from models.zoo import load_detector, read_manifest

from ultralytics.nn.tasks import DetectionModel  # isort: skip  # after models.detector has set its environment
from ultralytics.utils import IterableSimpleNamespace  # isort: skip

ASSETS = Path(ultralytics.__file__).parent / "assets"
EMPTY = torch.empty(0)


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
    assert image.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("aspect", [(360, 640), (427, 640), (480, 640), (512, 640), (640, 640)])
def test_usual_pictures_are_padded_to_the_stride_and_no_further(aspect: tuple[int, int]):
    height, width = aspect
    assert letterbox(torch.zeros(height, width, 3, dtype=torch.uint8), 640).shape == (
        3,
        -(-height // 32) * 32,
        640,
    )


@given(st.integers(1, 400), st.integers(1, 400))
@example(180, 320)
@example(320, 213)
def test_whatever_the_aspect_a_network_sees_few_shapes_and_all_of_the_picture(height: int, width: int):
    image = letterbox(torch.full((height, width, 3), 7, dtype=torch.uint8), 512)
    shorter, longer = sorted(image.shape[1:])
    assert longer == 512
    assert shorter in (160, 288, 352, 384, 416, 512)
    assert int((image[0] == 7).sum()) == 512 * max(1, round(512 * min(height, width) / max(height, width)))


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
            [10.0, 10.0, 50.0, 90.0, 0.9],
            [-30.0, 10.0, -5.0, 90.0, 0.8],  # left of the picture
            [10.0, 10.0, 50.0, 90.0, 0.2],
        ]
    )
    boxes = to_boxes(rows, torch.zeros(200, 100, 3, dtype=torch.uint8), 100, 0.3)
    assert boxes.tolist() == [pytest.approx([20, 20, 80, 160, 0.9])]


def test_of_boxes_that_overlap_the_better_stays():
    candidates = torch.tensor(
        [
            [20.0, 20, 10, 10, 0.5],
            [21.0, 20, 10, 10, 0.9],  # IoU 0.82 with the first
            [40.0, 20, 10, 10, 0.3],
        ]
    ).T
    assert suppress(candidates, 0.1, 0.7)[:, 4].tolist() == pytest.approx([0.9, 0.3])
    assert suppress(candidates, 0.4, 0.9)[:, 4].tolist() == pytest.approx([0.9, 0.5])
    assert suppress(candidates, 0.4, 0.7).tolist() == [pytest.approx([16, 15, 26, 25, 0.9])]


@pytest.fixture(scope="module")
def coco_model() -> DetectionModel:
    torch.manual_seed(0)
    return DetectionModel("yolov8n.yaml", verbose=False).eval()


def test_of_a_coco_detectors_80_classes_only_the_person_counts(coco_model: DetectionModel):
    batch = torch.rand(1, 3, 64, 64)
    network = load_yolo(coco_model.state_dict(), "yolov8n")
    with torch.inference_mode():
        expected = coco_model(batch)[0]
        found = network(batch)
    assert found.shape == (1, 5, 84)
    assert torch.allclose(found, expected[:, :5], atol=1e-3)


def test_weights_of_another_yolo_are_refused(coco_model: DetectionModel):
    with pytest.raises(RuntimeError):
        load_yolo(coco_model.state_dict(), "yolov8s")


def test_a_yolo_of_other_classes_is_refused():
    """Its first class may be anything."""
    weights = DetectionModel("yolov8s.yaml", nc=3, verbose=False).state_dict()
    with pytest.raises(RuntimeError, match="other classes"):
        load_yolo(weights, "yolov8s")


@pytest.mark.parametrize("architecture", ["yolo11n", "yolo12n"])
def test_later_yolos_are_read_as_the_first(architecture: str):
    torch.manual_seed(0)
    model = DetectionModel(f"{architecture}.yaml", verbose=False)
    network = load_yolo(model.state_dict(), architecture)
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 5, 84)


def test_the_light_yolo_differs_from_its_own_size_in_the_class_branch_alone():
    light, whole = (build_network(name).state_dict() for name in (LIGHT, "yolov8s"))
    differing = {
        key
        for key in light.keys() | whole.keys()
        if light.get(key, EMPTY).shape != whole.get(key, EMPTY).shape
    }
    assert differing
    assert all(".cv3." in key for key in differing)
    assert sum(value.numel() for value in light.values()) < sum(value.numel() for value in whole.values())
    with torch.inference_mode():
        assert load_yolo(light, LIGHT)(torch.rand(1, 3, 64, 64)).shape == (1, 5, 84)


def test_a_checkpoint_of_ultralytics_gives_its_weights(coco_model: DetectionModel, tmp_path: Path):
    """As ultralytics saves one, in half precision and with objects that are no layers."""
    content = {
        "epoch": -1,
        "model": copy.deepcopy(coco_model).half(),
        "ema": None,
        "train_args": IterableSimpleNamespace(imgsz=640),
        "train_metrics": {"fitness": np.float64(0.5), "curve": np.arange(3.0)},
    }
    torch.save(content, tmp_path / "y.pt")
    weights = read_ultralytics(tmp_path / "y.pt")
    expected = coco_model.state_dict()
    assert list(weights) == list(expected)
    for key, value in expected.items():
        assert torch.equal(weights[key], value.half().float() if value.is_floating_point() else value), key


class Call:
    """Its pickle calls `function` when it is opened."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


SPRUNG = "open('sprung', 'w')"


@pytest.mark.parametrize(
    "bomb",
    [
        Call(os.mkdir, "sprung"),
        Call(eval, SPRUNG),
        Call(
            DetectionModel,
            {"activation": SPRUNG, "backbone": [[-1, 1, "Conv", [8, 3, 2]]], "head": [], "nc": 1},
        ),
    ],
    ids=["system", "builtin", "layer"],
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: Call
):
    """ultralytics evaluates what a model's description says of its activation."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": bomb}, "bomb.pt")
    with pytest.raises(ValueError, match="no checkpoint of ultralytics"):
        read_ultralytics(Path("bomb.pt"))
    assert not Path("sprung").exists()


def test_of_a_layer_only_the_weights_are_read(coco_model: DetectionModel, tmp_path: Path):
    """A file could put anything in the place of a layer's methods and hooks."""
    model = copy.deepcopy(coco_model)
    model.__dict__["state_dict"] = model._state_dict_hooks[0] = collections.OrderedDict
    torch.save({"model": model}, tmp_path / "y.pt")
    assert read_ultralytics(tmp_path / "y.pt").keys() == coco_model.state_dict().keys()


@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_a_file_that_is_no_checkpoint_is_said_to_be_none(tmp_path: Path, content: bytes | None):
    path = tmp_path / "x.pt"
    if content is None:
        torch.save({"weights": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="no checkpoint of ultralytics"):
        read_ultralytics(path)


def test_who_loads_no_yolo_does_not_import_ultralytics():
    program = "import sys, models.zoo, app.service; sys.exit('ultralytics' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
