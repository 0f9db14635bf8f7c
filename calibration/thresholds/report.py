"""What a sample of difficulties says about the thresholds: k1's spread by sample size (fig. 8), shares, warnings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration.thresholds import Scores, floor_share, thresholds
from calibration.thresholds.split import split_for

RESAMPLES = 200
SIZES = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
TIES = 0.03
"""A share this far from the one asked for is worth a warning."""

BINS = 20


@dataclass(frozen=True)
class Spread:
    """k1 over resamples of one size: mean and standard deviation."""

    people: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Share:
    """What p becomes on the sample itself. k2 None: eq. 8 runs past the highest score. share: between k1 and k2.
    lowered: too few lie above k1, so that the service lowers it. top_k1, top_share: of policy `top`, without k2."""

    p: float
    k1: float
    k2: float | None
    share: float
    lowered: bool
    top_k1: float | None
    top_share: float


@dataclass(frozen=True)
class Report:
    people: int
    theta: float
    k1: float
    spreads: list[Spread]
    shares: list[Share]
    histogram: list[tuple[float, int]]
    """Left edge of each bin and the people in it."""
    warnings: list[str]

    def numbers(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return asdict(self)


def report(scores: Scores, theta: float, shares: Sequence[float], asked: int) -> Report:
    """Look at scores (N,). asked: people that were wanted, 0 for all there are."""
    values = np.sort(scores)
    n = len(values)
    found = [share_at(values, p, theta) for p in shares]
    counts, edges = np.histogram(values, bins=BINS)
    return Report(
        people=n,
        theta=theta,
        k1=thresholds(values, 0.5, theta).k1,
        spreads=[spread(values, size, theta) for size in (*(s for s in SIZES if s < n), n)],
        shares=found,
        histogram=list(zip(edges[:-1].tolist(), counts.tolist(), strict=True)),
        warnings=warnings(values, found, theta, asked),
    )


def spread(values: Scores, size: int, theta: float) -> Spread:
    """Of k1 over RESAMPLES draws with replacement."""
    rng = np.random.default_rng(size)
    k1 = [thresholds(rng.choice(values, size), 0.5, theta).k1 for _ in range(RESAMPLES)]
    return Spread(size, float(np.mean(k1)), float(np.std(k1)))


def share_at(values: Scores, p: float, theta: float) -> Share:
    """Eq. 7 and 8, and the 1 - p quantile, on sorted values."""
    n = len(values)
    split = thresholds(values, p, theta)
    wanted = floor_share(n, p)
    top = split_for(values, p, theta, "top")
    return Share(
        p=p,
        k1=split.k1,
        k2=split.k2 if np.isfinite(split.k2) else None,
        share=float(((values > split.k1) & (values < split.k2)).mean()),
        lowered=int((values <= split.k1).sum()) + wanted > n,
        top_k1=top.k1 if np.isfinite(top.k1) else None,
        top_share=top.share,
    )


def warnings(values: Scores, shares: Sequence[Share], theta: float, asked: int) -> list[str]:
    lines = []
    if len(values) < asked:
        lines.append(f"only {len(values)} people were found, {asked} were wanted: see k1's spread")
    numbers, counts = np.unique(values, return_counts=True)
    if counts.max() > max(1, TIES * len(values)):
        lines.append(
            f"{counts.max()} of {len(values)} scores equal {numbers[counts.argmax()]:.6f}: equal scores cannot be split"
        )
    over = float((values > shares[0].k1).mean()) if shares else 1.0
    for share in shares:
        if share.lowered:
            lines.append(
                f"p {share.p:g}: only {over:.3f} of the people lie above k1 at theta {theta:g}; under policy `band` "
                "the service lowers k1 until the share is p (`k1_lowered`)"
            )
        elif abs(share.share - share.p) > max(TIES, 2 / len(values)):
            lines.append(f"p {share.p:g}: {share.share:.3f} is what k1 and k2 let through")
    return lines


def as_text(report: Report) -> str:
    """For people: the table of fig. 8, shares, histogram and warnings."""
    lines = [f"{report.people} people; k1 {report.k1:.4f} at theta {report.theta:g}", ""]
    lines += [f"k1 over {RESAMPLES} resamples (fig. 8)", "  people    mean      sd"]
    lines += [f"  {s.people:6} {s.mean:7.4f} {s.deviation:7.4f}" for s in report.spreads]
    lines += [
        "",
        "policy      band                         top",
        "     p      k1      k2  share         k1  share",
    ]
    for s in report.shares:
        k2 = "none" if s.k2 is None else f"{s.k2:.4f}"
        k1 = "none" if s.top_k1 is None else f"{s.top_k1:.4f}"
        lines.append(f"  {s.p:4g}  {s.k1:.4f}  {k2:>6}  {s.share:.3f}     {k1:>6}  {s.top_share:.3f}")
    lines += ["", "scores"]
    most = max(count for _, count in report.histogram)
    lines += [
        f"  {left:.3f} {count:6} {'#' * round(60 * count / most)}".rstrip()
        for left, count in report.histogram
    ]
    return "\n".join([*lines, *(f"warning: {line}" for line in report.warnings)])
