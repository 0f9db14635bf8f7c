"""Trains the router of the bundled pair: the large net's gain, expected from what the small one makes.

    python -m training.router DATA --pair FOLDER --out FOLDER/router.safetensors

FOLDER is a pair whose detector, small and large net are trained. Both nets are asked once about every training person
in three boxes, the labelled one, a sloppy one and the detector's own, and about the detector's wrong boxes; what the
router sees of them and both nets' OKS are kept in OUT.samples.npz until a network or the labels change. A person's
target is

    0.3 + (share of the OKS thresholds 0.50, 0.55, ... 0.95 passed by the large net) - (the same by the small net)

since those are what AP counts; the target of a wrong box is 0, there is nothing to gain, and so is that of people too
small or hidden for anybody to have annotated their keypoints: nothing is counted for them. (The paper's own target and
router are `calibration.train_router`.) Only the head learns: its input, the small net, is a copy that stays as it is.
Reports, on the held-back tenth and by five-fold cross-validation over the other pictures, the share of the large net's
gain that is recovered when the highest scores go to it. Needs no GPU: the head learns in seconds.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from calibration.boxes import FoundPerson, detected_boxes, labelled_boxes
from calibration.commands import run_command
from calibration.curve import rank_correlation
from calibration.data import (
    DataError,
    LabelledImage,
    Pictures,
    annotations_sha256,
    has_split,
    is_held_back,
    read_split,
)
from calibration.estimates import similarity
from calibration.rules import highest
from calibration.samples import sloppy
from models.detector import Detector
from models.estimator import PoseEstimator
from models.router import GainHead, PoseRouter, PoseScorer
from models.runtime import compile_network, resolve_device, resolve_dtype
from models.zoo import load_detector, load_estimator, read_manifest, read_weights, save_weights
from training.plots import plot_gains

THRESHOLDS = np.arange(0.5, 0.96, 0.05)
NO_GAIN = 0.3
"""Target of a person whom both nets get equally right; below it lies only what is nobody."""

LABELLED, SLOPPY, DETECTED = 0, 1, 2
MIN_SCORE = 0.05
SHARES = (0.25, 0.5, 0.75)
EPOCHS, BATCH, RATE, WEIGHT_DECAY = 30, 256, 2e-3, 1e-2


@dataclass(frozen=True)
class Samples:
    """N boxes. features: (N, F). oks_small, oks_large: (N,), NaN where no person with keypoints belongs to the box."""

    features: NDArray[np.float32]
    kind: NDArray[np.int64]
    wrong: NDArray[np.bool_]
    image_id: NDArray[np.int64]
    height: NDArray[np.float64]
    score: NDArray[np.float64]
    confidence: NDArray[np.float64]
    """Mean joint score of the small net."""
    oks_small: NDArray[np.float64]
    oks_large: NDArray[np.float64]

    @property
    def gain(self) -> NDArray[np.float64]:
        """(N,) share of the OKS thresholds that the large net passes and the small one does not; 0 without a person."""
        passed = [(values[:, None] > THRESHOLDS).mean(1) for values in (self.oks_large, self.oks_small)]
        return np.asarray(passed[0] - passed[1])

    @property
    def target(self) -> NDArray[np.float64]:
        """(N,): 0 for wrong boxes, for boxes in crowds and for people without annotated keypoints."""
        return np.where(np.isfinite(self.oks_small), (NO_GAIN + self.gain).clip(0, 1), 0.0)


def boxes_of(
    image: LabelledImage, detected: list[FoundPerson], random: np.random.Generator
) -> list[tuple[int, FoundPerson]]:
    """(kind, box) of everything to learn from in one picture."""
    own = labelled_boxes([image])
    shaky = []
    for person in own:
        x, y, w, h = sloppy(np.array(person.bbox), random).tolist()
        shaky.append(FoundPerson(image.id, (x, y, w, h), 1.0, person.label))
    # Where others are unlabelled, a box that belongs to nobody may well be somebody.
    found = detected if image.complete else []
    return [
        *((LABELLED, person) for person in own),
        *((SLOPPY, person) for person in shaky),
        *((DETECTED, person) for person in found),
    ]


def collect(
    images: list[LabelledImage],
    pictures: Pictures,
    detector: Detector,
    scorer: PoseScorer,
    small: PoseEstimator,
    large: PoseEstimator,
    seed: int,
) -> Samples:
    """Ask everybody about every box."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[object]] = {name: [] for name in Samples.__dataclass_fields__}
    for count, image in enumerate(images):
        chosen = boxes_of(image, detected_boxes(detector, pictures, [image], MIN_SCORE), random)
        if not chosen:
            continue
        found = [person for _, person in chosen]
        tensors = [pictures(image)] * len(found)
        boxes = torch.tensor([person.bbox for person in found], dtype=torch.float32)
        scores = torch.tensor([person.score for person in found], dtype=torch.float32)
        by_small, by_large = (net(tensors, boxes).double().numpy() for net in (small, large))
        columns["features"].append(scorer.features(tensors, boxes, scores).numpy())
        columns["kind"].append(np.array([kind for kind, _ in chosen]))
        columns["wrong"].append(np.array([person.wrong for person in found]))
        columns["image_id"].append(np.full(len(found), image.id))
        columns["height"].append(boxes[:, 3].double().numpy())
        columns["score"].append(scores.double().numpy())
        columns["confidence"].append(by_small[:, :, 2].mean(1))
        columns["oks_small"].append(similarity(by_small, found))
        columns["oks_large"].append(similarity(by_large, found))
        if count % 200 == 0:
            print(f"asked both nets about the boxes of {count} of {len(images)} pictures", flush=True)
    return Samples(**{name: np.concatenate(parts) for name, parts in columns.items()})  # type: ignore[arg-type]


