"""What all the servers here have in common: their command line, and answers of the service's form."""

import argparse
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pair", default="embedded")
    return parser.parse_args()


def answer(boxes: Tensor, keypoints: Sequence[Tensor]) -> dict[str, Any]:
    """boxes: (M, 5). keypoints: M times (K, 3)."""
    people = [
        {"bbox": box[:4], "bbox_score": box[4], "keypoints": points.tolist()}
        for box, points in zip(boxes.tolist(), keypoints, strict=True)
    ]
    return {"images": [{"people": people}]}
