import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.boxes import FoundPerson
from calibration.data import LabelledImage, LabelledPerson, read_split

pytest.importorskip("pycocotools")

from calibration.estimates import Costs, Estimates
from calibration.evaluate import main
from calibration.measured import coco_results, measured_rows, quality, routings
from models.router import RouterConfig
from models.zoo import Pair, read_manifest

Command = Callable[..., str]
MACS = {"router": 1.0, "small": 2.0, "large": 10.0}


@pytest.mark.parametrize("option", ["--p", "--theta"])
def test_shares_are_from_0_to_1(command: Command, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        command(option, "50")
    assert f"{option}: 50 is not between 0 and 1" in capsys.readouterr().err


@pytest.fixture
def command(
    data: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs the command with more arguments; what it prints."""
    monkeypatch.setattr("calibration.evaluate.load_pair", lambda *_, **__: pair)
    monkeypatch.setattr("calibration.evaluate.pair_macs", lambda _: MACS)
    monkeypatch.setattr("calibration.gain.BOOTSTRAPS", 5)
    monkeypatch.setattr("calibration.evaluate.measure", lambda *_: {"small": 2**20, "routed": 3 * 2**20})

    def run(*arguments: str, code: int = 0) -> str:
        options = ("--policy", "band", "top", "--p", "0.5", "--theta", "0.1", "--out", str(data / "out"))
        monkeypatch.setattr("sys.argv", ["evaluate", str(data), *options, *arguments])
        assert main() == code
        return capsys.readouterr().out

    return run


def forbid(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def written(data: Path) -> dict[str, Any]:
    text = (data / "out" / "evaluation.json").read_text()
    result: dict[str, Any] = json.loads(text, parse_constant=forbid)
    return result


def table(output: str, title: str, name_width: int) -> dict[str, list[str]]:
    """The rows of the first table below `title`, by name; the head without one."""
    lines = output.split(title)[1].splitlines()[1:]
    rows = itertools.takewhile(
        lambda line: line.startswith("  ") and not line.startswith("  router: "), lines
    )
    return {row[: name_width + 2].strip(): row[name_width + 2 :].split() for row in rows}


def test_the_command_measures_both_nets_and_the_routed_pair_on_the_labelled_boxes(command: Command) -> None:
    output = command("--boxes", "labelled", "--no-rules")
    assert output.startswith("pair fake\n")
    assert "detector boxes" not in output
    # the last picture may have unlabelled people; labelled boxes are measured with and without it
    assert "\nlabelled boxes\n3 people with keypoints in 3 pictures, 3 boxes\n" in output
    title = "labelled boxes, and pictures whose people are not all labelled\n"
    rows = table(output, title + "4 people with keypoints in 4 pictures, 4 boxes", 22)
    assert list(rows) == ["", "small", "large", "band, p = 0.5", "top, p = 0.5"]
    head = "share AP 95 % AP50 AP75 AR GMACs people/s"
    assert " ".join(rows[""]) == head  # nobody is of medium or large size, and no picture has a crowd index
    assert rows["small"][:6] == ["0.000", "0.000", "0.000-0.000", "0.000", "0.000", "0.000"]
    assert rows["large"][:6] == ["1.000", "1.000", "1.000-1.000", "1.000", "1.000", "1.000"]
    # k1 = 0.16, its nearest score is the first, so k2 is the third: only 0.25 lies strictly between
    assert rows["band, p = 0.5"][0] == "0.250"
    assert rows["top, p = 0.5"][0] == "0.500"
    assert "recovered gain" not in output


def test_on_detected_boxes_only_pictures_whose_people_are_all_labelled_count(command: Command) -> None:
    output = command("--boxes", "detector", "--no-rules", "--min-score", "0.05")
    assert "labelled boxes" not in output
    rows = table(output, "detector boxes from 0.05\n3 people with keypoints in 3 pictures, 6 boxes", 22)
    assert rows["large"][:2] == ["1.000", "1.000"]
    # the difficulties are 3/32, 6/32 and 9/32, and 1/32 where nobody is; above 0.25 is one of six
    assert rows["top, p = 0.5"][0] == "0.167"


def test_detected_boxes_are_measured_from_each_of_the_least_scores_up(command: Command, data: Path) -> None:
    output = command("--boxes", "detector", "--min-score", "0.3", "0.2", "0.9", "--no-rules")
    assert "detector boxes from 0.2\n3 people with keypoints in 3 pictures, 6 boxes" in output
    assert "detector boxes from 0.3\n3 people with keypoints in 3 pictures, 3 boxes" in output
    boxes = written(data)["boxes"]  # and none reaches 0.9
    assert {title: kind["boxes"] for title, kind in boxes.items()} == {
        "detector boxes from 0.3": 3,
        "detector boxes from 0.2": 6,
    }


def test_without_a_choice_both_kinds_of_boxes_are_measured_and_the_detectors_from_two_scores(
    command: Command, data: Path
) -> None:
    command("--no-rules")
    assert list(written(data)["boxes"]) == [
        "labelled boxes",
        "labelled boxes, and pictures whose people are not all labelled",
        "detector boxes from 0.05",
        "detector boxes from 0.35",
    ]


def test_the_command_compares_rules_at_equal_cost(command: Command) -> None:
    heading = "recovered gain, thresholds from these boxes themselves"
    detected = command("--boxes", "detector", "--min-score", "0.05")
    gains = table(detected, heading, 48)
    # half of the six boxes: those of the three people
    assert gains["router, highest (`top`)"][:4] == ["0.50", "0.500", "1.000", "1.00"]
    assert {"random", "biggest box", "box score", "oracle: OKS gain"} < gains.keys()
    # MACs of router, small and large net are as 1 : 2 : 10, so that the pair's are 7 at p = 0.5
    assert gains["small net first, lowest confidence"][1] == "0.500"  # (7 - 2) / 10
    assert gains["small net twice, least flip consistency"][1] == "0.333"  # (7 - 4) / 10 of six
    labelled = table(command("--boxes", "labelled"), heading, 48)
    assert "random" in labelled
    assert "box score" not in labelled


def test_the_file_has_everything_that_a_report_needs_and_no_nan(command: Command, data: Path) -> None:
    conditions = ("--device", "cpu", "--precision", "fp32", "--runtime", "eager", "--batch", "3")
    command("--boxes", "detector", "labelled", "--min-score", "0.05", "--flip-test", *conditions)
    content = written(data)
    boxes = content.pop("boxes")
    ran = content.pop("conditions")
    assert date.fromisoformat(ran.pop("date")) <= date.today()
    assert ran.pop("processor")
    assert ran == {
        "device": "cpu",
        "precision": "float32",
        "runtime": "eager",
        "torch": torch.__version__,
        "batch": 3,
        "data": data.name,
        "min_score": [0.05],
        "calibration": "calibration.json",
    }
    assert content == {
        "names": {"pair": "fake"},
        "router": "pose",
        "router_config": None,
        "split": "val",
        "limit": None,
        "flip_test": True,
        "theta": 0.1,
        "memory": {"small": 2**20, "routed": 3 * 2**20},
    }
    kind = boxes["detector boxes from 0.05"]
    assert (kind["people"], kind["images"], kind["boxes"]) == (3, 3, 6)
    assert kind["belongs"] == ["person", "nobody"] * 3
    assert kind["gain"] == [1, 0] * 3
    assert kind["difficulty"] == [0.09375, 0.03125, 0.1875, 0.03125, 0.28125, 0.03125]
    # all gains are equal, so that there is no correlation with them
    assert kind["routers"] == {"router": {"rank_correlation": None, "auc_right_above_wrong": 1.0}}
    large = next(row for row in kind["rows"] if row["name"] == "large")
    assert (large["p"], large["share"], large["ap"], large["ap_m"], large["easy"]) == (None, 1, 1, None, None)
    assert kind["costs"]["macs"] == {"router": 1, "small": 2 * 2, "large": 2 * 10}
    assert kind["costs"]["flip_test"] is True
    gain = next(row for row in kind["gains"] if row["rule"] == "router, highest (`top`)")
    assert (gain["p"], gain["gain"], gain["ap50"]) == (0.5, 1, 1)
    with Image.open(data / "out" / "people.png") as strip:
        assert strip.width == 4 * 192  # of the last kind of boxes


def test_nets_that_are_alike_leave_a_hole_in_the_file(command: Command, data: Path, pair: Pair) -> None:
    pair.small.off = 0  # type: ignore[attr-defined]
    output = command("--boxes", "labelled")
    assert table(output, "recovered gain, thresholds", 48)["random"][3] == "nan"
    gains = written(data)["boxes"]["labelled boxes"]["gains"]
    assert {(row["gain"], row["low"], row["high"]) for row in gains} == {(None, None, None)}


def test_memory_can_be_left_out_and_its_failure_leaves_the_rest(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise subprocess.CalledProcessError(1, "python", stderr="no room\n")

    monkeypatch.setattr("calibration.evaluate.measure", fail)
    assert "peak memory: not measured; no room\n" in command("--boxes", "labelled", "--no-rules")
    assert "memory" not in written(data)
    monkeypatch.setattr("calibration.evaluate.measure", lambda *_: pytest.fail("measured"))
    assert "peak memory" not in command("--boxes", "labelled", "--no-rules", "--no-memory")
    assert written(data)["boxes"]


def results_file(data: Path, *rows: tuple[int, list[float], float]) -> str:
    file = data / "found.json"
    file.write_text(
        json.dumps([{"image_id": i, "category_id": 1, "bbox": b, "score": s} for i, b, s in rows])
    )
    return str(file)


def test_boxes_can_come_from_a_coco_results_file(command: Command, data: Path) -> None:
    file = results_file(
        data,
        (0, [3, 4, 16, 30], 0.9),
        (1, [3, 4, 32, 30], 0.04),
        (2, [0, 40, 9, 9], 0.5),
        (77, [0, 0, 9, 9], 0.9),
    )
    command("--boxes", file, "--min-score", "0.05", "--no-rules")
    (kind,) = written(data)["boxes"].values()
    assert (kind["people"], kind["images"], kind["boxes"]) == (3, 3, 2)
    assert kind["belongs"] == ["person", "nobody"]
    assert next(row["ar"] for row in kind["rows"] if row["name"] == "large") == pytest.approx(1 / 3)


@pytest.mark.parametrize("content", [None, "[1]"])
def test_a_file_that_has_no_boxes_is_named_before_anything_is_measured(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (data / "found.json").write_text(content)
    monkeypatch.setattr("calibration.evaluate.load_pair", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("sys.argv", ["evaluate", str(data), "--boxes", "labelled", str(data / "found.json")])
    assert main() == 2
    assert str(data / "found.json") in capsys.readouterr().err


Failing = Callable[..., str]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Failing:
    """Runs the command with more arguments, which ends before anything is computed; the one line that it says."""

    def run(*arguments: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr("calibration.evaluate.estimate", lambda *_, **__: pytest.fail("computed"))
            patch.setattr("sys.argv", ["evaluate", *arguments])
            assert main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_a_file_of_other_pictures_boxes_is_refused(failing: Failing, data: Path) -> None:
    file = results_file(data, (77, [0, 0, 9, 9], 0.9))
    assert failing(str(data), "--boxes", "labelled", file) == f"{file} has no boxes of any of the 4 pictures"


def test_a_split_that_is_not_there_is_an_error_where_there_are_others(failing: Failing, data: Path) -> None:
    assert failing(str(data), "--split", "vla") == f"{data} has no split 'vla', but calibration, val"


@pytest.mark.parametrize(
    ("small", "large", "said"),
    [
        ("coco", "crowdpose", "the small net has 17 keypoints, the large one 14"),
        ("crowdpose", "crowdpose", "the nets have 14 keypoints, the people 17"),
    ],
)
def test_other_keypoints_are_named_before_anything_is_computed(
    failing: Failing,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: str,
    large: str,
    said: str,
) -> None:
    manifest = read_manifest("embedded")
    nets = {
        "small": manifest.small.model_copy(update={"keypoints": small}),
        "large": manifest.large.model_copy(update={"keypoints": large}),
    }
    monkeypatch.setattr("calibration.evaluate.pair_from", lambda _: manifest.model_copy(update=nets))
    monkeypatch.setattr("calibration.evaluate.load_pair", lambda *_, **__: pytest.fail("loaded"))
    assert failing(str(data)) == said


def test_the_paper_routers_switches_are_in_the_file(command: Command, data: Path, pair: Pair) -> None:
    router = SimpleNamespace(architecture="dynpose", sha256="", config=RouterConfig(sge=False))
    pair.manifest.router = router  # type: ignore[misc, assignment]
    command("--boxes", "labelled", "--no-rules")
    assert (written(data)["router"], written(data)["router_config"]["sge"]) == ("dynpose", False)


def test_results_are_written_as_cocos_server_takes_them(command: Command, data: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    output = command("--boxes", "detector", "--min-score", "0.05", "--no-rules", "--write-results")
    assert "detector-top-0.5.json, 16.7 % by the large net\n" in output
    folder = data / "out" / "results"
    assert sorted(path.name for path in folder.iterdir()) == [
        "detector-band-0.5.json",
        "detector-large.json",
        "detector-small.json",
        "detector-top-0.5.json",
    ]
    rows = json.loads((folder / "detector-large.json").read_text())
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [
        (image, 1, score) for image in range(3) for score in (0.75, 0.25)
    ]
    assert rows[0]["keypoints"] == [3, 4, 1] * 17
    truth = COCO()
    truth.dataset = json.loads((data / "val.json").read_text()) | {"categories": [{"id": 1}]}
    truth.dataset["annotations"] = [
        row | {"category_id": 1, "iscrowd": 0, "num_keypoints": 17} for row in truth.dataset["annotations"]
    ]
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "detector-large.json")), "keypoints")
    evaluation.params.imgIds = [0, 1, 2]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    assert (data / "out" / "evaluation.json").exists()


def test_boxes_below_all_least_scores_have_no_results(command: Command, data: Path) -> None:
    file = results_file(data, (0, [3, 4, 16, 30], 0.9), (1, [3, 4, 32, 30], 0.2), (2, [3, 4, 48, 30], 0.3))
    command("--boxes", file, "--min-score", "0.5", "0.3", "--no-rules", "--write-results")
    rows = json.loads((data / "out" / "results" / "found-large.json").read_text())
    assert [(row["image_id"], row["score"]) for row in rows] == [(0, 0.9), (2, 0.3)]


def test_a_split_without_labels_gives_results_alone(command: Command, data: Path) -> None:
    content = json.loads((data / "val.json").read_text())
    images = [
        {key: image[key] for key in ("id", "file_name", "width", "height")} for image in content["images"]
    ]
    (data / "annotations").mkdir()
    (data / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps({"images": images}))
    (data / "test2017").mkdir()
    for image in images:
        shutil.move(data / str(image["file_name"]), data / "test2017")
    output = command("--split", "test-dev2017", "--min-score", "0.3")
    assert "labelled boxes: none" in output
    assert "share" not in output
    assert not (data / "out" / "evaluation.json").exists()
    assert not (data / "out" / "people.png").exists()
    rows = json.loads((data / "out" / "results" / "detector-top-0.5.json").read_text())
    assert [row["image_id"] for row in rows] == [0, 1, 2, 3]
    # the difficulties are 3/32 to 12/32, above 0.25 goes to the large net
    assert [row["keypoints"][0] for row in rows] == [1003, 1003, 3, 3]


def test_a_contact_sheet_is_written_on_request(command: Command, data: Path) -> None:
    output = command("--boxes", "labelled", "--no-rules", "--contact-sheet", str(data / "sheet.png"))
    assert f"contact sheet: {data / 'sheet.png'}" in output
    with Image.open(data / "sheet.png") as sheet:
        assert sheet.size == (1920, 240)


def test_the_first_pictures_alone_can_be_measured(command: Command, data: Path) -> None:
    assert "2 people with keypoints in 2 pictures" in command("--limit", "2", "--no-rules")
    assert written(data)["limit"] == 2


def test_without_pictures_it_says_that_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path)])
    assert main() == 0
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"


COSTS = Costs({"router": 1.0, "small": 10.0, "large": 50.0}, {"router": 0.01, "small": 0.02, "large": 0.1})


def people(
    joints: int, crowd_index: list[float | None], side: float = 40
) -> tuple[list[LabelledImage], Estimates]:
    """A person in every picture, found by the large net and not by the small one, in boxes of score 0.9."""
    images, found, points = [], [], []
    for image_id, index in enumerate(crowd_index):
        keypoints = np.random.default_rng(image_id).uniform(0, side, (joints, 3)).round(1)
        keypoints[:, 2] = 2
        person = LabelledPerson(image_id + 1, (0, 0, side, side), keypoints, side**2, False, None)
        images.append(LabelledImage(image_id, 400, 400, "", True, (person,), "x", None, index))
        found.append(FoundPerson(image_id, person.bbox, 0.9, person))
        points.append(keypoints)
    large = np.array(points)
    large[:, :, 2] = 1
    return images, Estimates(
        found, large + np.array([1000, 0, 0]), large, np.linspace(0, 1, len(found)), costs=COSTS
    )


def test_crowdpose_is_measured_by_crowding_and_not_by_size() -> None:
    images, estimates = people(14, [0.0, 0.1, 0.2, 0.79, 0.8, 1.0])
    masks = {("top", 0.5): np.array([True, False, True, True, False, False])}
    (row,) = measured_rows(images, estimates, masks)
    assert (row.easy, row.medium, row.hard) == pytest.approx((51 / 101, 1, 0))
    assert math.isnan(row.ap_m)
    assert math.isnan(row.ap_l)
    # of equal scores in the order of the pictures: found, not, found, found
    assert row.ap == pytest.approx((17 * 1 + 34 * 3 / 4) / 101)


@pytest.mark.parametrize(("side", "medium"), [(40, True), (100, False)])
def test_coco_is_measured_by_size_and_not_by_crowding(side: float, medium: bool) -> None:
    images, estimates = people(17, [None, None], side)
    rows = list(measured_rows(images, estimates, routings(estimates, [0.5], [], [], 0.1)))
    assert [row.name for row in rows] == ["small", "large"]
    assert [row.ap_m if medium else row.ap_l for row in rows] == pytest.approx([0, 1])
    for row in rows:
        assert np.isnan([row.ap_l if medium else row.ap_m, row.easy, row.medium, row.hard]).all()


def test_a_net_alone_costs_no_router_and_the_pair_all_three_by_share() -> None:
    images, estimates = people(17, [None] * 4)
    masks = routings(estimates, [0.0, 0.25, 0.5, 1.0], ["top"], [0.25], 0.1)
    small, large, top = measured_rows(images, estimates, masks)
    assert (small.share, large.share, top.share) == (0, 1, 0.5)  # of 0, 1/3, 2/3 and 1, above 0.5
    assert (small.macs, large.macs, top.macs) == (10, 50, 1 + 0.5 * 10 + 0.5 * 50)
    speeds = (small.people_per_s, large.people_per_s, top.people_per_s)
    assert speeds == pytest.approx((50, 10, 1 / (0.01 + 0.5 * 0.02 + 0.5 * 0.1)))


def test_junk_boxes_can_be_left_unanswered() -> None:
    """Four people and, scored below 0.1, the boxes of one of them and of nobody: dropped, they cost nothing."""
    images, estimates = people(17, [None] * 4)
    found = [*estimates.found[:3], replace(estimates.found[3], score=0.09)]
    found.append(FoundPerson(0, (200, 200, 40, 40), 0.05, None, wrong=True))
    everywhere = np.concatenate((estimates.large, estimates.large[:1] + np.array([200, 200, 0])))
    boxes = Estimates(found, everywhere, everywhere, np.zeros(5), costs=COSTS)
    rows = list(measured_rows(images, boxes, routings(boxes, [0.5], [], [], 0.1)))
    assert [row.name for row in rows] == ["small", "large", "large, boxes from 0.1"]
    junk = rows[2]
    assert (junk.p, junk.share) == (None, 0.6)
    assert (junk.macs, junk.people_per_s) == (0.6 * 50, pytest.approx(1 / (0.6 * 0.1)))
    assert junk.ap == pytest.approx(76 / 101)  # of four people one is never found
    assert rows[1].ap == pytest.approx(1)


@pytest.mark.parametrize("score", [0.1, 0.05])
def test_without_junk_or_anything_else_there_is_no_such_row(score: float) -> None:
    images, estimates = people(17, [None] * 2)
    boxes = replace(estimates, found=[replace(person, score=score) for person in estimates.found])
    rows = measured_rows(images, boxes, routings(boxes, [0.5], [], [], 0.1))
    assert [row.name for row in rows] == ["small", "large"]


def test_results_have_every_pose_once_and_rounded() -> None:
    images, estimates = people(17, [None, None])
    twice = estimates.take(np.array([0, 0, 1]))
    moved = replace(twice, large=twice.large + np.array([1 / 3, 0, 0]))
    rows = coco_results(images, moved, np.array([True, True, False]))
    assert [(row["image_id"], row["score"]) for row in rows] == [(0, 0.9), (1, 0.9)]
    assert rows[0]["keypoints"] == [round(float(value), 3) for value in moved.large[0].flatten()]
    assert rows[1]["keypoints"][0] == pytest.approx(estimates.small[1, 0, 0], abs=5e-4)  # type: ignore[index]


def graded(gains: list[float], wrong: int) -> Estimates:
    """A person for every gain, whom the small net misses by so much, and boxes of nobody."""
    points = np.tile((20.0, 20.0, 1.0), (len(gains) + wrong, 17, 1))
    label = LabelledPerson(1, (0, 0, 40, 40), np.tile((20.0, 20.0, 2.0), (17, 1)), 1600.0, False, None)
    found = [FoundPerson(1, (0, 0, 40, 40), 1.0, label)] * len(gains)
    found += [FoundPerson(1, (200, 0, 40, 40), 1.0, None, wrong=True)] * wrong
    small = points.copy()
    small[: len(gains), :, 0] += np.array(gains)[:, None]
    return Estimates(found, small, points, np.zeros(len(found)))


@pytest.mark.parametrize(
    ("scores", "correlation"),
    [([0.1, 0.2, 0.3, 0.4], 1), ([0.4, 0.3, 0.2, 0.1], -1), ([0.2, 0.1, 0.3, 0.4], 0.8)],
)
def test_the_rank_correlation_of_the_score_with_the_gain(scores: list[float], correlation: float) -> None:
    figures = quality(graded([1, 2, 5, 9], wrong=0), np.array(scores))
    assert figures["rank_correlation"] == pytest.approx(correlation)
    assert math.isnan(figures["auc_right_above_wrong"])


def test_equal_gains_share_their_rank() -> None:
    """Ranks 1, 2, 3, 4 with 1.5, 1.5, 3.5, 3.5: a correlation of 4 / sqrt(5 * 4)."""
    figures = quality(graded([1, 1, 5, 5], wrong=0), np.array([0.1, 0.2, 0.3, 0.4]))
    assert figures["rank_correlation"] == pytest.approx(4 / np.sqrt(5 * 4))
    assert math.isnan(quality(graded([3, 3], wrong=0), np.array([0.1, 0.2]))["rank_correlation"])


def test_how_often_a_right_box_scores_above_a_wrong_one_ties_counting_half() -> None:
    figures = quality(graded([1, 2], wrong=3), np.array([0.3, 0.9, 0.1, 0.3, 0.5]))
    assert figures["auc_right_above_wrong"] == pytest.approx((1 + 0.5 + 3) / 6)
    assert math.isnan(quality(graded([], wrong=2), np.array([0.1, 0.2]))["auc_right_above_wrong"])


def test_stored_scores_of_another_router_route_nobody(command: Command, data: Path, pair: Pair) -> None:
    pair.manifest.router.sha256 = "another"  # type: ignore[misc]
    output = command("--boxes", "labelled", "--no-rules")
    assert "no stored scores of this router" in output
    assert "top, p" not in output
    assert written(data)["conditions"]["calibration"] is None


def test_other_routers_are_judged_beside_the_pairs(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Manifest:
        folder, router = data, "entry"

    def manifest(pair: str, router: str) -> type[Manifest]:
        given[pair] = router
        return Manifest

    monkeypatch.setattr("calibration.evaluate.read_manifest", manifest)
    monkeypatch.setattr(
        "calibration.evaluate.load_router", lambda *_: lambda _, boxes, __: 1 - boxes[:, 2] / 128
    )
    output = command("--boxes", "detector", "--min-score", "0.05", "--also-router", "dynpose=a/b/one.pth")
    assert given == {"embedded": "dynpose=a/b/one.pth"}
    (kind,) = written(data)["boxes"].values()
    (name,) = kind["routers"].keys() - {"router"}
    assert name.endswith("b/one.pth")
    # widths 16, 32 and 48 of people, 16 of nobody: equal to one of three, above the others
    assert kind["routers"][name]["auc_right_above_wrong"] == pytest.approx(1 / 6)
    assert f"  {name}: rank correlation nan, auc right above wrong 0.167\n" in output
    assert {f"{name}, highest", f"{name}, middle band"} < {row["rule"] for row in kind["gains"]}


def test_the_pictures_are_those_of_the_split(data: Path) -> None:
    assert [image.complete for image in read_split(data, "val")] == [True, True, True, False]
