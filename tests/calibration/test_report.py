import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from calibration.figures import figures, speed
from calibration.paper_tables import PAPER, tables
from calibration.report import main
from calibration.rules import BAND, ORACLE, RANDOM, TOP
from calibration.runs import read_run
from calibration.thresholds import thresholds
from models.router import RouterConfig

mpl.use("Agg")

NETS = {"small": "resnet50-192x256-0a1b2c3d", "large": "hrnet-w32-192x256-4e5f6a7b"}
AP = {"small": 0.1011, "large": 0.2022, 0.25: 0.3033, 0.5: 0.4044, 0.6: 0.5055, 0.75: 0.6066}
"""Of the invented runs, with thresholds from the measured boxes: no number of the paper's."""
STORED = 0.011
"""What stored thresholds add."""
AP50 = 0.0111
"""What OKS 0.5 adds."""
CONDITIONS = {
    "date": "2025-11-26",
    "device": "cpu",
    "processor": "Abacus 3",
    "precision": "float32",
    "runtime": "eager",
    "torch": "2.0",
    "batch": 32,
    "data": "coco",
    "min_score": [0.05, 0.35],
    "calibration": "night.json",
}
COSTS = {
    "macs": {"router": 1e8, "small": 2 * 5e9, "large": 2 * 7e9},
    "seconds": {"router": 0.005, "small": 0.02, "large": 0.1},
    "flip_test": True,
}

Kind = dict[str, Any]


def row(name: str, p: float | None, ap: float | None, speed: float, **other: float | None) -> Kind:
    share = {"small": 0.0, "large": 1.0}.get(name, p)
    figures = dict.fromkeys(("ap75", "ar", "low", "high"), ap) | {"ap50": None if ap is None else ap + AP50}
    parts = dict.fromkeys(("ap_m", "ap_l", "easy", "medium", "hard"))
    costs = {"macs": 5e9, "people_per_s": speed}
    return {"name": name, "p": p, "share": share, "ap": ap} | figures | parts | costs | other


def kind(
    *,
    policies: Sequence[str] = ("band", "top"),
    crowdpose: bool = False,
    gains: bool = True,
    people: int = 300,
) -> Kind:
    """One kind of boxes; only rule BAND has the APs of AP, the stored thresholds of `band` STORED more."""
    rng = np.random.default_rng(0)
    easy = {"easy": 0.5 if crowdpose else None}
    rows = [row("small", None, AP["small"], 31.4, **easy), row("large", None, AP["large"], 11.1, **easy)]
    for policy in policies:
        for p in (0.25, 0.5, 0.6, 0.75):
            ap = AP[p] + (STORED if policy == "band" else 0.02)
            rows.append(row(policy, p, ap, 28 - 20 * p, **easy))
    rows.append(row("large, boxes from 0.1", None, 0.19, 13.0, **easy))
    recovered = [
        {"rule": rule, "p": p, "share": p - 0.01, "gain": p / 2, "low": p / 3, "high": p}
        | {"ap": AP[p] if rule == BAND else 0.15, "ap50": (AP[p] if rule == BAND else 0.15) + AP50}
        for rule in (TOP, BAND, RANDOM, ORACLE)
        for p in (0.25, 0.5, 0.6, 0.75)
    ]
    return {
        "people": 200,
        "images": 50,
        "boxes": people,
        "rows": rows,
        "gains": recovered if gains else [],
        "routers": {"router": {"rank_correlation": 0.3, "auc_right_above_wrong": None}},
        "difficulty": rng.uniform(0.4, 0.6, people).round(6).tolist(),
        "gain": rng.uniform(-0.1, 0.3, people).round(4).tolist(),
        "belongs": (["person", "nobody", "crowd"] * people)[:people],
        "costs": COSTS,
    }


DETECTOR = "detector boxes from 0.05"


def evaluation(
    folder: Path, boxes: dict[str, Kind] | None = None, names: dict[str, str] | None = None, **other: Any
) -> Path:
    """A folder as `calibration.evaluate` writes it."""
    folder.mkdir(parents=True)
    content = {
        "names": {"pair": "invented", "detector": "yolo", "router": "router-1"} | NETS | (names or {}),
        "router": "dynpose",
        "router_config": RouterConfig().model_dump(),
        "conditions": CONDITIONS,
        "split": "val2017",
        "limit": None,
        "flip_test": True,
        "theta": 0.1,
        "boxes": boxes or {DETECTOR: kind(), "detector boxes from 0.35": kind(policies=("top",))},
    }
    (folder / "evaluation.json").write_text(json.dumps(content | other))
    return folder


