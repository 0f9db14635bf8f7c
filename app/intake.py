"""A request's body -> encoded pictures with their boxes, held in memory only and counted while it arrives."""

import asyncio
import base64
import re
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from app.batching import ClientGone
from app.crew import in_pool
from app.decode import Header, decode, read_header
from app.errors import ApiError
from app.multipart import read_parts
from app.settings import Settings
from app.strict_json import NotJson, RefusedJson, loads
from models.album import to_device

TAKEN = "send multipart/form-data, image/* or application/json"
CLOSE = {"Connection": "close"}  # the rest of the body is not read, so the connection cannot be used again
MAX_NAME = 255

PARSERS = ThreadPoolExecutor(2, thread_name_prefix="parser")
"""Two bodies are taken apart at a time: each needs up to three times its own size meanwhile, which nothing counts."""

# The bounds keep a box's arithmetic finite in float32; no picture comes near them.
Coordinate = Annotated[float, Field(ge=-1e8, le=1e8, allow_inf_nan=False)]
Extent = Annotated[float, Field(ge=0.01, le=1e8, allow_inf_nan=False)]
Bbox = tuple[float, float, float, float]
Take = Callable[[int], None]
# JSON has no tuples, so strictness begins with the numbers.
GivenBbox = Annotated[tuple[Coordinate, Coordinate, Extent, Extent], Field(strict=False)]


class GivenImage(BaseModel):
    """One picture of a JSON request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: str = Field(description="the picture's bytes as base64")
    boxes: list[GivenBbox] | None = Field(
        None, description="people as x, y, w, h in pixels; empty: nobody; null: detect them"
    )
    image_id: int | Annotated[str, Field(max_length=255)] | None = Field(
        None, description="what `format=coco` calls the picture; its index if absent"
    )


class GivenImages(BaseModel):
    """A JSON request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[GivenImage]


GIVEN_BOXES = TypeAdapter(list[list[GivenBbox] | None], config=ConfigDict(strict=True))


@dataclass(frozen=True, slots=True)
class Upload:
    """An encoded picture as it came. `name` is only ever sent back, never used as a path or logged."""

    data: bytes
    name: str | None = None
    image_id: int | str | None = None
    boxes: Sequence[Bbox] | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """pixels: (H, W, 3) uint8 RGB on the device, upright. width, height in pixels."""

    pixels: Tensor
    name: str | None
    width: int
    height: int


async def read(request: Request, settings: Settings, take: Take = lambda _: None) -> list[Upload]:
    """The pictures of `request`, at least one. take: told of the bytes as they come, and may raise.
    Raises ApiError (400, 408, 413, 415, 422) and ClientGone."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, "unsupported_media_type", "send the body without Content-Encoding", CLOSE)
    given, options = parse_options_header(request.headers.get("content-type"))
    media_type = given.decode("latin-1").strip().lower()
    if media_type.startswith("image/"):
        body = await read_body(request, min(settings.body_limit, settings.max_image_bytes), settings, take)
        return [Upload(body)]
    if media_type == "multipart/form-data":
        body = await read_body(request, settings.body_limit, settings, take)
        uploads = await in_pool(PARSERS, _from_multipart, body, options.get(b"boundary", b""), settings)
    elif media_type == "application/json":
        body = await read_body(request, settings.body_limit, settings, take)
        uploads = await in_pool(PARSERS, _from_json, body, settings)
    elif (
        media_type
        or announced_bytes(request, settings.body_limit)
        or await read_body(request, settings.body_limit, settings, take)
    ):
        raise ApiError(415, "unsupported_media_type", TAKEN, CLOSE)
    else:
        uploads = []
    if not uploads:
        raise ApiError(422, "invalid_parameter", "images: the request has no picture")
    _check_counts(uploads, settings)
    return uploads


def examine(upload: Upload, settings: Settings) -> Header:
    """The picture's format and size, before anything is decoded. Raises ApiError: 413, 415 and 422."""
    if len(upload.data) > settings.max_image_bytes:
        raise ApiError(413, "too_large", f"the picture has more than {settings.max_image_bytes} bytes")
    return read_header(upload.data, settings.max_image_pixels)


def to_picture(upload: Upload, device: torch.device) -> Picture:
    """Decode onto `device`; slow, for a thread. Raises ApiError 422 for a damaged picture or a box outside it."""
    pixels = decode(upload.data)
    height, width, _ = pixels.shape
    check_boxes(upload.boxes or (), width, height)
    return Picture(to_device(pixels, device), upload.name, width, height)


def check_boxes(boxes: Sequence[Bbox], width: int, height: int) -> None:
    """Raises ApiError 422 for a box that lies wholly outside the picture of `width` x `height` pixels."""
    for index, (x, y, w, h) in enumerate(boxes):
        if not (x < width and y < height and x + w > 0 and y + h > 0):
            detail = f"box {index} lies outside the picture of {width} x {height} pixels"
            raise ApiError(422, "invalid_box", detail)


