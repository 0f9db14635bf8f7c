from dataclasses import replace

import numpy as np
import pytest

from calibration.boxes import Bbox, FoundPerson
from calibration.data import LabelledImage, LabelledPerson

pytest.importorskip("pycocotools")

from calibration.accuracy import accuracy
from calibration.estimates import Costs, Estimates, Matcher
from calibration.gain import MIN_DIFFERENCE, Gain, recovered_gains
from calibration.rules import BAND, ORACLE, RANDOM, TOP, WIDEST, rules


def labelled(key: int, bbox: Bbox, keypoints: np.ndarray) -> LabelledPerson:
    return LabelledPerson(key, bbox, keypoints, bbox[2] * bbox[3] / 2, False, None)


def scene(*, detector: bool, pictures: int = 20) -> tuple[list[LabelledImage], Estimates]:
    """Pictures with two people each. The large net is exact; the small one is far off for every other person, which
    neither router nor scores nor boxes tell. With a detector's boxes, one box a picture shows nobody."""
    rng = np.random.default_rng(0)
    images, found, large = [], [], []
    for image_id in range(pictures):
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


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 10)


def gain_of(
    rule: str, images: list[LabelledImage], estimates: Estimates, p: float = 0.5, theta: float = 0.1
) -> Gain:
    return next(row for row in recovered_gains(images, estimates, (p,), theta) if row.rule == rule)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("detector", [False, True])
def test_the_oracle_recovers_at_least_as_much_as_every_other_rule(detector: bool) -> None:
    images, estimates = scene(detector=detector)
    gains = {(row.rule, row.p): row.gain for row in recovered_gains(images, estimates, (0.25, 0.5), 0.1)}
    assert gains.keys() == {(rule.name, p) for rule in rules(estimates, 0.1) for p in (0.25, 0.5)}
    for p in (0.25, 0.5):
        others = [gain for (rule, share), gain in gains.items() if share == p and rule != ORACLE]
        assert max(others) <= gains[ORACLE, p]
    assert gains[RANDOM, 0.5] < 0.9
    assert gains[ORACLE, 0.5] == pytest.approx(1)


@pytest.mark.usefixtures("few_draws")
def test_nobody_sent_recovers_nothing_and_everybody_all() -> None:
    images, estimates = scene(detector=True)
    rows = list(recovered_gains(images, estimates, (0, 1), 0.1))
    assert len(rows) == 2 * len(rules(estimates, 0.1))
    exact = [row for row in rows if row.rule not in (BAND, WIDEST) and "two-sided" not in row.rule]
    for row in exact:
        assert (row.share, row.gain, row.low, row.high) == pytest.approx([row.p] * 4, abs=1e-12)
    assert all(row.ap == pytest.approx(1) for row in exact if row.p == 1)


@pytest.mark.usefixtures("few_draws")
def test_the_gain_is_the_share_of_the_difference_in_accuracy() -> None:
    images, estimates = scene(detector=True)
    matcher = Matcher(images, estimates)
    count = len(estimates.found)
    small, large = (accuracy(matcher(np.full(count, net))).ap for net in (False, True))
    row = gain_of(TOP, images, estimates, p=0.25)
    mask = estimates.difficulty >= np.sort(estimates.difficulty)[-round(0.25 * count)]
    assert row.share == mask.mean() == 0.25
    found = accuracy(matcher(mask))
    assert (row.ap, row.ap50) == pytest.approx((found.ap, found.ap50))
    assert row.gain == pytest.approx((row.ap - small) / (large - small))
    assert 0 < row.gain < 1


@pytest.mark.usefixtures("few_draws")
def test_the_random_rule_is_the_mean_of_its_draws() -> None:
    images, estimates = scene(detector=False)
    matcher = Matcher(images, estimates)
    (rule,) = [rule for rule in rules(estimates, 0.1) if rule.name == RANDOM]
    aps = [accuracy(matcher(mask)).ap for mask in rule.choose(0.5)]
    assert gain_of(RANDOM, images, estimates).ap == pytest.approx(np.mean(aps))
    assert len(set(aps)) > 5


@pytest.mark.usefixtures("few_draws")
def test_rules_that_ask_the_small_net_first_send_what_equal_cost_leaves_them() -> None:
    images, estimates = scene(detector=False)
    estimates = replace(estimates, costs=Costs(macs={"router": 2.0, "small": 10.0, "large": 50.0}))
    row = gain_of("small net first, lowest confidence", images, estimates)
    assert (row.p, row.share) == (0.5, pytest.approx(round(0.44 * 40) / 40))
    assert gain_of("biggest box", images, estimates).share == 0.5


def nearly_alike(difference: float) -> tuple[list[LabelledImage], Estimates, float]:
    """The scene with nets that differ for some of its pictures only, and the difference of their APs."""
    images, estimates = scene(detector=False, pictures=60)
    differs = np.array([person.image_id < difference * 60 for person in estimates.found])
    alike = replace(estimates, small=np.where(differs[:, None, None], estimates.small, estimates.large))
    matcher = Matcher(images, alike)
    small, large = (accuracy(matcher(np.full(len(alike.found), net))).ap for net in (False, True))
    return images, alike, large - small


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("better", ["neither", "small"])
def test_where_the_large_net_is_not_better_there_is_no_gain(better: str) -> None:
    images, estimates, _ = nearly_alike(0)
    if better == "small":
        far_off = estimates.large + np.array([0, 1000, 0])
        estimates = replace(estimates, large=far_off)
    rows = list(recovered_gains(images, estimates, (0.5,), 0.1))
    assert len(rows) == len(rules(estimates, 0.1))
    assert np.isnan([(row.gain, row.low, row.high) for row in rows]).all()
    assert all(0 <= row.ap <= 1 for row in rows)


@pytest.mark.usefixtures("few_draws")
def test_a_difference_below_the_least_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MIN_DIFFERENCE == 0.005
    images, estimates, difference = nearly_alike(1 / 60)
    assert 0.005 < difference < 0.02
    assert gain_of(ORACLE, images, estimates).gain == pytest.approx(1)
    monkeypatch.setattr("calibration.gain.MIN_DIFFERENCE", difference * 1.01)
    assert np.isnan(gain_of(ORACLE, images, estimates).gain)


def test_draws_in_which_the_nets_are_equal_leave_the_interval_finite() -> None:
    """One picture of 60 tells the nets apart, and a third of the draws lack it."""
    images, estimates, _ = nearly_alike(1 / 60)
    for row in recovered_gains(images, estimates, (0.5,), 0.1):
        assert np.isfinite([row.gain, row.low, row.high]).all()
        assert row.low <= row.high


def test_the_interval_over_pictures_holds_the_gain() -> None:
    images, estimates = scene(detector=False)
    row = gain_of(RANDOM, images, estimates)
    assert 0 < row.low < row.gain < row.high < 1
