"""The plots of the report, small PNG files."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record, best_speed, by_arrivals, select

SIZE = (7.0, 3.6)
DPI = 80


def draw(rows: Sequence[Record], scaling: Sequence[Record], folder: Path) -> dict[str, str]:
    """Write what there are records for into `folder`. Returns name -> what is to be seen, for those written."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = {}
    if select(rows, experiment="open"):
        _save(_latency(rows), folder / "latency.png")
        drawn["latency"] = "p99 latency against arrivals, for each server"
    if select(rows, experiment="accuracy"):
        _save(_accuracy(rows), folder / "accuracy.png")
        drawn["accuracy"] = "AP against people/s"
    if any(row["experiment"].startswith("scaling") for row in scaling):
        _save(_scaling(scaling), folder / "scaling.png")
        drawn["scaling"] = "people/s and memory against clients, people a picture and megapixels"
    return drawn


def _figure(columns: int = 1, height: float = SIZE[1]) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(
        1, columns, figsize=(SIZE[0] if columns == 1 else 10, height), layout="constrained"
    )


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _latency(rows: Sequence[Record]) -> Any:
    figure, axes = _figure()
    cells = by_arrivals(rows)
    for name in dict.fromkeys(name for contenders in cells.values() for name in contenders):
        rates = [rate for rate, contenders in cells.items() if name in contenders]
        p99 = [[row["p99_ms"] for row in cells[rate][name]] for rate in rates]
        middle = [statistics.median(each) for each in p99]
        spread = [
            [most - min(each) for most, each in zip(middle, p99, strict=True)],
            [max(each) - least for least, each in zip(middle, p99, strict=True)],
        ]
        axes.errorbar(rates, middle, yerr=spread, fmt="o-", capsize=2, label=name)
    axes.set(xlabel="pictures/s, constant arrivals", ylabel="p99, ms (median and range)", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _accuracy(rows: Sequence[Record]) -> Any:
    figure, axes = _figure()
    cells = select(rows, experiment="accuracy")
    for name in dict.fromkeys(row["contender"] for row in cells):
        points = []
        for row in select(cells, contender=name):
            speed = best_speed(rows, row)
            if speed is not None:
                points.append((speed, row))
        if not points:
            continue
        speeds, own = zip(*points, strict=True)
        spread = [[row["ap"] - row["low"] for row in own], [row["high"] - row["ap"] for row in own]]
        axes.errorbar(speeds, [row["ap"] for row in own], yerr=spread, fmt="o-", capsize=2, label=name)
        for speed, row in points:
            if row["p"] is not None:
                axes.annotate(
                    f"p = {row['p']:g}",
                    (speed, row["ap"]),
                    xytext=(4, 5),
                    textcoords="offset points",
                    fontsize=8,
                )
    axes.set(xlabel="people/s", ylabel="AP (95 % interval over pictures)")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _scaling(rows: Sequence[Record]) -> Any:
    figure, all_axes = _figure(3, 3.0)
    for axes, name in zip(all_axes, ("clients", "people", "megapixels"), strict=True):
        cells = select(rows, experiment=f"scaling {name}")
        along = [row[name] for row in cells]
        axes.plot(along, [row["people_per_s"] for row in cells], "o-", color="C0")
        axes.set(xlabel="people a picture" if name == "people" else name, ylabel="people/s", ylim=(0, None))
        axes.set_xscale("log")
        axes.yaxis.label.set_color("C0")
        memory = axes.twinx()
        memory.plot(along, [row["peak_mib"] for row in cells], "s--", color="C1")
        memory.set(ylabel="MiB", ylim=(0, None))
        memory.yaxis.label.set_color("C1")
        axes.grid(alpha=0.3)
    return figure
