import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.data import Pictures, has_split, is_held_back, read_split


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
