"""What was to be reached, and whether the records say so."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.loops import quantile
from benchmarks.records import Record, by_arrivals, select
from benchmarks.stages import Given

Kind = tuple[str, float | None]
"""A contender at a p."""

SERVICE: Kind = ("service", 0.5)
OTHER_SERVERS = ("litserve", "ray-serve")


@dataclass(frozen=True)
class Verdict:
    target: str
    measured: str
    met: bool


def ratio(rows: Sequence[Record], experiment: str, over: Kind, under: Kind) -> float | None:
    """Median over rounds of people/s of the first in shares of the second's in the same round."""
    first, second = (select(rows, experiment=experiment, contender=name, p=p) for name, p in (over, under))
    return ratio_of(first, second, "people_per_s")


def ratio_of(over: Sequence[Record], under: Sequence[Record], what: str) -> float | None:
    """Median over rounds of `what` of the first in shares of the second's in the same round."""
    first, second = ({row["round"]: row[what] for row in each} for each in (over, under))
    both = [first[turn] / second[turn] for turn in first.keys() & second.keys() if second[turn]]
    return statistics.median(both) if both else None


def verdicts(rows: Sequence[Record]) -> list[Verdict]:
    """Of every target that something was measured of."""
    return [*_ratios(rows), *_alone(rows), *_latency(rows), *_servers(rows), *_overload(rows), *_life(rows)]


def _ratios(rows: Sequence[Record]) -> Iterator[Verdict]:
    for target, over, under, least in (
        ("people/s at p = 0.5: at least 0.90 of the bound (aim 0.95)", SERVICE, ("bound", 0.5), 0.90),
        ("people/s at p = 0.5: at least 6 times the naive service's", SERVICE, ("naive", 1.0), 6.0),
        ("people/s at p = 1: at least 3 times the naive service's", ("service", 1.0), ("naive", 1.0), 3.0),
    ):
        found = ratio(rows, "rounds", over, under)
        if found is not None:
            yield Verdict(target, f"{found:.3f}", found >= least)
    cost = mix(rows)
    if cost is not None:
        yield Verdict(
            "service at p = 0.5: within 5 % of the mean of its costs a person at p = 0 and p = 1",
            f"{cost:.3f}",
            cost <= 1.05,
        )


def mix(rows: Sequence[Record]) -> float | None:
    """Seconds a person at p = 0.5 in shares of the mean of those at p = 0 and p = 1, which have the router's, too."""
    small, large = (ratio(rows, "rounds", SERVICE, ("service", p)) for p in (0.0, 1.0))
    # A ratio of speeds is one of costs the other way round.
    return 2 / (small + large) if small is not None and large is not None else None


def _alone(rows: Sequence[Record]) -> Iterator[Verdict]:
    for row in select(rows, experiment="alone")[-1:]:
        costs = Given(row["people"], row["ms"], row["small_in_router"])
        yield Verdict(
            "routed pair at p = 0.5: within 5 % of p T_large + (1 - p) T_small + T_router"
            + (", T_small = 0 as the router has run it" if costs.small_in_router else ""),
            f"{costs.over_ideal:.3f}",
            costs.over_ideal <= 1.05,
        )
        share = costs.median("router") / costs.median("large")
        yield Verdict("router: at most 10 % of the large net's time (aim 5 %)", f"{share:.1%}", share <= 0.10)


def _latency(rows: Sequence[Record]) -> Iterator[Verdict]:
    for p in (0.0, 1.0):  # between them both nets run at once, and the sum of their times is no wall time
        for row in select(rows, experiment="grid", contender="service", p=p, clients=1)[-1:]:
            if row["over_stages_ms"] is not None:
                over = row["over_stages_ms"]
                yield Verdict(
                    f"one client at p = {p:g}: at most 2 ms above the sum of the stages' own run times (p50)",
                    f"{over:.2f} ms",
                    over <= 2,
                )
    naive = {
        row["clients"]: row["p95_ms"]
        for row in select(rows, experiment="grid", contender="naive")
        if row["images"]  # else it answered nobody in time
    }
    for p in (0.5, 1.0):
        own = {
            row["clients"]: row["p95_ms"] for row in select(rows, experiment="grid", contender="service", p=p)
        }
        pairs = [(clients, own[clients], naive[clients]) for clients in sorted(own.keys() & naive.keys())]
        if pairs:
            yield Verdict(
                f"p95 at p = {p:g} below the naive service's at every number of clients",
                "; ".join(f"{clients}: {mine:.0f} against {its:.0f} ms" for clients, mine, its in pairs),
                all(mine < its for _, mine, its in pairs),
            )


def _servers(rows: Sequence[Record]) -> Iterator[Verdict]:
    """Who answers as many at a lower p99 would, as latency grows with arrivals, answer more at an equal one."""
    for name in OTHER_SERVERS:
        shown, ahead = [], True
        for arrivals, both in sorted(by_arrivals(rows).items()):
            own, other = both.get("service", ()), both.get(name, ())
            images = ratio_of(own, other, "images_per_s")
            if images is not None:
                # Of all rounds together: the 99th percentile of one's few dozen answers is its slowest.
                p99 = quantile(_all_ms(own), 0.99) / quantile(_all_ms(other), 0.99)
                shown.append(f"{arrivals:.1f}/s: {p99:.2f}")
                ahead = ahead and p99 < 1 and images >= 0.95
        if shown:
            yield Verdict(
                f"p99 below {name}'s at the same arrivals, in shares of it", "; ".join(shown), ahead
            )


def _all_ms(rows: Sequence[Record]) -> list[float]:
    return [each for row in rows for each in row["ms"]]


def _overload(rows: Sequence[Record]) -> Iterator[Verdict]:
    for row in select(rows, experiment="overload")[-1:]:
        for same in select(rows, experiment="answered")[-1:]:
            share = row["images_per_s"] / same["images_per_s"]
            yield Verdict(
                "twice the sustainable load: goodput at least 0.95 of the peak (the same pictures in the closed loop)",
                f"{share:.3f}",
                share >= 0.95,
            )
        if row["refused_p99_ms"] is not None:
            slow = row["refused_p99_ms"]
            yield Verdict("refused answers within 10 ms (p99)", f"{slow:.1f} ms", slow <= 10)
        growth = row["after_mib"] / row["before_mib"] - 1
        yield Verdict("memory flat under overload (within 3 %)", f"{growth:+.1%}", growth <= 0.03)


def _life(rows: Sequence[Record]) -> Iterator[Verdict]:
    for row in select(rows, experiment="start", round=2)[-1:]:
        yield Verdict(
            "ready within 10 s on the second start", f"{row['ready_s']:.1f} s", row["ready_s"] <= 10
        )
    grid = select(rows, experiment="grid", contender="service")
    if grid:
        most = max(row["peak_mib"] for row in grid)
        yield Verdict("resident memory under 1.5 GB", f"{most * 2**20 / 1e9:.2f} GB", most * 2**20 < 1.5e9)
    for row in select(rows, experiment="soak")[-1:]:
        sizes = [size for _, size in row["samples"]]
        growth = statistics.median(sizes[-10:]) / statistics.median(sizes[10:20] or sizes) - 1
        yield Verdict(f"{row['requests']} requests without growth over 3 %", f"{growth:+.1%}", growth <= 0.03)
