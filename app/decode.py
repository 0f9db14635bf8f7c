"""Bytes of a picture -> pixels. The header is judged before anything is decoded."""

import contextlib
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from app import bombs
from app.crew import let_go
from app.errors import ApiError
from models.pictures import rgb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # Pillow opens MPO as JPEG
HEIF_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
HEIF_BRANDS |= {b"avif": "AVIF", b"avis": "AVIF"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
JPEG_END = b"\xff\xd9"
Pixels = NDArray[np.uint8]

LARGE = 1 << 22
"""Pixels of a picture that may be heavy."""

FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
"""EXIF orientation -> OpenCV's flip that makes the picture upright; those from 5 on are transposed before."""


@dataclass(frozen=True, slots=True)
class Header:
    """Size in pixels as stored, before the EXIF orientation turns it. ordinary_jpeg: of colours that need no Pillow."""

    width: int
    height: int
    ordinary_jpeg: bool

    @property
    def decoded_bytes(self) -> int:
        return 3 * self.width * self.height

    @property
    def heavy(self) -> bool:
        """Whether this is a large picture that Pillow decodes, which takes up to five times `decoded_bytes`
        meanwhile."""
        return self.width * self.height > LARGE and not self.ordinary_jpeg


def read_header(data: bytes, max_pixels: int) -> Header:
    """Format and size without decoding. Raises ApiError: 415 for what is no picture that is taken here, 422 for an
    empty or damaged one, 413 for too many pixels."""
    if not data:
        raise ApiError(422, "invalid_image", "the picture is empty")
    bombs.check(data)
    with _open(data) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ApiError(422, "invalid_image", "the picture has no pixels")
        if width * height > max_pixels:
            raise ApiError(
                413, "too_large", f"{width} x {height} pixels are more than the {max_pixels} allowed"
            )
        if image.mode == "F":
            raise ApiError(415, "unsupported_media_type", "pictures of floating-point pixels are not taken")
        return Header(width, height, _is_ordinary_jpeg(image))


def decode(data: bytes) -> Tensor:
    """(H, W, 3) uint8 RGB of the first frame, upright by its EXIF orientation; transparency over white, 16 bit scaled.
    Raises ApiError 422 when the picture is cut off or damaged."""
    try:
        return _decode(data)
    except ApiError as error:
        if not data.startswith(bombs.JPEG_START):
            raise
        let_go(error)  # of its pixels, before others of that size come
        # Many cameras lose only the two bytes that end a JPEG. Then bytes added before them change no pixel; where
        # more is missing, they are taken for picture data.
        whole, padded = _decode(data + JPEG_END), _decode(data + b"\x5a" * 64 + JPEG_END)
        if not torch.equal(whole, padded):
            raise
        return whole


def _decode(data: bytes) -> Tensor:
    with _open(data) as image:
        try:
            pixels = _ordinary_jpeg(data, image)
            if pixels is None:
                image.seek(0)
                _forget_exif(image)
                image.load()
                pixels = np.array(rgb(image))
            return torch.from_numpy(_upright(pixels, _orientation(image)))
        except ApiError:
            raise
        except Exception as error:  # damaged files make Pillow's decoders raise almost anything
            raise ApiError(422, "invalid_image", "the picture is cut off or damaged") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(bombs.Pieces(data), formats=FORMATS)
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ApiError(413, "too_large", "the picture has far too many pixels") from error
    except Exception as error:
        if data.startswith(MAGIC) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
            raise ApiError(422, "invalid_image", "the picture's header is damaged") from error
        if data[4:8] == b"ftyp" and (name := HEIF_BRANDS.get(data[8:12])):
            raise ApiError(415, "unsupported_media_type", f"{name} is not taken, convert to JPEG") from error
        taken = "JPEG, PNG, WebP, BMP, TIFF and GIF are taken"
        raise ApiError(415, "unsupported_media_type", f"not a picture of a known format: {taken}") from error


def _is_ordinary_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _ordinary_jpeg(data: bytes, image: Image.Image) -> Pixels | None:
    """Pillow's own pixels in a third of its time, without the GIL. None for what Pillow shall judge: other formats and
    colours, and everything of which the decoder as much as warns, such as missing data."""
    if not _is_ordinary_jpeg(image):
        return None
    # The decoder reads the header itself; where it finds a larger picture there, it refuses this buffer.
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels, strict=True)
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def _forget_exif(image: Image.Image) -> None:
    """What a TIFF says of camera and place: Pillow would make numbers of all of it when it loads the pixels."""
    if image.format == "TIFF":
        with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse the picture
            exif = image.getexif()
            for part in ExifTags.IFD:
                if part in exif:
                    del exif[part]


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    if len(exif) > bombs.MAX_EXIF:
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block is no reason to refuse the picture
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """As `ImageOps.exif_transpose`, several times as fast."""
    if 5 <= orientation <= 8:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    if orientation in FLIPS:
        cv2.flip(pixels, FLIPS[orientation], dst=pixels)
    return pixels
