import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.okd import RECOMMENDED, RELEASED
from calibration.samples import Boxes
from calibration.train_router import BATCHED, PAPER, ask, main, parse
from models.router import RouterConfig
from models.zoo import load_router, read_manifest
from models.zoo.manifest import EstimatorEntry


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 pictures of noise with a person each, in this project's layout."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(1, 25):
        pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        images.append(
            {"id": index, "file_name": f"{index}.png", "width": 160, "height": 120, "complete": True}
        )
        keypoints = [value for _ in range(17) for value in (*rng.uniform(20, 100, 2).round(1).tolist(), 2)]
        annotations.append(
            {"id": index, "image_id": index, "category_id": 1, "bbox": [20, 20, 60, 80], "area": 2500}
            | {"iscrowd": 0, "num_keypoints": 17, "keypoints": keypoints}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def test_the_command_trains_a_router_that_a_pair_can_name(
    data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    out = data / "runs" / "router.safetensors"
    arguments = [str(data), "--out", str(out), "--batch", "16", "--epochs", "1", "--no-filter", "--no-sge"]
    assert main(arguments) == 0
    line = json.loads(out.with_suffix(".log").read_text().splitlines()[-1])
    assert line["epoch"] == 1
    assert line["samples"] > 40  # labelled, sloppy and wrong boxes
    assert line["people"] >= 1
    assert out.with_suffix(".png").stat().st_size > 1000
    assert not out.with_suffix(".checkpoint").exists()
    entry = json.loads(capsys.readouterr().out.splitlines()[-1].partition('"router": ')[2])
    manifest = read_manifest("embedded", router=str(out))
    assert manifest.router.sha256 == entry["sha256"]
    assert manifest.router.config == RouterConfig(sge=False)
    scorer = load_router(str(manifest.folder), manifest.router, torch.device("cpu"), torch.float32)
    picture = torch.zeros(120, 160, 3, dtype=torch.uint8)
    difficulty = scorer([picture], torch.tensor([[20.0, 20, 60, 80]]), torch.ones(1))
    assert 0 < difficulty.item() < 1

    # Another reading of the same boxes asks no net again, and the authors' has three outputs.
    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("calibration.samples.ask", refuse)
    again = [str(data), "--out", str(data / "runs" / "clamped.safetensors"), "--batch", "16", "--epochs", "1"]
    assert main([*again, "--clamp", "--no-filter"]) == 0
    with pytest.raises(AssertionError, match="asked again"):
        main([*again, "--released"])  # labelled boxes alone: another folder


def test_other_nets_boxes_or_labels_have_another_folder(data: Path, monkeypatch: pytest.MonkeyPatch):
    """Through `ask`, whose nets are not run: what is kept answers the very same question alone."""
    monkeypatch.setattr("calibration.train_router.load_estimator", lambda *_: None)
    monkeypatch.setattr("calibration.train_router.collect", lambda *_: None)
    manifest = read_manifest("embedded")
    (data / "val.json").write_text((data / "train.json").read_text())

    def folder(*arguments: str, boxes: Boxes = "all", precision: str = "fp32", **nets: EstimatorEntry) -> str:
        options = parse([str(data), "--precision", precision, *arguments])[0]
        return ask(options, manifest.model_copy(update=nets), boxes, torch.device("cpu"))[1]

    usual = folder()
    assert usual == folder() == folder("--epochs", "3", "--clamp", "--out", "elsewhere.safetensors")
    small = manifest.small
    others = {
        "small net": folder(small=small.model_copy(update={"sha256": "0" * 64})),
        "large net": folder(large=manifest.large.model_copy(update={"sha256": "0" * 64})),
        "nets the other way round": folder(small=manifest.large, large=small),
        "codec": folder(small=small.model_copy(update={"codec": "quarter"})),
        "normalisation": folder(small=small.model_copy(update={"mean": (0.0, 0.0, 0.0)})),
        "channels": folder(small=small.model_copy(update={"channel_order": "BGR"})),
        "size": folder(small=small.model_copy(update={"input_size": (192, 256)})),
        "padding": folder(large=manifest.large.model_copy(update={"padding": 1.5})),
        "boxes": folder(boxes="labelled"),
        "limit": folder("--limit", "5"),
        "validation": folder("--validate", "val"),
        "arithmetic": folder(precision="bf16"),
    }
    content = json.loads((data / "val.json").read_text())
    content["annotations"][0]["bbox"][0] += 1
    (data / "val.json").write_text(json.dumps(content))
    others["other labels of the validation"] = folder("--validate", "val")
    (data / "train.json").write_text(json.dumps(content))
    others["other labels"] = folder()
    assert len({usual, *others.values()}) == 1 + len(others), others


@pytest.mark.parametrize("arguments", [["--released"], ["--joint-weights"]])
def test_joint_weights_of_17_keypoints_are_refused_for_14_before_the_nets_are_asked(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str]
):
    manifest = read_manifest("embedded")
    nets = {
        name: getattr(manifest, name).model_copy(update={"keypoints": "crowdpose"})
        for name in ("small", "large")
    }
    monkeypatch.setattr("calibration.train_router.pair_from", lambda _: manifest.model_copy(update=nets))
    monkeypatch.setattr("calibration.train_router.ask", lambda *_: pytest.fail("asked"))
    assert main([str(data), "--out", str(data / "runs" / "router.safetensors"), *arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "has 14 keypoints, the released code's joint weights are of 17" in said


def test_a_missing_picture_is_one_line_and_exit_code_2(data: Path, capsys: pytest.CaptureFixture):
    (data / "7.png").unlink()
    assert main([str(data), "--out", str(data / "runs" / "router.safetensors")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("7.png cannot be read: ")


def test_the_batch_chooses_the_recipe_and_options_change_it():
    assert parse(["x", "--batch", "1"])[1:] == (RECOMMENDED, PAPER)
    assert parse(["x"])[1:] == (RECOMMENDED, BATCHED)
    _, reading, recipe = parse(["x", "--batch", "1", "--released"])
    assert reading == RELEASED
    assert recipe.released
    assert recipe.boxes == "labelled"
    _, reading, recipe = parse(
        [
            "x",
            "--filter",
            "0.1",
            "0.2",
            "--clamp",
            "--axes",
            "swapped",
            "--cells",
            "--no-augment",
            "--rate",
            "1",
        ]
    )
    assert (reading.oks_filter, reading.clamp, reading.axes, reading.cells) == (
        (0.1, 0.2),
        True,
        "swapped",
        True,
    )
    assert (recipe.augment, recipe.rate, recipe.batch) == (False, 1.0, 64)
    assert parse(["x", "--no-filter"])[1].oks_filter is None


@pytest.mark.parametrize(
    "arguments", [["--released", "--clamp"], ["--released", "--boxes", "all"], ["--batch", "0"]]
)
def test_contradictions_are_refused(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as refused:
        main(["x", *arguments])
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = str(tmp_path / "runs" / "router.safetensors")
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "nobody.json").write_text(json.dumps({"images": [], "annotations": []}))
    for split, reason in (
        ("train", "has none of train.json"),
        ("broken", "not in COCO's keypoint format"),
        ("nobody", "no person has keypoints"),
    ):
        assert main([str(tmp_path), "--split", split, "--out", out]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert reason in said[0]
    with pytest.raises(SystemExit, match="cannot read"):
        main([str(tmp_path), "--pair", str(tmp_path), "--out", out])


def test_another_split_can_be_what_is_validated_on(data: Path):
    (data / "val.json").write_text((data / "train.json").read_text())
    out = data / "runs" / "router.safetensors"
    arguments = [str(data), "--out", str(out), "--batch", "16", "--epochs", "1", "--no-filter"]
    assert main([*arguments, "--boxes", "labelled", "--validate", "val"]) == 0
    line = json.loads(out.with_suffix(".log").read_text().splitlines()[-1])
    assert (line["samples"], line["people"]) == (24, 24)
