import json
from pathlib import Path

from PIL import Image

from training.plots import plot_curve, plot_gains, read_log


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        assert len(picture.getcolors(100_000) or []) > 10
        return picture.size


def test_a_curve_has_a_panel_for_each_value(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1 / (1 + i)}) + "\n" for i in range(3)))
    rows = [*read_log(log), {"step": 3, "ap": 0.5}]  # not every line has every value
    plot_curve(rows, "step", ["loss"], tmp_path / "one.png")
    plot_curve(rows, "step", ["loss", "ap"], tmp_path / "two.png")
    (width, height), two = (size(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two == (width, 2 * height)


def test_gains_have_a_panel_for_each_kind_of_boxes_and_people(tmp_path: Path) -> None:
    row = {"labelled_router": [0.4, 0.7], "labelled_boxes": 12, "detected_router": [0.8, 0.9]}
    rows = [row | {"people": "held back"}, row | {"people": "cross-validated"}]
    plot_gains(rows, ("labelled", "detected"), (0.25, 0.5), tmp_path / "gains.png")
    plot_gains(rows[:1], ("labelled",), (0.25, 0.5), tmp_path / "one.png")
    (width, height), four = (size(tmp_path / f"{name}.png") for name in ("one", "gains"))
    assert four == (2 * width, 2 * height)
