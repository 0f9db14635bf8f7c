"""The paper's figures for one evaluation run, as PNGs; `calibration.report` says which."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.rules import BAND, ORACLE, RANDOM, TOP
from calibration.runs import Run
from calibration.thresholds import thresholds
from calibration.thresholds.report import SIZES, spread
from models.defaults import P


def figures(run: Run, out: Path, prefix: str) -> list[tuple[str, Path]]:
    """Draw everything that the run has data for; caption and file of each. prefix: of the files' names."""
    import matplotlib as mpl

    mpl.use("Agg")
    theta = run.content["theta"]
    drawn: list[tuple[str, Path]] = []
    for number, (title, kind) in enumerate(run.content["boxes"].items(), 1):
        stem = f"{prefix}-{number}"
        if kind["rows"][0]["ap"] is not None:  # somebody is labelled
            drawn.append((f"Figure 1, {title}: AP against people/s", speed(kind, out / f"{stem}-fig1.png")))
        drawn.append((f"Figure 5, {title}: scores and bands", bands(kind, theta, out / f"{stem}-fig5.png")))
        if kind["gains"] and kind["rows"][0]["ap"] is not None:
            drawn.append((f"Figure 6, {title}: AP against share", shares(kind, out / f"{stem}-fig6.png")))
        drawn.append(
            (f"Figure 8, {title}: k1 against sample size", samples(kind, theta, out / f"{stem}-fig8.png"))
        )
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


def bands(kind: dict[str, Any], theta: float, file: Path) -> Path:
    import matplotlib.pyplot as plt

    scores = np.array(kind["difficulty"])
    belongs = np.array(kind["belongs"])
    names = [name for name in ("person", "nobody", "crowd") if (belongs == name).any()]
    figure, axes = plt.subplots(figsize=(6, 4))
    axes.hist([scores[belongs == name] for name in names], bins=60, stacked=True, label=names)
    split = thresholds(scores, P, theta)
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
    axes.set(xlabel=f"difficulty s; eq. 7 and 8 at p = {P:g}, theta = {theta:g}", ylabel="boxes")
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


def samples(kind: dict[str, Any], theta: float, file: Path) -> Path:
    import matplotlib.pyplot as plt

    scores = np.array(kind["difficulty"])
    sizes = [*(size for size in SIZES if size < len(scores)), len(scores)]
    spreads = [spread(scores, size, theta) for size in sizes]
    figure, axes = plt.subplots(figsize=(6, 4))
    means, deviations = [s.mean for s in spreads], [s.deviation for s in spreads]
    axes.errorbar(sizes, means, yerr=deviations, fmt="o-", capsize=3)
    axes.axhline(thresholds(scores, P, theta).k1, color="black", linestyle=":")
    axes.set(
        xlabel=f"people in the sample, of {len(scores)}", ylabel=f"k1 at theta {theta:g}, mean and deviation"
    )
    _plain_log(axes, sizes)
    return _save(figure, file)
