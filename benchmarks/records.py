"""What was measured, one JSON object a line, written as it is measured: a run that was cut off goes on where it was."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

KEY = ("experiment", "contender", "p", "clients", "rate", "people", "megapixels", "round")
"""What a measurement was of. Those that do not apply are missing."""


class Records:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Record] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(name) == key.get(name) for name in KEY) for row in self.rows)

    def add(self, row: Record) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def __iter__(self) -> Iterator[Record]:
        return iter(self.rows)


def set_aside(path: Path) -> None:
    """Rename records that came to their end, so that others can be made."""
    if select(Records(path), experiment="end"):
        path.rename(path.with_name(f"{path.stem}-{int(path.stat().st_mtime)}{path.suffix}"))


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
