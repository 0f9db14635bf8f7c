"""Trains the pose nets.

    python -m training.pose DATA --initial FOLDER [--more FOLDER] [--role small coarse fine] [--out runs/pose]

DATA has `train.json`; `--initial` the published PP-TinyPose ONNX files that the nets start from and learn
missing labels from; `--more` a `more.json` labelled by a network. The large net is two nets:
`coarse` at 256x192, and `fine` at 384x288, which starts from it. Writes ROLE.safetensors (fp16, the moving average
of the weights), ROLE.jsonl and ROLE.png (the curve: an evaluation on the held-back tenth of the training
pictures every now and then) and ROLE.checkpoint, from which the same command goes on where it was stopped; then
large.safetensors, `coarse` and `fine` in one. Runs on CUDA where there is one.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from calibration.commands import run_command
from calibration.data import annotations_sha256, has_split
from models.codec import encode
from models.geometry import normalize
from models.tinypose import TinyPose, TwoScaleTinyPose
from models.zoo import save_weights
from training.checkpoints import load_checkpoint, save_checkpoint
from training.initial import load_onnx
from training.people import Sample, augmented, load_people
from training.plots import plot_curve, read_log
from training.progress import evaluate
from training.teacher import save_answers

STRIDE = 4


@dataclass(frozen=True)
class Recipe:
    size: tuple[int, int]
    """Width and height of the input."""
    sigma: float
    """Of the target Gaussian, in heatmap cells."""
    rate: float
    """Peak learning rate."""
    batch: int
    views: int
    """Augmented people to learn from, over all resumed runs; the learning rate falls to zero over them."""
    initial: str
    """A file of the `--initial` folder, or the role whose result it goes on from."""


RECIPES = {
    "small": Recipe((96, 128), 1.1, rate=1e-4, batch=32, views=44_000, initial="pp-tinypose_128x96.onnx"),
    "coarse": Recipe((192, 256), 2.2, rate=5e-5, batch=32, views=35_000, initial="pp-tinypose_256x192.onnx"),
    "fine": Recipe((288, 384), 3.0, rate=3e-4, batch=32, views=80_000, initial="coarse"),
}
TEACHER = "pp-tinypose_256x192.onnx"
WARM_UP_STEPS = 50
EMA_DECAY = 0.998
WEIGHT_DECAY = 1e-3


def pose_loss(heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Squared error summed over a map, averaged over joints by weight. (N, K, h, w) twice, (N, K) -> ()."""
    error = (heatmaps.float() - targets).square().sum(dim=(2, 3))
    return (error * weights).sum() / weights.sum().clamp(min=1)


class FullPrecisionConv(nn.Conv2d):
    """Stays out of autocast. On the CPU a strided depthwise convolution is several times slower backward
    in bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def keep_strided_depthwise_in_full_precision(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = FullPrecisionConv


class Trainer:
    """Network, moving average, optimiser and place in the sample order; all of it in one checkpoint. run: what the
    training is of, which a checkpoint must be of, too."""

    def __init__(
        self, recipe: Recipe, network: TinyPose, device: torch.device, seed: int, run: str = ""
    ) -> None:
        self.recipe, self.device, self.run = recipe, device, run
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        if device.type == "cpu":
            keep_strided_depthwise_in_full_precision(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), recipe.rate, weight_decay=WEIGHT_DECAY)
        self.random = np.random.default_rng(seed)
        self.order: list[int] = []
        self.step, self.elapsed, self.loss = 0, 0.0, 0.0

    @property
    def progress(self) -> float:
        return min(1.0, self.step * self.recipe.batch / self.recipe.views)

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
        with torch.autocast(self.device.type, torch.bfloat16):
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
        save_checkpoint(path, self.run, state)

    def load(self, path: Path) -> None:
        """Raises as `load_checkpoint`."""
        state = load_checkpoint(path, self.run, self.device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.bit_generator.state = json.loads(state["random"])
        self.order = state["order"]
        self.step, self.elapsed, self.loss = state["step"], state["elapsed"], state["loss"]

    def export(self, path: Path) -> None:
        """The moving average, as fp16 safetensors."""
        save_weights(self.average, path)


def epoch(samples: list[Sample], random: np.random.Generator) -> list[int]:
    """A shuffled order in which people with ground truth come twice."""
    indices = [i for i, s in enumerate(samples) for _ in range(2 if s.source == "ground_truth" else 1)]
    random.shuffle(indices)
    return indices


def train(trainer: Trainer, samples: list[Sample], held_back: list[Sample], out: Path, every: int) -> None:
    """Run to the end of the recipe; evaluate and save every `every` steps, as `out` with three suffixes."""
    weights, checkpoint, log = (
        out.with_suffix(suffix) for suffix in (".safetensors", ".checkpoint", ".jsonl")
    )
    if checkpoint.exists():
        trainer.load(checkpoint)
    while True:
        done = trainer.progress >= 1
        if done or trainer.step % every == 0:
            trainer.save(checkpoint)
            row = {
                "minutes": round(trainer.elapsed / 60, 1),
                "views": trainer.step * trainer.recipe.batch,
                "loss": round(trainer.loss, 3),
                **evaluate(trainer.average, trainer.recipe.size, held_back),
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if done:
            trainer.export(weights)
            rows = read_log(log)
            plot_curve(
                rows,
                "views",
                [key for key in rows[-1] if key not in ("views", "minutes")],
                log.with_suffix(".png"),
            )
            return
        trainer.train_step(samples)


def read_result(path: Path) -> TinyPose:
    """The network that another role has left. Raises FileNotFoundError before that role has come to its end."""
    network = TinyPose()
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network


def join(out: Path) -> TwoScaleTinyPose:
    """The large net of the results `coarse` and `fine`."""
    network = TwoScaleTinyPose()
    for role in ("coarse", "fine"):
        getattr(network, role).load_state_dict(read_result(out / f"{role}.safetensors").state_dict())
    return network


def run_of(options: argparse.Namespace, recipe: Recipe, initial: Path) -> str:
    """What decides over the result: labels, initial weights, recipe and seed."""
    labels = [annotations_sha256(options.data, "train")]
    if options.more is not None:
        labels.append(annotations_sha256(options.more, "more"))
    weights = hashlib.sha256(initial.read_bytes()).hexdigest()
    return json.dumps([labels, weights, asdict(recipe), options.seed])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--initial", type=Path, default=Path("initial"))
    parser.add_argument("--more", type=Path)
    parser.add_argument("--role", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("runs/pose"))
    parser.add_argument("--views", type=int, help="instead of the recipe's")
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not has_split(options.data, "train"):
        print(f"skipped: needs pictures with people in {options.data}")
        return
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = options.out / "teacher.npz"
    save_answers(options.initial / TEACHER, options.data, teacher)
    samples, held_back = load_people(options.data, options.more, teacher)
    for role in options.role:
        recipe = RECIPES[role]
        if options.views is not None:
            recipe = replace(recipe, views=options.views)
        print(
            f"{role}: {len(samples)} people to learn from, {len(held_back)} held back; {recipe}", flush=True
        )
        if recipe.initial in RECIPES:
            initial = options.out / f"{recipe.initial}.safetensors"
            network = read_result(initial)
        else:
            initial = options.initial / recipe.initial
            network = load_onnx(initial)
        trainer = Trainer(recipe, network, device, options.seed, run_of(options, recipe, initial))
        train(trainer, samples, held_back, options.out / role, options.every)
    if all((options.out / f"{role}.safetensors").exists() for role in ("coarse", "fine")):
        save_weights(join(options.out), options.out / "large.safetensors")


if __name__ == "__main__":
    run_command(main)
