import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calibration.thresholds.split import Policy, split_for


@pytest.mark.parametrize(("p", "share"), [(0, 0), (0.25, 0.25), (0.3, 0.25), (0.5, 0.5), (1, 1)])
def test_top_sends_the_highest_scores(p: float, share: float) -> None:
    split = split_for(np.array([0.1, 0.2, 0.3, 0.4]), p, 0.1, "top")
    assert np.mean([split.k1 < score < split.k2 for score in (0.4, 0.1, 0.3, 0.2)]) == share == split.share


@pytest.mark.parametrize("policy", ["band", "top"])
def test_nobody_and_everybody_are_sent_whoever_comes(policy: Policy) -> None:
    scores = np.array([0.1, 0.11, 0.12, 0.13, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
    for p in (0, 1):
        split = split_for(scores, p, 0.1, policy)
        assert [split.k1 < score < split.k2 for score in (*scores, 0.05, 0.95)] == [p == 1] * 12


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["band", "top"]),
)
@example([0, 1e-257, 1e-95, 0.5, 1], 0.5, 0.25, "band")
def test_the_reported_share_is_what_the_thresholds_do(scores, p, theta, rule):
    window = np.sort(np.array(scores))
    split = split_for(window, p, theta, rule)
    hard = int(((window > split.k1) & (window < split.k2)).sum())
    assert split.share == pytest.approx(hard / len(window))
    if len(set(scores)) == len(scores):
        assert abs(split.share - p) <= 2 / len(window)