def report(monkeypatch: pytest.MonkeyPatch, out: Path, *folders: Path, code: int = 0) -> str:
    monkeypatch.setattr("sys.argv", ["report", *map(str, folders), "--out", str(out)])
    assert main() == code
    return (out / "report.md").read_text() if code == 0 else ""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def paper_tables(*folders: Path) -> dict[str, list[tuple[list[str], dict[str, str]]]]:
    """Rows of every table: the paper's cells, and ours by the column's name."""
    result: dict[str, list[tuple[list[str], dict[str, str]]]] = {}
    head: list[str] = []
    for line in tables([read_run(folder) for folder in folders]):
        if line.startswith("### "):
            result[line[4:].split(":")[0].lower()], head = [], []
        elif line.startswith("|") and not line.startswith("| ---"):
            if head:
                named = list(zip(head, cells(line), strict=True))
                own = {name.removesuffix(" (ours)"): cell for name, cell in named if "(ours)" in name}
                list(result.values())[-1].append(
                    ([cell for name, cell in named if "(ours)" not in name], own)
                )
            head = head or cells(line)
    return result


def filled(*folders: Path) -> dict[tuple[str, int], str]:
    """Our APs, by table and number of its row; where there is none, nothing else is ours."""
    result = {}
    for table, rows in paper_tables(*folders).items():
        for index, (paper, own) in enumerate(rows):
            if own["AP"] in ("not run", "known to COCO's server alone"):
                assert not any(value for name, value in own.items() if name != "AP")
                assert ("test-dev" in paper) == ("server" in own["AP"])
            else:
                result[table, index] = own["AP"]
    return result


OURS = {
    ("table 1", 0): "10.1",
    ("table 1", 1): "30.3",
    ("table 1", 2): "40.4",
    ("table 1", 3): "60.7",
    ("table 1", 4): "20.2",
    ("table 3", 2): "10.1",
    ("table 5", 4): "40.4",
    ("table 6", 1): "40.4",
    ("table 7", 0): "41.5",
}
"""Rows of ResNet-50, HRNet-W32 and their pair on COCO val with the whole router and theta 0.1; table 7 alone has stored
thresholds."""

ALONE = {key: value for key, value in OURS.items() if value in ("10.1", "20.2")}


def test_every_number_of_the_paper_stands_in_its_own_column(tmp_path: Path) -> None:
    shown = paper_tables(evaluation(tmp_path / "run", names={"small": "tinypose-192x256-1"}))
    published = {table["name"]: table for table in json.loads(PAPER.read_bytes())["tables"]}
    assert shown.keys() == published.keys()
    for name, table in published.items():
        expected = [["" if value is None else str(value) for value in values] for values in table["rows"]]
        assert [paper for paper, _ in shown[name]] == expected
    heads = [cells(line) for line in tables([]) if line.startswith("|") and "(ours)" in line]
    assert len(heads) == 7
    assert all(head.count("AP (ours)") == head.count("AP (paper)") == 1 for head in heads)


def test_our_columns_are_those_of_the_table_and_the_share_that_was_sent(tmp_path: Path) -> None:
    shown = paper_tables(evaluation(tmp_path / "run"))
    # One pass: half of what the flip test costs. At 0.49: 0.1 + 0.51 * 5 + 0.49 * 7 GMACs.
    assert shown["table 1"][2][1] == {
        "AP": "40.4",
        "share": "49.0 %",
        "AP50": "41.5",
        "people/s": f"{1 / (0.005 + 0.51 * 0.02 + 0.49 * 0.1):.1f}",
        "GMACs": "6.08",
    }
    alone = {"AP": "10.1", "share": "", "AP50": "11.2", "people/s": "50.0", "GMACs": "5.00"}
    assert shown["table 1"][0][1] == alone
    assert shown["table 1"][4][1] == alone | {
        "AP": "20.2",
        "AP50": "21.3",
        "people/s": "10.0",
        "GMACs": "7.00",
    }
    assert shown["table 5"][4][1] == {"AP": "40.4", "share": "49.0 %"}
    assert shown["table 7"][0][1] == {"AP": "41.5", "share": "50.0 %"}
    assert [shown["table 2"][0][1].keys(), shown["table 3"][0][1].keys()] == [
        {"AP", "share", "AP50", "GMACs"},
        {"AP", "share", "people/s", "GMACs"},
    ]


