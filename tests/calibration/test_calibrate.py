import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ultralytics

from calibration.calibrate import report
from calibration.data import is_held_back
from calibration.thresholds import read_calibration
from models.zoo import read_manifest

ASSETS = Path(ultralytics.__file__).parent / "assets"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "calibration.calibrate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_report_names_thresholds_and_their_spread():
    text = report(np.linspace(0.4, 0.6, 1001), 0.1)
    assert "1001 people; k1 0.4200" in text
    assert "p 0.50: k1 0.4200, k2 0.5200, achieved 0.499" in text
    assert text.count("#") > 20


def test_the_scores_are_those_of_the_people_the_service_would_find(tmp_path: Path):
    ids = [number for number in range(1, 100) if is_held_back(number)][:2]
    trained_on = next(number for number in range(1, 100) if not is_held_back(number))
    images = [
        {"id": number, "file_name": name, "width": 1, "height": 1}
        for number, name in zip([*ids, trained_on], ["bus.jpg", "zidane.jpg", "bus.jpg"], strict=True)
    ]
    for name in ("bus.jpg", "zidane.jpg"):
        shutil.copy(ASSETS / name, tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({"images": images, "annotations": []}))
    out = tmp_path / "calibration.json"
    answer = run(tmp_path, "--out", out, "--min-score", "0.5")
    assert answer.returncode == 0, answer.stderr
    calibration = read_calibration(out)
    assert (calibration.people, calibration.images) == (6, 2)  # four at the bus, two coaches
    assert len(calibration.scores) == 6
    manifest = read_manifest("embedded")
    assert calibration.made_with.router_sha256 == manifest.router.sha256
    assert calibration.made_with.min_score == 0.5


def test_the_bundled_calibration_is_of_the_bundled_router():
    manifest = read_manifest("embedded")
    bundled = Path(__file__).parents[2] / "models" / "weights" / manifest.calibration
    made_with = read_calibration(bundled).made_with
    assert made_with.router_sha256 == manifest.router.sha256
    assert made_with.detector_sha256 == manifest.detector.sha256


def test_without_data_the_command_says_what_it_needs(tmp_path: Path):
    assert run(tmp_path).stdout.strip() == f"skipped: needs pictures with people in {tmp_path}"


@pytest.mark.parametrize("content", ["{}", "[]", '{"scores": [2.0]}', "no json"])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="Calibration"):
        read_calibration(path)
