"""The people that the pose nets learn from, and the augmentations they go through."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from calibration.data import LabelledPerson, Pictures, is_held_back, read_split
from models.geometry import center_scale, crop_matrix, cut_crops
from models.skeleton import FLIP_INDEX

MIN_CONFIDENCE = 0.3
WEIGHT = {"ground_truth": 1.0, "lspet": 0.5, "more": 0.5}
UPPER_BODY, LOWER_BODY = range(11), range(11, 17)


@dataclass(frozen=True)
class Sample:
    """One person: picture (H, W, 3) uint8; bbox xywh, keypoints (17, 2) in its pixels; weights (17,)."""

    picture: Tensor
    bbox: np.ndarray
    keypoints: np.ndarray
    weights: np.ndarray
    source: str
    area: float


def load_people(data: Path, more: Path | None, teacher: Path | None) -> tuple[list[Sample], list[Sample]]:
    """(training, held-back) people of `data/train.json`, and `more/more.json` for training only, pictures
    decoded.

    Joints of `data` that nobody annotated get the teacher's position, weighted by its confidence. Held-back
    people keep only what was annotated.
    """
    answers: dict[int, np.ndarray] = {}
    if teacher is not None:
        with np.load(teacher) as archive:
            answers = dict(zip(archive["ids"].tolist(), archive["keypoints"], strict=True))
    training: list[Sample] = []
    held_back: list[Sample] = []
    for folder, split in ((data, "train"), (more, "more")):
        if folder is None:
            continue
        pictures = Pictures(folder)
        for image in read_split(folder, split):
            people = [person for person in image.people if person.has_pose]
            if not people:
                continue
            picture = pictures(image)
            own = split == "train"
            hold = own and is_held_back(image.id)
            source = "more" if split == "more" else "lspet" if image.source == "lspet" else "ground_truth"
            for person in people:
                # An id of `more` is somebody else's among the teacher's.
                answer = answers.get(person.id) if own and not hold else None
                sample = _sample(person, picture, source, answer)
                (held_back if hold else training).append(sample)
    return training, held_back


def _sample(person: LabelledPerson, picture: Tensor, source: str, answer: np.ndarray | None) -> Sample:
    keypoints = person.keypoints[:, :2].copy()
    weights = (person.keypoints[:, 2] > 0) * np.float32(WEIGHT[source])
    if person.scores is not None:
        weights *= person.scores
    if answer is not None:
        fill = (weights == 0) & (answer[:, 2] >= MIN_CONFIDENCE)
        keypoints[fill] = answer[fill, :2]
        weights[fill] = answer[fill, 2] * WEIGHT[source]
    bbox = np.array(person.bbox, dtype=np.float32)
    return Sample(picture, bbox, keypoints, weights.astype(np.float32), source, person.area)


def augmented(
    samples: list[Sample], size: tuple[int, int], random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random views: crops (N, 3, h, w) uint8, keypoints (N, 17, 2) in crop pixels, weights (N, 17).

    One affine warp a person: mirrored (half of them), scaled by 0.75 to 1.25, turned by up to 30 degrees
    (60 %), the box shifted a little, some cut to half of the body; then colour, blur and loss of
    resolution.
    """
    count = len(samples)
    boxes = torch.from_numpy(np.stack([_half_body(s, random) for s in samples]))
    keypoints = torch.from_numpy(np.stack([s.keypoints for s in samples]))
    weights = torch.from_numpy(np.stack([s.weights for s in samples]))
    center, scale = center_scale(boxes)
    center = center + scale * torch.from_numpy(random.normal(0, 0.03, (count, 2)).clip(-0.08, 0.08)).float()
    scale = scale * torch.from_numpy(random.uniform(0.75, 1.25, (count, 1))).float()
    turned = random.random(count) < 0.6
    rotation = torch.from_numpy(random.normal(0, 15, count).clip(-30, 30) * turned)
    matrices = crop_matrix(center, scale, size, rotation=rotation)

    mirrored = torch.from_numpy(random.random(count) < 0.5)
    matrices[mirrored, 0] *= -1
    matrices[mirrored, 0, 2] += size[0] - 1
    keypoints = torch.where(mirrored[:, None, None], keypoints[:, list(FLIP_INDEX)], keypoints)
    weights = torch.where(mirrored[:, None], weights[:, list(FLIP_INDEX)], weights)

    points = keypoints.double() @ matrices[:, :, :2].mT + matrices[:, None, :, 2]
    crops = cut_crops([s.picture for s in samples], matrices, size)
    for crop in crops.permute(0, 2, 3, 1).numpy():
        _recolor(crop, random)
        _blur(crop, random)
    return crops, points.float(), weights


def _half_body(sample: Sample, random: np.random.Generator) -> np.ndarray:
    """The box, or now and then the box around the joints of the upper or lower body."""
    if random.random() >= 0.2 or (sample.weights > 0).sum() < 9:
        return sample.bbox
    joints = [k for k in (UPPER_BODY if random.random() < 0.7 else LOWER_BODY) if sample.weights[k] > 0]
    if len(joints) < 4:
        return sample.bbox
    low, high = sample.keypoints[joints].min(axis=0), sample.keypoints[joints].max(axis=0)
    extent = np.maximum(high - low, 0.2 * sample.bbox[2:].max()) * 1.25
    return np.concatenate(((low + high - extent) / 2, extent)).astype(np.float32)


def _recolor(crop: np.ndarray, random: np.random.Generator) -> None:
    if random.random() < 0.05:
        crop[:] = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)[:, :, None]
    if random.random() < 0.3:
        return
    contrast, brightness = random.uniform(0.75, 1.25), random.uniform(0.75, 1.25)
    tint = random.uniform(0.92, 1.08, 3)
    levels = ((np.arange(256)[:, None] - 128) * contrast + 128) * brightness * tint
    table = levels.clip(0, 255).astype(np.uint8)[:, None, :]
    cv2.LUT(crop, table, dst=crop)


def _blur(crop: np.ndarray, random: np.random.Generator) -> None:
    height, width = crop.shape[:2]
    choice = random.random()
    if choice < 0.08:
        cv2.GaussianBlur(crop, (0, 0), random.uniform(0.5, 1.5) * height / 256, dst=crop)
    elif choice < 0.2:
        factor = random.uniform(1.5, 3.5)
        small = cv2.resize(crop, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA)
        cv2.resize(small, (width, height), dst=crop, interpolation=cv2.INTER_LINEAR)
