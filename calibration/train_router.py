"""Trains the router for a pair of pose nets with the paper's OKD loss (section 3.3, eq. 5 and 6).

    python -m calibration.train_router DATA --pair embedded --out models/weights/router.safetensors

DATA is a folder with `train.json` (COCO keypoints) and its pictures. Each person is cut with its own box, with a sloppy
one (as a detector might draw it), and the pictures give wrong boxes without a person; both nets are asked once and
their answers kept in OUT.samples.npz (until the nets change). What a box is worth is

- a person: (D_s - D_l) / D_s, counted only where the two nets differ by 0.05 to 0.3 in OKS (the authors' filter: below
  it is noise, above it is one net failing altogether), clamped to -1..1;
- no person: 1, so that wrong boxes lie above k2 (fig. 5), at a lower weight.

A fixed tenth of the pictures is held back; the recovered gain on it is logged after every epoch.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from calibration.data import LabelledImage, Pictures, has_split, is_held_back, read_split
from calibration.okd import gain_target, okd, oks
from models.estimator import PoseEstimator
from models.geometry import normalize
from models.router import Router, RouterConfig, router_crops
from models.runtime import resolve_device, resolve_dtype
from models.zoo import load_estimator, read_manifest, save_weights

OKS_FILTER = (0.05, 0.3)
WRONG_BOX_WEIGHT = 0.3
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Samples:
    """Boxes with what both nets make of them. kind: 0 a person's own box, 1 a sloppy one, 2 no person."""

    crops: NDArray[np.uint8]
    """(N, 3, 256, 192): what the router sees."""
    kind: NDArray[np.int64]
    held_back: NDArray[np.bool_]
    target: NDArray[np.float64]
    oks_small: NDArray[np.float64]
    oks_large: NDArray[np.float64]
    height: NDArray[np.float64]
    """Of the box, in picture pixels."""


