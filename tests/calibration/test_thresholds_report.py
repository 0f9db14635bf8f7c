import json

import numpy as np
import pytest

from calibration.thresholds.report import as_text, report

EVEN = np.linspace(0.4, 0.6, 1001)


def test_the_report_names_thresholds_and_shares():
    found = report(EVEN, 0.1, (0.5, 0.75), 200)
    assert found.k1 == pytest.approx(0.42)
    half, most = found.shares
    assert (half.k2, half.share) == (pytest.approx(0.52), pytest.approx(0.499, abs=5e-4))
    assert (half.top_k1, half.top_share) == (pytest.approx(0.5), pytest.approx(0.5, abs=1e-3))
    assert most.share == pytest.approx(0.75, abs=2e-3)
    assert found.warnings == []
    text = as_text(found)
    assert "1001 people; k1 0.4200 at theta 0.1" in text
    assert text.count("#") > 20
    assert sum(count for _, count in found.histogram) == 1001


def test_k1_settles_as_the_sample_grows():
    """Figure 8: with so many people drawn, k1 varies less and comes near its value on all of them."""
    scores = np.random.default_rng(0).beta(2, 5, 700)
    spreads = report(scores, 0.1, (0.5,), 0).spreads
    assert [spread.people for spread in spreads] == [25, 50, 100, 200, 400, 700]
    deviations = [spread.deviation for spread in spreads]
    assert deviations == sorted(deviations, reverse=True)
    assert abs(spreads[-1].mean - report(scores, 0.1, (0.5,), 0).k1) < 0.02


def test_too_few_people_are_said_and_still_reported():
    found = report(np.array([0.3]), 0.1, (0.5,), 200)
    assert found.warnings[0].startswith("only 1 people were found, 200 were wanted")
    assert "#" in as_text(found)


def test_equal_scores_cannot_be_split_and_are_said():
    scores = np.concatenate([np.full(60, 0.5), np.linspace(0.4, 0.6, 40)])
    found = report(scores, 0.1, (0.5,), 0)
    assert found.warnings[0] == "60 of 100 scores equal 0.500000: equal scores cannot be split"
    assert found.warnings[1] == "p 0.5: 0.160 is what k1 and k2 let through"


def test_a_share_beyond_k1_is_said():
    scores = np.concatenate([np.linspace(0.1, 0.12, 50), np.linspace(0.3, 0.9, 50)])
    found = report(scores, 0.1, (0.25, 0.75), 0)
    assert [share.lowered for share in found.shares] == [False, True]
    assert found.shares[1].k2 is None
    assert found.warnings == [
        "p 0.75: only 0.500 of the people lie above k1 at theta 0.1; under policy `band` the service lowers k1 until "
        "the share is p (`k1_lowered`)"
    ]


def test_p_1_is_everybody_by_top_and_the_numbers_are_json():
    found = report(EVEN, 0.1, (1.0,), 0)
    assert (found.shares[0].top_k1, found.shares[0].top_share) == (None, 1.0)
    assert json.loads(json.dumps(found.numbers(), allow_nan=False))["spreads"][0]["people"] == 25
