"""Writes a calibration file: the router's scores of the people that the service would find in sample pictures.

    python -m calibration.calibrate DATA --pair embedded --out models/weights/calibration.json

DATA is a folder with `train.json` (COCO format) and its pictures; only the tenth that no network was trained on is
used, since a router knows its training people too well. Detector, threshold and stage objects are the service's own.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from calibration.data import Pictures, has_split, is_held_back, read_split
from calibration.thresholds import Calibration, MadeWith, Scores, thresholds
from models.defaults import MIN_SCORE, THETA
from models.runtime import resolve_device, resolve_dtype
from models.zoo import Pair, load_pair

RESAMPLES = 200
SAMPLE = 200
"""People in one resample: the paper's figure 8 finds k1 settled by then."""


def score_people(pair: Pair, data: Path, min_score: float, limit: int | None) -> tuple[list[float], int]:
    """Difficulties of everybody the detector finds, and the number of pictures looked at."""
    pictures = Pictures(data)
    images = [image for image in read_split(data, "train") if is_held_back(image.id)][:limit]
    scores: list[float] = []
    for image in images:
        picture = pictures(image)
        found = pair.detector([picture], [min_score])[0]
        if len(found):
            scores += pair.router([picture] * len(found), found[:, :4], found[:, 4]).tolist()
    return scores, len(images)


def report(scores: Scores, theta: float) -> str:
    """k1 with its spread over resamples, asked and achieved share, and a histogram, as text."""
    rng = np.random.default_rng(0)
    spread = [thresholds(rng.choice(scores, SAMPLE), 0.5, theta).k1 for _ in range(RESAMPLES)]
    lines = [
        f"{len(scores)} people; k1 {thresholds(scores, 0.5, theta).k1:.4f}, over {RESAMPLES} resamples of {SAMPLE}: "
        f"{np.mean(spread):.4f} +- {np.std(spread):.4f}"
    ]
    for p in (0.1, 0.25, 0.5, 0.75, 0.9):
        found = thresholds(scores, p, theta)
        share = float(((scores > found.k1) & (scores < found.k2)).mean())
        lines.append(f"p {p:.2f}: k1 {found.k1:.4f}, k2 {found.k2:.4f}, achieved {share:.3f}")
    counts, edges = np.histogram(scores, bins=20)
    for count, left in zip(counts, edges, strict=False):
        lines.append(f"{left:.3f} {'#' * round(60 * count / counts.max())} {count}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Score the people of sample pictures and write a calibration file."
    )
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument("--pair", default="embedded", help="`embedded` or a folder with pair.json")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration.json"))
    parser.add_argument("--min-score", type=float, default=MIN_SCORE)
    parser.add_argument("--theta", type=float, default=THETA)
    parser.add_argument("--limit", type=int, help="pictures to use (all)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    arguments = parser.parse_args()
    if not has_split(arguments.data, "train"):
        print(f"skipped: needs pictures with people in {arguments.data}")
        return 0
    device = resolve_device(arguments.device)
    with torch.inference_mode():
        pair = load_pair(arguments.pair, device, resolve_dtype(device, arguments.precision))
        scores, images = score_people(pair, arguments.data, arguments.min_score, arguments.limit)
    if not scores:
        print("the detector found nobody", file=sys.stderr)
        return 1
    print(report(np.array(scores), arguments.theta))
    calibration = Calibration(
        scores=[round(score, 6) for score in scores],
        theta=arguments.theta,
        made_with=MadeWith(
            pair=pair.manifest.pair,
            router_sha256=pair.manifest.router.sha256,
            detector_sha256=pair.manifest.detector.sha256,
            min_score=arguments.min_score,
        ),
        people=len(scores),
        images=images,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(calibration.model_dump()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
