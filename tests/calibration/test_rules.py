from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.boxes import FoundPerson
from calibration.data import LabelledPerson
from calibration.estimates import Costs, Estimates
from calibration.rules import (
    BAND,
    DRAWS,
    LOWEST,
    ORACLE,
    RANDOM,
    RANDOM_PERSON,
    TOP,
    TOP_PERSON,
    WIDEST,
    Rule,
    band,
    highest,
    rules,
)

LEAST_CONFIDENT = "small net first, lowest confidence"
LEAST_CONSISTENT = "small net twice, least flip consistency"
BOX_RULES = [
    "box score",
    "box score, two-sided",
    "box score x area",
    f"{LEAST_CONFIDENT} x box score",
    RANDOM_PERSON,
    TOP_PERSON,
]


@pytest.mark.parametrize("p", [0, 0.1, 0.25, 0.5, 0.77, 1])
def test_exactly_the_share_of_highest_priority_is_sent(p: float) -> None:
    priority = np.random.default_rng(0).permutation(30).astype(np.float64)
    mask = highest(priority, p)
    assert mask.sum() == round(30 * p)
    assert set(priority[mask]) == set(range(30 - round(30 * p), 30))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0, 1))
def test_nobody_stays_who_comes_before_one_that_is_sent(priority: list[int], p: float) -> None:
    values = np.array(priority, dtype=np.float64)
    mask = highest(values, p)
    assert mask.sum() == round(len(values) * p)
    if mask.any() and not mask.all():
        assert values[mask].min() >= values[~mask].max()


def test_among_equals_the_share_is_kept_and_does_not_favour_the_first() -> None:
    mask = highest(np.zeros(1000), 0.3)
    assert mask.sum() == 300
    assert 100 < mask[:500].sum() < 200
    assert (highest(np.zeros(1000), 0.3) == mask).all()


def test_the_band_takes_its_thresholds_from_the_scores_themselves() -> None:
    # k1 = 0.4, a quarter up from 0.2 to 1; the score nearest to it is the second, so k2 is the fourth, 0.8
    mask = band(np.array([0.8, 0.2, 0.5, 1.0, 0.35]), 0.4, 0.25)
    assert mask.tolist() == [False, False, True, False, False]


COSTS = Costs(macs={"router": 2.0, "small": 10.0, "large": 50.0})


@pytest.mark.parametrize(
    ("small_passes", "share"),
    [
        (None, 0.5),
        # The pair at p = 0.5 costs 2 + 0.5 * 10 + 0.5 * 50 = 32; 10 are gone before anybody is chosen, 22 / 50 remain.
        (1, 0.44),
        (2, 0.24),
        (4, 0.0),
    ],
)
def test_at_equal_cost_a_rule_that_asks_the_small_net_first_may_send_fewer(
    small_passes: int | None, share: float
) -> None:
    assert Rule("", lambda _: [], small_passes).share(0.5, COSTS) == pytest.approx(share)


def test_a_dear_router_lets_the_rules_that_need_none_send_more_up_to_everybody() -> None:
    dear = replace(COSTS, macs=COSTS.macs | {"router": 12.0})
    assert Rule("", lambda _: [], 1).share(0.5, dear) == pytest.approx(0.64)  # 12 + 5 + 25 - 10 = 32
    assert Rule("", lambda _: [], 1).share(1, dear) == 1


@given(st.floats(0, 1), st.integers(0, 2), st.tuples(*[st.floats(1, 100)] * 3))
def test_a_rules_share_costs_what_the_pair_does_unless_nobody_or_everybody_is_sent(
    p: float, small_passes: int, macs: tuple[float, float, float]
) -> None:
    costs = Costs(macs=dict(zip(("router", "small", "large"), macs, strict=True)))
    share = Rule("", lambda _: [], small_passes).share(p, costs)
    cost = small_passes * costs.macs["small"] + share * costs.macs["large"]
    assert 0 <= share <= 1
    if 0 < share < 1:
        assert cost == pytest.approx(costs.macs_at(p))
    else:
        assert cost >= costs.macs_at(p) - 1e-9 if share == 0 else cost <= costs.macs_at(p) + 1e-9


@pytest.mark.parametrize("macs", [{}, {"router": 2.0, "small": 0.0, "large": 50.0}])
def test_without_known_costs_shares_are_equal(macs: dict[str, float]) -> None:
    assert Rule("", lambda _: [], 1).share(0.5, Costs(macs=macs)) == 0.5


