"""Eq. 7 and 8: from a sample of difficulties to the thresholds k1 and k2 between easy, hard and extremely hard.

`python -m calibration.thresholds` takes such a sample from pictures and writes it as a calibration file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """A person is easy when s <= k1, hard when k1 < s < k2, else extremely hard.

    `k2` is +inf where eq. 8's index j + floor(n p) runs past the sample. `j` counts from 1.
    """

    k1: float
    k2: float
    j: int


def thresholds(scores: Sequence[float] | Scores, p: float, theta: float) -> Thresholds:
    """Eq. 7 and 8 read literally.

    scores: n >= 1 finite difficulties in any order. p: share of people for the large net, 0 to 1. theta: 0 to 1, where
    in the range of the scores k1 lies. Among equally near scores the lowest is S^j. Raises ValueError when a value is
    out of range.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    if n == 0 or not np.isfinite(ordered).all():
        raise ValueError("thresholds need at least one score, all of them finite")
    if not (0 <= p <= 1 and 0 <= theta <= 1):
        raise ValueError(f"p and theta are fractions from 0 to 1, not {p} and {theta}")
    k1 = float(ordered[0] + theta * (ordered[-1] - ordered[0]))
    j = int(np.argmin(np.abs(ordered - k1))) + 1
    index = j + floor_share(n, p)
    return Thresholds(k1, float(ordered[index - 1]) if index <= n else math.inf, j)


def floor_share(n: int, p: float) -> int:
    """floor(n p), guarded against 0.29 * 100 = 28.999..."""
    return math.floor(n * p + 1e-9)


class MadeWith(BaseModel):
    """What produced the scores of a calibration file; another router's scores would be meaningless thresholds."""

    model_config = ConfigDict(frozen=True)

    pair: str
    router_sha256: str
    detector_sha256: str
    min_score: float


class Calibration(BaseModel):
    """A calibration file: difficulties of a sample of people, and where they come from."""

    model_config = ConfigDict(frozen=True)

    scores: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=1_000_000)]
    theta: Annotated[float, Field(ge=0, le=1)]
    made_with: MadeWith
    people: int
    images: int


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file whole or not at all. Raises OSError."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(calibration.model_dump_json() + "\n")
    unfinished.replace(path)


def read_calibration(path: Path) -> Calibration:
    """Raises OSError when the file cannot be read and ValueError when it is not a calibration file."""
    return Calibration.model_validate_json(path.read_bytes())
