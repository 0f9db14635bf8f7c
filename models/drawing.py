"""A person drawn into a picture: bbox and skeleton."""

from collections.abc import Sequence

from PIL import ImageDraw

from models.skeleton import by_keypoints

Colour = tuple[int, int, int]

# Okabe and Ito's palette: told apart by colour-blind people too.
GREEN, ORANGE, PURPLE, BLUE = (0, 158, 115), (230, 159, 0), (204, 121, 167), (86, 180, 233)
DARK = (20, 20, 20)

MIN_JOINT_SCORE = 0.2


def draw_person(
    pen: ImageDraw.ImageDraw,
    bbox: Sequence[float],
    keypoints: Sequence[Sequence[float]],
    colour: Colour,
    *,
    factor: float,
    unit: float,
    size: tuple[int, int],
) -> None:
    """Draw a box and the joints scored 0.2 or more, with the lines between them.

    bbox: x, y, w, h, and keypoints: (K, 3) x, y, score of a set of `models.skeleton`, both in pixels of a picture that
    the canvas, of `size`, shows enlarged by `factor`. unit: widest line, canvas pixels.
    """
    width = max(2, round(min(unit, bbox[3] * factor / 60)))
    x, y, w, h = (value * factor for value in bbox)
    # A given box, and with it the joints, may reach far out of the picture, where drawing takes for ever.
    left, right = (max(-width, min(edge, size[0] + width)) for edge in (x, x + w))
    top, bottom = (max(-width, min(edge, size[1] + width)) for edge in (y, y + h))
    pen.rectangle((left, top, right, bottom), outline=colour, width=max(1, width // 2))
    joints = {
        index: (kx * factor, ky * factor)
        for index, (kx, ky, score) in enumerate(keypoints)
        if score >= MIN_JOINT_SCORE
        and -size[0] <= kx * factor <= 2 * size[0]
        and -size[1] <= ky * factor <= 2 * size[1]
    }
    for thickness, paint in ((2 * width, DARK), (width, colour)):  # a dark edge shows on any background
        for a, b in by_keypoints(len(keypoints)).edges:
            if a in joints and b in joints:
                pen.line((joints[a], joints[b]), fill=paint, width=thickness)
        for jx, jy in joints.values():
            radius = width + thickness / 4
            pen.ellipse((jx - radius, jy - radius, jx + radius, jy + radius), fill=paint)
