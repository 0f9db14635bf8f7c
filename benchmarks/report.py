"""benchmarks/RESULTS.md and its plots, drawn from the records of `bench` and `scaling`, and from nothing else."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.records import Record, Records, best_speed, by_arrivals, is_soak, select
from benchmarks.verdicts import SERVICE, Verdict, ratio, verdicts

NOTES = """## How to read this

- The bound has all cores for its networks; a server shares them with the load generator and with HTTP.
- A server's figures count what was answered within its seconds, after a warm-up, or of the same pictures for all in the
  alternating rounds. In the closed loop of so many seconds a slow contender sees only the first pictures of the order,
  which may have fewer people than later ones. A p99 of a few hundred answers is about their second or third worst.
- LitServe polls when idle and is held (SIGSTOP) while others are measured. Ray cannot be held; what it takes when idle
  stands above, and only the service's rounds beside it bear that.
- LitServe and Ray Serve could be composed in other ways: here LitServe has as many one-thread workers as there are
  cores, Ray Serve one thread for each of the four networks, and both wait up to 10 ms for company in a batch.
- YOLOv8n-pose costs the same for every number of people in a picture: its people/s are those of these pictures. Its
  network in OpenVINO is in floating point, where the service's detector may be in int8."""

Cell = str | float | int | None

SPEED = ("images/s", "people/s", "p50", "p95", "p99 ms", "server cores", "load cores", "MiB", "failed")

OPEN = (
    *("arrivals/s", "contender", "rounds", "people/s", "p50", "p95", "p99 ms", "range of p99"),
    *("server cores", "MiB", "failed"),
)


def write_report(out: Path, results: Path) -> str:
    """Write the report on what lies in `out`. Returns a sentence."""
    rows, scaling = list(Records(out / "bench.jsonl")), list(Records(out / "scaling.jsonl"))
    if not rows and not scaling:
        return f"nothing was measured yet in {out}"
    folder = results.parent / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(rows, scaling, folder)
    parts = [heading(rows, scaling), *part_of_bench(rows, drawn), *part_of_scaling(scaling, drawn)]
    results.write_text("\n\n".join(part for part in parts if part).rstrip() + "\n")
    return f"written: {results}"


def heading(rows: Sequence[Record], scaling: Sequence[Record]) -> str:
    runs = select(rows, experiment="run") + select(scaling, experiment="run")
    first = runs[0]
    machine = first["machine"]
    commands = "\n".join(f"{run['date']}  python -m benchmarks.{run['command']}" for run in runs)
    again = (
        "\n\nThe records come from several runs of the command, which goes on where it was cut off."
        if sum(not is_soak(run) for run in select(rows, experiment="run")) > 1
        else ""
    )
    return f"""# Results

Written by `make bench`, `make bench-full` and `make scaling` from what they measured; not to be edited.

- Processor: {machine["processor"]}; {machine["features"]}
- Memory: {machine["memory"]}
- {machine["versions"]}
- {first["pictures"]} pictures, to every contender in the same order

```
{commands}
```{again}

Servers are asked over HTTP by one load generator on the same cores (*load cores*: what it took of them itself). *MiB*:
resident memory of the contender's processes together, at its highest; pages that several of them share count in each.
Latencies are the client's."""


def part_of_bench(rows: Sequence[Record], drawn: dict[str, str]) -> list[str]:
    if not rows:
        return []
    return [
        targets(verdicts(rows)),
        who(rows),
        grid(rows),
        rounds(rows),
        alone(rows),
        open_loops(rows, drawn),
        overload(rows),
        accuracy(rows, drawn),
        soak(rows),
        NOTES,
    ]


def targets(found: Sequence[Verdict]) -> str:
    if not found:
        return ""
    lines = [[each.target, each.measured, "met" if each.met else "**not met**"] for each in found]
    return "## Targets\n\n" + table(["target", "measured", ""], lines)


def who(rows: Sequence[Record]) -> str:
    how = select(rows, experiment="run")[-1]["how"]
    idle = {row["contender"]: row for row in select(rows, experiment="idle")}
    reasons = {row["contender"]: row["reason"] for row in select(rows, experiment="skipped")}
    lines = [
        [
            name,
            text,
            f"skipped: {reasons[name]}"
            if name in reasons and name not in idle
            else number(idle[name]["server_cores"], 3)
            if name in idle
            else "",
        ]
        for name, text in how.items()
    ]
    failed = "".join(f"\n\nFailed: {row['reason']}." for row in select(rows, experiment="failed"))
    starts = select(rows, experiment="start")
    ready = ", ".join(f"{row['ready_s']:.1f} s" for row in starts)
    return (
        "## Contenders\n\n"
        + table(["contender", "what it is", "cores when idle"], lines)
        + (f"\n\nThe service was ready after {ready} (first and second start)." if starts else "")
        + failed
    )


