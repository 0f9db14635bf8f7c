"""What a picture of a megabyte makes of its header: refused before it takes a multiple of its size."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from app.bombs import is_brief
from app.decode import decode, read_header
from app.errors import ApiError

MANY = 1_000_000
MAX_PIXELS = 25_000_000
ORIENTATION, STRIP_OFFSETS, X_RESOLUTION, EXIF_IFD = 274, 273, 282, 34665
BYTE, SHORT, LONG, RATIONAL, SIGNED_BYTE = 1, 3, 4, 5, 6
BYTES = {BYTE: 1, SHORT: 2, LONG: 4, RATIONAL: 8, SIGNED_BYTE: 1}
Tag = tuple[int, int, int, int | None]
"""Number, type, count, and the value where that is one; else the value lies behind the tags."""

SMALL = io.BytesIO()
Image.new("RGB", (8, 8)).save(SMALL, "JPEG")
JPEG = SMALL.getvalue()


def tags(kind: str, *changed: Tag, behind: bytes = b"") -> bytes:
    """A grey picture of 64 x 2 pixels as a TIFF: `kind` is II or MM, with + for a BigTIFF."""
    order, big = "<" if kind[0] == "I" else ">", "+" in kind
    usual = (
        (256, 64),
        (257, 2),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (STRIP_OFFSETS, 4),
        (278, 2),
        (279, 128),
    )
    table: dict[int, Tag] = {number: (number, LONG, 1, value) for number, value in usual}
    table |= {tag[0]: tag for tag in changed}
    length, head = (20, 16) if big else (12, 8)
    end = head + (8 if big else 2) + length * len(table) + (8 if big else 4)
    word = "Q" if big else "L"
    data = kind[:2].encode() + struct.pack(
        order + ("HHHQ" if big else "HL"), *((43, 8, 0, 16) if big else (42, 8))
    )
    data += struct.pack(order + ("Q" if big else "H"), len(table))
    for number in sorted(table):
        _, type_, count, value = table[number]
        data += struct.pack(order + "HH" + 2 * word, number, type_, count, end if value is None else value)
    return data + bytes(8 if big else 4) + behind + bytes(128)


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Bytes that Python takes at its peak."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def take(data: bytes) -> None:
    read_header(data, MAX_PIXELS)
    decode(data)


def numbers(number: int, type_: int, kind: str = "II") -> bytes:
    count = MANY // BYTES[type_]
    return tags(kind, (number, type_, count, None), behind=b"\1\2\3\4\5\6\7\0" * (MANY // 8))


def jpeg_with_exif(exif: bytes, before: bytes = b"") -> bytes:
    parts = (exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    return (
        JPEG[:2] + before + segments + JPEG[20:]
    )  # without JFIF's resolution, Pillow looks for EXIF's at once


EXIF_SEGMENTS = jpeg_with_exif(2 * numbers(X_RESOLUTION, RATIONAL))[2 : -len(JPEG[20:])]


def png_of(*chunks: bytes) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    made = [struct.pack(">I", len(it) - 4) + it + struct.pack(">I", zlib.crc32(it)) for it in chunks]
    return data.getvalue()[:33] + b"".join(made) + data.getvalue()[33:]


def gif_with(extensions: bytes) -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "GIF")
    at = data.getvalue().index(b",", 13 + 3 * 2 ** (1 + (data.getvalue()[10] & 7)))
    return data.getvalue()[:at] + extensions + data.getvalue()[at:]


def bmp_of_runs(width: int, height: int, run: int, data: bytes = b"") -> bytes:
    """An 8-bit BMP in run-length encoding, every run of `run` pixels; data: in place of them."""
    rows = data or b"".join(bytes([run, number % 256]) * (width // run) + b"\0\0" for number in range(height))
    start = 14 + 40 + 4 * 256
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    palette = b"".join(bytes([grey] * 3 + [0]) for grey in range(256))
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + palette + rows


def exif_of(number: int, type_: int) -> bytes:
    """As `numbers`, below a tag that points to EXIF data. Positions count from the start of the TIFF."""
    count = MANY // BYTES[type_]
    at = len(tags("II", (EXIF_IFD, LONG, 1, 0))) - 128
    table = struct.pack("<HHHII", 1, number, type_, count, at + 18) + bytes(4)
    behind = table + b"\1\2\3\4\5\6\7\0" * (MANY // 8)
    return tags("II", (EXIF_IFD, LONG, 1, at), (STRIP_OFFSETS, LONG, 1, 8), behind=behind)


def wrapped(marker: bytes, segments: bytes) -> bytes:
    """Each of the JPEG's segments inside one of `marker`, which has no length for Pillow."""
    found = b""
    for part in segments.split(b"\xff\xe1")[1:]:
        found += b"\xff" + marker + struct.pack(">H", len(part) + 4) + b"\xff\xe1" + part
    return found


