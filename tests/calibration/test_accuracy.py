import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.data import LabelledImage, LabelledPerson, read_split

pytest.importorskip("pycocotools")

from calibration.accuracy import (
    CROWDING,
    Matches,
    Pose,
    accuracy,
    bootstrap,
    draws,
    interval,
    match,
    without_doubles,
)
from models.skeleton import SIGMAS, by_keypoints

METRIC = Path(__file__).parent.parent / "data" / "metric"
LAYOUTS = {
    "coco": ("annotations/person_keypoints_val2017.json", "val2017"),
    "crowdpose": ("json/crowdpose_test.json", "test"),
}

Poses = dict[int, list[Pose]]


def golden(kind: str, part: str) -> Any:
    return json.loads((METRIC / f"{kind}_{part}.json").read_bytes())


def detections(kind: str) -> dict[int, list[tuple[int, Pose, float]]]:
    """Id, pose and area of the padded box of what was detected, by image id."""
    found: dict[int, list[tuple[int, Pose, float]]] = {}
    for row in golden(kind, "detections"):
        keypoints = np.concatenate((row["keypoints"], np.array(row["keypoint_scores"])[:, None]), axis=1)
        entry = (row["id"], Pose(row["bbox_score"], keypoints), float(np.prod(row["scale"])))
        found.setdefault(row["image_id"], []).append(entry)
    return found


def kept(kind: str) -> Poses:
    result = {}
    for image_id, several in detections(kind).items():
        chosen = without_doubles([pose for _, pose, _ in several], [area for *_, area in several])
        result[image_id] = [several[index][1] for index in chosen]
    return result


@pytest.fixture
def published(tmp_path: Path, request: pytest.FixtureRequest) -> list[LabelledImage]:
    """The labels of a data set, read as it is published."""
    file, split = LAYOUTS[request.param]
    (tmp_path / file).parent.mkdir()
    shutil.copy(METRIC / f"{request.param}_ground_truth.json", tmp_path / file)
    return read_split(tmp_path, split)


@pytest.mark.parametrize("kind", ["coco", "crowdpose"])
def test_poses_are_scored_and_doubles_dropped_as_the_reference_does(kind: str) -> None:
    found = detections(kind)
    reference = golden(kind, "reference")["per_image"]
    assert len(found) == len(reference) > 10
    dropped = 0
    for entry in reference:
        several = found[entry["image_id"]]
        scores = {str(key): pose.score for key, pose, _ in several}
        assert scores == pytest.approx(entry["scores"], abs=1e-9)
        chosen = without_doubles([pose for _, pose, _ in several], [area for *_, area in several])
        assert [several[index][0] for index in chosen] == entry["kept_ids_in_order"]
        dropped += len(several) - len(chosen)
    assert dropped > 5


@pytest.mark.parametrize("kind", ["coco", "crowdpose"])
def test_what_is_kept_is_what_the_reference_hands_to_the_evaluation(kind: str) -> None:
    given = [
        (pose.score, pose.keypoints.flatten().tolist()) for several in kept(kind).values() for pose in several
    ]
    reference = [(row["score"], row["keypoints"]) for row in golden(kind, "results")]
    assert [points for _, points in given] == [points for _, points in reference]
    assert [score for score, _ in given] == pytest.approx([score for score, _ in reference], abs=1e-9)


@pytest.mark.parametrize("published", ["coco"], indirect=True)
def test_the_accuracy_on_coco_is_the_references(published: list[LabelledImage]) -> None:
    poses, reference = kept("coco"), golden("coco", "reference")["pycocotools_after_rescoring_and_nms"]
    result = accuracy(match(published, poses))
    figures = {"AP": result.ap, "AP50": result.ap50, "AP75": result.ap75, "AR": result.ar}
    for size, key in (("medium", "M"), ("large", "L")):
        part = accuracy(match(published, poses, size))  # type: ignore[arg-type]
        figures |= {f"AP_{key}": part.ap, f"AR_{key}": part.ar}
    assert figures == pytest.approx({name: reference[name] for name in figures}, abs=1e-9)
    assert len(set(figures.values())) == len(figures)


