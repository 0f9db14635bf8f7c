import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.data import LabelledImage, LabelledPerson

pytest.importorskip("pycocotools")

from calibration.detection import HEIGHTS, assigned, at_score, box_accuracy, main, ratios, score_at

Bbox = tuple[float, float, float, float]


def image_of(
    image_id: int, *people: Bbox, crowds: Sequence[Bbox] = (), complete: bool = True
) -> LabelledImage:
    labelled = tuple(
        # ids from 0: pycocotools alone would take the first person for nobody
        LabelledPerson(index, bbox, np.zeros((17, 3)), bbox[2] * bbox[3] / 2, crowd, None)
        for index, (bbox, crowd) in enumerate([*((b, False) for b in people), *((b, True) for b in crowds)])
    )
    return LabelledImage(image_id, 400, 400, "coco_x", complete, labelled, f"{image_id}.png", None)


def scene(pictures: int = 40) -> tuple[list[LabelledImage], dict[int, np.ndarray]]:
    """Pictures with people and crowd areas, and boxes near them, twice on them, in crowds and in the void. One picture
    has more than the 100 boxes that COCO looks at, one has no boxes, and one nobody."""
    rng = np.random.default_rng(0)
    images, boxes = [], {}

    def some(count: int, side: tuple[float, float]) -> np.ndarray:
        return np.concatenate([rng.uniform(0, 300, (count, 2)), rng.uniform(*side, (count, 2))], axis=1)

    for image_id in range(pictures):
        people, crowds = some(rng.integers(1, 5), (20, 150)), some(rng.integers(0, 2), (100, 200))
        near = np.concatenate([people, people[:1]]) + rng.normal(0, 6, (len(people) + 1, 4))
        inside = crowds + np.array([5, 5, -30, -30])
        void = some(120 if image_id == 3 else 2, (20, 150))
        rows = np.concatenate([near, inside, void])
        boxes[image_id] = np.concatenate([rows, rng.uniform(0.05, 1, (len(rows), 1))], axis=1)
        images.append(image_of(image_id, *people.tolist(), crowds=crowds.tolist()))
    del boxes[5]
    images[7] = image_of(7)
    return images, boxes


