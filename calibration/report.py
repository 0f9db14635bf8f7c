"""The paper's figures and tables for evaluation runs.

    python -m calibration.report RUN [RUN ...] [--out runs/report]

RUN: a folder that `calibration.evaluate` wrote. Writes PNGs and report.md:

- figure 1: AP against people/s; figure 5: the scores with the three bands; figure 6: AP against the share sent, for the
  router, random choice and the oracle; figure 7: peak memory; figure 8: k1 against the size of the sample; figure 9:
  people in the order of their difficulty with both nets' skeletons (where the run has it);
- tables 1 to 7 with the paper's numbers in columns of their own. Ours are filled only from the runs given, by the same
  networks with the flip test on the same whole data set (COCO val2017, CrowdPose test), with a detector's boxes from a
  score of 0.05 or less up, routed by a router of the paper's architecture (table 5: with the row's switches) under
  policy `band` with the row's theta and thresholds from the measured boxes (table 7: from the calibration file); they
  say `not run` otherwise. GMACs there are of one pass, as the paper counts; people/s are with the flip test.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calibration.figures import figures
from calibration.paper_tables import tables
from calibration.runs import Run, read_run


def run_table(run: Run) -> Iterator[str]:
    """What was measured, in Markdown."""
    names = run.content["names"]
    yield f"## {run.title}"
    yield ""
    networks = ", ".join(f"{role} `{name}`" for role, name in names.items() if role != "pair")
    limit, flip = run.content["limit"], run.content["flip_test"]
    yield (
        f"{networks}; split {run.content['split']}{'' if limit is None else f', the first {limit} pictures'};"
        f" {'with' if flip else 'without'} flip test; theta {run.content['theta']:g}."
    )
    yield ""
    yield conditions_line(run.content["conditions"])
    for title, kind in run.content["boxes"].items():
        yield ""
        yield f"### {title}: {kind['people']} people, {kind['images']} pictures, {kind['boxes']} boxes"
        yield ""
        yield "| | share | AP | 95 % | AP50 | AP75 | AR | GMACs | people/s |"
        yield "|" + " --- |" * 9
        for r in kind["rows"]:
            name = r["name"] if r["p"] is None else f"{r['name']}, p = {r['p']:g}"
            low, high = number(r["low"]), number(r["high"])
            figures = [number(r[key]) for key in ("ap50", "ap75", "ar")]
            cells = [name, number(r["share"]), number(r["ap"]), f"{low}-{high}", *figures]
            cells += [number(r["macs"] / 1e9), number(r["people_per_s"], 1)]
            yield "| " + " | ".join(cells) + " |"
        if kind["gains"]:
            yield ""
            yield from gain_rows(kind["gains"])


def conditions_line(given: dict[str, Any]) -> str:
    """What `calibration.inputs.conditions` wrote."""
    floors = ", ".join(f"{floor:g}" for floor in given["min_score"])
    stored = given["calibration"]
    return (
        f"{given['date']}, {given['device']} ({given['processor']}), {given['precision']}, runtime {given['runtime']},"
        f" torch {given['torch']}, batches of {given['batch']}; data `{given['data']}`, detected boxes from {floors};"
        f" {f'stored thresholds of `{stored}`' if stored else 'no stored thresholds'}."
    )


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gain_rows(gains: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Recovered gain by rule, one column a p."""
    columns = sorted({row["p"] for row in gains})
    heads = [
        "recovered gain, rules that run the small net first at equal cost",
        *(f"p = {p:g}" for p in columns),
    ]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * (len(columns) + 1)
    for rule in dict.fromkeys(row["rule"] for row in gains):
        cells = [row for row in gains if row["rule"] == rule]
        shown = [
            "large net no better"
            if c["gain"] is None
            else f"{c['gain']:.2f} ({number(c['low'], 2)}-{number(c['high'], 2)})"
            for c in sorted(cells, key=lambda c: c["p"])
        ]
        yield f"| {rule} | " + " | ".join(shown) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of calibration.evaluate")
    parser.add_argument("--out", type=Path, default=Path("runs/report"))
    options = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in options.runs]
    except (OSError, ValueError) as error:
        print(f"no evaluation to report: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ["# Report", ""]
    for number, run in enumerate(runs, 1):
        lines += [*run_table(run), ""]
        for caption, file in figures(run, options.out, f"run{number}"):
            lines += [f"![{caption}]({file.name})", "", caption, ""]
    lines += ["## The paper's tables", "", *tables(runs)]
    (options.out / "report.md").write_text("\n".join(lines) + "\n")
    print(f"report: {options.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
