"""Reading people with keypoints: a COCO keypoint file whose pictures lie beside it in zip shards or as
plain files.

A folder holds `NAME.json` (`train`, `val`, ...). Each image names its `file_name` and, when it lies in a
zip archive, the archive (`shard`). Everything is in pixels of the stored picture.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor


@dataclass(frozen=True)
class LabelledPerson:
    """One annotated person. `keypoints` is (17, 3): x, y, v with v = 0 where nothing is annotated."""

    id: int
    bbox: tuple[float, float, float, float]
    keypoints: np.ndarray
    area: float
    crowd: bool
    scores: np.ndarray | None
    """(17,) confidences, where a network made the labels."""

    @property
    def has_pose(self) -> bool:
        """Whether it can be scored: one person, with at least one keypoint."""
        return not self.crowd and bool((self.keypoints[:, 2] > 0).any())


@dataclass(frozen=True)
class LabelledImage:
    id: int
    width: int
    height: int
    source: str
    complete: bool
    """Whether every person of the picture is annotated."""
    people: tuple[LabelledPerson, ...]
    file_name: str
    shard: str | None


def is_held_back(image_id: int) -> bool:
    """Whether a training picture is of the fixed tenth that nothing is trained on and choices are made on."""
    return hashlib.sha1(str(image_id).encode()).digest()[0] % 10 == 0


def has_split(folder: Path, split: str) -> bool:
    return (folder / f"{split}.json").is_file()


def read_split(folder: Path, split: str) -> list[LabelledImage]:
    """The images of `folder/split.json` with their people, in the order of the file.

    Raises FileNotFoundError without that file.
    """
    content = json.loads((folder / f"{split}.json").read_text())
    people: dict[int, list[LabelledPerson]] = {}
    for annotation in content["annotations"]:
        people.setdefault(annotation["image_id"], []).append(_person(annotation))
    return [
        LabelledImage(
            id=image["id"],
            width=image["width"],
            height=image["height"],
            source=image.get("source", ""),
            complete=image.get("complete", False),
            people=tuple(people.get(image["id"], ())),
            file_name=image["file_name"],
            shard=image.get("shard"),
        )
        for image in content["images"]
    ]


def _person(annotation: dict) -> LabelledPerson:  # type: ignore[type-arg]
    scores = annotation.get("scores")
    x, y, width, height = annotation["bbox"]
    return LabelledPerson(
        id=annotation["id"],
        bbox=(x, y, width, height),
        keypoints=np.array(annotation["keypoints"], dtype=np.float32).reshape(-1, 3),
        area=annotation["area"],
        crowd=bool(annotation.get("iscrowd", 0)),
        scores=None if scores is None else np.array(scores, dtype=np.float32),
    )


class Pictures:
    """Opens the pictures of a folder; keeps the zip archives open, decodes on every call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[str, zipfile.ZipFile] = {}

    def read(self, image: LabelledImage) -> bytes:
        """The encoded file."""
        if image.shard is None:
            return (self.folder / image.file_name).read_bytes()
        if image.shard not in self._shards:
            self._shards[image.shard] = zipfile.ZipFile(self.folder / image.shard)
        return self._shards[image.shard].read(image.file_name)

    def __call__(self, image: LabelledImage) -> Tensor:
        """(H, W, 3) uint8 RGB."""
        with PillowImage.open(io.BytesIO(self.read(image))) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB")))