def scene(*, detector: bool = True, flipped: bool = True) -> Estimates:
    """Three boxes that every rule puts into another order, as far as three have orders: the first has a person."""
    keypoints = np.full((17, 3), 2.0)
    label = LabelledPerson(1, (0, 0, 20, 50), keypoints, 500.0, False, None)
    found = [
        FoundPerson(1, (0, 0, 20, 50), 0.9 if detector else 1.0, label),
        FoundPerson(1, (0, 0, 90, 40), 0.8 if detector else 1.0, None),
        FoundPerson(1, (0, 0, 10, 60), 0.1 if detector else 1.0, None),
    ]
    small = np.full((3, 17, 3), 500.0)
    small[:, :, 2] = np.array([0.9, 0.6, 0.3])[:, None]
    large = np.full((3, 17, 3), 2.0)
    moved = small.copy()
    moved[:, :, 0] += np.array([8.0, 4.0, 0.0])[:, None]
    return Estimates(found, small, large, np.array([0.1, 0.3, 0.2]), moved if flipped else None)


def orders(estimates: Estimates) -> dict[str, list[int]]:
    """Rows in the order in which a rule sends them, by rule."""
    result = {}
    for rule in rules(estimates, theta=0.1):
        if rule.name in (RANDOM, RANDOM_PERSON, BAND, WIDEST, "box score, two-sided") or rule.name.endswith(
            "middle band"
        ):
            continue
        masks = [rule.choose(share)[0] for share in (0, 1 / 3, 2 / 3, 1)]
        result[rule.name] = [int(np.argmax(b & ~a)) for a, b in pairwise(masks)]
        assert [int(mask.sum()) for mask in masks] == [0, 1, 2, 3]
    return result


def test_every_rule_sends_in_the_order_that_its_name_says() -> None:
    estimates = scene()
    assert orders(replace(estimates, others={"pose": np.array([0.5, 0.1, 0.3])})) == {
        TOP: [1, 2, 0],
        LOWEST: [0, 2, 1],
        "biggest box": [1, 2, 0],  # grown to 3 : 4 a wide box of 90 x 40 is 120 high
        LEAST_CONFIDENT: [2, 1, 0],
        LEAST_CONSISTENT: [0, 1, 2],
        "box score": [0, 1, 2],
        "box score x area": [1, 0, 2],  # 0.8 * 120^2, 0.9 * 50^2, 0.1 * 60^2
        f"{LEAST_CONFIDENT} x box score": [1, 0, 2],  # 0.4 * 0.8, 0.1 * 0.9, 0.7 * 0.1
        TOP_PERSON: [0, 1, 2],
        "pose, highest": [0, 2, 1],
        ORACLE: [0, *equal_order(2, 1)],
    }


def equal_order(*rows: int) -> list[int]:
    """Two rows of three that are equal come as the fixed random numbers of `highest` have it."""
    keys = np.random.default_rng(0).random(3)
    return sorted(rows, key=lambda row: keys[row])


def test_rules_that_ask_the_small_net_know_how_often() -> None:
    passes = {rule.name: rule.small_passes for rule in rules(scene(), 0.1) if rule.small_passes is not None}
    assert passes == {LEAST_CONFIDENT: 1, LEAST_CONSISTENT: 2, f"{LEAST_CONFIDENT} x box score": 1}


def test_with_the_flip_test_consistency_costs_no_further_pass() -> None:
    """Both sides are asked anyway: 2 + 0.5 * 20 + 0.5 * 100 = 62 at p = 0.5, 42 of it left after the small net."""
    costs = Costs(macs={"router": 2.0, "small": 20.0, "large": 100.0}, flip_test=True)
    estimates = replace(scene(), costs=costs)
    shares = {rule.name: rule.share(0.5, costs) for rule in rules(estimates, 0.1)}
    assert shares[LEAST_CONSISTENT] == shares[LEAST_CONFIDENT] == pytest.approx(0.42)


def detected(people: int, nobody: int) -> Estimates:
    """Boxes of people, the easiest there are, then of nobody."""
    label = LabelledPerson(1, (0, 0, 20, 50), np.full((17, 3), 2.0), 500.0, False, None)
    count = people + nobody
    found = [FoundPerson(1, (0, 0, 20, 50), 1 - i / 100, label if i < people else None) for i in range(count)]
    points = np.ones((count, 17, 3))
    return Estimates(found, points, points, np.linspace(0.1, 0.9, count))


