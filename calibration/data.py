"""Reading people with keypoints: COCO's keypoint format, with pictures as plain files or in zip archives.

A folder is one of the layouts in LAYOUTS: this project's own `SPLIT.json`, whose images may name the zip archive
(`shard`) that they lie in; COCO as it is published (splits `train2017`, `val2017`, `test-dev2017`); CrowdPose as it is
published (`train`, `val`, `test`). Everything is in pixels of the stored picture.

An image of `SPLIT.json` may say whether all its people are annotated (`complete`). Where none says so they are, unless
a network made the labels (`scores`); where some do, the others are not. The published data sets are complete.
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

from models.pictures import rgb

LAYOUTS = (
    ("{split}.json", ""),
    ("annotations/person_keypoints_{split}.json", "{split}/"),
    ("annotations/image_info_{split}.json", "test2017/"),
    ("json/crowdpose_{split}.json", "images/"),
)
"""Annotation file and folder of the pictures, below the data folder."""

CROWDPOSE_AREA = 0.53
"""A person's area as a share of its box, where the annotations have none (CrowdPose's evaluation)."""


class DataError(ValueError):
    """Pictures or annotations cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class LabelledPerson:
    """One annotated person. `keypoints` is (K, 3): x, y, v with v = 0 where nothing is annotated; K is 17 for COCO and
    14 for CrowdPose."""

    id: int
    bbox: tuple[float, float, float, float]
    keypoints: np.ndarray
    area: float
    crowd: bool
    scores: np.ndarray | None
    """(K,) confidences, where a network made the labels."""
    num_keypoints: int | None = None
    """As the annotation counts them (CrowdPose: the visible ones alone); None: those with v > 0."""

    @property
    def has_pose(self) -> bool:
        """Whether it can be scored: one person, with at least one keypoint."""
        counted = self.num_keypoints if self.num_keypoints is not None else (self.keypoints[:, 2] > 0).sum()
        return not self.crowd and bool(counted > 0)


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
    """Below the data folder, or in the archive."""
    shard: str | None
    crowd_index: float | None = None
    """CrowdPose: 0 where people stand apart, up to 1."""


def is_held_back(image_id: int) -> bool:
    """Whether a training picture is of the fixed tenth that nothing is trained on and choices are made on."""
    return hashlib.sha1(str(image_id).encode()).digest()[0] % 10 == 0


def find_split(folder: Path, split: str) -> tuple[Path, str] | None:
    """Annotation file of a split and the prefix of its pictures' names, or None where the folder has no such split."""
    for name, prefix in LAYOUTS:
        file = folder / name.format(split=split)
        if file.is_file():
            return file, prefix.format(split=split)
    return None


def has_split(folder: Path, split: str) -> bool:
    return find_split(folder, split) is not None


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder seems to have: its annotation files are not opened."""
    names = set()
    for layout, _ in LAYOUTS:
        before, after = layout.split("{split}")
        files = (str(path.relative_to(folder)) for path in folder.glob(f"{before}*{after}"))
        names |= {file.removeprefix(before).removesuffix(after) for file in files}
    return sorted(names)


def annotations_sha256(folder: Path, split: str) -> str:
    """Of a split's annotation file. Raises FileNotFoundError where the folder has no such split."""
    return hashlib.sha256(_place(folder, split)[0].read_bytes()).hexdigest()


def read_split(folder: Path, split: str) -> list[LabelledImage]:
    """The images of a split with their people, in the order of the file.

    Raises FileNotFoundError where the folder has no such split, and DataError where it is in another format.
    """
    file, prefix = _place(folder, split)
    try:
        return _images(json.loads(file.read_bytes()), prefix)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not in COCO's keypoint format: {error!r}") from error


def _images(content: dict, prefix: str) -> list[LabelledImage]:  # type: ignore[type-arg]
    people: dict[int, list[LabelledPerson]] = {}
    for annotation in content.get("annotations", ()):
        people.setdefault(annotation["image_id"], []).append(_person(annotation))
    said = any("complete" in image for image in content["images"])
    by_network = any(person.scores is not None for found in people.values() for person in found)
    complete = bool(prefix) or not (said or by_network)
    return [
        LabelledImage(
            id=image["id"],
            width=image["width"],
            height=image["height"],
            source=image.get("source", ""),
            complete=image.get("complete", complete),
            people=tuple(people.get(image["id"], ())),
            file_name=prefix + image["file_name"],
            shard=image.get("shard"),
            crowd_index=image.get("crowdIndex"),
        )
        for image in content["images"]
    ]


def _place(folder: Path, split: str) -> tuple[Path, str]:
    place = find_split(folder, split)
    if place is None:
        raise FileNotFoundError(
            f"{folder} has none of {', '.join(n.format(split=split) for n, _ in LAYOUTS)}"
        )
    return place


def _person(annotation: dict) -> LabelledPerson:  # type: ignore[type-arg]
    scores = annotation.get("scores")
    x, y, width, height = annotation["bbox"]
    keypoints = np.array(annotation["keypoints"], dtype=np.float32).reshape(-1, 3)
    return LabelledPerson(
        id=annotation["id"],
        bbox=(x, y, width, height),
        keypoints=keypoints,
        area=annotation.get("area", CROWDPOSE_AREA * width * height),
        crowd=bool(annotation.get("iscrowd", 0)),
        scores=None if scores is None else np.array(scores, dtype=np.float32),
        num_keypoints=annotation.get("num_keypoints"),
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
        """(H, W, 3) uint8 RGB. Raises DataError."""
        try:
            return decode(self.read(image))
        except Exception as error:  # damaged files make Pillow's decoders raise almost anything
            raise DataError(f"{self.folder}: {image.file_name} cannot be read: {error!r}") from error


def decode(encoded: bytes) -> Tensor:
    """(H, W, 3) uint8 RGB. Raises what Pillow's decoders raise, almost anything for a damaged file."""
    with PillowImage.open(io.BytesIO(encoded)) as picture:
        return torch.from_numpy(np.array(rgb(picture)))
