"""Keypoint AP of the small net, the large net and the routed pair, and what choosing whom to send is worth.

    python -m calibration.evaluate DATA [--split val] [--pair embedded] [--boxes labelled detector] [--min-score 0.05]
        [--p 0.25 0.5 0.75] [--policy band top]

Runs the stage objects that the service runs, on the labelled boxes and on all boxes of the detector down to a low score
(as the paper measures). Thresholds come from the pair's calibration file, not from the people measured, so
the share sent to the large net is a result; a second table compares the router with rules that cost nothing, at equal
shares (`calibration.gain`). A person's score is the box's score times the mean of its keypoint scores above 0.2.
Intervals: bootstrap over pictures. Needs the development package pycocotools.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.accuracy import accuracy, interval
from calibration.boxes import FoundPerson, detected_boxes, labelled_boxes
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.gain import Estimates, recovered_gains
from calibration.thresholds import floor_share, read_calibration, thresholds
from models.defaults import THETA
from models.runtime import resolve_device, resolve_dtype
from models.zoo import Pair, load_pair


def limits(scores: Sequence[float], p: float, theta: float, policy: str) -> tuple[float, float]:
    """k1 and k2 from the calibration scores: `band` is eq. 7 and 8, `top` sends the share p of the highest
    scores.
    """
    if policy == "band":
        band = thresholds(scores, p, theta)
        return band.k1, band.k2
    below = len(scores) - floor_share(len(scores), p)
    return (sorted(scores)[below - 1] if below else -math.inf), math.inf


def estimate(
    pair: Pair, pictures: Pictures, images: Sequence[LabelledImage], found: list[FoundPerson], batch: int = 32
) -> Estimates:
    """Run router and both nets on every box."""
    by_id = {image.id: image for image in images}
    small, large, difficulty = [], [], []
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        opened = {key: pictures(by_id[key]) for key in {person.image_id for person in part}}
        tensors = [opened[person.image_id] for person in part]
        boxes = torch.tensor([person.bbox for person in part], dtype=torch.float32)
        scores = torch.tensor([person.score for person in part], dtype=torch.float32)
        difficulty.append(pair.router(tensors, boxes, scores).double())
        small.append(pair.small(tensors, boxes).double())
        large.append(pair.large(tensors, boxes).double())
    return Estimates(found, torch.cat(small).numpy(), torch.cat(large).numpy(), torch.cat(difficulty).numpy())


def report(
    images: Sequence[LabelledImage], estimates: Estimates, rows: dict[str, NDArray[np.bool_]]
) -> Iterator[str]:
    """The table of APs, line by line. rows: name -> who goes to the large net, (N,)."""
    for part, chosen in (
        ("COCO", [image for image in images if image.source.startswith("coco")]),
        ("all", list(images)),
    ):
        present = {image.id for image in chosen}
        inside = np.array([person.image_id in present for person in estimates.found], dtype=bool)
        people = sum(person.has_pose for image in chosen for person in image.people)
        yield (f"{part}: {people} people with keypoints in {len(chosen)} pictures, {int(inside.sum())} boxes")
        if not inside.any():
            continue
        yield f"  {'':16} {'large':>6} {'AP':>6} {'95 %':>13} {'AP50':>6} {'AR':>6}"
        for name, to_large in rows.items():
            matches = estimates.matched(chosen, estimates.routed(to_large))
            result, (low, high) = accuracy(matches), interval(matches)
            yield (
                f"  {name:16} {to_large[inside].mean():6.3f} {result.ap:6.3f} {low:6.3f}-{high:.3f}"
                f" {result.ap50:6.3f} {result.ar:6.3f}"
            )


def report_gains(
    images: Sequence[LabelledImage], estimates: Estimates, shares: Sequence[float], theta: float
) -> Iterator[str]:
    """The table of recovered gains on the COCO pictures, line by line."""
    chosen = [image for image in images if image.source.startswith("coco")]
    if not {image.id for image in chosen} & {person.image_id for person in estimates.found}:
        return
    yield "recovered gain, thresholds from these boxes themselves"
    yield f"  {'':42} {'p':>5} {'share':>6} {'AP':>6} {'gain':>6} {'95 %':>14}"
    for row in recovered_gains(chosen, estimates, shares, theta):
        yield (
            f"  {row.rule:42} {row.p:5.2f} {row.share:6.3f} {row.ap:6.3f} {row.gain:6.2f}"
            f" {row.low:7.2f}-{row.high:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with SPLIT.json and its pictures")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument(
        "--boxes", choices=("labelled", "detector"), nargs="+", default=["labelled", "detector"]
    )
    parser.add_argument("--min-score", type=float, default=0.05, help="of the detector's boxes")
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
    pictures = Pictures(options.data)
    device = resolve_device(options.device)
    pair = load_pair(options.pair, device, resolve_dtype(device, options.precision))
    scores = read_calibration(pair.calibration).scores
    print(", ".join(f"{role} {name}" for role, name in pair.manifest.names().items()))

    for source in options.boxes:
        complete = [image for image in images if image.complete]
        measured = images if source == "labelled" else complete
        found = (
            labelled_boxes(measured)
            if source == "labelled"
            else detected_boxes(pair.detector, pictures, measured, options.min_score)
        )
        if not found:
            print(f"\n{source} boxes: none, or no picture with all its people labelled")
            continue
        estimates = estimate(pair, pictures, measured, found)
        rows = {"small": np.zeros(len(found), dtype=bool), "large": np.ones(len(found), dtype=bool)}
        for policy, p in product(options.policy, options.p):
            k1, k2 = limits(scores, p, options.theta, policy)
            rows[f"{policy}, p = {p}"] = (estimates.difficulty > k1) & (estimates.difficulty < k2)
        print(f"\n{source} boxes")
        for line in report(measured, estimates, rows):
            print(line, flush=True)
        for line in report_gains(measured, estimates, options.p, options.theta):
            print(line, flush=True)


if __name__ == "__main__":
    main()
