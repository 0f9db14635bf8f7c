"""A pair whose networks are arithmetic, and pictures for it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from models.zoo import Pair

FAR = 1000.0


def convolution(channels: int) -> Callable[[Tensor], Tensor]:
    """A network of 3 x `channels` multiply-accumulates a pixel."""
    return torch.nn.Conv2d(3, channels, 1).requires_grad_(False)


@dataclass
class FakeNet:
    """All joints lie on the box's corner, `off` pixels to the right and down."""

    off: float
    channels: int
    joints: int = 17
    input_size: tuple[int, int] = (12, 16)
    flips: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = convolution(self.channels)

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, *, flip_test: bool = False) -> Tensor:
        assert len(pictures) == len(boxes)
        self.flips.append(flip_test)
        points = torch.cat((boxes[:, :2] + self.off, torch.ones(len(boxes), 1)), dim=1)
        return points[:, None].repeat(1, self.joints, 1)


@dataclass
class FakeRouter:
    """Difficulty grows with the box and its score."""

    input_size: tuple[int, int] = (12, 16)
    small: None = None

    def __post_init__(self) -> None:
        self.network = convolution(1)

    def __call__(self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        assert (scores.shape, scores.dtype) == ((len(boxes),), torch.float32)
        return boxes[:, 2] / 128 * scores

    def with_keypoints(
        self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor
    ) -> tuple[Tensor, None]:
        return self(pictures, boxes, scores), None


@dataclass
class FakePair:
    """The large net is exact where people have all joints on the corner of their box, the small one far off. The
    detector finds the person of every picture, whose red tells the width, and nobody's box with a score of 0.25."""

    calibration: Path
    joints: int = 17

    def __post_init__(self) -> None:
        self.small, self.large = FakeNet(FAR, 2, self.joints), FakeNet(0, 10, self.joints)
        self.router = FakeRouter()
        self.manifest = SimpleNamespace(
            names=lambda: {"pair": "fake"},
            router=SimpleNamespace(architecture="pose", sha256=""),
            detector=SimpleNamespace(int8=None),
            calibration_path=self.calibration,
        )

    def detector(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        found = []
        for picture, score in zip(pictures, min_scores, strict=True):
            width = 16.0 * (int(picture[0, 0, 0]) + 1)
            rows = torch.tensor([[3, 4, width, 30, 0.75], [60, 4, 16, 30, 0.25]])
            found.append(rows[rows[:, 4] >= score])
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return FakePair(tmp_path / "calibration.json")  # type: ignore[return-value]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures with one person each, all keypoints at the box's corner, boxes 16 to 64 px wide. In the last one
    others may be unlabelled. The red of a picture is its number. Beside them, the pair's calibration."""
    images, annotations = [], []
    for i in range(4):
        Image.new("RGB", (80, 50), (i, 0, 0)).save(tmp_path / f"{i}.png")
        image = {"id": i, "file_name": f"{i}.png", "width": 80, "height": 50, "source": "coco_x"}
        images.append(image | {"complete": i < 3})
        bbox = [3, 4, 16 * (i + 1), 30]
        annotations.append(
            {"id": i + 1, "image_id": i, "bbox": bbox, "area": 300.0, "keypoints": [3, 4, 2] * 17}
        )
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    made_with = {"pair": "fake", "router_sha256": "", "detector_sha256": "", "min_score": 0.3}
    calibration = {
        "scores": [0.25, 0.5, 0.125, 0.375],
        "theta": 0.1,
        "made_with": made_with,
        "people": 4,
        "images": 4,
    }
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    return tmp_path