def frames(count: int) -> bytes:
    """Frame headers of as many colours as fit."""
    body = struct.pack(">BHHB", 8, 8, 8, 255) + b"\1\x11\0" * 21_000
    return (b"\xff\xc0" + struct.pack(">H", len(body) + 2) + body) * count


BOMBS = {
    "a strip for each byte": lambda: numbers(STRIP_OFFSETS, BYTE),
    "as many strips": lambda: numbers(STRIP_OFFSETS, SHORT, "MM"),
    "as many in a BigTIFF": lambda: numbers(STRIP_OFFSETS, SHORT, "II+"),
    "resolutions": lambda: numbers(X_RESOLUTION, RATIONAL),
    "orientations": lambda: numbers(ORIENTATION, RATIONAL, "MM"),
    "EXIF of a JPEG": lambda: jpeg_with_exif(2 * numbers(X_RESOLUTION, RATIONAL)),
    "EXIF inside what has no length": lambda: JPEG[:2] + wrapped(b"\xf0", EXIF_SEGMENTS) + JPEG[20:],
    "EXIF inside another kind": lambda: JPEG[:2] + wrapped(b"\xc8", EXIF_SEGMENTS) + JPEG[20:],
    "colours of a JPEG": lambda: JPEG[:2] + frames(20) + JPEG[2:],
    "fill bytes of a JPEG": lambda: JPEG[:2] + b"\xff" * MANY + JPEG[2:],
    "resolutions in single bytes": lambda: numbers(X_RESOLUTION, SIGNED_BYTE),
    "a BMP of empty lines": lambda: bmp_of_runs(64, 64, 1, b"\0\0" * 2 * MANY),
    "EXIF behind another start": lambda: jpeg_with_exif(2 * numbers(X_RESOLUTION, RATIONAL), b"\xff\xd8"),
    "EXIF behind an end": lambda: jpeg_with_exif(2 * numbers(X_RESOLUTION, RATIONAL), b"\xff\xd9"),
    "chunks of a PNG": lambda: png_of(*[b"prIv"] * (MANY // 12)),
    "data of a PNG in single bytes": lambda: png_of(*[b"IDAT"] * (MANY // 12)),
    "a GIF's comment in single bytes": lambda: gif_with(b"!\xfe" + b"\1a" * (MANY // 2) + b"\0"),
    "a GIF's comments": lambda: gif_with(b"!\xfe\1a\0" * (MANY // 5)),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_would_grow_is_refused_while_it_is_small(make: Callable[[], bytes]) -> None:
    data = make()
    with no_more_than(8 * len(data)), pytest.raises(ApiError) as refused:
        take(data)
    assert (refused.value.status, refused.value.code) == (422, "invalid_image")
    assert "far too many" in refused.value.detail


def test_exif_data_that_would_grow_turns_no_png() -> None:
    data = png_of(b"eXIf" + numbers(ORIENTATION, RATIONAL))
    with no_more_than(8 * len(data)):
        assert decode(data).shape == (8, 8, 3)


def test_exif_data_of_a_tiff_is_not_read() -> None:
    data = exif_of(33434, RATIONAL)
    with Image.open(io.BytesIO(data)) as image:
        assert len(image.getexif().get_ifd(EXIF_IFD)[33434]) == MANY // 8
    with no_more_than(8 * len(data)):
        assert decode(data).shape == (2, 64, 3)


def test_a_bmp_in_short_runs_is_taken() -> None:
    data = bmp_of_runs(640, 480, 2)
    assert read_header(data, MAX_PIXELS).width == 640
    assert decode(data).shape == (480, 640, 3)


@pytest.mark.parametrize("kind", ["II", "MM", "II+"])
def test_tiffs_of_either_order_and_size_are_taken(kind: str) -> None:
    strip = (STRIP_OFFSETS, LONG, 1, 8)
    assert decode(tags(kind, strip)).shape == (2, 64, 3)
    assert read_header(tags(kind, strip, (700, BYTE, MANY, None), behind=bytes(MANY)), MAX_PIXELS).width == 64


def test_a_tiff_whose_tags_are_cut_off_is_invalid() -> None:
    whole = tags("II")
    for length in range(4, len(whole) - 128):
        with pytest.raises(ApiError) as refused:
            take(whole[:length])
        assert refused.value.status in (415, 422)


def test_a_large_picture_in_usual_pieces_is_taken() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 2000), dtype=np.uint8))
    for options in (
        {"format": "PNG", "compress_level": 1},
        {"format": "GIF"},
        {"format": "TIFF", "strip_size": 1},
    ):
        data = io.BytesIO()
        noise.save(data, **options)  # type: ignore[arg-type]
        assert read_header(data.getvalue(), MAX_PIXELS).height == 3000
        assert decode(data.getvalue()).shape == (3000, 2000, 3)


def test_megabytes_of_other_data_in_a_jpeg_are_no_exif() -> None:
    """A phone keeps a map of depths there."""
    xmp = b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000)
    segments = (b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp) * 40
    assert decode(JPEG[:2] + segments + JPEG[2:]).shape == (8, 8, 3)


def segment(marker: bytes, size: int) -> bytes:
    return b"\xff" + marker + struct.pack(">H", size + 2) + bytes(size)


@pytest.mark.parametrize(
    ("data", "brief"),
    [
        (JPEG, True),
        (JPEG + bytes(1_000_000), True),
        (JPEG + bytes(1 << 20), False),
        (JPEG[:2] + segment(b"\xe1", 15_000) + JPEG[2:], True),
        (JPEG[:2] + segment(b"\xe1", 17_000) + JPEG[2:], False),
        (JPEG[:2] + segment(b"\xdb", 60) * 300 + JPEG[2:], False),
        (JPEG[:2] + segment(b"\xfe", 2) * 60 + JPEG[2:], False),
        (jpeg_with_exif(bytes(1000)), True),
        (jpeg_with_exif(bytes(3000)), False),
        (jpeg_with_exif(bytes(1000), before=2 * (b"\xff\xe1\x03\xe8Exif\0\0" + bytes(992))), False),
        (JPEG[:2] + b"\xff\xe2\0\x10MPF\0" + bytes(10) + JPEG[2:], False),
        (JPEG[:2] + b"\xff" * 100 + JPEG[2:], False),
        (JPEG[:2] + b"\xff\xd0" + JPEG[2:], False),
        (JPEG[:2] + bytes(10) + JPEG[2:], False),
        (JPEG[:2] + b"\xff\xd9" + JPEG[2:], False),
        # A scan that is none: it stands in a comment.
        (JPEG[:2] + b"\xff\xfe\x70\x02\xff\xda" + bytes(0x7000 - 2) + JPEG[2:], False),
        (JPEG[:100], False),
        (b"", False),
        (b"\x89PNG\r\n\x1a\n" + JPEG, False),
    ],
)
def test_a_short_header_is_one_whose_scan_begins_early(data: bytes, brief: bool) -> None:
    assert is_brief(data) is brief