def test_our_numbers_stand_where_the_papers_networks_ran_on_its_data(tmp_path: Path) -> None:
    assert filled(evaluation(tmp_path / "run")) == OURS


def test_without_runs_nothing_is_ours() -> None:
    assert filled() == {}


def test_no_number_of_the_papers_is_ever_in_our_column(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path / "coco"),
        evaluation(tmp_path / "crowd", {DETECTOR: kind(crowdpose=True)}, split="test", theta=0.3),
        evaluation(tmp_path / "other", names={"large": "vitpose-l-192x256-2"}),
    ]
    invented = {f"{100 * ap:.1f}" for own in AP.values() for ap in (own, own + STORED)}
    assert set(filled(*runs).values()) <= invented
    table_1 = next(table for table in json.loads(PAPER.read_bytes())["tables"] if table["name"] == "table 1")
    assert not invented & {str(row[2]) for row in table_1["rows"]}


@pytest.mark.parametrize(
    "other",
    [
        {"names": {"small": "tinypose-192x256-1", "large": "tinypose-two-scale-192x256-2"}},
        {"names": {"small": "resnet50-288x384-1", "large": "hrnet-w32-288x384-2"}},
        {"names": {"small": "resnet50d-192x256-1", "large": "hrnet-w32x-192x256-2"}},
        {"split": "val"},
        {"split": "train2017"},
        {"limit": 100},
        {"flip_test": False},
        {"boxes": {"detector boxes from 0.35": kind()}},
        {"boxes": {"detector boxes from 0.051": kind()}},
        {"boxes": {"labelled boxes": kind()}},
        {"boxes": {DETECTOR: kind(crowdpose=True)}},
        {"boxes": {DETECTOR: kind(crowdpose=True)}, "split": "val"},
    ],
    ids=str,
)
def test_a_run_of_something_else_is_not_ours(tmp_path: Path, other: dict[str, Any]) -> None:
    assert filled(evaluation(tmp_path / "run", **other)) == {}


def test_boxes_from_0_up_are_the_papers_too(tmp_path: Path) -> None:
    assert filled(evaluation(tmp_path / "run", {"found.json boxes from 0": kind()})) == OURS


@pytest.mark.parametrize(
    ("switches", "row"),
    [
        ({"pooling": "none", "pconv": False, "sge": False}, 0),
        ({"pconv": False, "sge": False}, 1),
        ({"sge": False}, 2),
        ({"pconv": False}, 3),
    ],
)
def test_an_ablated_router_is_of_table_5_alone(tmp_path: Path, switches: dict[str, Any], row: int) -> None:
    config = RouterConfig(**switches).model_dump()
    assert filled(evaluation(tmp_path / "run", router_config=config)) == ALONE | {("table 5", row): "40.4"}


@pytest.mark.parametrize("switches", [{"pooling": "max"}, {"pooling": "none"}])
def test_a_router_that_the_paper_has_no_row_of_leaves_the_nets_alone(
    tmp_path: Path, switches: dict[str, Any]
) -> None:
    config = RouterConfig(**switches).model_dump()
    assert filled(evaluation(tmp_path / "run", router_config=config)) == ALONE


def test_the_released_router_is_the_whole_one_for_all_its_outputs(tmp_path: Path) -> None:
    config = RouterConfig(outputs=3, score_index=1).model_dump()
    assert filled(evaluation(tmp_path / "run", router_config=config)) == OURS


def test_of_several_floors_the_lowest_counts_wherever_the_boxes_come_from(tmp_path: Path) -> None:
    boxes = {
        "detector boxes from 0.35": kind(policies=("top",)),
        "/data/person detections.json boxes from 0.05": kind(),
        "labelled boxes": kind(policies=()),
    }
    assert filled(evaluation(tmp_path / "run", boxes)) == OURS


def test_another_router_than_the_papers_leaves_the_nets_alone(tmp_path: Path) -> None:
    assert filled(evaluation(tmp_path / "run", router="pose", router_config=None)) == ALONE


def test_without_the_band_the_nets_alone_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluation(tmp_path / "run", {DETECTOR: kind(policies=("top",), gains=False)})
    assert filled(run) == ALONE
    assert "not run" in report(monkeypatch, tmp_path / "out", run)


