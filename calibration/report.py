"""The paper's figures and tables for evaluation runs.

    python -m calibration.report RUN [RUN ...] [--out runs/report]

RUN: a folder that `calibration.evaluate` wrote. Writes PNGs and report.md:

- figure 1: AP against people/s; figure 5: the scores with the three bands; figure 6: AP against the share sent, for the
  router, random choice and the oracle; figure 7: peak memory; figure 8: k1 against the size of the sample; figure 9:
  people in the order of their difficulty with both nets' skeletons (where the run has it);
- tables 1 to 7 with the paper's numbers in columns of their own. Ours is filled only from the runs given, by the same
  networks on the same whole data set (COCO val2017, CrowdPose test) with detected boxes, routed by a router of the
  paper's architecture under policy `band` with the row's theta; it says `not run` otherwise.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.rules import BAND, ORACLE, RANDOM, TOP
from calibration.thresholds import thresholds
from models.defaults import ROUTER_SIZE, THETA, P

PAPER = Path(__file__).with_name("paper.json")

NETWORKS = {
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "ResNet-152": "resnet152",
    "MobileNetV2": "mobilenetv2",
    "ShuffleNetV2": "shufflenetv2",
    "HRNet-W32": "hrnet-w32",
    "HRNet-W48": "hrnet-w48",
    "Swin-L": "swin-l",
    "ViTPose-L": "vitpose-l",
}
SHORT = {
    "R50": "ResNet-50",
    "R101": "ResNet-101",
    "R152": "ResNet-152",
    "M2": "MobileNetV2",
    "H32": "HRNet-W32",
    "H48": "HRNet-W48",
    "SL": "Swin-L",
    "VL": "ViTPose-L",
}
SIZE = "x".join(map(str, ROUTER_SIZE))
"""Of the crops of all the paper's networks."""
CROWDED_THETA = 0.3
"""Of table 4's row at p = 60 %."""
SAMPLES = (25, 50, 100, 200, 400, 800, 1600)
RESAMPLES = 200


@dataclass(frozen=True)
class Run:
    """One folder of `calibration.evaluate`."""

    folder: Path
    content: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.content["names"]["pair"])

    def has(self, role: str, network: str) -> bool:
        """Whether the small or large net is the paper's of that name."""
        return str(self.content["names"][role]).startswith(f"{NETWORKS[network]}-{SIZE}-")

    @property
    def paper_boxes(self) -> dict[str, Any] | None:
        """The kind of boxes that the paper measures on: detected, down to the lowest score."""
        kinds = [title for title in self.content["boxes"] if " boxes from " in title]
        return self.content["boxes"][min(kinds, key=lambda t: float(t.rsplit(" ", 1)[1]))] if kinds else None


def read_run(folder: Path) -> Run:
    """Raises OSError or ValueError when there is no evaluation in the folder."""
    file = folder / "evaluation.json"
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    needed = {"names", "router", "split", "limit", "flip_test", "theta", "boxes"}
    missing = needed - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise ValueError(f"{file} has no {', '.join(sorted(missing))}")
    return Run(folder, content)


def figures(run: Run, out: Path, prefix: str) -> list[tuple[str, Path]]:
    """Draw everything that the run has data for; caption and file of each. prefix: of the files' names."""
    import matplotlib as mpl

    mpl.use("Agg")
    drawn: list[tuple[str, Path]] = []
    for number, (title, kind) in enumerate(run.content["boxes"].items(), 1):
        stem = f"{prefix}-{number}"
        if kind["rows"][0]["ap"] is not None:  # somebody is labelled
            drawn.append((f"Figure 1, {title}: AP against people/s", speed(kind, out / f"{stem}-fig1.png")))
        drawn.append((f"Figure 5, {title}: scores and bands", bands(kind, out / f"{stem}-fig5.png")))
        if kind["gains"] and kind["rows"][0]["ap"] is not None:
            drawn.append((f"Figure 6, {title}: AP against share", shares(kind, out / f"{stem}-fig6.png")))
        drawn.append((f"Figure 8, {title}: k1 against sample size", samples(kind, out / f"{stem}-fig8.png")))
    if "memory" in run.content:
        file = out / f"{prefix}-fig7.png"
        drawn.append(("Figure 7: peak memory", memory(run.content["memory"], file)))
    strip = run.folder / "people.png"
    if strip.exists():
        file = out / f"{prefix}-fig9.png"
        shutil.copyfile(strip, file)
        drawn.append(("Figure 9: people from easy to hard, small net above, large net below", file))
    return drawn


