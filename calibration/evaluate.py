"""Keypoint AP of the small net, the large net and the routed pair, on the people of a folder with their own
boxes.

    python -m calibration.evaluate DATA [--split val] [--pair embedded] [--p 0.25 0.5 0.75] [--policy band
    top]

Runs the stage objects that the service runs. Thresholds come from the pair's calibration file, not from the
people measured, so the share sent to the large net is a result. A person's score is the mean of its
keypoint scores above 0.2. Intervals: bootstrap over pictures. Needs the development package pycocotools.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from calibration.accuracy import accuracy, interval, match
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.thresholds import floor_share, read_calibration, thresholds
from models.defaults import THETA
from models.runtime import resolve_device, resolve_dtype
from models.zoo import Pair, load_pair


@dataclass(frozen=True)
class Estimates:
    """Of every person with keypoints, by id: both nets' keypoints (17, 3) and the router's difficulty."""

    small: dict[int, np.ndarray]
    large: dict[int, np.ndarray]
    difficulty: dict[int, float]

    def routed(self, k1: float, k2: float) -> dict[int, np.ndarray]:
        """Eq. 2: the large net where k1 < s < k2."""
        return {
            key: self.large[key] if k1 < score < k2 else self.small[key]
            for key, score in self.difficulty.items()
        }


def limits(scores: Sequence[float], p: float, theta: float, policy: str) -> tuple[float, float]:
    """k1 and k2 from the calibration scores: `band` is eq. 7 and 8, `top` sends the share p of the highest
    scores.
    """
    if policy == "band":
        band = thresholds(scores, p, theta)
        return band.k1, band.k2
    below = len(scores) - floor_share(len(scores), p)
    return (sorted(scores)[below - 1] if below else -math.inf), math.inf


def estimate(pair: Pair, pictures: Pictures, images: Sequence[LabelledImage], batch: int = 32) -> Estimates:
    """Run router and both nets on every person with keypoints, boxes as labelled."""
    estimates = Estimates({}, {}, {})
    people = [(image, person) for image in images for person in image.people if person.has_pose]
    for start in range(0, len(people), batch):
        part = people[start : start + batch]
        opened = {key: pictures(image) for key, image in {image.id: image for image, _ in part}.items()}
        tensors = [opened[image.id] for image, _ in part]
        boxes = torch.tensor([person.bbox for _, person in part])
        keys = [person.id for _, person in part]
        estimates.difficulty.update(zip(keys, pair.router(tensors, boxes).tolist(), strict=True))
        estimates.small.update(zip(keys, pair.small(tensors, boxes).numpy(), strict=True))
        estimates.large.update(zip(keys, pair.large(tensors, boxes).numpy(), strict=True))
    return estimates


def report(
    images: Sequence[LabelledImage], rows: dict[str, tuple[float, dict[int, np.ndarray]]]
) -> list[str]:
    """The table as lines. rows: name -> (share of the large net, keypoints by person)."""
    lines = []
    for part, chosen in (
        ("COCO", [image for image in images if image.source.startswith("coco")]),
        ("all", list(images)),
    ):
        people = sum(person.has_pose for image in chosen for person in image.people)
        lines.append(f"{part}: {people} people with keypoints in {len(chosen)} pictures")
        if not people:
            continue
        lines.append(f"  {'':16} {'large':>6} {'AP':>6} {'95 %':>13} {'AP50':>6} {'AR':>6}")
        for name, (share, keypoints) in rows.items():
            matches = match(chosen, keypoints)
            result, (low, high) = accuracy(matches), interval(matches)
            lines.append(
                f"  {name:16} {share:6.3f} {result.ap:6.3f} {low:6.3f}-{high:.3f}"
                f" {result.ap50:6.3f} {result.ar:6.3f}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with SPLIT.json and its pictures")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--p", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--policy", choices=("band", "top"), nargs="+", default=["band", "top"])
    parser.add_argument("--theta", type=float, default=THETA)
    parser.add_argument("--limit", type=int, help="pictures, from the start of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    options = parser.parse_args()
    if not has_split(options.data, options.split):
        print(f"skipped: needs pictures with people in {options.data}")
        return
    images = read_split(options.data, options.split)[: options.limit]
    device = resolve_device(options.device)
    pair = load_pair(options.pair, device, resolve_dtype(device, options.precision))
    scores = read_calibration(pair.calibration).scores
    estimates = estimate(pair, Pictures(options.data), images)

    rows = {"small": (0.0, estimates.small), "large": (1.0, estimates.large)}
    for policy, p in product(options.policy, options.p):
        k1, k2 = limits(scores, p, options.theta, policy)
        share = np.mean([k1 < s < k2 for s in estimates.difficulty.values()])
        rows[f"{policy}, p = {p}"] = (float(share), estimates.routed(k1, k2))
    print(", ".join(f"{role} {name}" for role, name in pair.manifest.names().items()))
    print("\n".join(report(images, rows)))


if __name__ == "__main__":
    main()