def grid(rows: Sequence[Record]) -> str:
    cells = select(rows, experiment="grid")
    if not cells:
        return ""
    lines = [[row["contender"], row["p"], row["clients"] or "loop", *speed(row)] for row in cells]
    return (
        f"## Closed loop, {cells[0]['seconds']:.0f} s each\n\n"
        "Each client posts its next picture when it has the answer."
        "\n\n" + table(["contender", "p", "clients", *SPEED], lines)
    )


def speed(row: Record) -> list[Cell]:
    failed = ", ".join(f"{count} x {status}" for status, count in row["failed"].items())
    return [
        number(row["images_per_s"], 1),
        number(row["people_per_s"], 1),
        number(row["p50_ms"]),
        number(row["p95_ms"]),
        number(row["p99_ms"]),
        number(row["server_cores"], 2),
        number(row.get("own_cores"), 2),
        number(row.get("peak_mib", row["resident_mib"])),
        failed or 0,
    ]


def rounds(rows: Sequence[Record]) -> str:
    parts = []
    for experiment, title in (
        ("rounds", "the bound and the naive service"),
        ("servers", "the other servers"),
    ):
        cells = select(rows, experiment=experiment)
        if not cells:
            continue
        kinds = sorted({(row["contender"], row["p"]) for row in cells})
        lines = []
        for name, p in kinds:
            each = select(cells, contender=name, p=p)
            speeds = [row["people_per_s"] for row in each]
            waits = [[row[what] for row in each if row[what] is not None] for what in ("p50_ms", "p95_ms")]
            lines.append(
                [
                    name,
                    p,
                    len(speeds),
                    number(statistics.median(row["images_per_s"] for row in each), 1),
                    number(statistics.median(speeds), 1),
                    f"{min(speeds):.1f} to {max(speeds):.1f}",
                    *(number(statistics.median(some)) if some else None for some in waits),
                    number(ratio(rows, experiment, SERVICE, (name, p)), 3),
                    number(ratio(rows, experiment, (name, p), ("bound", p)), 3),
                ]
            )
        own = statistics.median(
            row["own_cores"]
            for row in select(cells, contender="service", p=0.5) or cells
            if "own_cores" in row
        )
        parts.append(
            f"### Beside {title}\n\n"
            + table(
                [
                    *("contender", "p", "rounds", "images/s", "people/s", "range", "p50", "p95 ms"),
                    *("service at p = 0.5 / this", "this / bound at this p"),
                ],
                lines,
            )
            + f"\n\nThe load generator took {own:.2f} cores of the service's rounds."
        )
    if not parts:
        return ""
    cells = select(rows, experiment="rounds") + select(rows, experiment="servers")
    clients = max(row["clients"] or 0 for row in cells)
    pictures = statistics.median_low([row["images"] for row in cells])
    return "\n\n".join(
        [
            f"## Alternating rounds, {clients} clients\n\nAll contenders of a table take turns in every round, each "
            f"with the same {pictures} pictures; figures are medians of the rounds, a ratio that of the rounds' own.",
            *parts,
        ]
    )


def alone(rows: Sequence[Record]) -> str:
    found = select(rows, experiment="alone")
    if not found:
        return ""
    ms, batches = found[-1]["ms"], found[-1]["batches"]
    large = statistics.median(ms["large"])
    lines = [
        [name, number(statistics.median(each), 2), f"{min(each):.2f} to {max(each):.2f}",
         number(statistics.median(each) / large, 3)]
        for name, each in ms.items()
    ]  # fmt: skip
    best = ", ".join(f"{net} {size}" for net, size in batches.items())
    return (
        "## The nets alone\n\nMilliseconds a person on one core, boxes given, crop and decoding included; "
        "`routed`: the router for all, the large net for half of them, and the small one for the others where the "
        "router has not run it. "
        f"Batches found best at start, which the bound has: {best}.\n\n"
        + table(["", "ms", "range", "of the large net"], lines)
    )


def open_loops(rows: Sequence[Record], drawn: dict[str, str]) -> str:
    lines: list[list[Cell]] = []
    for arrivals, contenders in by_arrivals(rows).items():
        for name, cells in contenders.items():
            middle = {
                what: statistics.median(row[what] for row in cells)
                for what in ("people_per_s", "p50_ms", "p95_ms", "p99_ms", "server_cores", "peak_mib")
            }
            p99 = [row["p99_ms"] for row in cells]
            lines.append(
                [f"{arrivals:.1f}", name, len(cells), number(middle["people_per_s"], 1), number(middle["p50_ms"]),
                 number(middle["p95_ms"]), number(middle["p99_ms"]), f"{min(p99):.0f} to {max(p99):.0f}",
                 number(middle["server_cores"], 2), number(middle["peak_mib"]),
                 sum(sum(row["failed"].values()) for row in cells)]
            )  # fmt: skip
    if not lines:
        return ""
    return (
        "## Open loop\n\nPictures arrive at constant intervals, whether or not the answers keep up; latency is counted "
        "from the time an arrival was due. The servers take turns at each rate; medians of the rounds.\n\n"
        + picture(drawn, "latency")
        + table(OPEN, lines)
    )


