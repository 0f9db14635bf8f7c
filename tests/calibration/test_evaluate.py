import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.data import Pictures, read_split

pytest.importorskip("pycocotools")

from calibration.evaluate import Estimates, estimate, limits, main


def test_the_large_net_answers_strictly_between_the_thresholds() -> None:
    small, large = ({i: np.full((17, 3), value) for i in range(4)} for value in (0.0, 1.0))
    estimates = Estimates(small, large, {0: 0.2, 1: 0.3, 2: 0.4, 3: 0.5})
    routed = estimates.routed(0.2, 0.4)
    assert [int(routed[i][0, 0]) for i in range(4)] == [0, 1, 0, 0]


@pytest.mark.parametrize(("p", "share"), [(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 1)])
def test_the_top_policy_sends_the_highest_scores(p: float, share: float) -> None:
    scores = [0.4, 0.1, 0.3, 0.2]
    k1, k2 = limits(scores, p, 0.1, "top")
    assert np.mean([k1 < s < k2 for s in scores]) == share


@dataclass(frozen=True)
class FakeManifest:
    def names(self) -> dict[str, str]:
        return {"pair": "fake"}


@dataclass(frozen=True)
class FakePair:
    """Difficulty grows with the box; the large net returns the box's corner, the small one something far
    off.
    """

    calibration: Path
    manifest: FakeManifest = FakeManifest()

    def router(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        return boxes[:, 2] / 128

    def large(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        corner = torch.cat((boxes[:, :2], torch.ones(len(boxes), 1)), dim=1)
        return corner[:, None].expand(-1, 17, -1)

    def small(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return self.large(pictures, boxes) + torch.tensor([1000.0, 1000.0, 0.0])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four pictures with one person each, all keypoints at the box's corner, boxes 16 to 64 px wide."""
    images, annotations = [], []
    for i in range(4):
        Image.new("RGB", (80, 50)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 50, "source": "coco_x"})
        bbox = [3, 4, 16 * (i + 1), 30]
        annotations.append(
            {"id": i + 1, "image_id": i, "bbox": bbox, "area": 300.0, "keypoints": [3, 4, 2] * 17}
        )
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    made_with = {"pair": "fake", "router_sha256": "", "detector_sha256": "", "min_score": 0.3}
    calibration = {
        "scores": [0.125, 0.25, 0.375, 0.5],
        "theta": 0.1,
        "made_with": made_with,
        "people": 4,
        "images": 4,
    }
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    return tmp_path


def test_people_keep_their_own_estimates_whatever_the_batch(labelled: Path) -> None:
    images = read_split(labelled, "val")
    fake = FakePair(labelled / "calibration.json")
    estimates = estimate(fake, Pictures(labelled), images, batch=3)  # type: ignore[arg-type]
    assert estimates.difficulty == ({1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5})
    assert estimates.large[3][0].tolist() == [3, 4, 1]


def test_the_command_measures_both_nets_and_the_routed_pair(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = FakePair(labelled / "calibration.json")
    monkeypatch.setattr("calibration.evaluate.load_pair", lambda *_: pair)
    monkeypatch.setattr("sys.argv", ["evaluate", str(labelled), "--p", "0.5", "--theta", "0.1"])
    main()
    rows = {
        line[:18].strip(): line[18:].split()
        for line in capsys.readouterr()
        .out.split("COCO: 4 people with keypoints in 4 pictures")[1]
        .splitlines()
    }
    assert rows["small"][:2] == ["0.000", "0.000"]
    assert rows["large"][:2] == ["1.000", "1.000"]
    # k1 = 0.16, its nearest score is the first, so k2 is the third: only 0.25 lies strictly between
    assert rows["band, p = 0.5"][0] == "0.250"
    assert rows["top, p = 0.5"][0] == "0.500"


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path)])
    main()
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"
