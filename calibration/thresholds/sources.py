"""Where the people of a calibration come from: folders of pictures, videos, and people in COCO's format."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from calibration.data import DataError, LabelledImage, Pictures, decode, has_split, is_held_back, read_split
from models.pictures import rgb

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
TRAIN = "train"
EVERY = 30
"""Frames between two that are looked at, at most: about a second."""


class SourceError(Exception):
    """A source cannot be used at all; the message is one line that says why."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be opened: `load` returns (H, W, 3) uint8 RGB, upright, or raises what
    its reader raises."""

    name: str
    load: Callable[[], Tensor]


def pictures_of(
    sources: Sequence[Path], split: str | None, every: int | None, samples: int, remark: Callable[[str], None]
) -> list[Picture]:
    """Everything that can be looked at in the sources, unopened but for a video that does not say how long it is.

    split: of a folder in COCO's format; None: its `train` split where it has one, else every picture below the folder.
    Of a split that networks are trained on (`train...`) only the held-back tenth counts, since a router
    knows its training people too well. every: of a video, each n-th frame; None: as many as there are between
    `samples` frames, at most EVERY. remark: hears what the user should know. Raises SourceError.
    """
    found: list[Picture] = []
    for source in sources:
        if source.is_dir():
            name = split or TRAIN
            if has_split(source, name):
                found += _labelled(source, name, remark)
            elif split:
                raise SourceError(f"{source} has no split {split!r}")
            else:
                found += _folder(source)
        elif source.suffix.lower() in SUFFIXES and source.is_file():
            found.append(_file(source))
        elif source.is_file():
            found += _video(source, every, samples, remark)
        else:
            raise SourceError(f"{source} does not exist")
    return found


def _labelled(folder: Path, split: str, remark: Callable[[str], None]) -> list[Picture]:
    try:
        images = read_split(folder, split)
    except DataError as error:
        raise SourceError(str(error)) from error
    chosen = images
    if split.startswith(TRAIN):
        chosen = [image for image in images if is_held_back(image.id)]
        remark(
            f"{folder}, {split}: {len(chosen)} of {len(images)} pictures, the tenth that training holds back (not with "
            "--validate: then take other pictures); a router knows its training people too well"
        )
    pictures = Pictures(folder)

    def load(image: LabelledImage) -> Tensor:
        return open_picture(io.BytesIO(pictures.read(image)))

    return [Picture(image.file_name, partial(load, image)) for image in chosen]


def _folder(folder: Path) -> list[Picture]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise SourceError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))})")
    return [_file(path) for path in files]


def _file(path: Path) -> Picture:
    return Picture(str(path), lambda: open_picture(path))


def open_picture(file: Path | IO[bytes]) -> Tensor:
    """(H, W, 3) uint8 RGB of the first frame, upright by its EXIF orientation, colours as in `models.pictures`."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(rgb(ImageOps.exif_transpose(image))))


def _video(path: Path, every: int | None, samples: int, remark: Callable[[str], None]) -> list[Picture]:
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise SourceError(f"{path} is neither a picture nor a video that OpenCV reads")
    # Containers that do not say how long they are, a browser's recordings among them, give zero or far less.
    stated = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    count = stated if stated > 0 else sum(1 for _ in iter(video.grab, False))
    if count < 1:
        raise SourceError(f"{path} has no frames")
    step = every or max(1, min(EVERY, count // samples if samples else EVERY))
    remark(f"{path}: {len(range(0, count, step))} of {count} frames, one in {step}")
    loads: list[Callable[[], Tensor]]
    if stated > 0:
        loads = [partial(_frame, video, index) for index in range(0, count, step)]
    else:
        loads = [partial(decode, jpeg) for jpeg in _read_through(path, step)]
    return [Picture(f"{path}, frame {number * step}", load) for number, load in enumerate(loads)]


def _frame(video: cv2.VideoCapture, index: int) -> Tensor:
    video.set(cv2.CAP_PROP_POS_FRAMES, index)
    read, frame = video.read()
    if not read:
        raise ValueError("OpenCV cannot read it")
    return torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _read_through(path: Path, step: int) -> Iterator[bytes]:
    """Each step-th frame of a video in which OpenCV cannot go to a frame, since it does not know the last. As JPEG: the
    frames of an hour would not fit into memory otherwise."""
    video = cv2.VideoCapture(str(path))
    for index, _ in enumerate(iter(video.grab, False)):
        if index % step == 0:
            read, frame = video.retrieve()
            if not read:
                raise SourceError(f"{path}: frame {index} is damaged")
            yield cv2.imencode(".jpg", frame)[1].tobytes()


def opened(
    pictures: Sequence[Picture], rng: np.random.Generator, remark: Callable[[str], None]
) -> Iterator[Tensor]:
    """The pictures in random order; those that cannot be read are named and left out."""
    for index in rng.permutation(len(pictures)):
        picture = pictures[int(index)]
        try:
            pixels = picture.load()
        except Exception:  # damaged files make Pillow's decoders raise almost anything
            remark(f"skipped: {picture.name} cannot be read")
            continue
        yield pixels
