from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.curve import SHARES, band, interval, plot, rank_correlation, recovered_gain, top, validate


def test_the_recovered_gain_is_that_of_the_people_sent_to_the_large_net():
    gain = np.array([0.4, 0.1, 0.3, 0.2])
    order = np.array([0, 2, 3, 1])
    assert recovered_gain(order, gain, (0, 0.25, 0.5, 0.75, 1)) == [0, 0.4, 0.7, 0.9, 1.0]


def test_where_the_large_net_gains_nothing_there_is_no_share_of_it():
    assert recovered_gain(np.array([0, 1]), np.array([0.1, -0.1]), (0.5,)) == [None]
    assert interval("top", np.array([0.1, 0.2]), np.zeros(2), (0.5,)) == [[None, None]]


def test_band_starts_above_k1_and_ends_with_the_easiest():
    # k1 = 0.1 + 0.1 x (1.1 - 0.1) = 0.2, which is easy itself.
    scores = np.array([1.1, 0.2, 0.6, 0.1, 0.3])
    assert band(scores).tolist() == [4, 2, 0, 1, 3]
    assert top(scores).tolist() == [0, 2, 4, 1, 3]


def test_a_router_that_knows_the_gain_is_as_good_as_the_oracle():
    rng = np.random.default_rng(0)
    gain = rng.uniform(0, 0.3, 200)
    found = validate(0.5 + gain, gain, np.ones(200), np.empty(0))
    assert found["top"] == found["oracle"]
    assert found["correlation"] == 1.0
    assert found["auc_wrong_box"] is None
    assert found["people"] == 200


def test_people_of_equal_gain_have_equal_ranks():
    gain = np.array([0, 0, 0, 0, 1.0])
    for scores, expected in (([1, 2, 3, 4, 5], 0.7071), ([4, 3, 2, 1, 5], 0.7071), ([5, 1, 2, 3, 4], 0.3536)):
        assert rank_correlation(np.array(scores, float), gain) == pytest.approx(expected, abs=1e-3)
    assert validate(np.linspace(0.1, 0.8, 50), np.ones(50), np.ones(50), np.empty(0))["correlation"] is None


def test_a_router_that_knows_nothing_recovers_about_p_within_its_interval():
    rng = np.random.default_rng(1)
    found = validate(rng.random(400), rng.uniform(0, 0.3, 400), rng.random(400), np.empty(0))
    assert found["top"] == pytest.approx(list(SHARES), abs=0.08)
    for p, (low, high) in zip(found["interval_p"], found["top_interval"], strict=True):
        assert low < found["top"][found["p"].index(p)] < high
        assert high - low < 0.2


def test_wrong_boxes_above_the_right_ones_have_an_auc_of_one():
    found = validate(np.linspace(0.1, 0.8, 50), np.ones(50), np.ones(50), np.full(50, 0.9))
    assert found["auc_wrong_box"] == 1.0


@pytest.mark.parametrize("gain", [0.1, 0.0])
def test_the_curve_is_drawn_even_where_nothing_is_gained(tmp_path: Path, gain: float):
    rng = np.random.default_rng(0)
    numbers = validate(rng.random(40), np.full(40, gain), rng.random(40), np.empty(0))
    lines = [{"epoch": epoch} | numbers for epoch in (1, 2)]
    plot(lines, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (768, 576)
        colours = picture.convert("RGB").getcolors(2**24)
    assert colours is not None
    assert len(colours) > 20