def reference(images: list[LabelledImage], boxes: dict[int, np.ndarray]) -> list[float]:
    """AP, AP50 and AR by pycocotools from its own result format."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    people = [(image.id, person) for image in images for person in image.people]
    truth.dataset = {
        "images": [{"id": image.id} for image in images],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": key, "image_id": image_id, "category_id": 1, "bbox": list(person.bbox)}
            | {"area": person.bbox[2] * person.bbox[3], "iscrowd": int(person.crowd)}
            for key, (image_id, person) in enumerate(people, 1)
        ],
    }
    truth.createIndex()
    found = [
        {"image_id": image_id, "category_id": 1, "bbox": row[:4], "score": row[4]}
        for image_id, rows in boxes.items()
        for row in rows.tolist()
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats[[0, 1, 8]]]


def test_the_box_accuracy_is_that_of_pycocotools() -> None:
    images, boxes = scene()
    ours = box_accuracy(images, boxes)
    assert 0.05 < ours.ap.value < 0.95
    assert [ours.ap.value, ours.ap50, ours.ar] == pytest.approx(reference(images, boxes), abs=1e-9)
    assert ours.ap.low < ours.ap.value < ours.ap.high


def test_only_pictures_whose_people_are_all_annotated_count() -> None:
    boxes = {1: np.array([[10, 10, 50, 90, 0.9]]), 2: np.array([[200, 200, 50, 90, 0.95]])}
    images = [
        image_of(1, (10, 10, 50, 90)),
        image_of(2, (10, 10, 50, 90), complete=False),
    ]
    found = at_score(images, assigned(images, boxes), 0.3)
    assert (found.people["all"], found.recall["all"].value, found.wrong.value) == (1, 1, 0)
    result = box_accuracy(images, boxes)
    assert (result.ap.value, result.ap50, result.ar) == (1, 1, 1)


def test_there_is_no_accuracy_without_people_and_none_without_boxes() -> None:
    assert math.isnan(box_accuracy([image_of(1)], {}).ap.value)
    assert box_accuracy([image_of(1, (10, 10, 50, 90))], {}).ap.value == 0


def test_recall_and_false_boxes_worked_by_hand() -> None:
    images = [
        image_of(1, (10, 10, 40, 80), (100, 10, 20, 40), (200, 10, 20, 20), crowds=[(0, 200, 200, 100)]),
        image_of(2, (10, 10, 150, 300)),
    ]
    boxes = {
        1: np.array(
            [
                [200, 10, 20, 20, 0.2],  # the third person, below the score
                [10, 10, 40, 70, 0.4],  # doubles the fifth: false
                [150, 210, 100, 50, 0.7],  # half in the crowd: neither right nor false
                [151, 210, 100, 50, 0.7],  # a little less than half: false
                [12, 10, 40, 80, 0.9],  # the first person
                [105, 10, 30, 40, 0.3],  # the second person: IoU 15 / 35, too little, so false
            ]
        )
    }
    found = at_score(images, assigned(images, boxes), 0.3)
    assert found.people == {
        "below 32 px": 1,
        "32 to 64 px": 1,
        "64 to 128 px": 1,
        "128 to 256 px": 0,
        "256 px and above": 1,
        "64 px and above": 2,
        "all": 4,
    }
    recall = {name: measured.value for name, measured in found.recall.items()}
    assert math.isnan(recall.pop("128 to 256 px"))
    assert recall == {
        "below 32 px": 0,
        "32 to 64 px": 0,
        "64 to 128 px": 1,
        "256 px and above": 0,
        "64 px and above": 0.5,
        "all": 0.25,
    }
    assert found.wrong.value == 1.5
    assert at_score(images, assigned(images, boxes), 0.2).recall["below 32 px"].value == 1


def test_heights_have_their_lower_end_and_leave_no_gap() -> None:
    ranges = list(HEIGHTS.values())[:5]
    assert [low for low, _ in ranges[1:]] == [high for _, high in ranges[:-1]]
    image = image_of(1, (0, 0, 9, 64), (50, 0, 9, 63.9))
    found = at_score([image], assigned([image], {}), 0.3)
    assert (found.people["32 to 64 px"], found.people["64 px and above"]) == (1, 1)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_score_for_a_rate_of_false_boxes_is_the_least_one_that_keeps_it(rate: float) -> None:
    images, boxes = scene()
    people = assigned(images, boxes)
    score = score_at(people, rate)
    assert at_score(images, people, score).wrong.value <= rate
    assert at_score(images, people, np.nextafter(score, 0)).wrong.value > rate


def test_a_detector_that_is_never_so_wrong_keeps_all_its_boxes() -> None:
    images = [image_of(1, (10, 10, 50, 90))]
    assert score_at(assigned(images, {1: np.array([[10, 10, 50, 90, 0.05]])}), 0.3) == 0


def test_intervals_draw_pictures_and_are_as_wide_as_the_pictures_differ() -> None:
    rng = np.random.default_rng(1)
    below = np.full((200, 1), 4.0)
    (alike,) = ratios(np.full((200, 1), 3.0), below)
    assert (alike.value, alike.low, alike.high) == (0.75, 0.75, 0.75)
    above = rng.integers(0, 5, (200, 1)).astype(float)
    (mixed,) = ratios(above, below)
    deviation = above.std() / 4 / math.sqrt(200)
    assert mixed.high - mixed.low == pytest.approx(2 * 1.96 * deviation, rel=0.2)
    assert mixed.low < mixed.value < mixed.high
    (half,) = ratios(above, 2 * above)  # whoever is drawn, half of them are found
    assert (half.value, half.low, half.high) == (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class FakeManifest:
    detector = SimpleNamespace(int8=None)

    def names(self) -> dict[str, str]:
        return {"detector": "fake"}


class FakePair:
    """Finds the person of every picture, and nobody's box with a score of 0.2."""

    manifest = FakeManifest()

    def detector(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        assert len(pictures) == len(min_scores)
        rows = torch.tensor([[3, 4, 20, 30, 0.9], [50, 4, 20, 30, 0.2]])
        return [rows[rows[:, 4] >= score] for score in min_scores]


@pytest.mark.parametrize(("min_score", "wrong"), [("0.3", "0.000"), ("0.1", "1.000")])
def test_the_command_measures_the_detector_of_the_pair(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    min_score: str,
    wrong: str,
) -> None:
    images, annotations = [], []
    for i in range(3):
        Image.new("RGB", (80, 50)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 50, "complete": i < 2})
        person = {"id": i + 1, "image_id": i, "bbox": [3, 4, 20, 30], "area": 300.0, "keypoints": [0] * 51}
        annotations.append(person)
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    monkeypatch.setattr("calibration.detection.load_pair", lambda *_, **__: FakePair())
    monkeypatch.setattr("sys.argv", ["detection", str(tmp_path), "--min-score", min_score])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["detector fake", "2 pictures, 2 people who are no crowd"]
    assert lines[2] == "AP 1.000 (1.000-1.000), AP50 1.000, AR 1.000"
    assert lines[3].startswith(f"from score {min_score}: {wrong} ")
    assert lines[5].split() == ["below", "32", "px", "2", "1.000", "(1.000-1.000)"]


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["detection", str(tmp_path)])
    assert main() == 0
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"
    (tmp_path / "val.json").write_text(json.dumps({"images": [], "annotations": []}))
    assert main() == 0
    said = "skipped: no picture of split 'val' has all its people labelled\n"
    assert capsys.readouterr().out == said
    monkeypatch.setattr("sys.argv", ["detection", str(tmp_path), "--split", "vla"])
    assert main() == 2
    assert capsys.readouterr().err == f"{tmp_path} has no split 'vla', but val\n"
