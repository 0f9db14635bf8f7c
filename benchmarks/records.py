"""What was measured, one JSON object a line, written as it is measured: a run that was cut off goes on where it was."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Record = dict[str, Any]

KEY = ("experiment", "contender", "p", "clients", "rate", "people", "megapixels", "round")
"""What a measurement was of. Those that do not apply are missing."""


class Records:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Record] = []
        *lines, cut_off = path.read_text().split("\n") if path.exists() else [""]
        for line in lines:
            with suppress(ValueError):  # one that was cut off, and more written after it
                self.rows.append(json.loads(line))
        self._begin = "\n" if cut_off else ""

    def has(self, **key: Any) -> bool:
        return any(all(row.get(name) == key.get(name) for name in KEY) for row in self.rows)

    def add(self, row: Record) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(self._begin + json.dumps(row) + "\n")
        self._begin = ""

    def __iter__(self) -> Iterator[Record]:
        return iter(self.rows)


def set_aside(path: Path, command: str) -> None:
    """Rename records that came to their end, or are another command's, so that others can be made."""
    records = Records(path)
    if select(records, experiment="end") or any(
        row["command"] != command and not is_soak(row) for row in select(records, experiment="run")
    ):
        path.rename(path.with_name(f"{path.stem}-{int(path.stat().st_mtime)}{path.suffix}"))


def is_soak(run: Record) -> bool:
    """Whether a `run` record is of the soak alone, which stands beside any other run."""
    return "--soak" in run["command"]


def select(rows: Iterable[Record], **wanted: Any) -> list[Record]:
    """The rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def by_arrivals(rows: Iterable[Record]) -> dict[float, dict[str, list[Record]]]:
    """The rounds of the open loop: of each rate of arrivals and contender."""
    found: dict[float, dict[str, list[Record]]] = {}
    for row in select(rows, experiment="open"):
        found.setdefault(row["offered_per_s"], {}).setdefault(row["contender"], []).append(row)
    return found


def best_speed(rows: Iterable[Record], row: Record) -> float | None:
    """People/s of the contender and p of an `accuracy` record: its most images/s of the closed loop, times the people
    that the service finds in one of the pictures, so that who answers more people is not faster."""
    rows = list(rows)
    grid = select(rows, experiment="grid", contender=row["contender"])
    if row["p"] is not None:
        grid = select(grid, p=row["p"])
    found = [one["people_per_picture"] for one in select(rows, experiment="accuracy", contender="service")]
    people = sum(found) / len(found) if found else row["people_per_picture"]
    return max((people * cell["images_per_s"] for cell in grid), default=None)