def sloppy(box: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A box as a detector might draw it: edges off by some 8 % of the side, some of them cut short."""
    x, y, w, h = box
    edges = np.array([x, y, x + w, y + h]) + rng.normal(0, 0.08, 4) * [w, h, w, h]
    if rng.random() < 0.2:
        edges[3] = edges[1] + (edges[3] - edges[1]) * rng.uniform(0.5, 0.9)
    return np.array([edges[0], edges[1], max(4, edges[2] - edges[0]), max(4, edges[3] - edges[1])])


def wrong(image: LabelledImage, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """A box that touches no annotated person by more than a tenth; None if ten tries find none."""
    people = np.array([person.bbox for person in image.people])
    for _ in range(10):
        h = min(image.height, math.exp(rng.uniform(math.log(30), math.log(max(31, image.height)))))
        w = min(image.width, h * rng.uniform(0.3, 1.0))
        x, y = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        across = np.minimum(x + w, people[:, 0] + people[:, 2]) - np.maximum(x, people[:, 0])
        down = np.minimum(y + h, people[:, 1] + people[:, 3]) - np.maximum(y, people[:, 1])
        touching = across.clip(0) * down.clip(0) / np.minimum(w * h, people[:, 2] * people[:, 3])
        if touching.max(initial=0) < 0.1:
            return np.array([x, y, w, h])
    return None


def collect(data: Path, small: PoseEstimator, large: PoseEstimator, limit: int | None, seed: int) -> Samples:
    """Cut every box and ask both nets about those with a person."""
    rng = np.random.default_rng(seed)
    pictures = Pictures(data)
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in Samples.__dataclass_fields__}
    images = [image for image in read_split(data, "train") if any(p.has_pose for p in image.people)]
    for count, image in enumerate(images[:limit]):
        people = [person for person in image.people if person.has_pose]
        own = [np.array(person.bbox) for person in people]
        boxes = [*own, *(sloppy(box, rng) for box in own)]
        persons = len(boxes)
        if image.complete:
            boxes += [box for _ in range(1 + len(people) // 2) if (box := wrong(image, rng)) is not None]
        picture = pictures(image)
        crops = router_crops([picture] * len(boxes), torch.from_numpy(np.stack(boxes)))
        truth = np.tile(np.stack([person.keypoints for person in people]), (2, 1, 1)).astype(np.float64)
        area = np.tile([person.area for person in people], 2)
        asked = ([picture] * persons, torch.from_numpy(np.stack(boxes[:persons])))
        answers = [net(*asked).numpy()[:, :, :2].astype(np.float64) for net in (small, large)]
        distances = [okd(answer, truth[:, :, :2], truth[:, :, 2]) for answer in answers]
        similarities = [oks(answer, truth[:, :, :2], truth[:, :, 2], area) for answer in answers]
        nothing = np.full(len(boxes) - persons, np.nan)
        parts["crops"].append(crops.contiguous().numpy())
        parts["kind"].append(np.repeat([0, 1, 2], [len(own), len(own), len(nothing)]))
        parts["held_back"].append(np.full(len(boxes), is_held_back(image.id)))
        parts["target"].append(np.concatenate([gain_target(*distances), nothing + 1]))
        parts["oks_small"].append(np.concatenate([similarities[0], nothing]))
        parts["oks_large"].append(np.concatenate([similarities[1], nothing]))
        parts["height"].append(np.array([box[3] for box in boxes]))
        if count % 200 == 0:
            print(
                f"asked both nets about the people of {count} of {len(images[:limit])} pictures", flush=True
            )
    return Samples(**{name: np.concatenate(part) for name, part in parts.items()})


def weights_and_targets(
    samples: Samples, oks_filter: tuple[float, float] = OKS_FILTER
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each sample counts in the loss, and its target clamped to -1..1. oks_filter: people count when the nets'
    OKS differ by more than the first and less than the second."""
    difference = np.abs(samples.oks_large - samples.oks_small)
    low, high = oks_filter
    counted = (samples.kind < 2) & (difference > low) & (difference < high) & np.isfinite(samples.target)
    weights = np.where(samples.kind == 2, WRONG_BOX_WEIGHT, counted.astype(np.float64))
    targets = np.where(samples.kind == 2, 1.0, np.nan_to_num(samples.target, nan=0.0, neginf=-1.0))
    return weights, targets.clip(-1, 1)


def recovered_gain(order: NDArray[np.int64], gain: NDArray[np.float64]) -> list[float]:
    """Share of the large net's gain in mean OKS that is had when the first n p people of `order` go to it."""
    return [round(float(gain[order[: round(len(order) * p)]].sum() / gain.sum()), 3) for p in SHARES]


def validate(scores: NDArray[np.float64], samples: Samples) -> dict[str, object]:
    """On held-back people's own boxes: recovered gain at SHARES by the router's two policies and by free rules, the
    rank correlation of score and gain, and the AUC of wrong against right boxes."""
    own = np.flatnonzero(samples.held_back & (samples.kind == 0) & np.isfinite(samples.oks_small))
    gain = samples.oks_large[own] - samples.oks_small[own]
    score = scores[own]
    ranked = np.argsort(score, kind="stable")
    k1 = score.min() + 0.1 * (score.max() - score.min())
    easy = int((score <= k1).sum())
    wrong_boxes = scores[samples.held_back & (samples.kind == 2)]
    auc = float((wrong_boxes[:, None] > score[None]).mean()) if len(wrong_boxes) else math.nan
    ranks = [np.argsort(np.argsort(values)) for values in (score, gain)]
    return {
        "top": recovered_gain(ranked[::-1], gain),
        "band": recovered_gain(np.roll(ranked, -easy), gain),
        "biggest_box": recovered_gain(np.argsort(-samples.height[own]), gain),
        "oracle": recovered_gain(np.argsort(-gain), gain),
        "correlation": round(float(np.asarray(np.corrcoef(ranks))[0, 1]), 3),
        "auc_wrong_box": round(auc, 3),
        "spread": [round(float(v), 4) for v in np.quantile(score, [0, 0.05, 0.5, 0.95, 1])],
        "people": len(own),
    }


def score_all(router: Router, crops: NDArray[np.uint8], device: torch.device) -> NDArray[np.float64]:
    router.eval()
    with torch.inference_mode():
        parts = [
            router(normalize(torch.from_numpy(crops[start : start + 64]).to(device))).cpu()
            for start in range(0, len(crops), 64)
        ]
    return torch.cat(parts).double().numpy()


def augment(crops: Tensor) -> Tensor:
    """Mirror half of them, vary brightness and contrast. (N, 3, h, w) uint8 -> normalised float."""
    mirrored = torch.rand(len(crops), device=crops.device) < 0.5
    crops = torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)
    gain = torch.empty(len(crops), 1, 1, 1, device=crops.device).uniform_(0.8, 1.2)
    shift = torch.empty(len(crops), 1, 1, 1, device=crops.device).uniform_(-0.3, 0.3)
    return normalize(crops) * gain + shift


