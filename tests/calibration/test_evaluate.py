import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.data import LabelledImage, LabelledPerson, Pictures, read_split

pytest.importorskip("pycocotools")

from calibration.evaluate import (
    Estimates,
    Matches,
    accuracy,
    estimate,
    interval,
    main,
    match,
    report,
)


def person(
    key: int, random: np.random.Generator, *, labelled: bool = True, crowd: bool = False
) -> LabelledPerson:
    x, y = random.uniform(0, 200, 2)
    extent = random.uniform(40, 200)
    keypoints = np.zeros((17, 3), dtype=np.float32)
    if labelled:
        keypoints[:, :2] = random.uniform(0, extent, (17, 2)) + np.array((x, y))
        keypoints[:, 2] = random.integers(0, 3, 17)
    bbox = (float(x), float(y), float(extent), float(extent))
    return LabelledPerson(key, bbox, keypoints, float(extent**2 / 2), crowd, None)


def scene(pictures: int = 30) -> tuple[list[LabelledImage], dict[int, np.ndarray]]:
    """Pictures with labelled, unlabelled and crowd people, and predictions from nearly right to far off."""
    random = np.random.default_rng(0)
    images, predictions = [], {}
    for image_id in range(pictures):
        first = 10 * image_id + 1
        people = [person(first + i, random) for i in range(random.integers(1, 4))]
        for each in people:
            noise = random.normal(0, random.uniform(1, 25), (17, 2))
            scores = random.uniform(0, 1, (17, 1))
            predictions[each.id] = np.concatenate((each.keypoints[:, :2] + noise, scores), axis=1)
        people += [person(first + 8, random, labelled=False), person(first + 9, random, crowd=True)]
        images.append(LabelledImage(image_id, 400, 400, "coco_x", True, tuple(people), "x", None))
    return images, predictions


def test_the_accuracy_is_that_of_pycocotools() -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from calibration import evaluate

    images, predictions = scene()
    truth, found = COCO(), COCO()
    for coco, annotations in (
        (truth, [evaluate._annotation(i.id, p) for i in images for p in i.people]),
        (
            found,
            [
                evaluate._detection(i.id, p.id, predictions[p.id])
                for i in images
                for p in i.people
                if p.id in predictions
            ],
        ),
    ):
        coco.dataset = {
            "images": [{"id": i.id} for i in images],
            "categories": [{"id": 1}],
            "annotations": annotations,
        }
        coco.createIndex()
    reference = COCOeval(truth, found, "keypoints")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()

    ours = accuracy(match(images, predictions))
    assert 0.05 < ours.ap < 0.95
    assert [ours.ap, ours.ap50, ours.ar] == pytest.approx(reference.stats[[0, 1, 5]].tolist(), abs=1e-9)


def test_labels_fed_back_are_perfect() -> None:
    images, predictions = scene(5)
    perfect = {
        p.id: np.concatenate((p.keypoints[:, :2], np.ones((17, 1))), axis=1)
        for image in images
        for p in image.people
        if p.id in predictions
    }
    result = accuracy(match(images, perfect))
    assert (result.ap, result.ap50, result.ar) == (1, 1, 1)


def test_there_is_no_accuracy_without_people_and_none_without_predictions() -> None:
    assert np.isnan(accuracy([]).ap)
    images, _ = scene(3)
    assert accuracy(match(images, {})).ap == 0


def test_the_interval_holds_the_accuracy_and_narrows_with_pictures() -> None:
    images, predictions = scene(40)
    matches = match(images, predictions)
    low, high = interval(matches)
    assert low < accuracy(matches).ap < high
    wide_low, wide_high = interval(matches[:8])
    assert wide_high - wide_low > high - low


def test_the_large_net_answers_strictly_between_the_thresholds() -> None:
    small, large = ({i: np.full((17, 3), value) for i in range(4)} for value in (0.0, 1.0))
    estimates = Estimates(small, large, {0: 0.2, 1: 0.3, 2: 0.4, 3: 0.5})
    routed = estimates.routed(0.2, 0.4)
    assert [int(routed[i][0, 0]) for i in range(4)] == [0, 1, 0, 0]


def test_the_report_says_how_many_people_are_behind_each_part() -> None:
    images, predictions = scene(4)
    lines = report(images, {"small": (0.0, predictions)})
    people = len(predictions)
    assert lines[0] == f"COCO: {people} people with keypoints in 4 pictures"
    assert any(line.strip().startswith("small") for line in lines)


@dataclass(frozen=True)
class FakeManifest:
    def names(self) -> dict[str, str]:
        return {"pair": "fake"}


@dataclass(frozen=True)
class FakePair:
    """Difficulty grows with the box; the large net returns the box's corner, the small one something far off."""

    calibration: Path
    manifest: FakeManifest = FakeManifest()

    def router(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        return boxes[:, 2] / 100

    def large(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        corner = torch.cat((boxes[:, :2], torch.ones(len(boxes), 1)), dim=1)
        return corner[:, None].expand(-1, 17, -1)

    def small(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return self.large(pictures, boxes) + torch.tensor([1000.0, 1000.0, 0.0])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four pictures with one person each, all keypoints at the box's corner, boxes 10 to 40 px wide."""
    images, annotations = [], []
    for i in range(4):
        Image.new("RGB", (50, 50)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 50, "height": 50, "source": "coco_x"})
        bbox = [3, 4, 10 * (i + 1), 30]
        annotations.append(
            {"id": i + 1, "image_id": i, "bbox": bbox, "area": 300.0, "keypoints": [3, 4, 2] * 17}
        )
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "calibration.json").write_text(json.dumps({"scores": [0.1, 0.2, 0.3, 0.4]}))
    return tmp_path


def test_people_keep_their_own_estimates_whatever_the_batch(labelled: Path) -> None:
    images = read_split(labelled, "val")
    fake = FakePair(labelled / "calibration.json")
    estimates = estimate(fake, Pictures(labelled), images, batch=3)  # type: ignore[arg-type]
    assert estimates.difficulty == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
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
    # k1 = 0.13, its nearest score is the first, so k2 is the third: only 0.2 lies strictly between
    assert rows["routed, p = 0.5"][0] == "0.250"


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path)])
    main()
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"


def test_a_precision_curve_worked_by_hand() -> None:
    """Three people, found right, wrong, right: precision 1 to recall 1/3, then 2/3 to 2/3, then 0."""
    matched = np.tile(np.array([True, False, True]), (10, 1))
    result = accuracy([Matches(np.array([0.9, 0.8, 0.7]), matched, ~matched, 3)])
    assert result.ap == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert result.ar == pytest.approx(2 / 3)
