import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.okd import RELEASED, Reading, counted, gain_target, okd, oks, released_losses, rho
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


@pytest.mark.parametrize("case", CASES)
def test_the_released_reading_gives_what_the_authors_code_gives(case):
    expected = case["released"]
    distances = [okd(*arrays(case, net), RELEASED) for net in ("small", "large")]
    assert distances[0][0] == pytest.approx(expected["D_s"], rel=1e-6)
    assert distances[1][0] == pytest.approx(expected["D_l"], rel=1e-6)
    target = gain_target(*distances, RELEASED)[0]
    assert target == pytest.approx(
        math.nan if expected["target"] is None else expected["target"], nan_ok=True
    )
    similarities = [oks(*arrays(case, net), np.array([192.0 * 256.0])) for net in ("small", "large")]
    active = counted(*similarities, RELEASED)
    assert active[0] == expected["filter_active"]
    tensors = [torch.from_numpy(values) for values in (*distances, similarities[0], active)]
    losses = released_losses(torch.tensor([expected["scores"]], dtype=torch.float64), *tensors)
    assert losses[0].tolist() == pytest.approx(expected["losses"], rel=1e-5, abs=1e-9)


def test_the_first_term_of_the_released_loss_teaches_nothing():
    scores = torch.tensor([[0.3, 0.5, 0.4]], requires_grad=True)
    numbers = [torch.tensor([value]) for value in (50.0, 20.0, 0.9)]
    released_losses(scores, *numbers, torch.tensor([True])).sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 0] == 0
    assert (scores.grad[0, 1:] != 0).all()


def one_joint(joint: int, x: float, y: float) -> tuple[np.ndarray, ...]:
    truth, visible = np.full((1, 17, 2), 40.0), np.zeros((1, 17))
    visible[0, joint] = 1
    return truth + np.array([x, y]), truth, visible


def test_each_switch_of_the_reading_does_what_it_says():
    elbow = one_joint(7, 3, -4)
    scale = 1 / (2 * SIGMAS[7]) ** 2
    assert okd(*elbow)[0] == pytest.approx(5 * scale)
    assert okd(*elbow, Reading(joint_weights=True))[0] == pytest.approx(1.5 * 5 * scale)
    assert okd(*elbow, Reading(axes="size"))[0] == pytest.approx(math.hypot(3 / 192, 4 / 256) * scale)
    assert okd(*elbow, Reading(axes="swapped"))[0] == pytest.approx(math.hypot(3 / 256, 4 / 192) * scale)
    # 40 is the middle of cell 10, so 43 lies in cell 11 and 36 in cell 9; 41 and 39 are still in cell 10.
    assert okd(*elbow, Reading(cells=True))[0] == pytest.approx(math.hypot(4, 4) * scale)
    assert okd(*one_joint(7, 1, -1), Reading(cells=True))[0] == 0
    predicted, truth, visible = elbow
    visible[0, 8] = 2  # on the same place
    predicted[0, 8] = truth[0, 8]
    assert okd(predicted, truth, visible)[0] == pytest.approx(5 * scale / 2)
    assert okd(predicted, truth, visible, Reading(total="sum"))[0] == pytest.approx(5 * scale)


def test_the_filter_keeps_clear_but_not_total_differences():
    small, large = np.full(7, 0.5), np.array([0.50, 0.54, 0.56, 0.79, 0.81, 0.41, math.nan])
    assert counted(small, large).tolist() == [False, False, True, True, False, True, False]
    assert counted(small, large, Reading(oks_filter=None)).tolist() == [True] * 6 + [False]


def test_targets_are_clamped_on_request_only():
    small, large = np.array([1.0, 2.0, 0.0]), np.array([5.0, 1.0, 1.0])
    assert gain_target(small, large) == pytest.approx([-4, 0.5, math.nan], nan_ok=True)
    assert gain_target(small, large, Reading(clamp=True)) == pytest.approx([0, 0.5, math.nan], nan_ok=True)


def test_people_with_other_keypoints_have_their_own_sigmas():
    truth, visible = np.zeros((1, 14, 2)), np.ones((1, 14))
    assert okd(truth + np.array([3, 4]), truth, visible)[0] == pytest.approx(5 * rho(14).mean())
    assert rho(14)[0] == pytest.approx(1 / (2 * 0.079) ** 2)
    two = (0.1, 0.2)
    assert okd(truth[:, :2] + np.array([3, 4]), truth[:, :2], visible[:, :2], sigmas=two)[0] == pytest.approx(
        5 * (25 + 6.25) / 2
    )
    with pytest.raises(ValueError, match="2 keypoints, but 17 sigmas"):
        rho(2, SIGMAS)


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
