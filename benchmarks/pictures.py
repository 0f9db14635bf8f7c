"""The pictures a benchmark posts, as the encoded bytes that lie on the disk."""

import mimetypes
from dataclasses import dataclass
from pathlib import Path

from calibration.data import Pictures, has_split, read_split

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class Post:
    """One request body."""

    name: str
    body: bytes
    media_type: str


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


def _post(name: str, body: bytes) -> Post:
    media_type = "image/webp" if name.lower().endswith(".webp") else mimetypes.guess_type(name)[0]
    return Post(name, body, media_type or "application/octet-stream")
