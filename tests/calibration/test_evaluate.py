import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration.boxes import FoundPerson, labelled_boxes
from calibration.data import Pictures, read_split

pytest.importorskip("pycocotools")

from calibration.evaluate import estimate, limits, main

Command = Callable[..., str]


@pytest.mark.parametrize(("p", "share"), [(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 1)])
def test_the_top_policy_sends_the_highest_scores(p: float, share: float) -> None:
    scores = [0.4, 0.1, 0.3, 0.2]
    k1, k2 = limits(scores, p, 0.1, "top")
    assert np.mean([k1 < s < k2 for s in scores]) == share


@dataclass(frozen=True)
class FakeManifest:
    def names(self) -> dict[str, str]:
        return {"pair": "fake"}


@dataclass(frozen=True)
class FakePair:
    """Difficulty grows with the box and its score; the large net returns the box's corner, the small one something far
    off. The detector finds the person of every picture, and nobody's box with a score of 0.25."""

    calibration: Path
    manifest: FakeManifest = FakeManifest()

    def detector(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        found = []
        for picture, score in zip(pictures, min_scores, strict=True):
            width = 16.0 * (int(picture[0, 0, 0]) + 1)
            rows = torch.tensor([[3, 4, width, 30, 0.75], [60, 4, 16, 30, 0.25]])
            found.append(rows[rows[:, 4] >= score])
        return found

    def router(self, pictures: Sequence[Tensor], boxes: Tensor, scores: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        assert (scores.shape, scores.dtype) == ((len(boxes),), torch.float32)
        return boxes[:, 2] / 128 * scores

    def large(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        corner = torch.cat((boxes[:, :2], torch.ones(len(boxes), 1)), dim=1)
        return corner[:, None].expand(-1, 17, -1)

    def small(self, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
        return self.large(pictures, boxes) + torch.tensor([1000.0, 1000.0, 0.0])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Four pictures with one person each, all keypoints at the box's corner, boxes 16 to 64 px wide. In the last one
    others may be unlabelled. The red of a picture is its number."""
    images, annotations = [], []
    for i in range(4):
        Image.new("RGB", (80, 50), (i, 0, 0)).save(tmp_path / f"{i}.png")
        image = {"id": i, "file_name": f"{i}.png", "width": 80, "height": 50, "source": "coco_x"}
        images.append(image | {"complete": i < 3})
        bbox = [3, 4, 16 * (i + 1), 30]
        annotations.append(
            {"id": i + 1, "image_id": i, "bbox": bbox, "area": 300.0, "keypoints": [3, 4, 2] * 17}
        )
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    made_with = {"pair": "fake", "router_sha256": "", "detector_sha256": "", "min_score": 0.3}
    calibration = {
        "scores": [0.125, 0.25, 0.375, 0.5],
        "theta": 0.1,
        "made_with": made_with,
        "people": 4,
        "images": 4,
    }
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    return tmp_path


def test_boxes_keep_their_own_estimates_whatever_the_batch(labelled: Path) -> None:
    images = read_split(labelled, "val")
    fake = FakePair(labelled / "calibration.json")
    found = [*labelled_boxes(images), FoundPerson(1, (9, 8, 64, 30), 0.5, None)]
    estimates = estimate(fake, Pictures(labelled), images, found, batch=3)  # type: ignore[arg-type]
    assert estimates.difficulty.tolist() == [0.125, 0.25, 0.375, 0.5, 0.25]
    assert estimates.large[:, 0].tolist() == [[3, 4, 1]] * 4 + [[9, 8, 1]]
    assert estimates.small[:, 0].tolist() == [[1003, 1004, 1]] * 4 + [[1009, 1008, 1]]


@pytest.fixture
def command(labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command with more arguments; what it prints."""
    pair = FakePair(labelled / "calibration.json")
    monkeypatch.setattr("calibration.evaluate.load_pair", lambda *_: pair)
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 20)

    def run(*arguments: str) -> str:
        policies = ("--policy", "band", "top", "--p", "0.5", "--theta", "0.1")
        monkeypatch.setattr("sys.argv", ["evaluate", str(labelled), *policies, *arguments])
        main()
        return capsys.readouterr().out

    return run


def table(output: str, title: str, name_width: int) -> dict[str, list[str]]:
    """The rows of the first table below `title`, by name."""
    lines = output.split(title)[1].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("  "), lines)
    return {row[: name_width + 2].strip(): row[name_width + 2 :].split() for row in rows}


def test_the_command_measures_both_nets_and_the_routed_pair_on_the_labelled_boxes(command: Command) -> None:
    output = command("--boxes", "labelled")
    assert "detector boxes" not in output
    rows = table(output, "COCO: 4 people with keypoints in 4 pictures, 4 boxes", 16)
    assert list(rows) == ["small", "large", "band, p = 0.5", "top, p = 0.5"]
    assert rows["small"][:2] == ["0.000", "0.000"]
    assert rows["large"][:2] == ["1.000", "1.000"]
    # k1 = 0.16, its nearest score is the first, so k2 is the third: only 0.25 lies strictly between
    assert rows["band, p = 0.5"][0] == "0.250"
    assert rows["top, p = 0.5"][0] == "0.500"


def test_on_detected_boxes_only_pictures_whose_people_are_all_labelled_count(command: Command) -> None:
    output = command("--boxes", "detector")
    assert "labelled boxes" not in output
    rows = table(output, "COCO: 3 people with keypoints in 3 pictures, 6 boxes", 16)
    assert rows["large"][:2] == ["1.000", "1.000"]
    # the difficulties are 3/32, 6/32 and 9/32, and 1/32 where nobody is; above 0.25 is one of six
    assert rows["top, p = 0.5"][0] == "0.167"


def test_detected_boxes_below_the_least_score_are_left_out(command: Command) -> None:
    assert "in 3 pictures, 3 boxes" in command("--boxes", "detector", "--min-score", "0.3")


def test_without_a_choice_both_kinds_of_boxes_are_measured(command: Command) -> None:
    output = command()
    assert output.startswith("pair fake\n")
    labelled, detector = output.split("\ndetector boxes\n")
    assert "\nlabelled boxes\n" in labelled
    assert "COCO: 4 people" in labelled
    assert "COCO: 3 people" in detector


def test_the_command_compares_rules_at_equal_shares(command: Command) -> None:
    output = command("--boxes", "detector")
    gains = table(output, "recovered gain, thresholds from these boxes themselves", 42)
    top = gains["router, highest score (`top`)"]
    # half of the six boxes: those of the three people
    assert top[:4] == ["0.50", "0.500", "1.000", "1.00"]
    assert {"random", "biggest box", "box score", "oracle: OKS gain"} < gains.keys()
    assert {row[1] for name, row in gains.items() if "band" not in name} == {"0.500"}
    labelled = table(
        command("--boxes", "labelled"), "recovered gain, thresholds from these boxes themselves", 42
    )
    assert "random" in labelled
    assert "box score" not in labelled


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path)])
    main()
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"