def train(samples: Samples, arguments: argparse.Namespace, device: torch.device) -> Router:
    """Eq. 6, batched, with Adam; the weights of the last epoch are kept (choosing among epochs by so few held-back
    people would be choosing noise). Resumes from OUT.checkpoint."""
    torch.manual_seed(arguments.seed)
    router = Router(RouterConfig()).to(device)
    weights, targets = weights_and_targets(samples, tuple(arguments.filter))
    rows = np.flatnonzero(~samples.held_back & (weights > 0))
    optimizer = torch.optim.Adam(router.parameters(), lr=arguments.rate, weight_decay=1e-4)
    steps = arguments.epochs * (len(rows) // arguments.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.rate, total_steps=steps, pct_start=0.1
    )
    checkpoint, first = arguments.out.with_suffix(".checkpoint"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        router.load_state_dict(state["router"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epoch"]
    for epoch in range(first, arguments.epochs):
        router.train()
        torch.manual_seed(
            arguments.seed + epoch
        )  # of its own for each epoch: resumed or not, the run is the same
        order = np.random.default_rng((arguments.seed, epoch)).permutation(rows)
        total = 0.0
        for start in range(0, len(order) - arguments.batch + 1, arguments.batch):
            chosen = order[start : start + arguments.batch]
            batch = augment(torch.from_numpy(samples.crops[chosen]).to(device))
            target = torch.from_numpy(targets[chosen]).float().to(device)
            weight = torch.from_numpy(weights[chosen]).float().to(device)
            with torch.autocast(device.type, torch.bfloat16):
                score = router(batch.contiguous(memory_format=torch.channels_last)).float()
            loss = (
                functional.mse_loss(score, target, reduction="none") * weight
            ).sum() / weight.sum()  # eq. 6
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        held = np.flatnonzero(samples.held_back)
        scores = np.zeros(len(samples.kind))
        scores[held] = score_all(router, samples.crops[held], device)
        line = {
            "epoch": epoch + 1,
            "loss": round(total / (len(order) // arguments.batch), 4),
            "samples": len(rows),
        }
        line |= validate(scores, samples)
        print(json.dumps(line), flush=True)
        with arguments.out.with_suffix(".log").open("a") as log:
            log.write(json.dumps(line) + "\n")
        torch.save(
            {
                "router": router.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "epoch": epoch + 1,
            },
            checkpoint,
        )
    return router


def ask(arguments: argparse.Namespace, device: torch.device) -> Samples:
    """The samples of these nets, boxes and pictures: asked for once, then read from OUT.samples.npz."""
    manifest = read_manifest(arguments.pair)
    question = (
        f"{manifest.small.sha256} {manifest.large.sha256} seed {arguments.seed} limit {arguments.limit}"
    )
    kept = arguments.out.with_suffix(".samples.npz")
    if kept.exists():
        with np.load(kept) as columns:
            if str(columns["question"]) == question:
                return Samples(**{name: columns[name] for name in Samples.__dataclass_fields__})
    dtype = resolve_dtype(device, "auto")
    small, large = (
        load_estimator(arguments.pair, entry, device, dtype) for entry in (manifest.small, manifest.large)
    )
    samples = collect(arguments.data, small, large, arguments.limit, arguments.seed)
    unfinished = kept.with_suffix(".part.npz")
    np.savez(unfinished, question=np.array(question), **vars(samples))
    unfinished.replace(kept)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the router of a pair.")
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument("--pair", default="embedded", help="`embedded` or a folder with pair.json")
    parser.add_argument("--out", type=Path, default=Path("runs/router.safetensors"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--filter", type=float, nargs=2, default=OKS_FILTER, help="differences in OKS that count"
    )
    parser.add_argument("--limit", type=int, help="pictures to use (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    if not has_split(arguments.data, "train"):
        print(f"skipped: needs pictures with people in {arguments.data}")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    device = resolve_device(arguments.device)
    router = train(ask(arguments, device), arguments, device)
    save_weights(router, arguments.out)
    arguments.out.with_suffix(".checkpoint").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
