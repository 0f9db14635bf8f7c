import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.thresholds import (
    Calibration,
    MadeWith,
    read_calibration,
    thresholds,
    write_calibration,
)
from models.zoo import read_manifest

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "thresholds.json").read_text())["cases"]


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: case["name"])
def test_eq_7_and_8_give_the_reference_values(case):
    found = thresholds(case["scores"], case["p"], case["theta"])
    assert found.k1 == pytest.approx(case["k1"], abs=1e-9)
    assert found.j == case["j"]
    assert found.k2 == (math.inf if case["k2"] is None else pytest.approx(case["k2"], abs=1e-9))
    hard = sum(found.k1 < score < found.k2 for score in case["scores"])
    assert hard == case["hard"]


def test_a_hand_worked_example():
    # Range 0.2..1.0, theta 0.25: k1 = 0.4. The nearest score is 0.35 = S^2; floor(5 * 0.4) = 2, so k2 = S^4 = 0.8.
    found = thresholds([0.8, 0.2, 0.5, 1.0, 0.35], p=0.4, theta=0.25)
    assert (found.k1, found.j, found.k2) == (pytest.approx(0.4), 2, 0.8)


def test_a_share_that_floating_point_would_floor_too_low_counts_whole():
    scores = [index / 100 for index in range(100)]
    assert 0.29 * 100 < 29
    assert thresholds(scores, p=0.29, theta=0.0).k2 == scores[29]


@pytest.mark.parametrize(
    ("scores", "p", "theta"), [([], 0.5, 0.1), ([math.nan], 0.5, 0.1), ([0.5], 1.1, 0.1), ([0.5], 0.5, -0.1)]
)
def test_values_out_of_range_are_refused(scores, p, theta):
    with pytest.raises(ValueError, match=r"thresholds need|fractions"):
        thresholds(scores, p, theta)


@given(
    st.lists(st.integers(0, 10**6).map(lambda i: i / 10**6), min_size=1, max_size=200, unique=True),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_distinct_scores_meet_the_share_or_run_out_above_k1(scores, p, theta):
    found = thresholds(scores, p, theta)
    hard = sum(found.k1 < score < found.k2 for score in scores)
    wanted = math.floor(len(scores) * p + 1e-9)
    if found.k2 == math.inf:
        assert hard == sum(score > found.k1 for score in scores) <= wanted
    else:
        assert hard in (wanted, max(0, wanted - 1))


def calibration() -> Calibration:
    made_with = MadeWith(pair="a", router_sha256="b", detector_sha256="c", min_score=0.3)
    return Calibration(scores=[0.25, 0.5], theta=0.1, made_with=made_with, people=2, images=1)


def test_a_calibration_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "night.json"
    write_calibration(calibration(), path)
    assert read_calibration(path) == calibration()
    assert [file.name for file in tmp_path.iterdir()] == ["night.json"]

    def full(self: Path, text: str) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_calibration(calibration(), path)
    assert read_calibration(path) == calibration()


@pytest.mark.parametrize("content", ["{}", "[]", '{"scores": [2.0]}', "no json"])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="Calibration"):
        read_calibration(path)


def test_the_bundled_calibration_is_of_the_bundled_router():
    manifest = read_manifest("embedded")
    made_with = read_calibration(manifest.calibration_path).made_with
    assert made_with.router_sha256 == manifest.router.sha256
    assert made_with.detector_sha256 == manifest.detector.sha256
