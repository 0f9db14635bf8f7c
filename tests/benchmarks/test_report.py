import json
from pathlib import Path

import pytest

from benchmarks.records import Record, Records, select, set_aside
from benchmarks.report import write_report
from benchmarks.verdicts import mix, ratio, verdicts
from tests.benchmarks.measured import RUN, cell, everything, scaling


def write(folder: Path, bench: list[Record], scales: list[Record]) -> str:
    for name, rows in (("bench", bench), ("scaling", scales)):
        records = Records(folder / f"{name}.jsonl")
        for row in rows:
            records.add(row)
    write_report(folder, folder / "RESULTS.md")
    return (folder / "RESULTS.md").read_text()


def test_the_report_has_every_experiment_and_its_plots_are_small(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = write(tmp_path, everything(), scaling())
    titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("## ")]
    assert [title.split(":")[0].split(",")[0] for title in titles] == [
        "Targets",
        "Contenders",
        "Closed loop",
        "Alternating rounds",
        "The nets alone",
        "Open loop",
        "Overload",
        "Accuracy against speed",
        "Soak",
        "How to read this",
        "Scaling",
    ]
    assert "| litserve | LitServe | skipped: needs the package litserve |" in text
    plots = sorted(tmp_path.glob("plots/*.png"))
    assert [plot.stem for plot in plots] == ["accuracy", "latency", "scaling"]
    assert all(f"plots/{plot.name}" in text for plot in plots)
    assert sum(plot.stat().st_size for plot in plots) < 150_000


def test_a_run_that_was_cut_off_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = write(tmp_path, [RUN, cell("grid", "service", 60.0)], [])
    assert "| service | 0.5 | 8 | 20.0 | 60.0 |" in text
    assert "Overload" not in text


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    assert "nothing was measured yet" in write_report(tmp_path, tmp_path / "RESULTS.md")
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    rows = [
        cell("rounds", name, speed, round=turn)
        for turn, speeds in enumerate([(10, 10), (10, 20), (30, 40), (5, None)])
        for name, speed in zip(("service", "bound"), speeds, strict=True)
        if speed is not None
    ]
    assert ratio(rows, "rounds", ("service", 0.5), ("bound", 0.5)) == 0.75
    assert ratio(rows, "rounds", ("service", 0.5), ("naive", 1.0)) is None


def test_the_cost_at_half_is_held_against_the_mean_of_the_costs_at_both_ends() -> None:
    rows = [cell("rounds", "service", 1 / cost, p=p, round=0) for p, cost in ((0.0, 1), (0.5, 2.2), (1.0, 3))]
    assert mix(rows) == pytest.approx(1.1)


def test_targets_are_judged_by_the_figures() -> None:
    met = {verdict.target: verdict.met for verdict in verdicts(everything())}
    assert met == {
        "people/s at p = 0.5: at least 0.90 of the bound (aim 0.95)": True,
        "people/s at p = 0.5: at least 6 times the naive service's": True,
        "people/s at p = 1: at least 3 times the naive service's": True,
        "service at p = 0.5: within 5 % of the mean of its costs a person at p = 0 and p = 1": True,
        "routed pair at p = 0.5: within 5 % of p T_large + (1 - p) T_small + T_router": True,
        "router: at most 10 % of the large net's time (aim 5 %)": True,
        "one client at p = 1: at most 2 ms above the sum of the stages' own run times (p50)": True,
        "p95 at p = 0.5 below the naive service's at every number of clients": True,
        "p95 at p = 1 below the naive service's at every number of clients": True,
        "p99 below litserve's at the same arrivals, in shares of it": True,
        "twice the sustainable load: goodput at least 0.95 of the peak (the same pictures in the closed loop)": True,
        "refused answers within 10 ms (p99)": False,
        "memory flat under overload (within 3 %)": True,
        "ready within 10 s on the second start": True,
        "resident memory under 1.5 GB": True,
        "100 requests without growth over 3 %": False,
    }


def test_a_slower_service_misses_its_targets() -> None:
    rows = [
        row | {what: row[what] / 4 for what in ("people_per_s", "images_per_s")}
        if row.get("contender") == "service" and "p50_ms" in row
        else row
        for row in everything()
    ]
    missed = [verdict.target for verdict in verdicts(rows) if not verdict.met]
    assert sum(target.startswith("people/s at p") for target in missed) == 3
    assert "p99 below litserve's at the same arrivals, in shares of it" in missed


def test_records_are_read_back_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records = Records(path)
    records.add({"experiment": "grid", "contender": "service", "p": 0.5, "clients": 8})
    with path.open("a") as file:
        file.write(json.dumps({"experiment": "grid", "contender": "bound"})[:-4])
    again = Records(path)
    assert len(select(again, experiment="grid")) == 1
    assert again.has(experiment="grid", contender="service", p=0.5, clients=8)
    assert not again.has(experiment="grid", contender="service", p=0.5, clients=1)
    assert not again.has(experiment="grid", contender="service")
    again.add({"experiment": "end"})
    assert [row["experiment"] for row in Records(path)] == ["grid", "end"]


@pytest.mark.parametrize(
    ("row", "command", "kept"),
    [
        (cell("grid", "service", 60.0), "bench DATA", True),
        ({"experiment": "run", "command": "bench DATA --soak 9"}, "bench DATA", True),
        (cell("grid", "service", 60.0), "bench DATA --seconds 2", False),
        ({"experiment": "end"}, "bench DATA", False),
    ],
)
def test_records_at_their_end_or_of_another_command_are_set_aside(
    tmp_path: Path, row: Record, command: str, kept: bool
) -> None:
    path = tmp_path / "records.jsonl"
    set_aside(path, command)
    Records(path).add({"experiment": "run", "command": "bench DATA"})
    Records(path).add(row)
    set_aside(path, command)
    assert [len(Records(each).rows) for each in tmp_path.iterdir()] == [2]
    assert path.exists() == kept
