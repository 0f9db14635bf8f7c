"""Asks a published pose net about every training person, for the joints that nobody annotated.

    python -m training.teacher pp-tinypose_256x192.onnx --data DIR --out teacher.npz

The teacher is PP-TinyPose 256x192, its heatmaps averaged over the crop and its mirror image, its keypoints
over three paddings of the box (weighted by confidence). Writes, per annotation id, keypoints (17, 3): x, y,
confidence in the stored picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.data import Pictures, has_split, read_split
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not has_split(arguments.data, "train"):
        print(f"skipped: needs pictures with people in {arguments.data}")
        return
    network = load_onnx(arguments.onnx).to(memory_format=torch.channels_last)
    pictures = Pictures(arguments.data)
    ids, answers = [], []
    for number, image in enumerate(read_split(arguments.data, "train")):
        people = [person for person in image.people if person.has_pose]
        if not people:
            continue
        picture = pictures(image)
        boxes = torch.tensor([person.bbox for person in people])
        for start in range(0, len(people), BATCH):
            chunk = boxes[start : start + BATCH]
            answers.append(ask(network, [picture] * len(chunk), chunk))
        ids += [person.id for person in people]
        if number % 200 == 0:
            print(f"{len(ids)} people", flush=True)
    np.savez(arguments.out, ids=np.array(ids), keypoints=torch.cat(answers).numpy())


if __name__ == "__main__":
    main()