def test_junk_out_of_its_way_the_router_chooses_among_people() -> None:
    choices = {rule.name: rule.choose for rule in rules(detected(10, 30), 0.1)}
    (mask,) = choices[TOP_PERSON](0.1)
    assert np.flatnonzero(mask).tolist() == [6, 7, 8, 9]  # the hardest people, easier than everybody else
    masks = choices[RANDOM_PERSON](0.1)
    assert 1 < len({mask.tobytes() for mask in masks}) <= len(masks) == DRAWS
    for mask in masks:
        assert (mask[:10].sum(), mask[10:].sum()) == (4, 0)
    for name in (TOP_PERSON, RANDOM_PERSON):  # and once all of them are sent, among the rest
        assert all((mask[:10].sum(), mask[10:].sum()) == (10, 10) for mask in choices[name](0.5))


def test_theta_0_begins_the_band_at_the_lowest_score() -> None:
    """k1 is the lowest score, which stays out (eq. 2 is strict), and k2 the sixth of ten."""
    estimates = replace(detected(10, 0), difficulty=np.linspace(0.1, 1, 10))
    choices = {rule.name: rule.choose for rule in rules(estimates, 0.3)}
    assert np.flatnonzero(choices[WIDEST](0.5)[0]).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(choices[BAND](0.5)[0]).min() > 1
    assert WIDEST not in [rule.name for rule in rules(estimates, 0.0)]


def test_rules_by_box_score_are_there_with_a_detectors_boxes_alone() -> None:
    plain, detector = (
        [rule.name for rule in rules(scene(detector=detector), 0.1)] for detector in (False, True)
    )
    assert [name for name in detector if name not in plain] == BOX_RULES
    assert set(plain) < set(detector)
    assert plain[:5] == [TOP, BAND, WIDEST, LOWEST, RANDOM]
    assert plain[-1] == detector[-1] == ORACLE


def test_without_mirrored_crops_there_is_no_rule_of_consistency() -> None:
    names = [[rule.name for rule in rules(scene(flipped=flipped), 0.1)] for flipped in (True, False)]
    assert [name for name in names[0] if name not in names[1]] == [LEAST_CONSISTENT]


def test_another_router_has_both_policies_of_the_pairs() -> None:
    found = [FoundPerson(1, (0, 0, 20, 50), 1.0, None)] * 5
    points = np.ones((5, 17, 3))
    own, other = np.array([0.1, 0.2, 0.3, 0.9, 1.0]), np.array([1.0, 0.9, 0.3, 0.2, 0.1])
    estimates = Estimates(found, points, points, own, others={"pose": other})
    choices = {rule.name: rule.choose for rule in rules(estimates, 0.1)}
    # k1 = 0.19, the nearest score is the second, so k2 is the fourth, 0.9
    for name, mask in (
        (TOP, [False, False, False, True, True]),
        (BAND, [False, True, True, False, False]),
        ("pose, highest", [True, True, False, False, False]),
        ("pose, middle band", [False, False, True, True, False]),
    ):
        assert [chosen.tolist() for chosen in choices[name](0.4)] == [mask], name


def test_random_choice_is_ten_different_draws_of_the_share() -> None:
    found = [FoundPerson(1, (0, 0, 20, 50), 1.0, None)] * 40
    points = np.ones((40, 17, 3))
    estimates = Estimates(found, points, points, np.linspace(0, 1, 40))
    (rule,) = [rule for rule in rules(estimates, 0.1) if rule.name == RANDOM]
    masks = rule.choose(0.25)
    assert len(masks) == DRAWS == 10
    assert [int(mask.sum()) for mask in masks] == [10] * 10
    assert len({mask.tobytes() for mask in masks}) == 10
    assert (
        0.1 < np.mean(masks, axis=0).std() < 0.2
    )  # nobody is favoured: of ten draws each is in two or three
    # whoever is in at a low share stays in at a higher one
    assert all((few <= many).all() for few, many in zip(masks, rule.choose(0.5), strict=True))


def test_the_two_sided_box_score_leaves_out_the_surest_and_the_junk() -> None:
    """Ten boxes scored 0.05 to 0.95: 1 - score reaches from 0.05 to 0.95, k1 = 0.23 at theta 0.2, nearest to 0.25, the
    third; half of them from there on ends with the eighth, which is k2."""
    scores = np.arange(0.95, 0, -0.1)
    found = [FoundPerson(1, (0, 0, 20, 50), float(score), None) for score in scores]
    points = np.ones((10, 17, 3))
    (rule,) = [
        rule
        for rule in rules(Estimates(found, points, points, np.zeros(10)), 0.2)
        if rule.name == "box score, two-sided"
    ]
    (mask,) = rule.choose(0.5)
    assert scores[mask] == pytest.approx([0.75, 0.65, 0.55, 0.45, 0.35])
