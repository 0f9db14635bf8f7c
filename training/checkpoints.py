"""Where a training was stopped: its state, and what it is of."""

import os
from pathlib import Path
from typing import Any

import torch

from calibration.data import DataError


class OtherRun(DataError):
    """A checkpoint is not of this run; the message is one line that says what to do."""


def save_checkpoint(path: Path, run: str, state: dict[str, Any]) -> None:
    """Whole or not at all. run: what decides over the result, which who goes on must have alike."""
    temporary = path.with_suffix(".tmp")
    torch.save(state | {"run": run}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path, run: str, device: torch.device) -> dict[str, Any]:
    """Raises OtherRun, or DataError for a damaged file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.load raises almost anything for one
        raise DataError(f"{path} is damaged: remove it to start anew") from error
    if state.get("run") != run:
        raise OtherRun(f"{path} is of other data, weights or settings: remove it or choose another --out")
    return state
