"""What was found, drawn into the picture."""

import io
from typing import Any

import pytest
import torch
from PIL import Image

from app.overlay import COLOURS, FORCED_COLOUR, draw, encode
from app.pipeline import ImageResult, Person
from app.policy import Route

GREY = (90, 90, 90)


def grey(width: int, height: int) -> torch.Tensor:
    return torch.full((height, width, 3), GREY[0], dtype=torch.uint8)


def person(
    x: float = 100, y: float = 100, side: float = 400, joint_score: float = 0.9, **other: Any
) -> Person:
    """Joints on a diagonal of the box, the last in its middle."""
    joints = [[x + side * k / 40, y + side * k / 40, joint_score] for k in range(4, 20)]
    joints.append([x + side / 2, y + side / 2, joint_score])
    known: dict[str, Any] = {"route": Route.easy, "estimator": "small", "difficulty": 0.512345} | other
    return Person((x, y, side, side), 0.9, joints, 0.8, **known)


def colours(image: Image.Image, part: tuple[int, int, int, int] | None = None) -> set[Any]:
    found = image.crop(part).getcolors(2**24)
    assert found is not None
    return {colour for _, colour in found}


@pytest.mark.parametrize("route", list(Route))
def test_a_skeleton_has_the_colour_of_its_route(route: Route) -> None:
    image = draw(grey(800, 600), ImageResult([person(route=route)]))
    assert image.getpixel((300, 300)) == COLOURS[route]
    assert colours(image) & {*COLOURS.values(), FORCED_COLOUR} == {COLOURS[route]}


def test_a_forced_net_has_a_colour_of_its_own() -> None:
    image = draw(grey(800, 600), ImageResult([person(route=None, difficulty=None)]))
    assert image.getpixel((300, 300)) == FORCED_COLOUR
    assert len({*COLOURS.values(), FORCED_COLOUR}) == 4


def test_joints_of_a_low_score_are_left_out() -> None:
    inside = (150, 150, 450, 450)
    assert colours(draw(grey(800, 600), ImageResult([person(joint_score=0.19)])), inside) == {GREY}
    assert colours(draw(grey(800, 600), ImageResult([person(joint_score=0.2)])), inside) > {GREY}


def test_the_score_stands_above_the_box() -> None:
    above = (100, 80, 160, 98)
    result = [
        draw(grey(800, 600), ImageResult([person(difficulty=d)])).crop(above) for d in (0.5, 0.5001, 0.6)
    ]
    assert colours(result[0]) > {COLOURS[Route.easy]}
    assert result[0] == result[1]  # three decimals
    assert result[0] != result[2]


def test_the_legend_counts_the_people_of_each_route() -> None:
    legend = (0, 570, 200, 600)
    one = draw(grey(800, 600), ImageResult([person()])).crop(legend)
    two = draw(grey(800, 600), ImageResult([person(), person()])).crop(legend)
    both = draw(grey(800, 600), ImageResult([person(), person(route=Route.hard, estimator="large")])).crop(
        legend
    )
    assert one != two
    assert COLOURS[Route.hard] not in colours(two)
    assert colours(both) > {COLOURS[Route.easy], COLOURS[Route.hard]}


def test_nobody_leaves_the_picture_as_it_is() -> None:
    pixels = torch.randint(256, (600, 800, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert draw(pixels, ImageResult()).tobytes() == pixels.numpy().tobytes()


@pytest.mark.parametrize("size", [(800, 600), (2000, 1500)])
def test_the_pixels_that_were_given_stay_as_they_were(size: tuple[int, int]) -> None:
    pixels = grey(*size)
    draw(pixels, ImageResult([person()]))
    assert torch.equal(pixels, grey(*size))


def test_a_small_picture_is_enlarged_so_that_it_can_be_read() -> None:
    image = draw(grey(200, 100), ImageResult([person(20, 20, 60)]))
    assert image.size == (640, 320)
    assert image.getpixel((160, 160)) == COLOURS[Route.easy]


def test_lines_and_letters_grow_with_the_picture() -> None:
    def painted(size: int) -> float:
        """Share of the pixels that have the route's colour."""
        image = draw(grey(size, size), ImageResult([person(size / 8, size / 8, size / 2)]))
        counts = {colour: n for n, colour in image.getcolors(2**24) or []}
        return counts[COLOURS[Route.easy]] / size**2

    assert painted(4000) == pytest.approx(painted(1500), rel=0.3)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (8, 8), (1500, 1400)])
@pytest.mark.parametrize("box", [(-50, -50, 100), (0, 0, 0.01), (1e6, 1e6, 5), (-1e8, -1e8, 1e8)])
def test_any_size_and_any_box_can_be_drawn(size: tuple[int, int], box: tuple[float, float, float]) -> None:
    image = draw(grey(*size), ImageResult([person(*box), person(*box, route=None, difficulty=None)]))
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/png", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/jpeg;q=0.9, */*;q=0.1", "image/jpeg"),
        ("image/png, image/jpeg", "image/png"),
        ("application/json", "image/png"),
    ],
)
def test_the_format_follows_accept(accept: str, media_type: str) -> None:
    data, kind = encode(Image.new("RGB", (20, 10), "white"), accept)
    assert kind == media_type
    with Image.open(io.BytesIO(data)) as image:
        assert (image.get_format_mimetype(), image.size) == (media_type, (20, 10))


@pytest.mark.parametrize(("side", "kind"), [(65_500, "image/jpeg"), (65_501, "image/png")])
def test_what_is_too_long_for_a_jpeg_comes_as_png(side: int, kind: str) -> None:
    data, found = encode(Image.new("RGB", (side, 1)), "image/jpeg")
    assert found == kind
    assert Image.open(io.BytesIO(data)).size == (side, 1)


def test_the_letters_of_a_very_long_picture_stay_small() -> None:
    """Pillow raises for those of a hundredth of this, and takes a second for each word of half as large ones."""
    size = (600_000, 4)
    assert draw(grey(*size), ImageResult([person(y=0, side=4)])).size == size
