import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.boxes import Bbox, assign, clipped, detected_boxes, labelled_boxes, read_coco_results
from calibration.data import LabelledImage, LabelledPerson, Pictures
from models.detector import YoloDetector


def labelled(key: int, bbox: Bbox, *, crowd: bool = False, pose: bool = True) -> LabelledPerson:
    return LabelledPerson(key, bbox, np.full((17, 3), float(pose)), bbox[2] * bbox[3], crowd, None)


def picture_of(*people: LabelledPerson, key: int = 1) -> LabelledImage:
    return LabelledImage(key, 400, 400, "coco_x", True, people, f"{key}.png", None)


def fates(image: LabelledImage, *rows: tuple[float, float, float, float, float]) -> list[int | str]:
    """Per box: the id of its person, `wrong` or `neither`."""
    found = assign(np.array(rows).reshape(-1, 5), image)
    assert [(*person.bbox, person.score) for person in found] == list(rows)
    assert not any(person.wrong for person in found if person.label is not None)
    return [p.label.id if p.label else "wrong" if p.wrong else "neither" for p in found]


def test_of_two_boxes_on_one_person_the_better_gets_it_and_the_other_is_wrong() -> None:
    image = picture_of(labelled(7, (10, 10, 40, 80)))
    assert fates(image, (10, 10, 40, 80, 0.6), (12, 10, 40, 80, 0.8)) == ["wrong", 7]


def test_each_person_gets_one_box_and_a_box_whose_person_is_taken_the_next_best() -> None:
    image = picture_of(labelled(1, (10, 10, 40, 80)), labelled(2, (20, 10, 40, 80)))
    assert fates(image, (10, 10, 40, 80, 0.9), (11, 10, 40, 80, 0.8), (12, 10, 40, 80, 0.7)) == [
        1,
        2,
        "wrong",
    ]


@pytest.mark.parametrize(("height", "fate"), [(40, 7), (39, "wrong")])
def test_a_box_needs_half_of_the_union_to_get_somebody(height: float, fate: int | str) -> None:
    assert fates(picture_of(labelled(7, (10, 10, 40, 80))), (10, 10, 40, height, 0.9)) == [fate]


@pytest.mark.parametrize(("x", "fate"), [(80, "neither"), (81, "wrong")])
def test_a_box_half_in_a_crowd_area_is_neither_right_nor_wrong(x: float, fate: str) -> None:
    image = picture_of(labelled(7, (0, 0, 100, 100), crowd=True))
    assert fates(image, (x, 10, 40, 80, 0.9)) == [fate]
    assert fates(image, (0, 0, 100, 100, 0.9)) == ["neither"]  # nor does the area count as a person


def test_a_person_in_a_crowd_area_still_gets_its_box() -> None:
    image = picture_of(labelled(1, (0, 0, 200, 200), crowd=True), labelled(2, (10, 10, 40, 80)))
    assert fates(image, (10, 10, 40, 80, 0.9), (10, 10, 40, 80, 0.8)) == [2, "neither"]


def test_where_nobody_is_every_box_is_wrong_and_no_box_is_no_finding() -> None:
    assert fates(picture_of(), (10, 10, 40, 80, 0.9)) == ["wrong"]
    assert fates(picture_of(labelled(7, (10, 10, 40, 80)))) == []


def test_labelled_boxes_are_those_of_the_people_with_keypoints() -> None:
    seen = labelled(1, (10, 10, 40, 80))
    crowd, unlabelled = labelled(2, (0, 0, 90, 90), crowd=True), labelled(3, (5, 5, 9, 9), pose=False)
    found = labelled_boxes([picture_of(crowd, key=4), picture_of(unlabelled, seen, key=5)])
    assert [(p.image_id, p.bbox, p.score, p.wrong) for p in found] == [(5, seen.bbox, 1.0, False)]
    assert found[0].label is seen


def test_labelled_boxes_are_clipped_to_the_picture_as_the_authors_do() -> None:
    image = picture_of()  # 400 x 400
    assert clipped((-10, 20, 50, 500), image) == (0, 20, 40, 379)
    assert clipped((390, 20, 50, 10), image) == (390, 20, 9, 10)
    assert clipped((400, 20, 50, 10), image) is None
    outside = labelled(2, (400, 20, 50, 10))
    found = labelled_boxes([picture_of(labelled(1, (390, 20, 50, 10)), outside)])
    assert [(person.bbox, person.label and person.label.bbox) for person in found] == [
        ((390, 20, 9, 10), (390, 20, 50, 10))
    ]


