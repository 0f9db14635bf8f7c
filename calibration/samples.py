"""What the router learns from: boxes, and what the two nets of a pair make of the people in them.

Both nets are asked once. Their answers and the crops stay in a folder, in shards of a few pictures: an interrupted
collection goes on where it was, and crops (147 kB each) are mapped into memory, not read. Keypoints are kept as
they are, so that every reading of eq. 5 and 6 can be trained from one collection.
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.boxes import Bbox, labelled_boxes
from calibration.data import LabelledImage, LabelledPerson, Pictures, decode
from models.defaults import ROUTER_SIZE
from models.estimator import PoseEstimator
from models.geometry import center_scale, crop_matrix
from models.router import router_crops

LABELLED, SLOPPY, WRONG = 0, 1, 2
Boxes = Literal["labelled", "all"]

SHARD = 50
"""Pictures in one shard."""

BATCH = 64
CROP_SHAPE = (ROUTER_SIZE[1], ROUTER_SIZE[0], 3)
CROP_BYTES = math.prod(CROP_SHAPE)


class SamplesError(Exception):
    """There is nothing to learn from; the message is one line that says why."""


@dataclass(frozen=True)
class Samples:
    """N boxes. Points and areas are in pixels of the 192 x 256 crop; K keypoints a person."""

    crops: NDArray[np.uint8]
    """(N, 256, 192, 3) RGB: what the router sees."""
    kind: NDArray[np.int64]
    """LABELLED: a person's own box; SLOPPY: as a detector might draw it; WRONG: no person."""
    held_back: NDArray[np.bool_]
    image_id: NDArray[np.int64]
    height: NDArray[np.float64]
    """Of the box, in picture pixels."""
    truth: NDArray[np.float64]
    """(N, K, 3): x, y, v; v is 0 throughout where there is no person."""
    area: NDArray[np.float64]
    small: NDArray[np.float64]
    """(N, K, 2): what the small net answers; 0 where there is no person. `large` likewise."""
    large: NDArray[np.float64]


COLUMNS = tuple(name for name in Samples.__dataclass_fields__ if name != "crops")


@dataclass(frozen=True)
class _Box:
    image: LabelledImage
    kind: int
    bbox: Bbox
    person: LabelledPerson | None


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


