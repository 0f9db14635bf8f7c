"""Makes the teacher of the bundled person detector: the person row of a COCO YOLO, gently fine-tuned on pictures with
people. `training.light_head` then makes it cheaper; it will do as a pair's detector as it is, too.

    python -m training.detector DATA --initial yolov8s.safetensors --out runs/detector-teacher.safetensors

DATA is a folder with `train.json` (COCO format) and its pictures. Pictures whose people are not all annotated are left
out, crowd areas are greyed out, and a fixed tenth is held back and measured before and after. Only the class branch of
the head learns (and batch normalisation keeps its statistics): the rest has seen all of COCO, of which these pictures
are a sliver, and training it too, tried with YOLOv8n, made the boxes less exact (held-back AP 0.535 -> 0.521 and
0.527).
"""

import argparse
import copy
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calibration.accuracy import accuracy
from calibration.commands import run_command
from calibration.data import (
    DataError,
    LabelledImage,
    Pictures,
    annotations_sha256,
    has_split,
    is_held_back,
    read_split,
)
from calibration.detection import find, match_boxes
from models.defaults import DETECTOR_SIZE
from models.detector import FILL, BoxDecoder, YoloDetector, build_network, person_rows, read_ultralytics
from models.runtime import compile_network, resolve_device
from models.zoo import save_weights
from training.checkpoints import load_checkpoint, save_checkpoint
from training.plots import plot_curve, read_log

from ultralytics.utils.loss import v8DetectionLoss  # isort: skip  # after models.detector has set its environment

ARCHITECTURE = "yolov8s"
GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)  # ultralytics' defaults


def initial_network(path: Path) -> Any:
    """The one-class network with the weights of an 80-class COCO detector and its person row.

    `path`: ultralytics' own .pt, or safetensors with its keys; there an int8 tensor has its scale per output channel
    under KEY.scale. Raises DataError.
    """
    try:
        stored = read_ultralytics(path) if path.suffix == ".pt" else load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: {error}") from error
    weights = {}
    for key, value in stored.items():
        if key.endswith(".scale"):
            continue
        scale = stored.get(f"{key}.scale")
        if scale is not None:
            value = value.float() * scale.float().view(-1, 1, 1, 1)
        weights[key] = value.float() if value.is_floating_point() else value
    network = build_network(ARCHITECTURE)
    try:
        network.load_state_dict(person_rows(weights, network), strict=True)
    except RuntimeError as error:
        raise DataError(f"{path} holds another network than {ARCHITECTURE} of COCO's 80 classes") from error
    return network


def hide_crowds(picture: np.ndarray, image: LabelledImage) -> np.ndarray:
    """Grey out crowd areas, but for the people annotated one by one: nobody there is labelled, so nobody should be
    learned as background."""
    hidden = picture.copy()
    for person in image.people:
        if person.crowd:
            x, y, w, h = (round(value) for value in person.bbox)
            hidden[y : y + h, x : x + w] = FILL
    for person in image.people:
        if not person.crowd:
            x, y, w, h = (round(value) for value in person.bbox)
            hidden[y : y + h, x : x + w] = picture[y : y + h, x : x + w]
    return hidden


