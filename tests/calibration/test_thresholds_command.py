"""`python -m calibration.thresholds` on real photographs, with the bundled detector and router."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import torch
import ultralytics
from PIL import Image

from app.config import ConfigStore
from app.settings import Settings
from calibration.data import is_held_back
from calibration.thresholds import read_calibration, thresholds
from calibration.thresholds.__main__ import how_to_load, main, score_people
from calibration.thresholds.sources import Picture
from models.runtime import resolve_dtype, resolve_int8
from models.zoo import load_pair, read_manifest

ASSETS = Path(ultralytics.__file__).parent / "assets"
ASTRONAUT = Path(skimage.__file__).parent / "data" / "astronaut.png"


def people_in(picture: torch.Tensor) -> list[list[float]]:
    return [[index, 0, 4, 8, 0.9] for index in range(int(picture[0, 0, 0]))]


def detector(pictures, min_scores):  # noqa: ARG001
    return [torch.tensor(people_in(picture)).view(-1, 5) for picture in pictures]


def router(pictures, boxes, scores):  # noqa: ARG001
    """Of person i in the picture that holds the number n: n / 100 + i / 1000."""
    return torch.tensor(
        [float(p[0, 0, 1]) / 100 + b[0] / 1000 for p, b in zip(pictures, boxes.tolist(), strict=True)]
    )


def numbered(people: int, number: int) -> Picture:
    pixels = torch.zeros(1, 1, 3, dtype=torch.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = people, number
    return Picture(str(number), lambda: pixels)


def test_people_are_drawn_over_the_whole_source_until_there_are_enough():
    pictures = [numbered(2, number) for number in range(50)]

    def scores(samples: int, seed: int = 0, max_people: int = 100) -> tuple[list[float], int]:
        return score_people(
            detector, router, pictures, samples=samples, min_score=0.3, max_people=max_people, seed=seed
        )

    found, looked_at = scores(21)
    assert (len(found), looked_at) == (21, 11)
    assert len(set(found)) == 21
    assert min(found) < 0.15
    assert max(found) > 0.35
    assert scores(21) == (found, looked_at)
    assert scores(21, seed=1)[0] != found
    assert len(scores(0)[0]) == 100
    assert scores(0, max_people=1)[1] == len(scores(0, max_people=1)[0]) == 50


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(ASSETS / "bus.jpg", folder)
    shutil.copy(ASSETS / "zidane.jpg", folder / "deep")
    shutil.copy(ASTRONAUT, folder / "deep" / "er")
    (folder / "broken.jpg").write_bytes((ASSETS / "bus.jpg").read_bytes()[:5000])
    return folder


def test_three_photographs_make_a_file_that_a_running_service_takes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "new" / "photos.json"
    assert main([str(photos), "--out", str(out), "--p", "0.5"]) == 0
    said = capsys.readouterr()
    assert f"skipped: {photos / 'broken.jpg'} cannot be read" in said.err
    assert "warning: only 7 people were found, 200 were wanted" in said.out
    assert f"CALIBRATION_DIR={out.parent}" in said.out
    assert """-d '{"calibration": "photos.json"}'""" in said.out

    calibration = read_calibration(out)
    assert (calibration.people, calibration.images) == (7, 3)  # four at the bus, two coaches, one astronaut
    cpu = torch.device("cpu")
    int8 = resolve_int8(cpu, "auto", "auto")
    pair = load_pair("embedded", cpu, resolve_dtype(cpu, "auto"), int8=int8)
    assert calibration.made_with.router_sha256 == pair.manifest.router.sha256
    expected = []
    for path in (ASSETS / "bus.jpg", ASSETS / "zidane.jpg", ASTRONAUT):
        picture = torch.from_numpy(np.array(Image.open(path)))
        boxes = pair.detector([picture], [0.35])[0]
        expected += pair.router([picture] * len(boxes), boxes[:, :4], boxes[:, 4]).tolist()
    assert sorted(calibration.scores) == pytest.approx(sorted(expected), abs=0.02)
    numbers = json.loads(out.with_suffix(".report.json").read_text())
    assert numbers["k1"] == pytest.approx(thresholds(calibration.scores, 0.5, 0.1).k1, abs=1e-5)
    assert [spread["people"] for spread in numbers["spreads"]] == [7]

    settings = Settings(calibration_dir=out.parent, policy="band")
    config = ConfigStore(settings, read_manifest("embedded"))
    config.patch(b'{"calibration": "photos.json"}', None)
    assert config.report()["thresholds"]["samples"] == 7
    assert config.report()["thresholds"]["k1"] == pytest.approx(numbers["k1"], abs=1e-5)
    assert config.report()["warnings"] == []


def test_a_training_split_counts_only_where_nothing_was_trained_on(tmp_path: Path):
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
    assert main([str(tmp_path), "--out", str(out), "--min-score", "0.5", "--samples", "0"]) == 0
    calibration = read_calibration(out)
    assert (calibration.people, calibration.images) == (6, 2)
    assert calibration.made_with.min_score == 0.5


def test_people_of_a_video_are_found(tmp_path: Path, capsys: pytest.CaptureFixture):
    bus = cv2.resize(cv2.imread(str(ASSETS / "bus.jpg")), (404, 540))
    writer = cv2.VideoWriter(str(tmp_path / "bus.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (404, 540))
    assert writer.isOpened()
    for index in range(8):
        writer.write(bus if index % 2 else np.zeros_like(bus))  # every second frame is dark
    writer.release()
    out = tmp_path / "video.json"
    assert main([str(tmp_path / "bus.mp4"), "--out", str(out), "--every", "2"]) == 1
    assert "found nobody in 4 pictures" in capsys.readouterr().err
    assert not out.exists()
    assert main([str(tmp_path / "bus.mp4"), "--out", str(out), "--samples", "5"]) == 0
    assert len(read_calibration(out).scores) == 5


def test_a_failed_run_leaves_the_file_of_the_last_one(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "kept.json"
    out.write_text("of yesterday")
    assert main([str(tmp_path / "missing"), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'missing'} does not exist\n"
    with pytest.raises(SystemExit, match="cannot read"):
        main([str(ASSETS), "--pair", str(tmp_path), "--out", str(out)])
    for wrong in (["--p", "1.5"], ["--out", str(tmp_path / "night.txt")]):
        with pytest.raises(SystemExit) as refused:
            main([str(ASSETS), *wrong])
        assert refused.value.code == 2
    assert out.read_text() == "of yesterday"


def test_the_pairs_own_name_is_not_offered_to_a_running_service(tmp_path: Path):
    assert "another name" in how_to_load(tmp_path / "calibration.json", "calibration.json", 0.35)
    told = how_to_load(tmp_path / "night.json", "calibration.json", 0.2)
    assert '"min_score": 0.2' in told