def test_stored_thresholds_fill_table_7_alone_and_those_of_the_boxes_the_others(tmp_path: Path) -> None:
    stored = {DETECTOR: kind(gains=False)}
    assert filled(evaluation(tmp_path / "stored", stored)) == ALONE | {("table 7", 0): "41.5"}
    own = evaluation(tmp_path / "own", {DETECTOR: kind(policies=())})
    assert filled(own) == {key: value for key, value in OURS.items() if key[0] != "table 7"}


def test_another_theta_counts_where_the_paper_has_it(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "run", theta=0.2)
    assert filled(run) == ALONE | {("table 6", 3): "40.4"}
    both = filled(run, evaluation(tmp_path / "usual"))
    assert both == OURS | {("table 6", 3): "40.4"}


def test_crowdpose_has_a_table_of_its_own(tmp_path: Path) -> None:
    boxes = {DETECTOR: kind(crowdpose=True)}
    usual = evaluation(tmp_path / "usual", boxes, split="test")
    alone_and_pair = {0: "10.1", 1: "30.3", 2: "40.4", 4: "20.2"}
    assert filled(usual) == {("table 4", index): own for index, own in alone_and_pair.items()}
    crowded = evaluation(tmp_path / "crowded", boxes, split="test", theta=0.3)
    assert filled(crowded) == {("table 4", 0): "10.1", ("table 4", 3): "50.5", ("table 4", 4): "20.2"}


def test_a_net_alone_may_be_the_large_one_of_a_run(tmp_path: Path) -> None:
    names = {"small": "mobilenetv2-192x256-1", "large": "resnet50-192x256-2"}
    found = filled(evaluation(tmp_path / "run", names=names))
    assert found == {("table 1", 0): "20.2", ("table 3", 0): "10.1", ("table 3", 2): "20.2"}


def test_pairs_of_the_other_tables_are_found(tmp_path: Path) -> None:
    names = {"small": "mobilenetv2-192x256-1", "large": "hrnet-w48-192x256-2"}
    found = filled(evaluation(tmp_path / "run", names=names))
    assert found == {
        ("table 2", 7): "40.4",
        ("table 3", 0): "10.1",
        ("table 3", 3): "20.2",
        ("table 3", 4): "40.4",
    }


def pictures_of(text: str) -> list[str]:
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)


def test_every_figure_of_the_report_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = {DETECTOR: kind(), "labelled boxes": kind(gains=False)}
    first = evaluation(tmp_path / "a" / "evaluation", boxes, memory={"small": 2**20, "routed": 3 * 2**20})
    Image.new("RGB", (30, 20), (1, 2, 3)).save(first / "people.png")
    second = evaluation(tmp_path / "b" / "evaluation", {DETECTOR: kind(people=20)})
    out = tmp_path / "out" / "deep"
    text = report(monkeypatch, out, first, second)
    files = pictures_of(text)
    assert sorted(files) == sorted(path.name for path in out.glob("*.png"))
    assert len(files) == len(set(files)) == (4 + 3 + 2) + 4
    for file in files:
        with Image.open(out / file) as picture:
            assert len(picture.convert("L").getcolors() or []) > (1 if "fig9" not in file else 0)
    captions = [caption.split(",")[0].split(":")[0] for caption in re.findall(r"!\[([^]]*)\]", text)]
    assert captions == [f"Figure {number}" for number in (1, 5, 6, 8, 1, 5, 8, 7, 9, 1, 5, 6, 8)]
    (strip,) = [file for file in files if "fig9" in file]
    assert (out / strip).read_bytes() == (first / "people.png").read_bytes()


def test_the_report_says_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(monkeypatch, tmp_path / "out", evaluation(tmp_path / "run", limit=50, flip_test=False))
    assert "## invented" in text
    assert f"small `{NETS['small']}`" in text
    assert "; split val2017, the first 50 pictures; without flip test; theta 0.1." in text
    assert (
        "\n2025-11-26, cpu (Abacus 3), float32, runtime eager, torch 2.0, batches of 32; data `coco`, detected boxes "
        "from 0.05, 0.35; stored thresholds of `night.json`.\n" in text
    )
    assert f"### {DETECTOR}: 200 people, 50 pictures, 300 boxes" in text
    assert "| small | 0.000 | 0.101 | 0.101-0.101 | 0.112 | 0.101 | 0.101 | 5.000 | 31.4 |" in text
    assert "| band, p = 0.5 | 0.500 | 0.415 |" in text
    assert "small net first at equal cost | p = 0.25 | p = 0.5 | p = 0.6 | p = 0.75 |" in text
    assert f"| {TOP} | 0.12 (0.08-0.25) | 0.25 (0.17-0.50) | 0.30 (0.20-0.60) | 0.38 (0.25-0.75) |" in text


