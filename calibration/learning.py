"""How the paper's router learns (section 3.3): recipe, loss over a batch, and training that can be interrupted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration import curve
from calibration.okd import CROP_AREA, Reading, counted, gain_target, okd, oks, released_losses
from calibration.samples import LABELLED, WRONG, Boxes, Samples, SamplesError
from models.geometry import normalize
from models.router import Router, RouterConfig

WRONG_BOX_WEIGHT = 0.3
CHECKPOINT_STEPS = 1000
WARM_UP = 5
CHECKPOINT = {"run", "router", "optimizer", "schedule", "step", "total", "lines"}
"""What a checkpoint holds."""


@dataclass(frozen=True)
class Recipe:
    """How the router learns. schedule: `constant` is the paper's, with its warm-up. released: three outputs and the
    authors' loss. autocast: bfloat16 where the device computes with it. pooling, pconv, sge: table 5's switches."""

    batch: int = 1
    epochs: int = 1
    rate: float = 1e-4
    decay: float = 5e-3
    schedule: str = "constant"
    augment: bool = False
    boxes: Boxes = "labelled"
    autocast: bool = False
    released: bool = False
    pooling: Literal["avg", "max", "none"] = "avg"
    pconv: bool = True
    sge: bool = True
    seed: int = 0


PAPER = Recipe()
BATCHED = Recipe(
    batch=64, epochs=8, rate=1e-3, decay=1e-4, schedule="one-cycle", augment=True, boxes="all", autocast=True
)


@dataclass(frozen=True)
class Lesson:
    """What the loss needs of N boxes. weight: (N,) of a box in eq. 6's term, 0 where it does not count. target: (N,),
    finite. released: (N, 4) OKD of both nets, OKS of the small one, and whether the filter lets the person through."""

    weight: NDArray[np.float64]
    target: NDArray[np.float64]
    released: NDArray[np.float64]


def lesson(samples: Samples, reading: Reading) -> Lesson:
    """Read eq. 5 and 6 on the samples."""
    truth, visible = samples.truth[:, :, :2], samples.truth[:, :, 2]
    area = samples.area if reading.filter_area == "person" else np.full(len(samples.kind), CROP_AREA)
    answers = (samples.small, samples.large)
    distances = [okd(answer, truth, visible, reading) for answer in answers]
    similarities = [oks(answer, truth, visible, area) for answer in answers]
    target = gain_target(distances[0], distances[1], reading)
    passed = counted(similarities[0], similarities[1], reading)
    nobody = samples.kind == WRONG
    return Lesson(
        weight=np.where(nobody, WRONG_BOX_WEIGHT, passed & np.isfinite(target)),
        target=np.where(nobody, 1.0, np.nan_to_num(target)),
        released=np.nan_to_num(np.stack([*distances, similarities[0], passed.astype(np.float64)], axis=1)),
    )


def score_all(
    router: Router, crops: NDArray[np.uint8], rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float64]:
    """(len(rows),) difficulties in float32 arithmetic."""
    router.eval()
    with torch.inference_mode():
        parts = [
            router(normalize(batch_of(crops, rows[start : start + 64]).to(device))).cpu()
            for start in range(0, len(rows), 64)
        ]
    return torch.cat(parts).double().numpy()


def batch_of(crops: NDArray[np.uint8], rows: NDArray[np.int64]) -> Tensor:
    """(len(rows), 3, 256, 192) uint8, in the memory order of the file."""
    return torch.from_numpy(np.array(crops[rows])).permute(0, 3, 1, 2)


def augment(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of them, vary brightness and contrast. (N, 3, h, w) normalised float -> the same."""
    drawn = torch.rand(3, len(crops), 1, 1, 1, generator=generator).to(crops.device)
    mirrored, gain, shift = drawn.unbind()
    crops = torch.where(mirrored < 0.5, crops.flip(3), crops)
    return crops * (0.8 + 0.4 * gain) + (0.6 * shift - 0.3)


def loss_of(router: Router, crops: Tensor, part: Lesson, recipe: Recipe, device: torch.device) -> Tensor:
    """Eq. 6 over a batch, or the authors' three terms. The mean is over boxes, not weights: in a batch of one a weight
    would cancel out."""
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.autocast):
        scores: Tensor = router.scores(crops).float()
    if recipe.released:
        columns = torch.from_numpy(part.released).float().to(device)
        small, large, similarity, active = columns.unbind(1)
        terms = released_losses(scores, small, large, similarity, active > 0)
        return terms.sum(1).mean()
    weight = torch.from_numpy(part.weight).float().to(device)
    target = torch.from_numpy(part.target).float().to(device)
    loss: Tensor = ((scores[:, router.config.score_index] - target) ** 2 * weight).mean()
    return loss


