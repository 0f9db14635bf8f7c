import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.commands import run_command
from calibration.data import DataError, Pictures, has_split, is_held_back, read_split, splits


def encoded(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 2), color).save(file, "png")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "some-00.zip", "w") as shard:
        shard.writestr("inside.png", encoded((10, 20, 30)))
    (tmp_path / "beside.png").write_bytes(encoded((1, 2, 3)))
    labelled = [0.0] * 48 + [3.0, 1.0, 2.0]
    content = {
        "images": [
            {"id": 7, "file_name": "inside.png", "shard": "some-00.zip", "width": 4, "height": 2},
            {"id": 8, "file_name": "beside.png", "width": 4, "height": 2, "source": "x", "complete": True},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [0, 0, 3, 2], "keypoints": labelled, "area": 5.0},
            {"id": 2, "image_id": 7, "bbox": [1, 0, 2, 2], "keypoints": [0] * 51, "area": 3.0},
            {"id": 3, "image_id": 7, "bbox": [0, 0, 4, 2], "keypoints": labelled, "area": 8.0, "iscrowd": 1},
        ],
    }
    (tmp_path / "some.json").write_text(json.dumps(content))
    return tmp_path


def test_people_are_read_with_the_picture_they_belong_to(folder: Path) -> None:
    first, second = read_split(folder, "some")
    assert [person.id for person in first.people] == [1, 2, 3]
    assert second.people == ()
    person = first.people[0]
    assert person.bbox == (0, 0, 3, 2)
    assert person.area == 5
    assert person.keypoints.shape == (17, 3)
    assert person.keypoints[16].tolist() == [3, 1, 2]
    assert (second.source, second.complete) == ("x", True)


def test_crowds_and_people_without_keypoints_have_no_pose(folder: Path) -> None:
    assert [person.has_pose for person in read_split(folder, "some")[0].people] == [True, False, False]


def test_pictures_are_read_from_archives_and_from_plain_files(folder: Path) -> None:
    pictures = Pictures(folder)
    for image, color in zip(read_split(folder, "some"), ((10, 20, 30), (1, 2, 3)), strict=True):
        picture = pictures(image)
        assert picture.shape == (2, 4, 3)
        assert picture.dtype == torch.uint8
        assert picture[0, 0].tolist() == list(color)


def test_a_folder_without_the_split_is_recognised(folder: Path) -> None:
    assert has_split(folder, "some")
    assert not has_split(folder, "other")


def test_about_a_tenth_is_held_back_and_always_the_same() -> None:
    held_back = np.array([is_held_back(image_id) for image_id in range(5000)])
    assert 0.08 < held_back.mean() < 0.12

    assert [i for i in range(40) if is_held_back(i)] == [9, 14, 28]


@pytest.mark.parametrize(
    ("annotations", "split", "pictures"),
    [
        ("annotations/person_keypoints_val2017.json", "val2017", "val2017"),
        ("annotations/image_info_test-dev2017.json", "test-dev2017", "test2017"),
        ("json/crowdpose_test.json", "test", "images"),
    ],
)
def test_the_published_layouts_of_coco_and_crowdpose_are_read(
    tmp_path: Path, annotations: str, split: str, pictures: str
) -> None:
    for folder in (Path(annotations).parent, Path(pictures)):
        (tmp_path / folder).mkdir()
    (tmp_path / pictures / "9.png").write_bytes(encoded((7, 8, 9)))
    content = {"images": [{"id": 9, "file_name": "9.png", "width": 4, "height": 2}]}
    (tmp_path / annotations).write_text(json.dumps(content))
    assert has_split(tmp_path, split)
    (image,) = read_split(tmp_path, split)
    assert (image.complete, image.people) == (True, ())
    assert Pictures(tmp_path)(image)[0, 0].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("said", "scores", "complete"),
    [
        ([None, None], False, [True, True]),
        ([True, None], False, [True, False]),
        ([False, None], False, [False, False]),
        ([None, None], True, [False, False]),  # a network may have overlooked people
        ([True, None], True, [True, False]),
    ],
)
def test_your_own_pictures_are_complete_unless_something_says_otherwise(
    tmp_path: Path, said: list[bool | None], scores: bool, complete: list[bool]
) -> None:
    images = [
        {"id": key, "file_name": "9.png", "width": 4, "height": 2}
        | ({} if value is None else {"complete": value})
        for key, value in enumerate(said)
    ]
    person = {"id": 1, "image_id": 0, "bbox": [0, 0, 3, 2], "keypoints": [1.0] * 51, "area": 5.0}
    person |= {"scores": [0.5] * 17} if scores else {}
    (tmp_path / "own.json").write_text(json.dumps({"images": images, "annotations": [person]}))
    assert [image.complete for image in read_split(tmp_path, "own")] == complete


def test_the_splits_of_a_folder_are_named_for_whoever_mistypes_one(folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "annotations" / "person_keypoints_val2017.json").write_text("{}")
    assert splits(folder) == ["some", "val2017"]
    assert splits(folder / "annotations" / "nowhere") == []


def test_crowdpose_people_have_14_keypoints_the_area_of_its_evaluation_and_count_visible_joints(
    tmp_path: Path,
) -> None:
    (tmp_path / "json").mkdir()
    person = {"image_id": 9, "bbox": [0, 0, 10, 20], "keypoints": [1.0, 2.0, 1.0] * 14, "iscrowd": 0}
    content = {
        "images": [{"id": 9, "file_name": "9.png", "width": 40, "height": 20, "crowdIndex": 0.4}],
        "annotations": [person | {"id": 1, "num_keypoints": 0}, person | {"id": 2, "num_keypoints": 14}],
    }
    (tmp_path / "json" / "crowdpose_val.json").write_text(json.dumps(content))
    (image,) = read_split(tmp_path, "val")
    assert image.crowd_index == 0.4
    assert [found.keypoints.shape for found in image.people] == [(14, 3)] * 2
    assert image.people[0].area == pytest.approx(0.53 * 200)
    assert [found.has_pose for found in image.people] == [False, True]


def test_a_missing_split_names_the_files_that_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"val\.json.*person_keypoints_val\.json"):
        read_split(tmp_path, "val")


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"{}", b'{"images": [], "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}'],
)
def test_annotations_of_another_format_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "val.json").write_bytes(content)
    with pytest.raises(DataError, match=r"val\.json is not in COCO's keypoint format"):
        read_split(tmp_path, "val")


def test_a_picture_that_is_missing_or_damaged_is_named(folder: Path) -> None:
    _, beside = read_split(folder, "some")
    (folder / "beside.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"beside\.png cannot be read"):
        Pictures(folder)(beside)
    (folder / "beside.png").unlink()
    with pytest.raises(DataError, match=r"beside\.png cannot be read"):
        Pictures(folder)(beside)


def test_what_a_command_cannot_use_ends_it_in_one_line(folder: Path) -> None:
    with pytest.raises(SystemExit, match=r"^/nowhere has none of"):
        run_command(lambda: len(read_split(Path("/nowhere"), "val")))
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: 3)
    assert ended.value.code == 3
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is one to be seen
        run_command(lambda: 1 // len(splits(folder / "empty")))
