import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.okd import gain_target, okd, oks
from models.skeleton import SIGMAS

CASES = json.loads((Path(__file__).parent.parent / "data" / "okd.json").read_text())


def arrays(case: dict, net: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([case[key]], dtype=float) for key in (f"{net}_xy", "ground_truth_xy", "visible"))


@pytest.mark.parametrize("case", CASES)
def test_eq_5_and_6_give_the_reference_values(case):
    small, large = okd(*arrays(case, "small")), okd(*arrays(case, "large"))
    assert small[0] == pytest.approx(case["eq5"]["D_s"], rel=1e-4, abs=1e-6)
    assert large[0] == pytest.approx(case["eq5"]["D_l"], rel=1e-4, abs=1e-6)
    target = gain_target(small, large)[0]
    if case["eq5"]["target"] is None:
        assert math.isnan(target)
    else:
        assert target == pytest.approx(case["eq5"]["target"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_oks_gives_the_reference_values(case):
    area = np.array([192.0 * 256.0])
    for net, expected in zip(("small", "large"), case["oks"], strict=True):
        assert oks(*arrays(case, net), area)[0] == pytest.approx(expected, abs=1e-6)


def test_oks_of_one_joint_one_sigma_away_is_the_textbook_value():
    truth, visible = np.zeros((1, 17, 2)), np.zeros((1, 17))
    visible[0, 5] = 1
    predicted = truth.copy()
    predicted[0, 5, 0] = 2 * SIGMAS[5] * 100  # COCO's kappa is twice sigma; the area is 100 x 100
    assert oks(predicted, truth, visible, np.array([1e4]))[0] == pytest.approx(math.exp(-0.5))


def test_a_person_without_a_visible_joint_has_no_value():
    nothing = np.zeros((1, 17, 2)), np.ones((1, 17, 2)), np.zeros((1, 17))
    assert np.isnan(okd(*nothing)[0])
    assert np.isnan(oks(*nothing, np.array([100.0]))[0])


@given(st.floats(1e-3, 1e3), st.floats(0, 1e4))
def test_the_target_is_the_share_of_the_error_that_is_removed(small, large):
    (target,) = gain_target(np.array([small]), np.array([large]))
    assert target <= 1
    assert (target > 0) == (large < small)
    assert small * (1 - target) == pytest.approx(large, abs=1e-6 * small)
