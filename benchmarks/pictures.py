"""The pictures a benchmark posts: JPEGs, as cameras make them."""

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from calibration.data import Pictures, has_split, read_split
from calibration.thresholds.sources import SUFFIXES

QUALITY = 90
MEDIA_TYPE = "image/jpeg"


@dataclass(frozen=True)
class Post:
    """One request body, a JPEG."""

    name: str
    body: bytes


def read_posts(folder: Path, split: str) -> list[Post]:
    """The pictures that `folder/split.json` (COCO) names, or without it all pictures in `folder`.

    Empty where there is neither.
    """
    if has_split(folder, split):
        pictures = Pictures(folder)
        return [_post(image.file_name, pictures.read(image)) for image in read_split(folder, split)]
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [_post(path.name, path.read_bytes()) for path in files]


def ordered(posts: Sequence[Post], seed: int = 0) -> list[Post]:
    """All of them in one shuffled order, in which every contender gets them."""
    return random.Random(seed).sample(posts, len(posts))


def _post(name: str, body: bytes) -> Post:
    """Other formats become JPEGs, which take other time to decode."""
    if not body.startswith(b"\xff\xd8"):
        encoded = io.BytesIO()
        Image.open(io.BytesIO(body)).convert("RGB").save(encoded, "JPEG", quality=QUALITY)
        body = encoded.getvalue()
    return Post(name, body)