def announced_bytes(request: Request, limit: int) -> int | None:
    """The Content-Length, if there is one. Raises ApiError 400 when it is no number, 413 when it is above `limit`."""
    announced = request.headers.get("content-length")
    if announced is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", announced):
        raise ApiError(400, "bad_request", "Content-Length is not a number", CLOSE)
    if int(announced) > limit:
        raise _too_large(limit)
    return int(announced)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "too_large", f"the body has more than {limit} bytes", CLOSE)


async def read_body(request: Request, limit: int, settings: Settings, take: Take = lambda _: None) -> bytes:
    """The whole body, at most `limit` bytes, counted whatever Content-Length says. Raises as `read` does."""
    announced = announced_bytes(request, limit)
    chunks = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                take(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        detail = f"the body did not arrive within {settings.body_timeout_s:g} s"
        raise ApiError(408, "timeout", detail, CLOSE) from error
    except ClientDisconnect as error:
        raise ClientGone from error
    if announced is not None and size < announced:
        raise ApiError(400, "bad_request", "the body is shorter than its Content-Length", CLOSE)
    return b"".join(chunks)


def _from_multipart(body: bytes, boundary: bytes, settings: Settings) -> list[Upload]:
    uploads: list[Upload] = []
    boxes: list[list[Bbox] | None] | None = None
    for name, file_name, data in read_parts(body, boundary, max_parts=settings.max_images + 1):
        if name == b"images":
            uploads.append(Upload(data, name=plain_name(file_name)))
        elif name == b"boxes" and boxes is None:
            boxes = _boxes_part(data, settings)
        else:
            detail = "the parts are `images`, once or more, and `boxes`, at most once"
            raise ApiError(422, "invalid_parameter", detail)
    if boxes is None:
        return uploads
    if len(boxes) != len(uploads):
        detail = f"boxes: {len(boxes)} lists for {len(uploads)} pictures; give one list or null for each"
        raise ApiError(422, "invalid_box", detail)
    return [Upload(it.data, it.name, boxes=given) for it, given in zip(uploads, boxes, strict=True)]


def _boxes_part(data: bytes, settings: Settings) -> list[list[Bbox] | None]:
    try:
        return [given and list(given) for given in GIVEN_BOXES.validate_python(_json(data, settings))]
    except ValidationError as error:
        raise _invalid(error, inside=("boxes",)) from error


def _from_json(body: bytes, settings: Settings) -> list[Upload]:
    document = _json(body, settings)
    if not isinstance(document, dict):
        raise ApiError(422, "invalid_parameter", "the body must be a JSON object with `images`")
    try:
        given = GivenImages.model_validate(document).images
    except ValidationError as error:
        raise _invalid(error) from error
    return [Upload(_base64(it.data, i), image_id=it.image_id, boxes=it.boxes) for i, it in enumerate(given)]


def _json(data: bytes, settings: Settings) -> object:
    # A 64 MiB body of `[],[],...` would grow to gigabytes of objects; base64 has none of these characters.
    structure = sum(map(data.count, (b",", b"[", b"{")))
    if structure > settings.max_images * (8 * settings.max_boxes + 64):
        detail = "the JSON has more values than the pictures and boxes that are allowed"
        raise ApiError(413, "too_large", detail)
    try:
        return loads(data, finite=False)
    except NotJson as error:
        raise ApiError(400, "bad_request", str(error)) from error
    except RefusedJson as error:
        raise ApiError(422, "invalid_parameter", str(error)) from error


def _base64(data: str, index: int) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ApiError(400, "bad_request", f"image {index}: data is not base64") from error


def _invalid(error: ValidationError, *, inside: tuple[str, ...] = ()) -> ApiError:
    first = error.errors(include_input=False)[0]
    path = (*inside, *first["loc"])
    indices = [part for part in path if isinstance(part, int)]
    where = ", ".join(f"{what} {index}" for what, index in zip(("image", "box"), indices, strict=False))
    if first["type"] == "extra_forbidden":
        code, detail = "invalid_parameter", "unknown name; `images` have `data`, `boxes` and `image_id`"
    elif "boxes" in path:
        detail = "boxes are lists of 4 numbers x, y, w, h, in pixels and finite, w and h at least 0.01"
        code = "invalid_box"
    elif "image_id" in path:
        code, detail = "invalid_parameter", "image_id is an integer or a string of at most 255 characters"
    else:
        code, detail = "invalid_parameter", "`images` is a list of objects, each with base64 `data`"
    return ApiError(422, code, f"{where}: {detail}" if where else detail)


def _check_counts(uploads: Sequence[Upload], settings: Settings) -> None:
    if len(uploads) > settings.max_images:
        raise ApiError(413, "too_large", f"more than {settings.max_images} pictures in one request")
    for index, upload in enumerate(uploads):
        if upload.boxes and len(upload.boxes) > settings.max_boxes:
            raise ApiError(413, "too_large", f"image {index}: more than {settings.max_boxes} boxes")


def plain_name(file_name: bytes) -> str | None:
    """The last part of a client's path, without control and formatting characters; None if nothing is left."""
    text = file_name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in text if unicodedata.category(c)[0] != "C")[:MAX_NAME] or None
