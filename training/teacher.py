"""Asks a published pose net about every training person, for the joints that nobody annotated.

The teacher is PP-TinyPose 256x192, its heatmaps averaged over the crop and its mirror image, its keypoints
over three paddings of the box, weighted by confidence.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.data import Pictures, annotations_sha256, read_split
from models.codec import decode, flip_heatmaps
from models.geometry import center_scale, crop_matrix, cut_crops, normalize, to_picture
from models.tinypose import TinyPose
from training.initial import load_onnx

SIZE = (192, 256)
PADDINGS = (1.1, 1.25, 1.45)
BATCH = 32


@torch.inference_mode()
def ask(network: TinyPose, pictures: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(N, 17, 3): x, y in picture pixels and the mean confidence."""
    answers = []
    for padding in PADDINGS:
        center, scale = center_scale(boxes, padding=padding)
        crops = normalize(cut_crops(pictures, crop_matrix(center, scale, SIZE), SIZE))
        heatmaps = (network(crops) + flip_heatmaps(network(crops.flip(3)), shift=True)) / 2
        points, scores = decode(heatmaps)
        points = to_picture(points, center, scale, (heatmaps.shape[3], heatmaps.shape[2]))
        answers.append(torch.cat((points, scores.clamp(min=1e-3).unsqueeze(2)), dim=2))
    stacked = torch.stack(answers)
    points, scores = stacked[..., :2], stacked[..., 2:]
    return torch.cat(((points * scores).sum(0) / scores.sum(0), scores.mean(0)), dim=2)


def save_answers(weights: Path, data: Path, out: Path) -> None:
    """Write, per annotation id of `data/train.json`, keypoints (17, 3): x, y in the picture, confidence. weights: the
    teacher's published file. What `out` has of these very files stays as it is."""
    question = f"{hashlib.sha256(weights.read_bytes()).hexdigest()} {annotations_sha256(data, 'train')}"
    if out.exists():
        with np.load(out) as kept:
            if "question" in kept and str(kept["question"]) == question:
                return
    network = load_onnx(weights).to(memory_format=torch.channels_last)
    pictures = Pictures(data)
    ids: list[int] = []
    answers: list[Tensor] = []
    for image in read_split(data, "train"):
        people = [person for person in image.people if person.has_pose]
        if not people:
            continue
        picture = pictures(image)
        boxes = torch.tensor([person.bbox for person in people])
        answers += [ask(network, [picture] * len(part), part) for part in torch.split(boxes, BATCH)]
        ids += [person.id for person in people]
    unfinished = out.with_suffix(".part.npz")
    np.savez(unfinished, question=np.array(question), ids=np.array(ids), keypoints=torch.cat(answers).numpy())
    unfinished.replace(out)
