"""What a router is worth on people it has not seen: recovered gain against p, as numbers and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.defaults import THETA

Array = NDArray[np.float64]
Order = NDArray[np.int64]

SHARES = tuple(round(0.05 * step, 2) for step in range(1, 20))
BOOTSTRAPS = 200


def top(scores: Array) -> Order:
    """Who goes to the large net first under policy `top`: the highest score."""
    return np.argsort(-scores, kind="stable")


def band(scores: Array) -> Order:
    """The same under `band`, eq. 7 and 8: from k1 upwards and, where these run out, from k1 downwards."""
    ranked = np.argsort(scores, kind="stable")
    easy = int((scores <= scores.min() + THETA * (scores.max() - scores.min())).sum())
    return np.concatenate([ranked[easy:], ranked[:easy][::-1]])


def recovered_gain(order: Order, gain: Array, shares: Sequence[float] = SHARES) -> list[float | None]:
    """Share of the large net's gain in mean OKS that is had when the first n p people of `order` go to it; None where
    the large net gains nothing.

    gain: (N,) OKS of the large net minus that of the small one.
    """
    total = float(gain.sum())
    had = np.concatenate([[0.0], gain[order].cumsum()])
    return [round(float(had[round(len(order) * p)]) / total, 3) if total > 0 else None for p in shares]


def interval(policy: str, scores: Array, gain: Array, shares: Sequence[float]) -> list[list[float | None]]:
    """95 % bootstrap interval over people of the recovered gain at `shares`."""
    choose = {"top": top, "band": band}[policy]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(BOOTSTRAPS):
        rows = rng.integers(0, len(scores), len(scores))
        values = recovered_gain(choose(scores[rows]), gain[rows], shares)
        draws.append([math.nan if value is None else value for value in values])
    if np.isnan(draws).all():
        return [[None, None] for _ in shares]
    low, high = np.nanpercentile(draws, (2.5, 97.5), axis=0)
    return [[round(float(a), 3), round(float(b), 3)] for a, b in zip(low, high, strict=True)]


def below(values: Array, others: Array) -> Array:
    """(N,) how many of the others lie below each value; equal ones count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2


def rank_correlation(values: Array, others: Array) -> float:
    """Spearman's, of two (N,); NaN where either is the same for all."""
    first, second = below(values, values), below(others, others)
    varied = len(np.unique(first)) > 1 and len(np.unique(second)) > 1
    return float(np.corrcoef(first, second)[0, 1]) if varied else math.nan


def validate(scores: Array, gain: Array, height: Array, wrong: Array) -> dict[str, Any]:
    """On held-back people's own boxes: recovered gain at SHARES by the router's two policies and by free rules, their
    intervals at INTERVALS, the rank correlation of score and gain, and the AUC of wrong against right boxes.

    scores, gain, height: (N,) of people. wrong: (M,) scores of wrong boxes, M may be 0.
    """
    return {
        "p": list(SHARES),
        "top": recovered_gain(top(scores), gain),
        "band": recovered_gain(band(scores), gain),
        "biggest_box": recovered_gain(top(height), gain),
        "oracle": recovered_gain(top(gain), gain),
        "interval_p": list(INTERVALS),
        "top_interval": interval("top", scores, gain, INTERVALS),
        "band_interval": interval("band", scores, gain, INTERVALS),
        "correlation": _finite(rank_correlation(scores, gain)),
        "auc_wrong_box": _finite((wrong[:, None] > scores[None]).mean()) if len(wrong) else None,
        "spread": [round(float(v), 4) for v in np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])],
        "people": len(gain),
    }


INTERVALS = (0.25, 0.5, 0.75)


def _finite(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The last line of `validate` as a PNG, with the earlier epochs' `top` faint behind it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    last = lines[-1]
    for line in lines[:-1]:
        axes.plot(line["p"], _numbers(line["top"]), color="C0", alpha=0.2, linewidth=1)
    axes.plot(last["p"], _numbers(last["top"]), color="C0", label="router, `top`")
    axes.plot(last["p"], _numbers(last["band"]), color="C1", label="router, `band`")
    for name, color in (("top", "C0"), ("band", "C1")):
        pairs = [_numbers(pair) for pair in last[f"{name}_interval"]]
        middle = [last[name][last["p"].index(p)] for p in last["interval_p"]]
        below, above = zip(
            *((m - low, high - m) for m, (low, high) in zip(_numbers(middle), pairs, strict=True)),
            strict=True,
        )
        bars = np.maximum([below, above], 0)
        axes.errorbar(
            last["interval_p"], _numbers(middle), bars, fmt="none", ecolor=color, capsize=3, alpha=0.6
        )
    axes.plot(last["p"], _numbers(last["biggest_box"]), color="C2", linestyle=":", label="biggest box")
    axes.plot(last["p"], _numbers(last["oracle"]), color="grey", linestyle="--", label="oracle")
    axes.plot([0, 1], [0, 1], color="lightgrey", label="random")
    axes.set_xlabel("p: share of people for the large net")
    axes.set_ylabel("recovered gain in mean OKS")
    axes.set_title(f"{last['people']} held-back people, epoch {last['epoch']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