def test_nets_that_are_alike_have_no_recovered_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alike = kind()
    for gain in alike["gains"]:
        gain |= {"gain": None, "low": None, "high": None}
    text = report(monkeypatch, tmp_path / "out", evaluation(tmp_path / "run", {DETECTOR: alike}))
    assert f"| {ORACLE} |{' large net no better |' * 4}" in text


def test_boxes_in_pictures_of_nobody_have_no_accuracy_to_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = kind()
    for entry in empty["rows"]:
        entry |= dict.fromkeys(("ap", "ap50", "ap75", "ar", "low", "high"))
    for gain in empty["gains"]:
        gain |= {"ap": None, "ap50": None, "gain": None, "low": None, "high": None}
    run = evaluation(tmp_path / "run", {DETECTOR: empty})
    text = report(monkeypatch, tmp_path / "out", run)
    assert "| small | 0.000 |  | - |" in text
    assert [file.rsplit("-", 1)[1] for file in pictures_of(text)] == ["fig5.png", "fig8.png"]
    assert filled(run) == {}


@pytest.mark.parametrize("scores", [[0.5], [0.5] * 40, [0.1, 0.9]])
def test_few_and_equal_scores_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float]
) -> None:
    few = kind(gains=False) | {"difficulty": scores, "belongs": ["person"] * len(scores)}
    text = report(monkeypatch, tmp_path / "out", evaluation(tmp_path / "run", {DETECTOR: few}))
    assert len(pictures_of(text)) == 3


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}"])
def test_a_folder_without_an_evaluation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "evaluation.json").write_text(content)
    report(monkeypatch, tmp_path / "out", folder, code=2)
    assert str(folder) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures that were drawn; they are not closed."""
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.pyplot.close", figures.append)
    return figures


@pytest.mark.parametrize("theta", [0.1, 0.3])
def test_figures_5_and_8_have_the_runs_theta(tmp_path: Path, drawn: list[Any], theta: float) -> None:
    found = kind()
    run = read_run(evaluation(tmp_path / "run", {DETECTOR: found}, theta=theta))
    split = thresholds(found["difficulty"], 0.5, theta)
    figures(run, tmp_path, "run")
    (fifth,) = [figure.axes[0] for figure in drawn if "eq. 7" in figure.axes[0].get_xlabel()]
    (eighth,) = [figure.axes[0] for figure in drawn if "k1 at" in figure.axes[0].get_ylabel()]
    assert f"theta = {theta:g}" in fifth.get_xlabel()
    assert fifth.texts[0].get_text() == f"k1 {split.k1:.3f}"
    assert eighth.get_ylabel() == f"k1 at theta {theta:g}, mean and deviation"
    level = next(line for line in eighth.lines if line.get_linestyle() == ":")
    assert list(level.get_ydata()) == pytest.approx([split.k1] * 2)


@pytest.mark.parametrize("fastest", ["small", "large, boxes from 0.1"])
@pytest.mark.parametrize("factor", [1, 30, 1000])
def test_names_stay_in_the_frame_and_axes_have_plain_numbers(
    tmp_path: Path, drawn: list[Any], factor: float, fastest: str
) -> None:
    """From a third apart to three decades."""
    wide = kind()
    for entry in wide["rows"]:
        if entry["name"] == fastest:
            entry["people_per_s"] = 35.0 * factor
    speed(wide, tmp_path / "figure.png")
    (figure,) = drawn
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    assert len(axes.texts) == len(wide["rows"])
    for text in axes.texts:
        box = text.get_window_extent()
        assert frame.x0 < box.x0 < box.x1 < frame.x1
        assert frame.y0 < box.y0 < box.y1 < frame.y1
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    labels = [axes.xaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(ticks) >= 3
    assert all(re.fullmatch(r"\d+(\.\d+)?", label) for label in labels), labels
    assert [float(label) for label in labels] == pytest.approx(ticks)
    assert not list(axes.xaxis.get_minorticklocs())