def fit(samples: Samples, rows: NDArray[np.int64], seed: int) -> GainHead:
    """A head fitted to these rows: cross-entropy with the targets as probabilities, whose optimum is their mean."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    head = GainHead()
    features, target = torch.from_numpy(samples.features), torch.from_numpy(samples.target).float()
    head.mean.copy_(features[rows].mean(0))
    head.deviation.copy_(features[rows].std(0) + 1e-3)
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    steps = max(1, len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        order = torch.from_numpy(random.permutation(rows))
        for part in order.chunk(steps):
            loss = functional.binary_cross_entropy_with_logits(head.logits(features[part]), target[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head.eval()


def difficulty(head: nn.Module, samples: Samples) -> NDArray[np.float64]:
    with torch.inference_mode():
        return np.asarray(head(torch.from_numpy(samples.features)).double().numpy())


def report(scores: NDArray[np.float64], samples: Samples, rows: NDArray[np.bool_]) -> dict[str, object]:
    """Of the boxes in the mask: recovered gain at SHARES for the router and for free rules, on labelled and on the
    detector's boxes; rank correlation of score and gain; how often a right box scores above a wrong one."""
    result: dict[str, object] = {}
    for name, kind in (("labelled", LABELLED), ("detected", DETECTED)):
        chosen = np.flatnonzero(rows & (samples.kind == kind))
        gain = np.nan_to_num(samples.gain[chosen])
        rules = {
            "router": scores,
            "biggest_box": samples.height,
            "lowest_confidence": -samples.confidence,
            "box_score": samples.score,
            "oracle": samples.gain,
        }
        for rule, values in rules.items():
            result[f"{name}_{rule}"] = [
                round(float(gain[highest(values[chosen], p)].sum() / gain.sum()), 3) for p in SHARES
            ]
        result[f"{name}_boxes"] = len(chosen)
    own = rows & (samples.kind == LABELLED)
    result["correlation"] = round(rank_correlation(scores[own], samples.gain[own]), 3)
    detected = rows & (samples.kind == DETECTED)
    wrong, right = scores[detected & samples.wrong], scores[detected & np.isfinite(samples.oks_small)]
    result["auc_right_above_wrong"] = round(float((right[:, None] > wrong[None]).mean()), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument("--pair", default="embedded", help="`embedded` or a folder with pair.json")
    parser.add_argument("--out", type=Path, default=Path("runs/router.safetensors"))
    parser.add_argument("--limit", type=int, help="pictures to use (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    if not has_split(options.data, "train"):
        print(f"skipped: needs pictures with people in {options.data}")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    samples, router = ask(options)

    held_back = np.array([is_held_back(key) for key in samples.image_id.tolist()])
    learning = np.flatnonzero(~held_back)
    folds = samples.image_id % 5
    crossed = np.zeros(len(folds))
    for fold in range(5):
        head = fit(samples, learning[folds[learning] != fold], options.seed)
        crossed = np.where(folds == fold, difficulty(head, samples), crossed)
    router.head = fit(samples, learning, options.seed)
    rows = [
        {"people": name, "samples": len(learning)} | report(scores, samples, chosen)
        for name, scores, chosen in (
            ("cross-validated", crossed, ~held_back),
            ("held back", difficulty(router.head, samples), held_back),
        )
    ]
    with options.out.with_suffix(".log").open("a") as log:
        for row in rows:
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")
    plot_gains(rows, ("labelled", "detected"), SHARES, options.out.with_suffix(".png"))
    save_weights(router, options.out)


def ask(options: argparse.Namespace) -> tuple[Samples, PoseRouter]:
    """The samples of this pair's networks, asked for once and then read from OUT.samples.npz; and a router whose pose
    net is the pair's small net."""
    manifest = read_manifest(options.pair)
    device = resolve_device(options.device)
    dtype = resolve_dtype(device, "auto")
    if manifest.small.architecture != "tinypose":
        raise DataError(
            f"the small net is {manifest.small.name}, and this router has a TinyPose in it: calibration.train_router "
            "trains one for any pair"
        )
    router = PoseRouter()
    weights = {key: value.float() for key, value in read_weights(options.pair, manifest.small).items()}
    router.pose.network.load_state_dict(weights, strict=True)
    entries = (manifest.detector, manifest.small, manifest.large)
    asked = [annotations_sha256(options.data, "train"), *(entry.sha256 for entry in entries)]
    question = f"{asked} seed {options.seed} limit {options.limit} {dtype}"
    kept = options.out.with_suffix(".samples.npz")
    if kept.exists():
        with np.load(kept) as columns:
            if str(columns["question"]) == question:
                return Samples(**{name: columns[name] for name in Samples.__dataclass_fields__}), router
    runs = PoseRouter()  # the runtime converts what it is given in place
    runs.load_state_dict(router.state_dict())
    samples = collect(
        read_split(options.data, "train")[: options.limit],
        Pictures(options.data),
        load_detector(options.pair, manifest.detector, device, dtype),
        PoseScorer(compile_network(runs.pose, device, dtype), runs.head.to(device)),
        load_estimator(options.pair, manifest.small, device, dtype),
        load_estimator(options.pair, manifest.large, device, dtype),
        options.seed,
    )
    unfinished = kept.with_suffix(".part.npz")
    np.savez(unfinished, question=np.array(question), **vars(samples))
    unfinished.replace(kept)
    return samples, router


if __name__ == "__main__":
    run_command(main)
