"""What a training run came to, as a picture beside its log."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, each a JSON object."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot_curve(rows: Sequence[dict[str, Any]], x: str, values: Sequence[str], file: Path) -> None:
    """Each of `values` over `x`, as far as the rows have them, in a panel of its own."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(values), squeeze=False, sharex=True, figsize=(6, 2.2 * len(values)), layout="constrained"
    )
    for axes, value in zip(panels[:, 0], values, strict=True):
        having = [row for row in rows if value in row]
        axes.plot([row[x] for row in having], [row[value] for row in having], "o-", markersize=3)
        axes.set(ylabel=value.replace("_", " "))
        axes.grid(alpha=0.3)
    panels[-1, 0].set(xlabel=x)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_gains(
    rows: Sequence[dict[str, Any]], boxes: Sequence[str], shares: Sequence[float], file: Path
) -> None:
    """The lines of `training.router`: recovered gain of every rule over the share, a panel for each kind of boxes and
    people."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(boxes),
        len(rows),
        squeeze=False,
        figsize=(4.5 * len(rows), 3.5 * len(boxes)),
        layout="constrained",
    )
    for line, kind in zip(panels, boxes, strict=True):
        for axes, row in zip(line, rows, strict=True):
            for name, gains in row.items():
                if name.startswith(f"{kind}_") and isinstance(gains, list):
                    axes.plot([0, *shares, 1], [0, *gains, 1], "o-", label=name.removeprefix(f"{kind}_"))
            axes.plot([0, 1], [0, 1], color="lightgrey", label="random")
            axes.set(title=f"{kind} boxes, people {row['people']}", xlabel="p", ylabel="recovered gain in AR")
            axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)
    plt.close(figure)
