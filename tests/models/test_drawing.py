from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from models.drawing import BLUE, DARK, GREEN, MIN_JOINT_SCORE, ORANGE, PURPLE, Colour, draw_person
from models.skeleton import COCO, CROWDPOSE, Skeleton

GREY = (90, 90, 90)


def drawn(
    keypoints: list[list[float]],
    bbox: tuple[float, float, float, float] = (20, 20, 160, 120),
    colour: Colour = GREEN,
    size: tuple[int, int] = (200, 160),
    factor: float = 1.0,
    unit: float = 2.0,
) -> Image.Image:
    image = Image.new("RGB", size, GREY)
    draw_person(
        ImageDraw.Draw(image),
        bbox,
        keypoints,
        colour,
        factor=factor,
        unit=unit,
        size=(image.width, image.height),
    )
    return image


def joints(skeleton: Skeleton = COCO, **at: tuple[float, float]) -> list[list[float]]:
    """Sure joints by name; the others score nothing."""
    assert at.keys() <= set(skeleton.keypoints)
    return [[*at.get(name, (50.0, 50.0)), float(name in at)] for name in skeleton.keypoints]


def painted(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> set[Any]:
    """Colours of a part of the picture without its background."""
    part = image.crop(box)
    return {colour for _, colour in part.getcolors(part.width * part.height) or []} - {GREY}


def test_the_box_is_outlined_and_not_filled() -> None:
    image = drawn(joints())
    for x, y in ((20, 20), (180, 20), (180, 140), (20, 140), (100, 20), (20, 80)):
        assert image.getpixel((x, y)) == GREEN
    assert painted(image, (22, 22, 178, 138)) == set()
    assert painted(image, (0, 0, 19, 160)) == painted(image, (0, 142, 200, 160)) == set()


def test_joints_lie_where_they_are_and_edges_between_them() -> None:
    image = drawn(joints(left_shoulder=(60, 40), left_elbow=(60, 100), right_ankle=(140, 100)))
    for point in ((60, 40), (60, 70), (60, 100), (140, 100)):
        assert image.getpixel(point) == GREEN
    assert painted(image, (70, 30, 130, 130)) == set()  # nothing joins elbow and ankle
    assert image.getpixel((63, 70)) == GREY


@pytest.mark.parametrize("skeleton", [COCO, CROWDPOSE], ids=lambda skeleton: skeleton.name)
def test_every_edge_of_the_set_is_drawn_and_no_other(skeleton: Skeleton) -> None:
    names = skeleton.keypoints
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            image = drawn(joints(skeleton, **{names[a]: (50, 80), names[b]: (150, 80)}))
            joined = {(a, b), (b, a)} & set(skeleton.edges)
            assert (image.getpixel((100, 80)) == GREEN) == bool(joined), (names[a], names[b])


def test_a_set_of_joints_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="no known set"):
        drawn([[50, 50, 1]] * 5)


@pytest.mark.parametrize(("score", "seen"), [(MIN_JOINT_SCORE, True), (MIN_JOINT_SCORE - 0.01, False)])
def test_joints_of_a_low_score_are_left_out_and_the_lines_to_them(score: float, seen: bool) -> None:
    pose = joints(left_shoulder=(60, 40), left_elbow=(60, 100))
    pose[COCO.keypoints.index("left_elbow")][2] = score
    image = drawn(pose)
    assert image.getpixel((60, 40)) == GREEN
    assert (image.getpixel((60, 70)) == GREEN) == seen
    assert (image.getpixel((60, 100)) == GREEN) == seen


def test_lines_have_a_dark_edge() -> None:
    image = drawn(joints(left_shoulder=(60, 40), left_elbow=(60, 100)), unit=4)
    row = [image.getpixel((x, 70)) for x in range(50, 71)]
    assert {GREEN, DARK} == set(row) - {GREY}
    first, last = row.index(GREEN), 20 - row[::-1].index(GREEN)
    assert row[first - 1] == row[last + 1] == DARK


def test_an_enlarged_picture_has_everything_in_its_place() -> None:
    pose = joints(left_shoulder=(30, 20), left_elbow=(30, 50))
    image = drawn(pose, bbox=(10, 10, 80, 60), factor=2)
    for point in ((20, 20), (180, 140), (60, 40), (60, 70), (60, 100)):
        assert image.getpixel(point) == GREEN


def test_lines_are_as_wide_as_the_person_allows() -> None:
    pose = joints(left_shoulder=(100, 40), left_elbow=(100, 120))

    def width(height: float, unit: float) -> int:
        image = drawn(pose, bbox=(0, 0, 10, height), unit=unit)
        return sum(image.getpixel((x, 80)) == GREEN for x in range(80, 121))

    assert width(150, 100) < width(600, 100) < width(600, 1000) + 1
    assert width(6000, 4) < width(6000, 8)


def test_the_colours_are_five_different_ones() -> None:
    assert len({GREEN, ORANGE, PURPLE, BLUE, DARK}) == 5


@pytest.mark.parametrize("colour", [ORANGE, PURPLE, BLUE])
def test_everything_has_the_colour_asked_for(colour: Colour) -> None:
    pose = joints(left_shoulder=(60, 40), left_elbow=(60, 100))
    assert painted(drawn(pose, colour=colour)) == {colour, DARK}


@pytest.mark.parametrize("place", [(-1e5, 40), (1e5, 40), (60, -1e5), (60, 1e5), (-201, 40), (60, 321)])
def test_joints_far_out_of_the_picture_are_left_out(place: tuple[float, float]) -> None:
    image = drawn(joints(left_shoulder=(60, 40), left_elbow=place))
    assert image == drawn(joints(left_shoulder=(60, 40)))


@pytest.mark.parametrize(("place", "border"), [((-199, 40), (0, 40)), ((60, 319), (60, 159))])
def test_joints_a_little_outside_lead_out_of_the_picture(
    place: tuple[float, float], border: tuple[int, int]
) -> None:
    assert drawn(joints(left_shoulder=(60, 40), left_elbow=place)).getpixel(border) == GREEN


numbers = st.floats(-1e9, 1e9)


@given(
    bbox=st.tuples(numbers, numbers, st.floats(0, 1e9), st.floats(0, 1e9)),
    points=st.lists(st.tuples(numbers, numbers, st.floats(0, 1)), min_size=17, max_size=17),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_any_box_and_any_joints_can_be_drawn(
    bbox: tuple[float, float, float, float],
    points: list[tuple[float, float, float]],
    size: tuple[int, int],
) -> None:
    image = drawn([list(point) for point in points], bbox=bbox, size=size)
    assert painted(image) <= {GREEN, DARK}