@pytest.mark.parametrize("published", ["crowdpose"], indirect=True)
def test_the_accuracy_on_crowdpose_is_the_references(published: list[LabelledImage]) -> None:
    reference = golden("crowdpose", "reference")["reference"]
    assert {len(person.keypoints) for image in published for person in image.people} == {14}
    matches = match(published, kept("crowdpose"))
    result = accuracy(matches)
    figures = {"AP": result.ap, "AP50": result.ap50, "AP75": result.ap75, "AR": result.ar}
    assert figures == pytest.approx({name: reference[name] for name in figures}, abs=1e-9)
    for level, (least, below) in CROWDING.items():
        part = [m for m, i in zip(matches, published, strict=True) if least <= (i.crowd_index or 0) < below]
        assert accuracy(part).ap == pytest.approx(reference[f"AP_{level}"], abs=5e-5)


@pytest.mark.parametrize("kind", ["coco", "crowdpose"])
def test_the_spread_of_annotators_is_the_references(kind: str) -> None:
    reference = golden(kind, "reference")
    sigmas = reference["sigmas"] if kind == "crowdpose" else reference["oks_nms"]["sigmas"]
    assert by_keypoints(len(sigmas)).sigmas == pytest.approx(sigmas, abs=1e-8)


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
    """AP, AP50, AP75, AP of medium and of large people and AR by pycocotools from its own result format."""
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
    return [float(value) for value in evaluation.stats[:6]]


def test_the_accuracy_is_that_of_pycocotools() -> None:
    images, poses = scene()
    ours = accuracy(match(images, poses))
    assert 0.05 < ours.ap < 0.95
    medium, large = (accuracy(match(images, poses, size)).ap for size in ("medium", "large"))  # type: ignore[arg-type]
    figures = [ours.ap, ours.ap50, ours.ap75, medium, large, ours.ar]
    assert figures == pytest.approx(reference(images, poses), abs=1e-9)


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
    assert (result.ap, result.ap50, result.ap75, result.ar) == (1, 1, 1, 1)


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


@st.composite
def some_matches(draw: st.DrawFn) -> list[Matches]:
    """One to five pictures with up to four predictions each, all of different scores."""
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    scores = draw(st.permutations(range(sum(counts))))
    result, first = [], 0
    for count in counts:
        fates = draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
        own = np.array(scores[first : first + count]) / 100
        first += count
        # right up to a threshold and wrong above it; 11: counts nowhere
        right = np.arange(10)[:, None] < np.array([fate if fate < 11 else 0 for fate in fates], dtype=int)
        wrong = ~right & np.array([fate < 11 for fate in fates], dtype=bool)
        result.append(Matches(own, right, wrong, draw(st.integers(count, count + 2))))
    return result


@given(st.data(), some_matches())
def test_the_bootstrap_gives_what_repeated_pictures_have(data: st.DataObject, matches: list[Matches]) -> None:
    count = len(matches)
    times = data.draw(
        st.lists(st.lists(st.integers(0, 3), min_size=count, max_size=count), min_size=1, max_size=4)
    )
    repeated = [
        accuracy([m for m, t in zip(matches, row, strict=True) for _ in range(t)]).ap for row in times
    ]
    assert bootstrap(matches, np.array(times)) == pytest.approx(repeated, abs=1e-12, nan_ok=True)


def test_on_matched_pictures_too_the_bootstrap_gives_what_repeated_pictures_have() -> None:
    images, poses = scene(12)
    matches = match(images, poses)
    times = draws(len(matches), count=20, seed=3)
    repeated = [
        accuracy([m for m, t in zip(matches, row, strict=True) for _ in range(t)]).ap for row in times
    ]
    aps = bootstrap(matches, times)
    assert aps == pytest.approx(repeated, abs=1e-9)
    assert len(np.unique(aps)) > 15


def test_every_draw_has_as_many_pictures_as_there_are_each_as_often_in_the_mean() -> None:
    times = draws(50, count=400)
    assert times.shape == (400, 50)
    assert (times.sum(axis=1) == 50).all()
    assert times.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)
    assert times.max() > 2
    assert (draws(50, count=400) == times).all()
    assert (draws(50, count=400, seed=1) != times).any()


def test_where_nobody_is_labelled_the_interval_is_not_a_number() -> None:
    nobody = Matches(np.array([0.5]), np.zeros((10, 1), dtype=bool), np.ones((10, 1), dtype=bool), 0)
    assert np.isnan(interval([nobody] * 3)).all()


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