def _plain_log(axes: Any, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic x axis with plain numbers, by default some round ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    wide = high > 10 * low
    locator = FixedLocator(ticks) if ticks else LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _save(figure: Any, file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file


def speed(kind: dict[str, Any], file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in kind["rows"]:
        groups.setdefault("one net" if row["p"] is None else row["name"], []).append(row)
    for name, rows in groups.items():
        style = "ks" if name == "one net" else "o-"
        axes.plot([r["people_per_s"] for r in rows], [100 * r["ap"] for r in rows], style, label=name)
    axes.margins(x=0.12, y=0.15)  # room for the names
    axes.set(xlabel="people/s, boxes given", ylabel="AP")
    _plain_log(axes)
    low, high = axes.get_xlim()
    for r in kind["rows"]:
        label = r["name"] if r["p"] is None else f"{100 * r['share']:.0f} %"
        left = r["people_per_s"] ** 2 < low * high  # of the middle; names grow inwards
        axes.annotate(
            label,
            (r["people_per_s"], 100 * r["ap"]),
            textcoords="offset points",
            xytext=(
                4 if left else -4,
                -12 if r["name"] == "top" else 4,
            ),  # the policies' points lie close together
            ha="left" if left else "right",
        )
    axes.legend()
    return _save(figure, file)


def bands(kind: dict[str, Any], file: Path) -> Path:
    import matplotlib.pyplot as plt

    scores = np.array(kind["difficulty"])
    belongs = np.array(kind["belongs"])
    names = [name for name in ("person", "nobody", "crowd") if (belongs == name).any()]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.hist([scores[belongs == name] for name in names], bins=60, stacked=True, label=names)
    split = thresholds(scores, P, THETA)
    for value, name in ((split.k1, "k1"), (split.k2, "k2")):
        if math.isfinite(value):
            axes.axvline(value, color="black", linestyle="--")
            axes.annotate(
                f"{name} {value:.3f}",
                (value, axes.get_ylim()[1]),
                textcoords="offset points",
                xytext=(2, -4),
                rotation=90,
                va="top",
            )
    axes.set(xlabel=f"difficulty s; eq. 7 and 8 at p = {P:g}", ylabel="boxes")
    axes.legend()
    return _save(figure, file)


def shares(kind: dict[str, Any], file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    ends = {row["name"]: row["ap"] for row in kind["rows"] if row["p"] is None}
    for rule in (TOP, BAND, RANDOM, ORACLE):
        rows = [row for row in kind["gains"] if row["rule"] == rule]
        x = [0.0, *(row["share"] for row in rows), 1.0]
        y = [ends["small"], *(row["ap"] for row in rows), ends["large"]]
        axes.plot(x, [100 * value for value in y], "o-", label=rule)
    axes.set(xlabel="share of people sent to the large net", ylabel="AP")
    axes.legend()
    return _save(figure, file)


def memory(usage: dict[str, int], file: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 4))
    bars = axes.bar(list(usage), [value / 2**20 for value in usage.values()])
    axes.bar_label(bars, fmt="%.0f")
    axes.set(ylabel="MiB above an idle process")
    return _save(figure, file)


def samples(kind: dict[str, Any], file: Path) -> Path:
    import matplotlib.pyplot as plt

    scores = np.array(kind["difficulty"])
    random = np.random.default_rng(0)
    sizes = [size for size in SAMPLES if size <= len(scores)] or [len(scores)]
    drawn = [[thresholds(random.choice(scores, n), P, THETA).k1 for _ in range(RESAMPLES)] for n in sizes]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.errorbar(sizes, [np.mean(d) for d in drawn], yerr=[np.std(d) for d in drawn], fmt="o-", capsize=3)
    axes.axhline(thresholds(scores, P, THETA).k1, color="black", linestyle=":")
    axes.set(xlabel=f"people in the sample, of {len(scores)}", ylabel="k1, mean and deviation")
    _plain_log(axes, sizes)
    return _save(figure, file)


def find_row(
    runs: Sequence[Run], small: str | None, large: str | None, p: float | None, theta: float, crowdpose: bool
) -> dict[str, Any] | None:
    """The run's row of these networks of the paper on its data set, with the detector's boxes; policy `band`."""
    for run in runs:
        kind = run.paper_boxes
        if kind is None or run.content["limit"] is not None:
            continue
        is_crowdpose = any(row["easy"] is not None for row in kind["rows"])
        if is_crowdpose != crowdpose or run.content["split"] != ("test" if crowdpose else "val2017"):
            continue
        if p is not None and (run.content["router"], run.content["theta"]) != ("dynpose", theta):
            continue
        if (small is None or run.has("small", small)) and (large is None or run.has("large", large)):
            name = "band" if p is not None else "small" if small is not None else "large"
            for row in kind["rows"]:
                if row["name"] == name and row["p"] == p and row["ap"] is not None:
                    return dict(row)
    return None


def networks_of(table: str, row: dict[str, Any]) -> tuple[str | None, str | None, float | None] | None:
    """(small, large, p) of a paper's row, one net and None for a net alone; None where this project has no such row."""
    if table == "table 3":
        both = row["small"] is not None and row["large"] is not None
        return row["small"], row["large"], 0.5 if both else None
    model = str(row.get("model") or row.get("method") or "Dyn-R50-H32/50")  # tables 5 and 6 have one pair
    if not model.startswith("Dyn-"):
        return (model, None, None) if model in NETWORKS else None
    pair, _, percent = model.removeprefix("Dyn-").partition("/")
    small, large = pair.split("-")
    return SHORT[small], SHORT[large], int(percent or 50) / 100


def ours(table: str, row: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any] | None:
    """Our row for a paper's row, if a run has it."""
    wanted = networks_of(table, row)
    ablated = table == "table 5" and not all(row[part] for part in ("pooling", "pconv", "sge"))
    if wanted is None or ablated or row.get("set") == "test-dev":
        return None
    small, large, p = wanted
    crowdpose = table == "table 4"
    theta = row.get("theta", CROWDED_THETA if crowdpose and p == 0.6 else THETA)
    found = find_row(runs, small, large, p, theta, crowdpose)
    if found is None and p is None and large is None:  # a net alone may be the large one of a run
        found = find_row(runs, None, small, None, theta, crowdpose)
    return found


def tables(runs: Sequence[Run]) -> Iterator[str]:
    """Markdown, line by line."""
    for table in json.loads(PAPER.read_bytes())["tables"]:
        columns = table["columns"]
        yield f"### {table['name'].capitalize()}: {table['caption']}"
        yield ""
        yield (
            "| "
            + " | ".join(f"{name} (paper)" if name == "AP" else name for name in columns)
            + " | AP (ours) |"
        )
        yield "|" + " --- |" * (len(columns) + 1)
        for values in table["rows"]:
            row = dict(zip(columns, values, strict=True))
            found = ours(table["name"], row, runs)
            shown = "not run" if found is None else f"{100 * found['ap']:.1f}"
            yield "| " + " | ".join("" if v is None else str(v) for v in values) + f" | {shown} |"
        yield ""
        yield from (f"- {note}" for note in table["notes"])
        yield ""


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


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gain_rows(gains: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Recovered gain by rule, one column a p."""
    columns = sorted({row["p"] for row in gains})
    yield "| recovered gain at equal cost | " + " | ".join(f"p = {p:g}" for p in columns) + " |"
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