def test_detected_boxes_are_those_of_each_picture_from_the_least_score_up(tmp_path: Path) -> None:
    images = [picture_of(labelled(key, (10, 10, 10 * key, 80)), key=key) for key in (3, 4)]
    for image in images:
        Image.new("RGB", (200, 100), (image.id, 0, 0)).save(tmp_path / image.file_name)

    def detector(pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        rows = [[[10, 10, 10 * int(p[0, 0, 0]), 80, 0.75], [150, 10, 9, 9, 0.25]] for p in pictures]
        return [
            torch.tensor([row for row in several if row[4] >= score])
            for several, score in zip(rows, min_scores, strict=True)
        ]

    found = detected_boxes(cast(YoloDetector, detector), Pictures(tmp_path), images, 0.25)
    assert [(p.image_id, p.bbox[2], p.score) for p in found] == [
        (3, 30, 0.75),
        (3, 9, 0.25),
        (4, 40, 0.75),
        (4, 9, 0.25),
    ]
    assert [p.label and p.label.id for p in found] == [3, None, 4, None]
    assert len(detected_boxes(cast(YoloDetector, detector), Pictures(tmp_path), images, 0.3)) == 2


def found(image_id: int, bbox: list[float], score: float, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "bbox": bbox, "score": score} | more


def test_a_coco_results_file_gives_its_people_by_image(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    entries = [
        found(7, [1, 2, 3.5, 4], 0.5, category_id=1),
        found(9, [0, 0, 5, 5], 1, category_id=1),
        found(7, [8, 9, 10, 11], 0.75, category_id=1, segmentation=[]),
        found(7, [0, 0, 1, 1], 0.9, category_id=18),
    ]
    file.write_text(json.dumps(entries))
    rows = read_coco_results(file)
    assert {key: value.tolist() for key, value in rows.items()} == {
        7: [[1, 2, 3.5, 4, 0.5], [8, 9, 10, 11, 0.75]],
        9: [[0, 0, 5, 5, 1]],
    }
    assert {value.dtype for value in rows.values()} == {np.dtype(np.float64)}


def test_boxes_without_a_category_are_of_people_and_no_boxes_are_no_error(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text(json.dumps([found(7, [1, 2, 3, 4], 0.5)]))
    assert read_coco_results(file)[7].tolist() == [[1, 2, 3, 4, 0.5]]
    file.write_text("[]")
    assert read_coco_results(file) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"\xff\xfe",
        b"",
        b"7",
        b"null",
        b"[7]",
        b'{"annotations": []}',
        json.dumps([{"image_id": 7, "score": 0.5}]).encode(),
        json.dumps([{"image_id": 7, "bbox": [1, 2, 3, 4]}]).encode(),
        json.dumps([{"bbox": [1, 2, 3, 4], "score": 0.5}]).encode(),
        json.dumps([found(7, [1, 2, 3], 0.5)]).encode(),
        json.dumps([found(7, [1, 2, 3, 4, 5], 0.5)]).encode(),
        json.dumps([{"image_id": 7, "bbox": None, "score": 0.5}]).encode(),
        json.dumps([found(7, [1, 2, -3, 4], 0.5)]).encode(),
        json.dumps([found(7, [1, 2, float("nan"), 4], 0.5)]).encode(),
        b'[{"image_id": 7, "bbox": "1234", "score": 0.5}]',
        b'[{"image_id": 7, "bbox": [1' + b"0" * 400 + b', 2, 3, 4], "score": 0.5}]',
        json.dumps([{"image_id": "seven", "bbox": [1, 2, 3, 4], "score": 0.5}]).encode(),
        json.dumps([{"image_id": 7, "category_id": 1, "keypoints": [1, 2, 2] * 17, "score": 0.5}]).encode(),
    ],
)
def test_a_file_that_holds_no_boxes_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "found.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"found\.json is not a COCO results file of boxes"):
        read_coco_results(file)


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found\.json"):
        read_coco_results(tmp_path / "found.json")
