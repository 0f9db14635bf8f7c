"""Bytes of any kind become upright RGB pixels or an error that says what is wrong with them."""

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.decode import decode, read_header
from app.errors import ApiError

MAX_PIXELS = 25_000_000
ORIENTATION = 0x0112


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def smooth(width: int = 64, height: int = 48) -> Image.Image:
    """Different in each corner, and smooth, so that JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def refusal(data: bytes) -> tuple[int, str]:
    try:
        read_header(data, MAX_PIXELS)
        decode(data)
    except ApiError as error:
        return error.status, error.code
    pytest.fail("the picture was taken")


def difference(found: torch.Tensor, wanted: Image.Image) -> int:
    return int((found.int() - torch.from_numpy(np.array(wanted)).int()).abs().max())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_each_format_gives_its_pixels_and_its_header_the_size(format: str) -> None:
    data = encode(smooth(), format)
    header = read_header(data, MAX_PIXELS)
    assert (header.width, header.height, header.decoded_bytes) == (64, 48, 64 * 48 * 3)
    pixels = decode(data)
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert difference(pixels, smooth()) <= 12


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "MPO", "PNG"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    black, white = Image.new("RGB", (32, 24)), Image.new("RGB", (32, 24), "white")
    data = encode(black, format, save_all=True, append_images=[white])
    assert read_header(data, MAX_PIXELS).width == 32
    assert decode(data).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_in_all_eight_exif_orientations(format: str, orientation: int) -> None:
    stored = smooth()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(stored, format, exif=exif)
    assert difference(decode(data), smooth()) <= 12
    header = read_header(data, MAX_PIXELS)
    assert header.decoded_bytes == 64 * 48 * 3


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (3, 2)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_has_the_pixels_that_pillow_would_turn(
    size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(noise(*size), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    assert decode(data).tolist() == np.array(upright).tolist()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert difference(decode(encode(smooth(), "PNG", exif=exif)), smooth()) == 0


def test_a_damaged_exif_block_does_not_spoil_the_picture() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    damaged = exif.tobytes()[:9] + b"\xff" * 30
    assert decode(encode(smooth(), "JPEG", exif=damaged)).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("1", "TIFF"), ("LA", "PNG"), ("L", "BMP")],
)
def test_grey_pictures_become_rgb(mode: str, format: str) -> None:
    grey = smooth().convert("L").point(lambda v: 255 * (v > 127)).convert(mode)
    assert difference(decode(encode(grey, format)), grey.convert("RGB")) <= 60 * (format == "JPEG")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_has_the_pixels_of_pillow(mode: str, subsampling: str, progressive: bool) -> None:
    image = noise(101, 67).convert(mode)
    data = encode(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    assert difference(decode(data), Image.open(io.BytesIO(data)).convert("RGB")) == 0


def test_a_jpeg_that_is_damaged_inside_has_the_pixels_of_pillow() -> None:
    data = bytearray(encode(noise(101, 67), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
    assert difference(decode(bytes(data)), Image.open(io.BytesIO(data)).convert("RGB")) == 0


@pytest.mark.parametrize(("mode", "format"), [("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("YCbCr", "TIFF")])
def test_other_colours_become_rgb(mode: str, format: str) -> None:
    image = smooth().convert(mode)
    assert difference(decode(encode(image, format)), image.convert("RGB")) <= 2


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(format: str) -> None:
    assert difference(decode(encode(smooth().convert("CMYK"), format)), smooth()) <= 20


@pytest.mark.parametrize(
    ("mode", "format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("PA", "TIFF"), ("P", "GIF")]
)
def test_what_is_transparent_is_white_and_not_the_colour_hidden_below(mode: str, format: str) -> None:
    if mode == "P":
        data = encode(Image.new("P", (8, 8), 3), format, transparency=3)
    else:
        clear = Image.new("RGBA", (8, 8), (40, 40, 40, 0))
        image = clear.convert("LA").convert("PA") if mode == "PA" else clear.convert(mode)
        image.putalpha(0)
        data = encode(image, format)
    assert decode(data).min() == 255


def test_half_transparent_is_half_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert decode(encode(image, "PNG")).unique().tolist() == [127]


@pytest.mark.parametrize(("dtype", "format"), [(np.uint16, "PNG"), (np.uint16, "TIFF"), (np.int32, "TIFF")])
def test_sixteen_bits_are_scaled_and_not_clipped(dtype: type, format: str) -> None:
    values = np.array([[0, 257, 40_000, 65_535]], dtype)
    grey = decode(encode(Image.fromarray(values), format))
    assert grey[0].tolist() == [[value] * 3 for value in (0, 1, 156, 255)]


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (65_500, 1), (8, 8)])
def test_odd_sizes_are_taken(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size), "JPEG" if max(size) > 16_384 else "WEBP")
    assert decode(data).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "data",
    [
        b"hello, world. " * 20,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n" + bytes(200),
        b"<!doctype html><html></html>",
        b"PK\x03\x04" + bytes(200),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
        b"P6 100000 100000 255\n",
        b"SIMPLE  =                    T" + bytes(3000),
        b"\x00",
        bytes(1000),
    ],
)
def test_what_is_no_picture_or_of_another_format_is_unsupported(data: bytes) -> None:
    assert refusal(data) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("brand", "name"), [(b"heic", "HEIC"), (b"mif1", "HEIF"), (b"avif", "AVIF")])
def test_the_formats_of_phones_are_named_with_what_to_do(brand: bytes, name: str) -> None:
    with pytest.raises(ApiError, match=f"{name}.*convert to JPEG") as refused:
        read_header(b"\x00\x00\x00\x18ftyp" + brand + bytes(200), MAX_PIXELS)
    assert refused.value.status == 415


def test_a_picture_of_floating_point_pixels_is_unsupported() -> None:
    floats = Image.fromarray(np.full((8, 8), np.nan, np.float32))
    assert refusal(encode(floats, "TIFF")) == (415, "unsupported_media_type")


@pytest.mark.parametrize("size", [(5_001, 5_000), (12_000, 12_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_from_the_header_alone(size: tuple[int, int]) -> None:
    data = png(*size)
    tracemalloc.start()
    with pytest.raises(ApiError) as refused:
        read_header(data, MAX_PIXELS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (refused.value.status, refused.value.code) == (413, "too_large")
    assert peak < 5e6


def test_the_limit_itself_is_allowed() -> None:
    assert read_header(png(5_000, 5_000), MAX_PIXELS).width == 5_000


def test_the_header_is_read_without_the_pixels() -> None:
    data = encode(noise(), "PNG")
    assert read_header(data[: len(data) // 2], MAX_PIXELS).height == 48


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_picture_that_is_cut_off_is_invalid(format: str, share: float) -> None:
    data = encode(noise(), format)
    assert refusal(data[: int(len(data) * share)]) == (422, "invalid_image")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", png(0, 5), b"RIFF\x00\x00\x00\x00WEBP"]
)
def test_an_empty_or_damaged_picture_is_invalid(data: bytes) -> None:
    assert refusal(data) == (422, "invalid_image")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("image", [smooth(), noise(200, 150)])
def test_a_jpeg_that_lacks_only_its_last_two_bytes_is_decoded(image: Image.Image, progressive: bool) -> None:
    data = encode(image, "JPEG", progressive=progressive)
    assert torch.equal(decode(data[:-2]), decode(data))


FORMATS = {name: encode(smooth(24, 16), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.2, 1),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_pixels_or_an_error_for_the_client(
    format: str, changes: list[tuple[float, int]], kept: float
) -> None:
    data = bytearray(FORMATS[format])
    for place, value in changes:
        data[int(place * len(data))] = value
    damaged = bytes(data[: int(kept * len(data))])
    try:
        read_header(damaged, 10_000)
        pixels = decode(damaged)
    except ApiError as error:
        status = error.status
    else:
        status = 200
        assert (pixels.dtype, pixels.shape[2]) == (torch.uint8, 3)
    assert status in (200, 413, 415, 422)


@pytest.mark.parametrize(
    ("format", "mode", "heavy"),
    [("PNG", "RGB", True), ("JPEG", "CMYK", True), ("JPEG", "RGB", False), ("JPEG", "L", False)],
)
def test_large_pictures_that_pillow_decodes_are_heavy(format: str, mode: str, heavy: bool) -> None:
    assert read_header(encode(Image.new(mode, (3000, 1500)), format), MAX_PIXELS).heavy == heavy
    assert not read_header(encode(Image.new(mode, (2000, 1500)), format), MAX_PIXELS).heavy