def optimisation(
    router: Router, recipe: Recipe, steps: int
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(router.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    if recipe.schedule == "one-cycle":
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps, pct_start=0.1)
        return optimizer, cycle
    # As MMEngine counts: the fifth of five warm-up steps has the full rate.
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=WARM_UP - 1)
    return optimizer, warm_up


def train(
    samples: Samples, reading: Reading, recipe: Recipe, device: torch.device, out: Path, run: str
) -> tuple[Router, list[dict[str, Any]]]:
    """Train, and validate after every epoch. Goes on from OUT.checkpoint if that is of the same `run`. Raises
    SamplesError when there is nothing to learn from or the checkpoint is of another run."""
    torch.manual_seed(recipe.seed)
    outputs, score_index = (3, 1) if recipe.released else (1, 0)
    config = RouterConfig(
        pooling=recipe.pooling,
        pconv=recipe.pconv,
        sge=recipe.sge,
        outputs=outputs,
        score_index=score_index,
    )
    router = Router(config).to(device)
    everything = lesson(samples, reading)
    # The third of the authors' terms counts for everybody.
    rows = np.flatnonzero(~samples.held_back & (recipe.released | (everything.weight > 0)))
    if not len(rows):
        raise SamplesError(f"none of the {(~samples.held_back).sum()} boxes counts in the loss")
    batch = min(recipe.batch, len(rows))
    per_epoch = len(rows) // batch
    optimizer, schedule = optimisation(router, recipe, recipe.epochs * per_epoch)
    lines: list[dict[str, Any]] = []
    checkpoint, first, total = out.with_suffix(".checkpoint"), 0, 0.0
    if checkpoint.exists():
        state = read_checkpoint(checkpoint, device)
        if state["run"] != run:
            raise SamplesError(f"{checkpoint} is of another run: remove it or choose another --out")
        router.load_state_dict(state["router"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, total, lines = state["step"], state["total"], state["lines"]
    order = rows
    for step in range(first, recipe.epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == first:
            router.train()
            order = np.random.default_rng((recipe.seed, epoch)).permutation(rows)
        chosen = order[place * batch : (place + 1) * batch]
        crops = normalize(batch_of(samples.crops, chosen).to(device))
        if recipe.augment:
            # Of its own for every step: resumed or not, the run is the same.
            crops = augment(crops, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step))
        part = Lesson(everything.weight[chosen], everything.target[chosen], everything.released[chosen])
        loss = loss_of(router, crops.contiguous(memory_format=torch.channels_last), part, recipe, device)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += loss.item()
        ended = place + 1 == per_epoch
        if ended:
            line = {"epoch": epoch + 1, "loss": round(total / per_epoch, 5), "samples": len(rows)}
            lines.append(line | validation(router, samples, device))
            print(json.dumps(lines[-1]), flush=True)
            total = 0.0
        if ended or (step + 1) % CHECKPOINT_STEPS == 0:
            state = {
                "run": run,
                "router": router.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
                "total": total,
                "lines": lines,
            }
            unfinished = checkpoint.with_suffix(".checkpoint.new")
            torch.save(state, unfinished)
            unfinished.replace(checkpoint)
            out.with_suffix(".log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return router, lines


def read_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    """What `train` wrote, whole. Raises SamplesError."""
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
        if state.keys() >= CHECKPOINT:
            return state
    except Exception as error:  # torch.load raises almost anything for a damaged file
        raise SamplesError(f"{file} is damaged: remove it to start anew") from error
    raise SamplesError(f"{file} is no checkpoint of this command: remove it to start anew")


def validation(router: Router, samples: Samples, device: torch.device) -> dict[str, Any]:
    """`curve.validate` on the held-back boxes; nothing when nobody is held back."""
    truth, visible = samples.truth[:, :, :2], samples.truth[:, :, 2]
    own = np.flatnonzero(samples.held_back & (samples.kind == LABELLED))
    if not len(own):
        return {}
    small, large = (
        oks(answer[own], truth[own], visible[own], samples.area[own])
        for answer in (samples.small, samples.large)
    )
    nobody = np.flatnonzero(samples.held_back & (samples.kind == WRONG))
    wrong = score_all(router, samples.crops, nobody, device) if len(nobody) else np.empty(0)
    return curve.validate(
        score_all(router, samples.crops, own, device), large - small, samples.height[own], wrong
    )
