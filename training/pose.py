"""Trains one of the two pose nets.

    python -m training.pose --role large --data DIR --start initial.safetensors --out large.safetensors
    --minutes 90

`--start` is made by `training.initial`, `--teacher` by `training.teacher`. The weights written are an
exponential moving average, in fp16. A checkpoint beside `--out` lets the same command go on where it was
stopped; the curve is a JSON line per evaluation on the held-back tenth of the training pictures.
"""

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibration.data import has_split
from models.codec import encode
from models.estimator import PoseEstimator
from models.geometry import normalize
from models.skeleton import SIGMAS
from models.tinypose import TinyPose
from training.people import Sample, augmented, load_people

STRIDE = 4


@dataclass(frozen=True)
class Recipe:
    size: tuple[int, int]
    """Width and height of the input."""
    sigma: float
    """Of the target Gaussian, in heatmap cells."""
    rate: float
    batch: int


RECIPES = {
    "small": Recipe(size=(96, 128), sigma=1.1, rate=1e-4, batch=32),
    "large": Recipe(size=(288, 384), sigma=2.5, rate=5e-4, batch=16),
}
WARM_UP_STEPS = 50
EMA_DECAY = 0.998
WEIGHT_DECAY = 1e-3


def pose_loss(heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Squared error summed over a map, averaged over joints by weight. (N, K, h, w) twice, (N, K) -> ()."""
    error = (heatmaps.float() - targets).square().sum(dim=(2, 3))
    return (error * weights).sum() / weights.sum().clamp(min=1)


def similarity(predicted: np.ndarray, samples: list[Sample]) -> np.ndarray:
    """OKS (N,) of predicted keypoints (N, 17, 2+) with the annotated ones."""
    variances = (2 * np.array(SIGMAS)) ** 2
    scores = []
    for points, sample in zip(predicted, samples, strict=True):
        labelled = sample.weights > 0
        squared = ((points[:, :2] - sample.keypoints) ** 2).sum(axis=1)
        scores.append(np.exp(-squared / (2 * variances * max(sample.area, 1)))[labelled].mean())
    return np.array(scores)


def evaluate(network: TinyPose, recipe: Recipe, samples: list[Sample], batch: int = 32) -> dict[str, float]:
    """Per source, on given boxes: mean OKS and average recall (over OKS thresholds 0.50:0.05:0.95)."""
    device = next(network.parameters()).device

    @torch.inference_mode()
    def run(crops: Tensor) -> Tensor:
        return network(crops.to(device, memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]

    estimator = PoseEstimator(run, input_size=recipe.size, codec="dark")
    results = {}
    for source in sorted({sample.source for sample in samples}):
        chosen = [sample for sample in samples if sample.source == source]
        predicted = [
            estimator([s.picture for s in part], torch.from_numpy(np.stack([s.bbox for s in part])))
            for part in (chosen[i : i + batch] for i in range(0, len(chosen), batch))
        ]
        oks = similarity(torch.cat(predicted).numpy(), chosen)
        results[f"{source}_oks"] = round(float(oks.mean()), 4)
        results[f"{source}_ar"] = round(float((oks[:, None] > np.arange(0.5, 0.96, 0.05)).mean()), 4)
    return results


class Trainer:
    """Network, moving average, optimiser and place in the sample order; all of it in one checkpoint."""

    def __init__(self, recipe: Recipe, start: Path, device: torch.device, minutes: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.device, self.minutes = recipe, device, minutes
        self.network = TinyPose()
        self.network.load_state_dict({k: v.float() for k, v in load_file(start).items()})
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), recipe.rate, weight_decay=WEIGHT_DECAY)
        self.random = np.random.default_rng(seed)
        self.order: list[int] = []
        self.step, self.elapsed, self.loss = 0, 0.0, 0.0

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / (60 * self.minutes))

    def train_step(self, samples: list[Sample]) -> None:
        began = time.monotonic()
        recipe = self.recipe
        if len(self.order) < recipe.batch:
            self.order = epoch(samples, self.random)
        chosen, self.order = self.order[: recipe.batch], self.order[recipe.batch :]
        crops, points, weights = augmented([samples[i] for i in chosen], recipe.size, self.random)
        maps = (recipe.size[0] // STRIDE, recipe.size[1] // STRIDE)
        labelled = (weights > 0).to(self.device)
        targets, inside = encode((points / STRIDE).to(self.device), labelled, maps, recipe.sigma)

        rate = (
            recipe.rate
            * min(1, (self.step + 1) / WARM_UP_STEPS)
            * (1 + math.cos(math.pi * self.progress))
            / 2
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs = normalize(crops.to(self.device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            heatmaps = self.network(inputs)
        loss = pose_loss(heatmaps, targets, inside * weights.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 20.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        self.loss = 0.98 * self.loss + 0.02 * loss.item() if self.step > 1 else loss.item()
        self.elapsed += time.monotonic() - began

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": json.dumps(self.random.bit_generator.state),
            "order": self.order,
            "step": self.step,
            "elapsed": self.elapsed,
            "loss": self.loss,
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.bit_generator.state = json.loads(state["random"])
        self.order = state["order"]
        self.step, self.elapsed, self.loss = state["step"], state["elapsed"], state["loss"]

    def export(self, path: Path) -> None:
        """The moving average, as fp16 safetensors."""
        weights = {key: value.half().contiguous().cpu() for key, value in self.average.state_dict().items()}
        temporary = path.with_suffix(".tmp")
        save_file(weights, temporary)
        os.replace(temporary, path)


def epoch(samples: list[Sample], random: np.random.Generator) -> list[int]:
    """A shuffled order in which people with ground truth come twice."""
    indices = [i for i, s in enumerate(samples) for _ in range(2 if s.source == "ground_truth" else 1)]
    random.shuffle(indices)
    return indices


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--role", choices=RECIPES, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.json")
    parser.add_argument("--more", type=Path, help="folder with more.json, labelled by a network")
    parser.add_argument("--teacher", type=Path, help="answers written by training.teacher")
    parser.add_argument("--start", type=Path, required=True, help="initial weights")
    parser.add_argument("--out", type=Path, required=True, help="weights to write")
    parser.add_argument("--minutes", type=float, required=True, help="of training, over all resumed runs")
    parser.add_argument(
        "--report-every", type=float, default=5, help="minutes between evaluations and checkpoints"
    )
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--sigma", type=float, help="of the target Gaussian, in cells")
    parser.add_argument("--size", type=int, nargs=2, help="input width and height")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if not has_split(options.data, "train"):
        print(f"skipped: needs pictures with people in {options.data}")
        return
    torch.set_num_threads(options.threads)
    base = RECIPES[options.role]
    recipe = Recipe(
        size=tuple(options.size) if options.size else base.size,
        sigma=options.sigma or base.sigma,
        rate=options.rate or base.rate,
        batch=base.batch,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples, held_back = load_people(options.data, options.more, options.teacher)
    print(f"{len(samples)} people to learn from, {len(held_back)} held back; {recipe}", flush=True)

    trainer = Trainer(recipe, options.start, device, options.minutes, options.seed)
    checkpoint, log = options.out.with_suffix(".checkpoint"), options.out.with_suffix(".jsonl")
    if checkpoint.exists():
        trainer.load(checkpoint)
    reported = -math.inf
    while True:
        done = trainer.progress >= 1
        if done or trainer.elapsed - reported >= 60 * options.report_every:
            reported = trainer.elapsed
            trainer.export(options.out)
            trainer.save(checkpoint)
            row = {
                "minutes": round(trainer.elapsed / 60, 1),
                "people": trainer.step * recipe.batch,
                "loss": round(trainer.loss, 3),
                **evaluate(trainer.average, recipe, held_back),
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if done:
            return
        trainer.train_step(samples)


if __name__ == "__main__":
    main()