def boxes_of(image: LabelledImage, boxes: Boxes) -> list[_Box]:
    """Everything to learn from in one picture; the same whenever it is asked for."""
    rng = np.random.default_rng(image.id)
    own = labelled_boxes([image])
    chosen = [_Box(image, LABELLED, person.bbox, person.label) for person in own]
    if boxes == "all":
        for person in own:
            x, y, w, h = sloppy(np.array(person.bbox), rng).tolist()
            chosen.append(_Box(image, SLOPPY, (x, y, w, h), person.label))
        # Where others are unlabelled, a box that touches nobody labelled may well hold somebody.
        for _ in range(1 + len(own) // 2 if own and image.complete else 0):
            if (nobody := wrong(image, rng)) is not None:
                x, y, w, h = nobody.tolist()
                chosen.append(_Box(image, WRONG, (x, y, w, h), None))
    return chosen


def in_crop(points: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K, 2) picture pixels -> crop pixels, by matrices (N, 2, 3)."""
    return np.asarray(points @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2])


def ask(
    chosen: Sequence[_Box],
    tensors: Sequence[Tensor],
    small: PoseEstimator,
    large: PoseEstimator,
    keypoints: int,
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.generic]]]:
    """Crops of some boxes, each with its picture, and all columns of `Samples` but `held_back`."""
    boxes = torch.tensor([box.bbox for box in chosen], dtype=torch.float64).view(-1, 4)
    center, scale = center_scale(boxes)
    matrix = crop_matrix(center, scale, ROUTER_SIZE).numpy()
    factor = ROUTER_SIZE[0] / scale[:, 0].numpy()
    truth = np.zeros((len(chosen), keypoints, 3))
    area = np.zeros(len(chosen))
    for row, box in enumerate(chosen):
        if box.person is not None:
            truth[row] = box.person.keypoints
            area[row] = box.person.area * factor[row] ** 2
    truth[:, :, :2] = in_crop(truth[:, :, :2], matrix)
    people = np.flatnonzero([box.person is not None for box in chosen])
    answers = []
    for net in (small, large):
        answer = np.zeros((len(chosen), keypoints, 2))
        for start in range(0, len(people), BATCH):
            rows = people[start : start + BATCH]
            found = net([tensors[row] for row in rows], boxes[rows].float()).double().numpy()
            if found.shape[1] != keypoints:
                raise SamplesError(f"the nets have {found.shape[1]} keypoints, the people {keypoints}")
            answer[rows] = in_crop(found[:, :, :2], matrix[rows])
        answers.append(answer)
    crops = router_crops(tensors, boxes).cpu().permute(0, 2, 3, 1).contiguous().numpy()
    columns: dict[str, NDArray[np.generic]] = {
        "kind": np.array([box.kind for box in chosen]),
        "image_id": np.array([box.image.id for box in chosen]),
        "height": np.array([box.bbox[3] for box in chosen]),
        "truth": truth,
        "area": area,
        "small": answers[0],
        "large": answers[1],
    }
    return crops, columns


def open_picture(image: LabelledImage, pictures: Pictures) -> Tensor | None:
    """The picture; None where it cannot be decoded, which is said on stderr. Raises SamplesError where there is no such
    file: left out, it would be missing from the kept samples for ever."""
    try:
        encoded = pictures.read(image)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SamplesError(f"{image.shard or image.file_name} cannot be read: {error}") from error
    try:
        return decode(encoded)
    except Exception:  # damaged files make Pillow's decoders raise almost anything
        print(f"skipped: {image.file_name} cannot be decoded", file=sys.stderr)
        return None


def collect(
    folder: Path,
    images: Sequence[tuple[LabelledImage, bool]],
    pictures: Pictures,
    small: PoseEstimator,
    large: PoseEstimator,
    boxes: Boxes,
) -> Samples:
    """Ask both nets about everybody in `images` (each with whether it is held back) and keep it in `folder`; what is
    there already is not asked again. Raises SamplesError."""
    keypoints = next((len(p.keypoints) for image, _ in images for p in image.people if p.has_pose), None)
    if keypoints is None:
        raise SamplesError("no person has keypoints")
    folder.mkdir(parents=True, exist_ok=True)
    shards = [images[start : start + SHARD] for start in range(0, len(images), SHARD)]
    with (folder / "crops").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two runs that need the same samples: one asks, the other waits
        parts = _parts(folder)
        _check_room(folder, images, boxes, parts)
        rows = sum(len(part["kind"]) for part in parts)
        if file.seek(0, os.SEEK_END) < rows * CROP_BYTES:
            raise SamplesError(f"{folder} is damaged: it has fewer crops than rows; remove it")
        file.truncate(rows * CROP_BYTES)  # the crops of a shard that was not finished
        skipped = 0
        for number in range(len(parts), len(shards)):
            chosen: list[_Box] = []
            tensors: list[Tensor] = []
            held_back: list[bool] = []
            damaged = 0
            for image, held in shards[number]:
                picture = open_picture(image, pictures)
                if picture is None:
                    damaged += 1
                else:
                    found = boxes_of(image, boxes)
                    chosen += found
                    tensors += [picture] * len(found)
                    held_back += [held] * len(found)
            skipped += damaged
            if damaged == len(shards[number]):
                raise SamplesError(
                    f"none of {damaged} pictures from {shards[number][0][0].file_name} on can be decoded"
                )
            crops, columns = ask(chosen, tensors, small, large, keypoints)
            columns["held_back"] = np.array(held_back, dtype=np.bool_)
            file.write(crops.tobytes())
            file.flush()
            unfinished = folder / "unfinished.npz"
            np.savez(unfinished, allow_pickle=False, **columns)
            unfinished.replace(folder / _part_name(number))
            asked = min(len(images), (number + 1) * SHARD)
            print(f"asked both nets about the people of {asked} of {len(images)} pictures", file=sys.stderr)
        if skipped:
            print(f"skipped {skipped} pictures that cannot be decoded", file=sys.stderr)
    return read(folder)


def _check_room(
    folder: Path,
    images: Sequence[tuple[LabelledImage, bool]],
    boxes: Boxes,
    parts: Sequence[dict[str, NDArray[np.generic]]],
) -> None:
    missing = images[len(parts) * SHARD :]
    people = sum(person.has_pose for image, _ in missing for person in image.people)
    # One sloppy and at most one wrong box a person.
    needed, free = people * CROP_BYTES * (3 if boxes == "all" else 1), shutil.disk_usage(folder).free
    if needed > free:
        raise SamplesError(
            f"crops need up to {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free"
        )


def read(folder: Path) -> Samples:
    """The samples of a folder. Raises SamplesError when there are none."""
    parts = _parts(folder)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS} if parts else {}
    count = len(columns.get("kind", ()))
    if not count:
        raise SamplesError("no person has keypoints")
    crops = np.memmap(folder / "crops", dtype=np.uint8, mode="r", shape=(count, *CROP_SHAPE))
    return Samples(crops=crops, **columns)


def folder_name(question: dict[str, object]) -> str:
    """Of the samples that answer `question`: other nets, pictures or boxes never share a folder."""
    return f"samples-{hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:12]}"


def _part_name(number: int) -> str:
    return f"part-{number:05}.npz"


def _parts(folder: Path) -> list[dict[str, NDArray[np.generic]]]:
    """The shards that are finished, in order."""
    parts: list[dict[str, NDArray[np.generic]]] = []
    while (file := folder / _part_name(len(parts))).is_file():
        with np.load(file) as columns:
            parts.append({name: columns[name] for name in COLUMNS})
    return parts
