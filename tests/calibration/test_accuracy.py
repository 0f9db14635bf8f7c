import numpy as np
import pytest

from calibration.data import LabelledImage, LabelledPerson

pytest.importorskip("pycocotools")

from calibration.accuracy import Matches, Pose, accuracy, interval, match, without_doubles
from models.skeleton import SIGMAS

Poses = dict[int, list[Pose]]


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


def scene(pictures: int = 30) -> tuple[list[LabelledImage], Poses]:
    """Pictures with labelled, unlabelled and crowd people, and poses of them from nearly right to far off, of nobody,
    and in one picture more than the 20 that COCO looks at."""
    random = np.random.default_rng(0)
    images, poses = [], {}

    def near(points: np.ndarray, noise: float) -> Pose:
        scores = random.uniform(0, 1, (17, 1))
        moved = points + random.normal(0, noise, (17, 2))
        return Pose(float(random.uniform(0.05, 1)), np.concatenate((moved, scores), axis=1))

    for image_id in range(pictures):
        first = 10 * image_id + 1
        people = [person(first + i, random) for i in range(random.integers(1, 4))]
        poses[image_id] = [near(each.keypoints[:, :2], random.uniform(0.5, 12)) for each in people]
        poses[image_id] += [near(np.full((17, 2), 200.0), 80) for _ in range(30 if image_id == 3 else 1)]
        people += [person(first + 8, random, labelled=False), person(first + 9, random, crowd=True)]
        images.append(LabelledImage(image_id, 400, 400, "coco_x", True, tuple(people), "x", None))
    return images, poses


def reference(images: list[LabelledImage], poses: Poses) -> list[float]:
    """AP, AP50 and AR by pycocotools from its own result format."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image.id} for image in images],
        "categories": [{"id": 1}],
        "annotations": [
            {"id": person.id, "image_id": image.id, "category_id": 1, "bbox": list(person.bbox)}
            | {"area": person.area, "iscrowd": int(person.crowd)}
            | {"keypoints": person.keypoints.flatten().tolist()}
            | {"num_keypoints": int((person.keypoints[:, 2] > 0).sum())}
            for image in images
            for person in image.people
        ],
    }
    truth.createIndex()
    found = []
    for image_id, several in poses.items():
        for pose in several:
            confident = [score for score in pose.keypoints[:, 2] if score > 0.2]
            score = pose.bbox_score * sum(confident) / len(confident)
            keypoints = pose.keypoints.flatten().tolist()
            found.append({"image_id": image_id, "category_id": 1, "keypoints": keypoints, "score": score})
    evaluation = COCOeval(truth, truth.loadRes(found), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats[[0, 1, 5]]]


def test_the_accuracy_is_that_of_pycocotools() -> None:
    images, poses = scene()
    ours = accuracy(match(images, poses))
    assert 0.05 < ours.ap < 0.95
    assert [ours.ap, ours.ap50, ours.ar] == pytest.approx(reference(images, poses), abs=1e-9)


def test_labels_fed_back_are_perfect() -> None:
    images, _ = scene(5)
    perfect = {
        image.id: [
            Pose(0.5, np.concatenate((person.keypoints[:, :2], np.ones((17, 1))), axis=1))
            for person in image.people
            if person.has_pose
        ]
        for image in images
    }
    result = accuracy(match(images, perfect))
    assert (result.ap, result.ap50, result.ar) == (1, 1, 1)


def test_there_is_no_accuracy_without_people_and_none_without_poses() -> None:
    assert np.isnan(accuracy([]).ap)
    images, _ = scene(3)
    assert accuracy(match(images, {})).ap == 0


def test_the_interval_holds_the_accuracy_and_narrows_with_pictures() -> None:
    images, poses = scene(40)
    matches = match(images, poses)
    low, high = interval(matches)
    assert low < accuracy(matches).ap < high
    wide_low, wide_high = interval(matches[:8])
    assert wide_high - wide_low > high - low


def test_a_precision_curve_worked_by_hand() -> None:
    """Three people, found right, wrong, right: precision 1 to recall 1/3, then 2/3 to 2/3, then 0."""
    matched = np.tile(np.array([True, False, True]), (10, 1))
    result = accuracy([Matches(np.array([0.9, 0.8, 0.7]), matched, ~matched, 3)])
    assert result.ap == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert result.ar == pytest.approx(2 / 3)


def test_a_pose_scores_its_box_times_its_joints_above_a_fifth() -> None:
    keypoints = np.zeros((17, 3))
    assert Pose(0.5, keypoints).score == 0
    keypoints[:3, 2] = 0.8, 0.6, 0.2
    assert Pose(0.5, keypoints).score == pytest.approx(0.5 * 0.7)


def at(x: float, bbox_score: float) -> Pose:
    """All joints on one point, as sure of themselves as can be."""
    return Pose(bbox_score, np.tile((x, 50.0, 1.0), (17, 1)))


def test_of_equal_poses_the_better_stays_and_far_ones_all_stay() -> None:
    poses = [at(10, 0.5), at(10, 0.9), at(300, 0.3)]
    assert without_doubles(poses, [1000.0] * 3) == [1, 2]
    assert without_doubles([at(10, 0.5), at(300, 0.9)], [1000.0] * 2) == [1, 0]
    assert without_doubles([], []) == []


def test_a_pose_like_one_that_was_dropped_stays() -> None:
    """Each resembles its neighbour, but the first and the last are unlike."""
    kappa = 2 * np.array(SIGMAS)

    def alike(distance: float) -> float:
        return float(np.exp(-(distance**2) / (2 * 1000 * kappa**2)).mean())

    assert alike(1) > 0.9 > alike(2)
    assert without_doubles([at(0, 0.9), at(1, 0.8), at(2, 0.7)], [1000.0] * 3) == [0, 2]


def test_resemblance_is_measured_by_the_mean_area_of_both_poses() -> None:
    """At 2 px from one another, poses are alike in a mean area of 5000 square pixels, and not in one of 1000."""
    poses = [at(0, 0.9), at(2, 0.8)]
    assert without_doubles(poses, [1000.0, 1000.0]) == [0, 1]
    assert without_doubles(poses, [1000.0, 9000.0]) == [0]
    assert without_doubles(poses, [9000.0, 1000.0]) == [0]
