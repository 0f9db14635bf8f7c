"""The picture with what was found drawn in: boxes, skeletons coloured by route, the router's score beside each box."""

import io

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from app.pipeline import ImageResult, Person
from app.policy import Route
from models.drawing import BLUE, DARK, GREEN, ORANGE, PURPLE, Colour, draw_person

COLOURS = {Route.easy: GREEN, Route.hard: ORANGE, Route.extremely_hard: PURPLE}
FORCED_COLOUR = BLUE

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

MIN_SIDE = 640
"""Pictures whose longest side is smaller are enlarged, so that labels can be read."""
SUPERSAMPLED_PIXELS = 2_000_000
"""Up to this size lines are drawn at twice the size and scaled down, which smooths them."""
MAX_FONT = 300
"""Pixels. The letters of a picture half a million pixels long would take a minute."""
JPEG_MAX_SIDE = 65_500
"""What the encoder takes."""


def draw(pixels: Tensor, result: ImageResult) -> Image.Image:
    """pixels: (H, W, 3) uint8 RGB on the CPU. Joints scored below 0.2 are left out, and the lines to them."""
    image = Image.fromarray(pixels.numpy())
    factor = max(1.0, MIN_SIDE / max(image.size))
    if factor > 1:
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC)
    smooth = 2 if image.width * image.height <= SUPERSAMPLED_PIXELS else 1
    factor *= smooth
    canvas = image.resize((image.width * smooth, image.height * smooth), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    unit = max(canvas.size) / 300  # a line's width, before it is fitted to the person
    for person in reversed(result.people):  # the best last, on top
        draw_person(
            pen,
            person.bbox,
            person.keypoints,
            _colour(person),
            factor=factor,
            unit=unit,
            size=canvas.size,
        )
    font = ImageFont.load_default(min(max(canvas.size) / 55, MAX_FONT))
    for person in reversed(result.people):
        _label(pen, person, factor, font, canvas.width)
    _legend(pen, result, font, canvas.height)
    return canvas.resize(image.size, Image.Resampling.BOX)


def encode(image: Image.Image, accept: str) -> tuple[bytes, str]:
    """(file, media type): JPEG when `accept` asks for it and not for PNG, else PNG, which has no longest side."""
    jpeg = "image/jpeg" in accept and "image/png" not in accept and max(image.size) <= JPEG_MAX_SIDE
    buffer = io.BytesIO()
    if jpeg:
        image.save(buffer, "JPEG", quality=90)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), "image/jpeg" if jpeg else "image/png"


def _colour(person: Person) -> Colour:
    return FORCED_COLOUR if person.route is None else COLOURS[person.route]


def _label(pen: ImageDraw.ImageDraw, person: Person, factor: float, font: Font, canvas_width: int) -> None:
    text = person.estimator if person.difficulty is None else f"{person.difficulty:.3f}"
    width, height = _tag_size(pen, text, font)
    x = max(0, min(person.bbox[0] * factor, canvas_width - width))
    y = max(0, person.bbox[1] * factor - height)
    _tag(pen, (x, y), text, font, _colour(person))


def _legend(pen: ImageDraw.ImageDraw, result: ImageResult, font: Font, canvas_height: int) -> None:
    """Which colours there are and how many people have each, at the lower left."""
    routes = [person.route for person in result.people]
    x = 0.0
    for route in (*Route, None):
        if route in routes:
            text = f"{routes.count(route)} {route.replace('_', ' ') if route else 'forced'}"
            width, height = _tag_size(pen, text, font)
            _tag(pen, (x, canvas_height - height), text, font, COLOURS[route] if route else FORCED_COLOUR)
            x += width


def _tag(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, font: Font, colour: Colour) -> None:
    width, height = _tag_size(pen, text, font)
    x, y = at
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + width / 2, y + height / 2), text, DARK, font, anchor="mm")


def _tag_size(pen: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[float, float]:
    """As high for one text as for another."""
    _, top, _, bottom = pen.textbbox((0, 0), "|", font, anchor="ls")
    return pen.textlength(text, font) + (bottom - top) / 2, 1.3 * (bottom - top)
