import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.data import is_held_back
from models.skeleton import FLIP_INDEX
from training.people import Sample, augmented, load_people

LEARNED, HELD_BACK = 1, 9
assert is_held_back(HELD_BACK)
assert not is_held_back(LEARNED)


def write_split(folder: Path, split: str, images: list[dict[str, object]], **extra: object) -> None:
    folder.mkdir(exist_ok=True)
    annotations = []
    for image in images:
        Image.new("RGB", (40, 40), (50, 60, 70)).save(folder / f"{image['id']}.png")
        image |= {"file_name": f"{image['id']}.png", "width": 40, "height": 40}
        keypoints = [10.0, 10.0, 2.0] * 10 + [0.0, 0.0, 0.0] * 7
        annotations.append(
            {
                "id": image["id"],
                "image_id": image["id"],
                "bbox": [5, 5, 20, 30],
                "area": 300.0,
                "keypoints": keypoints,
            }
            | extra
        )
    (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(
        tmp_path / "people",
        "train",
        [
            {"id": LEARNED, "source": "coco_x"},
            {"id": HELD_BACK, "source": "coco_x"},
            {"id": 2, "source": "lspet"},
        ],
    )
    return tmp_path / "people"


def test_held_back_pictures_are_not_learned_from(data: Path) -> None:
    training, held_back = load_people(data, None, None)
    assert [sample.source for sample in training] == ["ground_truth", "lspet"]
    assert len(held_back) == 1


def test_labels_of_crowd_workers_and_networks_weigh_less(data: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "more", "more", [{"id": HELD_BACK, "source": "x"}], scores=[0.8] * 17)
    training, _ = load_people(data, tmp_path / "more", None)
    weights = {sample.source: sample.weights.max() for sample in training}
    assert weights == {"ground_truth": 1, "lspet": 0.5, "more": pytest.approx(0.4)}


def test_the_teacher_fills_in_only_what_nobody_annotated_and_it_is_sure_of(
    data: Path, tmp_path: Path
) -> None:
    answers = np.full((3, 17, 3), 20.0)
    answers[:, :, 2] = 0.6
    answers[:, 16, 2] = 0.2
    np.savez(tmp_path / "teacher.npz", ids=np.array([LEARNED, HELD_BACK, 2]), keypoints=answers)
    training, held_back = load_people(data, None, tmp_path / "teacher.npz")
    sample = training[0]
    assert sample.keypoints[9].tolist() == [10, 10]
    assert sample.keypoints[10].tolist() == [20, 20]
    assert sample.weights[[9, 10, 16]].tolist() == pytest.approx([1, 0.6, 0])
    assert held_back[0].weights[10] == 0


def test_the_teacher_says_nothing_of_more_people_who_have_the_same_ids(data: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "more", "more", [{"id": LEARNED, "source": "x"}])
    answers = np.full((1, 17, 3), 20.0)
    np.savez(tmp_path / "teacher.npz", ids=np.array([LEARNED]), keypoints=answers)
    training, _ = load_people(data, tmp_path / "more", tmp_path / "teacher.npz")
    labelled = {sample.source: (sample.weights > 0).sum() for sample in training}
    assert labelled == {"ground_truth": 17, "lspet": 10, "more": 10}


def marked_person() -> Sample:
    """A black picture with a white 5x5 square on every keypoint; left and right ones are at different
    heights.
    """
    picture = torch.zeros(160, 120, 3, dtype=torch.uint8)
    keypoints = np.array([[20 + 10 * (k % 2) * 7, 10 + 8 * k] for k in range(17)], dtype=np.float32)
    for x, y in keypoints.astype(int):
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    bbox = np.array([10, 5, 100, 145], dtype=np.float32)
    return Sample(picture, bbox, keypoints, np.ones(17, dtype=np.float32), "ground_truth", 1e4)


def test_keypoints_stay_on_their_pixels_through_every_augmentation() -> None:
    crops, points, weights = augmented([marked_person()] * 40, (144, 192), np.random.default_rng(0))
    assert crops.shape == (40, 3, 192, 144)
    on_mark = []
    for crop, view, weight in zip(crops, points, weights, strict=True):
        x, y = view.round().long().unbind(1)
        inside = (x >= 0) & (x < 144) & (y >= 0) & (y < 192) & (weight > 0)
        bright = crop[:, y[inside], x[inside]].float().mean(dim=0)
        on_mark.append(bright > crop.float().mean() + 0.25 * (crop.float().max() - crop.float().mean()))
    assert torch.cat(on_mark).float().mean() > 0.97


def test_a_mirrored_person_has_left_and_right_swapped() -> None:
    """Upright views of a person whose left is at the right keep that order, whatever the mirror did."""
    sample = marked_person()
    weights = np.zeros(17, dtype=np.float32)
    weights[[5, 6]] = (1.0, 0.25)
    person = Sample(sample.picture, sample.bbox, sample.keypoints, weights, "ground_truth", 1e4)
    _, points, seen = augmented([person] * 60, (144, 192), np.random.default_rng(1))
    mirrored = seen[:, 5] < 1
    assert 15 < mirrored.sum() < 45
    assert (seen[mirrored, 6] == 1).all()
    assert sample.keypoints[5, 0] > sample.keypoints[6, 0]
    steady = (points[:, 5, 0] > points[:, 6, 0]).float().mean()
    assert steady > 0.95
    assert FLIP_INDEX[5] == 6


def test_the_same_seed_gives_the_same_views() -> None:
    people = [marked_person()] * 6
    first = augmented(people, (96, 128), np.random.default_rng(7))
    second = augmented(people, (96, 128), np.random.default_rng(7))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
