"""Small pictures that would take a library seconds or gigabytes, as it makes a Python object of every few bytes of
their headers, or goes over the whole picture for them. No camera or editor comes near the limits."""

import io
import re
import struct

from app.errors import ApiError

MAX_SCANS, MAX_SEGMENTS = 100, 1000
"""Of a JPEG. A progressive one has some ten scans; a few bytes are enough for one more pass over the whole picture."""
MAX_FRAME = 1000
"""Bytes of a JPEG's frame headers, of which there is one of some 20: three for each colour."""
MAX_EXIF = 1_000_000
"""Bytes of EXIF data. Read as numbers they take 37 times as much."""
MAX_VALUES = 100_000
"""Of all tags of a TIFF, its strips among them, of which each takes 225 bytes; but not of its texts."""
MAX_READS, MAX_BMP_READS = 100_000, 2_000_000
"""Of a picture in pieces. 20 MB of PNG are some 10,000. A BMP's runs are read byte by byte, but nothing is kept."""

BRIEF_PICTURE, BRIEF_HEADER, BRIEF_EXIF, BRIEF_SEGMENTS = 1 << 20, 1 << 14, 1 << 11, 64
"""Bytes of a JPEG, of what comes before its first scan and of EXIF data in it, and segments."""

JPEG_START = b"\xff\xd8"
# Those after which Pillow takes a length, and libjpeg, too. It does not after the others, and whoever did could be made
# to pass over scans and EXIF data.
JPEG_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
END, SCAN, TABLES = b"\xd9", b"\xda", (b"\xc4", b"\xcc")
FRAMES = [bytes([byte]) for byte in (*range(0xC0, 0xD0), 0xDE) if bytes([byte]) not in TABLES]
EXIF, MANY_PICTURES = b"Exif\0\0", b"MPF\0"

TIFF_ORDERS = {b"II*\0": "<", b"II\0*": "<", b"II+\0": "<", b"MM\0*": ">", b"MM*\0": ">", b"MM\0+": ">"}
BIG_TIFF = 43
VALUE_BYTES = {3: 2, 4: 4, 5: 8, 6: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Of a TIFF's types of numbers; the others are texts and bytes."""
STRIPS = (273, 279, 324, 325)
"""Tags with a value for each strip or tile, of whatever type."""


def check(data: bytes) -> None:
    """Raises ApiError 422 for a JPEG or a TIFF that would take far more than its size; `Pieces` is for the others."""
    if data.startswith(JPEG_START):
        _check_jpeg(data)
    elif order := TIFF_ORDERS.get(data[:4]):
        _check_tiff(data, order)


class Pieces(io.BytesIO):
    """A picture's bytes for a library, which may read them in so many pieces: ApiError 422 after that."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = MAX_BMP_READS if data.startswith(b"BM") else MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise _refusal("pieces")
        return super().read(size)


def is_brief(data: bytes) -> bool:
    """Whether this is a JPEG whose header is judged in a millisecond or two, whoever made it: a few segments, one right
    after the other, and neither many pictures nor much EXIF data."""
    if len(data) > BRIEF_PICTURE or not data.startswith(JPEG_START):
        return False
    at, exif = len(JPEG_START), 0
    for _ in range(BRIEF_SEGMENTS):
        found = JPEG_MARKER.match(data, at, BRIEF_HEADER)
        if found is None or found[1] == END:
            return False
        if found[1] == SCAN:
            return True
        at = found.end()
        size = int.from_bytes(data[at : at + 2])
        exif += size if data.startswith(EXIF, at + 2) else 0
        if exif > BRIEF_EXIF or data.startswith(MANY_PICTURES, at + 2):
            return False
        at += size
    return False


def _refusal(what: str) -> ApiError:
    return ApiError(422, "invalid_image", f"the picture has far too many {what}")


def _check_jpeg(data: bytes) -> None:
    at = len(JPEG_START)
    scans, frame, exif = 0, 0, 0
    for _ in range(MAX_SEGMENTS):
        found = JPEG_MARKER.search(data, at)
        if found is None or (found[1] == END and scans):
            return
        at = found.end()
        if found[1] == END:  # has no length, and Pillow reads on
            continue
        size = int.from_bytes(data[at : at + 2])
        scans += found[1] == SCAN
        frame += size if found[1] in FRAMES else 0
        exif += size if data.startswith(EXIF, at + 2) else 0
        if scans > MAX_SCANS or frame > MAX_FRAME or exif > MAX_EXIF:
            break
        at += size
    raise _refusal("scans, colours, bytes of EXIF data or other segments")


def _check_tiff(data: bytes, order: str) -> None:
    """Of the first picture's own tags: no others are read (`app.decode` sees to EXIF and GPS data)."""
    big = data[2] == BIG_TIFF
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        tag = struct.Struct(order + ("HHQ8x" if big else "HHL4x"))
        first = start + (8 if big else 2)
        table = data[first : first + tag.size * min(count, MAX_VALUES)]
    except (struct.error, OverflowError):  # cut off
        return
    values = count
    for kind, type_, length in tag.iter_unpack(table[: len(table) // tag.size * tag.size]):
        size = VALUE_BYTES.get(type_, 1 if kind in STRIPS else 0)
        if size * length <= len(data):  # else Pillow passes over it
            values += length if size else 0
    if values > MAX_VALUES:
        raise _refusal("values in its tags")
