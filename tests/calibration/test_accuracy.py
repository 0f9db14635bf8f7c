import numpy as np
import pytest

from calibration.data import LabelledImage, LabelledPerson

pytest.importorskip("pycocotools")

from calibration import accuracy as module
from calibration.accuracy import Matches, accuracy, interval, match


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

    images, predictions = scene()
    truth, found = COCO(), COCO()
    for coco, annotations in (
        (truth, [module._annotation(i.id, p) for i in images for p in i.people]),
        (
            found,
            [
                module._detection(i.id, p.id, predictions[p.id])
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


def test_a_precision_curve_worked_by_hand() -> None:
    """Three people, found right, wrong, right: precision 1 to recall 1/3, then 2/3 to 2/3, then 0."""
    matched = np.tile(np.array([True, False, True]), (10, 1))
    result = accuracy([Matches(np.array([0.9, 0.8, 0.7]), matched, ~matched, 3)])
    assert result.ap == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert result.ar == pytest.approx(2 / 3)
