"""A folder that `calibration.evaluate` wrote, read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.defaults import ROUTER_SIZE

SIZE = "x".join(map(str, ROUTER_SIZE))
"""Of the crops of all the paper's networks."""
PAPER_FLOOR = 0.05
"""The paper's boxes have no least score; boxes below this one change nothing."""


@dataclass(frozen=True)
class Run:
    """One folder of `calibration.evaluate`."""

    folder: Path
    content: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.content["names"]["pair"])

    def has(self, role: str, network: str) -> bool:
        """Whether the small or large net is that of `models.zoo`, with the paper's crops."""
        return str(self.content["names"][role]).startswith(f"{network}-{SIZE}-")

    @property
    def paper_boxes(self) -> dict[str, Any] | None:
        """The kind of boxes that the paper measures on: detected, down to the lowest score; None without such."""
        floors = {
            float(title.rsplit(" ", 1)[1]): kind
            for title, kind in self.content["boxes"].items()
            if " boxes from " in title
        }
        lowest = min(floors, default=1.0)
        return floors[lowest] if lowest <= PAPER_FLOOR else None


def read_run(folder: Path) -> Run:
    """Raises OSError or ValueError when there is no evaluation in the folder."""
    file = folder / "evaluation.json"
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    needed = {
        "names",
        "router",
        "router_config",
        "conditions",
        "split",
        "limit",
        "flip_test",
        "theta",
        "boxes",
    }
    missing = needed - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise ValueError(f"{file} has no {', '.join(sorted(missing))}")
    return Run(folder, content)