def augment(
    picture: np.ndarray, boxes: np.ndarray, size: int, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, scale and shift onto a canvas of size x size. boxes: (M, 4) x, y, w, h; those mostly outside go."""
    height, width = picture.shape[:2]
    factor = size / max(height, width) * rng.uniform(0.8, 1.2)
    matrix = np.array([[factor, 0, 0], [0, factor, 0]])
    if rng.random() < 0.5:
        matrix[0] = [-factor, 0, factor * (width - 1)]
    matrix[0, 2] += rng.uniform(0, 1) * (size - factor * width)
    matrix[1, 2] += rng.uniform(0, 1) * (size - factor * height)
    canvas = cv2.warpAffine(picture, matrix, (size, size), borderValue=(FILL, FILL, FILL))
    gain, bias = rng.uniform(0.75, 1.25), rng.uniform(-20, 20)
    canvas = np.clip(canvas.astype(np.float32) * gain + bias, 0, 255).astype(np.uint8)
    first = boxes[:, :2] * matrix[[0, 1], [0, 1]] + matrix[:, 2]
    last = (boxes[:, :2] + boxes[:, 2:]) * matrix[[0, 1], [0, 1]] + matrix[:, 2]
    low, high = np.minimum(first, last), np.maximum(first, last)
    area = np.prod(high - low, axis=1)
    low, high = low.clip(0, size), high.clip(0, size)
    seen = np.prod(high - low, axis=1) > 0.3 * area
    return canvas, np.concatenate([low, high - low], axis=1)[seen]


def batches(
    images: list[LabelledImage], pictures: Pictures, size: int, batch_size: int, rng: random.Random
) -> Iterator[dict[str, Tensor]]:
    """Endless shuffled batches as ultralytics' loss reads them; a tenth of the samples are 2 x 2 mosaics."""

    def sample(image: LabelledImage, side: int) -> tuple[np.ndarray, np.ndarray]:
        picture = hide_crowds(pictures(image).numpy(), image)
        boxes = np.array([p.bbox for p in image.people if not p.crowd], dtype=np.float64).reshape(-1, 4)
        return augment(picture, boxes, side, rng)

    while True:
        order = rng.sample(images, len(images))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            canvases, targets = [], []
            for index, image in enumerate(order[start : start + batch_size]):
                if rng.random() < 0.1:
                    quarters = [sample(part, size // 2) for part in [image, *rng.sample(images, 3)]]
                    halves = [np.hstack([quarters[i][0], quarters[i + 1][0]]) for i in (0, 2)]
                    canvas = np.vstack(halves)
                    corners = np.array([(0, 0), (size // 2, 0), (0, size // 2), (size // 2, size // 2)])
                    boxes = np.concatenate(
                        [q[1] + [*c, 0, 0] for q, c in zip(quarters, corners, strict=True)]
                    )
                else:
                    canvas, boxes = sample(image, size)
                boxes = boxes / size
                boxes[:, :2] += boxes[:, 2:] / 2
                canvases.append(torch.from_numpy(canvas).permute(2, 0, 1))
                targets.append(np.concatenate([np.full((len(boxes), 1), index), boxes], axis=1))
            rows = torch.from_numpy(np.concatenate(targets)).float()
            yield {
                "img": torch.stack(canvases),
                "batch_idx": rows[:, 0],
                "cls": torch.zeros(len(rows)),
                "bboxes": rows[:, 1:],
            }


def average_precision(network: Any, images: list[LabelledImage], pictures: Pictures) -> dict[str, float]:
    """Person AP, AP50 and AR (COCO protocol, crowds ignored) of `network` through the service's detector stage."""
    device = next(network.parameters()).device
    own = BoxDecoder(copy.deepcopy(network).eval())  # which joins layers
    detector = YoloDetector(compile_network(own, device, torch.float32))
    result = accuracy(match_boxes(images, find(detector, pictures, images)))
    return {"ap": round(result.ap, 4), "ap50": round(result.ap50, 4), "ar": round(result.ar, 4)}


def train(arguments: argparse.Namespace) -> None:
    random_state = random.Random(arguments.seed)
    torch.manual_seed(arguments.seed)
    device = resolve_device(arguments.device)
    pictures = Pictures(arguments.data)
    complete = [image for image in read_split(arguments.data, "train") if image.complete]
    training = [image for image in complete if not is_held_back(image.id)]
    held_back = [image for image in complete if is_held_back(image.id)]
    if len(training) < arguments.batch:
        raise DataError(
            f"a batch takes {arguments.batch} pictures, and {len(training)} are there to learn from"
        )

    network = initial_network(arguments.initial).to(device)
    network.args = GAINS
    average = build_network(ARCHITECTURE).to(device).requires_grad_(False)
    network.requires_grad_(False)
    learning = list(network.model[-1].cv3.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(learning, lr=arguments.rate, weight_decay=1e-4)
    step = 0
    checkpoint = arguments.out.with_suffix(".checkpoint")
    run = run_of(arguments)
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run, device)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        random_state.seed(arguments.seed + step)
    else:
        average.load_state_dict(network.state_dict())
        report(arguments.out, step, 0.0, average_precision(network, held_back, pictures))

    criterion = v8DetectionLoss(network)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    steps = round(arguments.epochs * len(training) / arguments.batch)
    losses: list[float] = []
    for batch in batches(training, pictures, DETECTOR_SIZE, arguments.batch, random_state):
        if step >= steps:
            break
        warm, progress = min(1.0, (step + 1) / 50), step / steps
        optimizer.param_groups[0]["lr"] = arguments.rate * warm * (0.55 + 0.45 * math.cos(math.pi * progress))
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16):
            raw = network(batch["img"].float().div(255).contiguous(memory_format=torch.channels_last))
        raw = {
            key: [v.float() for v in value] if key == "feats" else value.float() for key, value in raw.items()
        }
        loss = criterion(raw, batch)[0].sum() / arguments.batch
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 10.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(new, 1 - decay)
        if step % 50 == 0 or step == steps:
            report(arguments.out, step, sum(losses) / len(losses), {"of": steps})
            losses.clear()
            state = {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            save_checkpoint(checkpoint, run, state)
    report(arguments.out, step, 0.0, average_precision(average, held_back, pictures))
    save_weights(average, arguments.out)
    plot_curve(
        read_log(arguments.out.with_suffix(".log")), "step", ["loss", "ap"], arguments.out.with_suffix(".png")
    )
    checkpoint.unlink(missing_ok=True)


def run_of(arguments: argparse.Namespace) -> str:
    """What decides over the result: labels, initial weights and settings."""
    labels = annotations_sha256(arguments.data, "train")
    weights = hashlib.sha256(arguments.initial.read_bytes()).hexdigest()
    return json.dumps([labels, weights, arguments.epochs, arguments.batch, arguments.rate, arguments.seed])


def report(out: Path, step: int, loss: float, values: dict[str, float]) -> None:
    line = json.dumps({"time": round(time.time()), "step": step, "loss": round(loss, 4)} | values)
    print(line, flush=True)
    with out.with_suffix(".log").open("a") as log:
        log.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the person detector.")
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument(
        "--initial", type=Path, required=True, help="yolov8s, trained on COCO: .safetensors or .pt"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/detector-teacher.safetensors"))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    arguments = parser.parse_args()
    if not has_split(arguments.data, "train"):
        print(f"skipped: needs pictures with people in {arguments.data}")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    train(arguments)


if __name__ == "__main__":
    run_command(main)
