import numpy as np
import pytest

from calibration.boxes import Bbox, FoundPerson
from calibration.data import LabelledImage, LabelledPerson

pytest.importorskip("pycocotools")

from calibration.gain import (
    Estimates,
    band,
    choices,
    highest,
    oks_gain,
    padded_area,
    priorities,
    recovered_gains,
)

BOX_RULES = {
    "box score",
    "box score x area",
    "small net's lowest confidence x box score",
    "oracle: boxes with a person",
}
ORACLE = "oracle: OKS gain"
BAND = "router, middle band (`band`)"


def labelled(key: int, bbox: Bbox, keypoints: np.ndarray) -> LabelledPerson:
    return LabelledPerson(key, bbox, keypoints, bbox[2] * bbox[3] / 2, False, None)


def scene(*, detector: bool) -> tuple[list[LabelledImage], Estimates]:
    """20 pictures with two people each. The large net is exact; the small one is far off for every other person,
    which neither router nor scores nor boxes tell. With a detector's boxes, one box a picture shows nobody."""
    rng = np.random.default_rng(0)
    images, found, large = [], [], []
    for image_id in range(20):
        people = []
        for i in range(2):
            bbox = (10.0 + 200 * i, 10.0, 60.0, float(rng.integers(80, 200)))
            points = np.concatenate(
                (rng.uniform(10, 70, (17, 2)) + np.array([200 * i, 0]), np.full((17, 1), 2.0)), axis=1
            )
            people.append(labelled(2 * image_id + i + 1, bbox, points))
            score = rng.uniform(0.5, 1) if detector else 1.0
            found.append(FoundPerson(image_id, bbox, score, people[-1]))
            large.append(np.concatenate((points[:, :2], rng.uniform(0.5, 1, (17, 1))), axis=1))
        if detector:
            found.append(FoundPerson(image_id, (400.0, 10.0, 60.0, 90.0), 0.1, None, wrong=True))
            large.append(np.concatenate((rng.uniform(400, 460, (17, 2)), np.full((17, 1), 0.3)), axis=1))
        images.append(LabelledImage(image_id, 500, 400, "coco_x", True, tuple(people), "x", None))
    far_off = np.array([p.label is not None and p.label.id % 2 == 0 for p in found])
    small = np.array(large) + far_off[:, None, None] * np.array([0, 1000, 0])
    return images, Estimates(found, small, np.array(large), rng.uniform(0, 1, len(found)))


@pytest.mark.parametrize("p", [0, 0.1, 0.25, 0.5, 0.77, 1])
def test_exactly_the_share_of_highest_priority_is_sent(p: float) -> None:
    priority = np.random.default_rng(0).permutation(30).astype(np.float64)
    mask = highest(priority, p)
    assert mask.sum() == round(30 * p)
    assert set(priority[mask]) == set(range(30 - round(30 * p), 30))


def test_among_equals_the_share_is_kept_and_does_not_favour_the_first() -> None:
    mask = highest(np.zeros(1000), 0.3)
    assert mask.sum() == 300
    assert 100 < mask[:500].sum() < 200
    assert (highest(np.zeros(1000), 0.3) == mask).all()


def test_those_of_the_mask_get_the_large_net() -> None:
    found = [FoundPerson(1, (0, 0, 9, 9), 1.0, None)] * 3
    estimates = Estimates(found, np.zeros((3, 17, 3)), np.ones((3, 17, 3)), np.zeros(3))
    assert estimates.routed(np.array([False, True, False])).mean(axis=(1, 2)).tolist() == [0, 1, 0]


def test_the_band_takes_its_thresholds_from_the_scores_themselves() -> None:
    # k1 = 0.4, a quarter up from 0.2 to 1; the score nearest to it is the second, so k2 is the fourth, 0.8
    mask = band(np.array([0.8, 0.2, 0.5, 1.0, 0.35]), 0.4, 0.25)
    assert mask.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("bbox", "area"), [((5, 5, 30, 80), 75 * 100), ((5, 5, 75, 10), 93.75 * 125)])
def test_a_crop_is_the_box_grown_to_three_by_four_and_by_a_quarter(bbox: Bbox, area: float) -> None:
    assert padded_area(bbox) == pytest.approx(area)