def overload(rows: Sequence[Record]) -> str:
    found = select(rows, experiment="overload")
    if not found:
        return ""
    row = found[-1]
    lines: list[list[Cell]] = [
        ["arrivals", f"{row['offered_per_s']:.1f} pictures/s for {row['seconds']:.0f} s"],
        ["answered", f"{row['images_per_s']:.1f} images/s, {row['people_per_s']:.1f} people/s"],
        ["p50 / p95 / p99", f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f} / {row['p99_ms']:.0f} ms"],
        ["not answered", ", ".join(f"{count} x {status}" for status, count in row["failed"].items()) or 0],
        ["refused after, from sending", f"{number(row['refused_p50_ms'], 1)} ms (p50), "
         f"{number(row['refused_p99_ms'], 1)} ms (p99)"],
        ["resident memory", f"{row['before_mib']:.0f} MiB before, {row['after_mib']:.0f} after, "
         f"{row['peak_mib']:.0f} at most"],
        ["load generator", f"{row['own_cores']:.2f} cores"],
    ]  # fmt: skip
    for same in select(rows, experiment="answered")[-1:]:
        lines.append(["what was answered, in the closed loop", f"{same['images_per_s']:.1f} images/s"])
    return f"## Overload: {row['rate']:g} times what the service can do\n\n" + table(["", ""], lines)


def accuracy(rows: Sequence[Record], drawn: dict[str, str]) -> str:
    cells = select(rows, experiment="accuracy")
    if not cells:
        return ""
    lines = [
        [row["contender"], row["p"], f"{row['ap']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
         number(row["people_per_picture"], 2), number(best_speed(rows, row), 1)]
        for row in cells
    ]  # fmt: skip
    return (
        f"## Accuracy against speed\n\nCOCO's keypoint AP of what each answers, over the first {cells[0]['pictures']} "
        "pictures whose people are all annotated (95 % interval over pictures), with its own detector and score "
        "threshold. Speed: the best images/s of the closed loop above, times the people that the service finds in one "
        "of these pictures: what a contender answers itself is no speed.\n\n"
        + picture(drawn, "accuracy")
        + table(["contender", "p", "AP", "people a picture", "people/s"], lines)
    )


def soak(rows: Sequence[Record]) -> str:
    found = select(rows, experiment="soak")
    if not found:
        return ""
    row = found[-1]
    sizes = [size for _, size in row["samples"]]
    return (
        f"## Soak\n\n{row['requests']} requests in {row['seconds']:.0f} s, {row['failed']} failed. Resident memory: "
        f"{sizes[len(sizes) // 10]:.0f} MiB after a tenth of them, {sizes[-1]:.0f} at the end, "
        f"{max(sizes):.0f} at most."
    )


SCALES = {
    "clients": ("clients", "clients"),
    "people": ("people", "people a picture"),
    "megapixels": ("megapixels", "megapixels"),
}


def part_of_scaling(rows: Sequence[Record], drawn: dict[str, str]) -> list[str]:
    parts = []
    for name, (field, title) in SCALES.items():
        cells = select(rows, experiment=f"scaling {name}")
        if cells:
            lines = [[row[field], found_people(row), *speed(row), row["bound_by"]] for row in cells]
            header = [title, "people found a picture", *SPEED, "bound by"]
            parts.append(f"### By {title}\n\n" + table(header, lines))
    if not parts:
        return []
    return [
        "## Scaling\n\nThe service at p = 0.5 in the closed loop; 8 clients, where these are not what is turned.\n\n"
        + picture(drawn, "scaling").rstrip(),
        *parts,
    ]


def found_people(row: Record) -> str:
    return number(row["people_per_s"] / row["images_per_s"], 1) if row["images_per_s"] else ""


def table(header: Sequence[str], lines: Iterable[Sequence[Cell]]) -> str:
    rows = [["" if cell is None else str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), ["---"] * len(header), *rows])


def picture(drawn: dict[str, str], name: str) -> str:
    return f"![{drawn[name]}](plots/{name}.png)\n\n" if name in drawn else ""


def number(value: Any, digits: int = 0) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"
