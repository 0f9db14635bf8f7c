"""Makes the bundled detector cheaper: a class branch of half the arithmetic, taught by YOLOv8s' own.

    python -m training.light_head DATA --teacher runs/detector-teacher.safetensors --out runs/detector.safetensors

The class branch of a YOLOv8 is a fifth of its arithmetic, which for one class is too much. The rest of the network
stays as it is, so that boxes do. What it makes of a few thousand views of the training pictures is kept in a file, and
the new branch learns from that to give the old one's scores: by cross-entropy with those as targets, without labels. A
fixed tenth of the pictures is held back, on which both networks are measured.
"""

import argparse
import copy
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from calibration.commands import run_command
from calibration.data import DataError, LabelledImage, Pictures, has_split, is_held_back, read_split
from models.defaults import DETECTOR_SIZE
from models.detector import LIGHT, LIGHT_WIDTH, build_network
from models.runtime import resolve_device
from models.zoo import save_weights
from training.detector import ARCHITECTURE, augment, average_precision, report


def views(
    images: Sequence[LabelledImage], pictures: Pictures, rng: random.Random
) -> Iterator[NDArray[np.uint8]]:
    """Endless pieces of the pictures, (512, 512, 3) RGB, one in seven of four pictures. Raises DataError for none."""
    if not images:
        raise DataError("no picture is left to learn from: all are held back")
    nobody = np.zeros((0, 4))

    def pieces() -> Iterator[NDArray[np.uint8]]:
        while True:
            for image in rng.sample(images, len(images)):
                yield pictures(image).numpy()

    each = pieces()
    while True:
        if rng.random() < 0.15:
            parts = [augment(next(each), nobody, DETECTOR_SIZE // 2, rng)[0] for _ in range(4)]
            yield np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
        else:
            yield augment(next(each), nobody, DETECTOR_SIZE, rng)[0]


@torch.inference_mode()
def look(teacher: Any, canvases: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    """The maps (N, C, h, w) that the head reads, a level each, and last the class logits (N, 1, cells)."""
    batch = torch.from_numpy(np.stack(canvases)).to(device).permute(0, 3, 1, 2).float().div(255)
    raw = teacher(batch)
    return [*raw["feats"], raw["scores"]]


def remember(
    teacher: Any, canvases: Iterator[NDArray[np.uint8]], count: int, file: IO[bytes], device: torch.device
) -> tuple[NDArray[np.float16], list[torch.Size]]:
    """What `look` gives of `count` views, (count, numbers) in `file`, 1.8 MB a row, and how `recall` shapes a row."""
    shapes: list[torch.Size] = []
    for _ in range(count):
        maps = look(teacher, [next(canvases)], device)
        shapes = [each.shape[1:] for each in maps]
        torch.cat([each.flatten() for each in maps]).half().cpu().numpy().tofile(file)
    file.flush()
    return np.memmap(file, np.float16, "r", shape=(count, sum(map(math.prod, shapes)))), shapes


def recall(rows: NDArray[np.float16], shapes: Sequence[torch.Size], device: torch.device) -> list[Tensor]:
    """Rows (N, numbers) of `remember` -> the maps of `look`, float32, in writable memory of their own."""
    parts = torch.split(torch.tensor(rows).to(device).float(), list(map(math.prod, shapes)), dim=1)
    return [part.reshape(len(part), *shape) for part, shape in zip(parts, shapes, strict=True)]


def train(arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed)
    torch.manual_seed(arguments.seed)
    device = resolve_device(arguments.device)
    pictures = Pictures(arguments.data)
    images = read_split(arguments.data, "train")
    held_back = [image for image in images if image.complete and is_held_back(image.id)]

    teacher = build_network(ARCHITECTURE).to(device)
    try:
        teacher.load_state_dict(load_file(arguments.teacher))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{arguments.teacher} is no {ARCHITECTURE} of training.detector") from error
    report(arguments.out, 0, 0.0, {"teacher": average_precision(teacher, held_back, pictures)["ap"]})
    light = build_network(LIGHT).to(device)
    light.load_state_dict(
        {key: value for key, value in teacher.state_dict().items() if ".cv3." not in key}, strict=False
    )

    seen = copy.deepcopy(teacher).eval().fuse(verbose=False).to(memory_format=torch.channels_last)
    seen.model[-1].training = True  # only then it gives its maps
    with tempfile.TemporaryFile(dir=arguments.out.parent) as file:
        canvases = views([image for image in images if not is_held_back(image.id)], pictures, rng)
        rows, shapes = remember(seen, canvases, arguments.views, file, device)
        learn(light, teacher, rows, shapes, arguments)
    save_weights(light, arguments.out)
    report(arguments.out, arguments.steps, 0.0, average_precision(light, held_back, pictures))


def learn(
    light: Any,
    teacher: Any,
    rows: NDArray[np.float16],
    shapes: Sequence[torch.Size],
    arguments: argparse.Namespace,
) -> None:
    """Teach the class branch of `light`, which ends as the moving average of its weights. rows, shapes: as of
    `remember`."""
    rng = random.Random(arguments.seed)
    branches = light.model[-1].cv3
    for branch, taught in zip(branches, teacher.model[-1].cv3, strict=True):
        begin(branch, taught)
    device = next(branches.parameters()).device
    average = copy.deepcopy(branches).requires_grad_(False)
    learning = copy.deepcopy(branches).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(learning.parameters(), lr=arguments.rate, weight_decay=1e-4)
    losses: list[float] = []
    for step in range(1, arguments.steps + 1):
        warm, progress = min(1.0, step / 100), step / arguments.steps
        optimizer.param_groups[0]["lr"] = (
            arguments.rate * warm * (0.505 + 0.495 * math.cos(math.pi * progress))
        )
        chosen = sorted(rng.sample(range(len(rows)), arguments.batch))
        *features, taught = recall(rows[chosen], shapes, device)
        logits = torch.cat(
            [branch(level).flatten(2) for branch, level in zip(learning, features, strict=True)], dim=2
        )
        loss = divergence(logits, taught)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
        decay = min(0.998, step / (9 + step))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), learning.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
        if step % 100 == 0 or step == arguments.steps:
            report(arguments.out, step, sum(losses) / len(losses), {"of": arguments.steps})
            losses.clear()
    branches.load_state_dict(average.state_dict())


def begin(branch: Any, taught: Any) -> None:
    """Let a light class branch start with those channels of its teacher's first convolution that count most for the
    second one."""
    first, second, last = taught
    counts = second.conv.weight.abs().sum(dim=(0, 2, 3)) * first.bn.weight.abs()
    kept = counts.argsort(descending=True)[:LIGHT_WIDTH]
    branch[0].load_state_dict(
        {key: value[kept] if value.ndim else value for key, value in first.state_dict().items()}
    )
    branch[-1].bias.data.copy_(last.bias.data)


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """How far scores are from those taught: the cross-entropy above that of the taught scores themselves, of all cells,
    in shares of the taught scores' sum. Both (N, 1, cells), logits."""
    targets = taught.sigmoid()
    least = F.binary_cross_entropy_with_logits(taught, targets, reduction="sum")
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") - least) / targets.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description="Give the detector a light class branch.")
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument("--teacher", type=Path, required=True, help=f"a {ARCHITECTURE} of training.detector")
    parser.add_argument("--out", type=Path, default=Path("runs/detector.safetensors"))
    parser.add_argument("--views", type=int, default=4000, help="1.8 MB each, in a file beside OUT meanwhile")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    if arguments.views < arguments.batch:
        parser.error("there are fewer views than a batch takes")
    if not has_split(arguments.data, "train"):
        print(f"skipped: needs pictures with people in {arguments.data}")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    train(arguments)


if __name__ == "__main__":
    run_command(main)