def test_the_oks_gain_is_that_of_the_labelled_person_and_nothing_without_one() -> None:
    points = np.tile((20.0, 30.0, 2.0), (17, 1))
    bbox = (10.0, 10.0, 40.0, 80.0)
    people = [
        labelled(1, bbox, points),
        None,
        labelled(2, bbox, np.zeros((17, 3))),
        labelled(3, bbox, points),
    ]
    near, far = points[None].repeat(4, 0), points[None].repeat(4, 0) + 1000
    small, large = far.copy(), near.copy()
    small[3], large[3] = near[3], far[3]
    estimates = Estimates([FoundPerson(1, bbox, 1.0, p) for p in people], small, large, np.zeros(4))
    assert oks_gain(estimates) == pytest.approx([1, 0, 0, -1])


def test_rules_by_box_score_are_there_with_a_detectors_boxes_alone() -> None:
    plain = priorities(scene(detector=False)[1])
    detector = priorities(scene(detector=True)[1])
    assert detector.keys() - plain.keys() == BOX_RULES
    assert plain.keys() <= detector.keys()


def test_rules_put_first_whom_their_name_says() -> None:
    label = labelled(1, (0, 0, 20, 50), np.full((17, 3), 2.0))
    found = [
        FoundPerson(1, (0, 0, 20, 50), 0.9, label),
        FoundPerson(1, (0, 0, 90, 40), 0.8, None),
        FoundPerson(1, (0, 0, 10, 60), 0.1, None),
    ]
    small = np.zeros((3, 17, 3))
    small[:, :, 2] = np.array([0.9, 0.6, 0.3])[:, None]
    first = {
        rule: int(np.argmax(priority))
        for rule, priority in priorities(Estimates(found, small, small, np.array([0.1, 0.3, 0.2]))).items()
        if rule != ORACLE
    }
    assert first == {
        "router, highest score (`top`)": 1,
        "biggest box": 2,
        "small net's lowest confidence": 2,
        "box score": 0,
        "box score x area": 1,
        "small net's lowest confidence x box score": 1,
        "oracle: boxes with a person": 0,
    }


@pytest.mark.parametrize("detector", [False, True])
def test_the_oracle_recovers_at_least_as_much_as_every_other_rule(
    detector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 5)
    images, estimates = scene(detector=detector)
    gains = {(row.rule, row.p): row.gain for row in recovered_gains(images, estimates, (0.25, 0.5), 0.1)}
    assert {rule for rule, _ in gains} == choices(estimates, 0.1).keys()
    for p in (0.25, 0.5):
        others = [gain for (rule, share), gain in gains.items() if share == p and rule != ORACLE]
        assert max(others) <= gains[ORACLE, p]
    assert gains["random", 0.5] < 0.9
    assert gains[ORACLE, 0.5] == pytest.approx(1)


def test_nobody_sent_recovers_nothing_and_everybody_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 20)
    images, estimates = scene(detector=True)
    rows = [row for row in recovered_gains(images, estimates, (0, 1), 0.1) if row.rule != BAND]
    assert len(rows) == 2 * (len(priorities(estimates)) + 1)
    for row in rows:
        assert (row.share, row.gain, row.low, row.high) == (row.p, row.p, row.p, row.p)
    assert all(row.ap == pytest.approx(1) for row in rows if row.p == 1)


def test_only_the_people_of_the_given_pictures_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 5)
    images, estimates = scene(detector=False)
    estimates.difficulty[10:] = 2  # whoever is hardest is in other pictures
    top = next(
        row
        for row in recovered_gains(images[:5], estimates, (0.5,), 0.1)
        if row.rule == "router, highest score (`top`)"
    )
    assert top.share == 0.5
    assert top.gain > 0


def test_the_interval_over_pictures_holds_the_gain() -> None:
    images, estimates = scene(detector=False)
    row = next(row for row in recovered_gains(images, estimates, (0.5,), 0.1) if row.rule == "random")
    assert 0 < row.low < row.gain < row.high < 1


def test_a_pose_found_twice_is_counted_once() -> None:
    bbox = (10.0, 10.0, 40.0, 80.0)
    points = np.concatenate((np.random.default_rng(0).uniform(10, 50, (17, 2)), np.ones((17, 1))), axis=1)
    image = LabelledImage(1, 400, 400, "coco_x", True, (labelled(1, bbox, points),), "x", None)
    found = [FoundPerson(1, bbox, score, None) for score in (0.5, 0.75)] + [FoundPerson(2, bbox, 1.0, None)]
    keypoints = points[None].repeat(3, 0)
    (matches,) = Estimates(found, keypoints, keypoints, np.zeros(3)).matched([image], keypoints)
    assert matches.scores.tolist() == [0.75]
