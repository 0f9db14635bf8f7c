from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.boxes import FoundPerson
from calibration.data import LabelledImage, Pictures, read_split
from calibration.estimates import Estimates
from calibration.sheet import CELL, LABEL, contact_sheet, difficulty_strip
from models.drawing import DARK, GREEN, ORANGE
from models.zoo import Pair

SCORES = [0.125, 0.25, 0.375, 0.5]
WHITE = (255, 255, 255)


def colours(image: Image.Image) -> set[Any]:
    return {colour for _, colour in image.getcolors(image.width * image.height) or []}


def cells(sheet: Image.Image) -> dict[int, Image.Image]:
    """The drawn pictures of 80 x 50 by the red that tells their number."""
    found = {}
    for y in range(0, sheet.height, CELL[1]):
        for x in range(0, sheet.width, CELL[0]):
            cell = sheet.crop((x, y, x + CELL[0], y + CELL[1]))
            if colours(cell) != {WHITE}:
                assert colours(cell.crop((80, 0, *CELL))) == colours(cell.crop((0, 50, *CELL))) == {WHITE}
                found[cell.getpixel((79, 49))[0]] = cell.crop((0, 0, 80, 50))  # type: ignore[index]
    return found


def test_a_contact_sheet_shows_who_goes_where(data: Path, pair: Pair) -> None:
    sheet = contact_sheet(pair, Pictures(data), read_split(data, "val"), SCORES)
    assert sheet.size == (6 * 320, 240)
    found = cells(sheet)
    assert found.keys() == {0, 1, 2, 3}
    # The difficulties are 3/32 to 12/32; half of the calibration lies above 8/32.
    for number, cell in found.items():
        own, other = (ORANGE, GREEN) if number >= 2 else (GREEN, ORANGE)
        assert own in colours(cell)
        assert other not in colours(cell)
        assert cell.getpixel((3 + 16 * (number + 1), 34)) == own  # the box's lower right corner
        # the large net's joints lie on the box's upper left corner, the small one's far out of the picture
        assert (DARK in colours(cell)) == (number >= 2)
        assert cell.getpixel((1, 2)) == (ORANGE if number >= 2 else (number, 0, 0))
        # nobody's box, scored 0.25, is not for the service's default
        assert colours(cell.crop((70, 0, 80, 50))) == {(number, 0, 0)}


def test_pictures_are_drawn_at_random_and_not_twice(data: Path, pair: Pair) -> None:
    images = read_split(data, "val")
    sheets = {
        seed: contact_sheet(pair, Pictures(data), images, SCORES, count=2, seed=seed) for seed in range(6)
    }
    chosen = {seed: frozenset(cells(sheet)) for seed, sheet in sheets.items()}
    assert {len(numbers) for numbers in chosen.values()} == {2}
    assert len(set(chosen.values())) > 2
    assert contact_sheet(pair, Pictures(data), images, SCORES, count=2, seed=3) == sheets[3]


def test_more_pictures_than_a_row_holds_begin_another(data: Path, pair: Pair) -> None:
    images = read_split(data, "val") * 2
    sheet = contact_sheet(pair, Pictures(data), images, SCORES)
    assert sheet.size == (1920, 480)
    assert colours(sheet.crop((320, 240, 400, 290))) != {WHITE}  # the eighth picture
    assert colours(sheet.crop((640, 240, 1920, 480))) == {WHITE}


def test_a_big_picture_is_shrunk_to_its_cell(data: Path, pair: Pair) -> None:
    image = replace(read_split(data, "val")[0], file_name="big.png")
    Image.new("RGB", (1280, 480), (0, 0, 200)).save(data / "big.png")
    sheet = contact_sheet(pair, Pictures(data), [image], SCORES)
    assert sheet.getpixel((319, 119)) == (0, 0, 200)
    assert sheet.getpixel((319, 121)) == sheet.getpixel((321, 60)) == WHITE


def test_a_picture_of_nobody_stays_as_it_is(data: Path, pair: Pair) -> None:
    pair.detector = lambda pictures, _: [torch.zeros(0, 5)] * len(pictures)  # type: ignore[misc]
    found = cells(contact_sheet(pair, Pictures(data), read_split(data, "val"), SCORES))
    assert {number: colours(cell) for number, cell in found.items()} == {n: {(n, 0, 0)} for n in range(4)}


def test_a_pair_of_fourteen_keypoints_has_its_sheet_too(data: Path, pair: Pair) -> None:
    pair.small.joints = pair.large.joints = 14  # type: ignore[attr-defined]
    found = cells(contact_sheet(pair, Pictures(data), read_split(data, "val"), SCORES))
    assert DARK in colours(found[3])


def people(folder: Path, difficulty: list[float], joints: int = 17) -> tuple[list[LabelledImage], Estimates]:
    """Somebody in every picture, whose grey is 100 + its number. Crops show the box, of 60 x 80 pixels at (100, 100),
    from (92.5, 90) on at 2.56 times the size. The small net sees all joints at (130, 140), the large at (120, 120)."""
    images, found = [], []
    for number in range(len(difficulty)):
        Image.new("RGB", (300, 400), (100 + number,) * 3).save(folder / f"{number}.png")
        images.append(LabelledImage(number, 300, 400, "", True, (), f"{number}.png", None))
        found.append(FoundPerson(number, (100, 100, 60, 80), 1.0, None))
    small, large = (
        np.tile((*point, 1.0), (len(found), joints, 1)) for point in ((130.0, 140.0), (120.0, 120.0))
    )
    return images, Estimates(found, small, large, np.array(difficulty))


def grey(strip: Image.Image, place: int) -> int:
    """The background of a place."""
    pixel = strip.getpixel((192 * place + 100, 40))
    assert isinstance(pixel, tuple)
    assert len(set(pixel)) == 1
    return int(pixel[0])


def test_the_strip_shows_people_in_the_order_of_their_difficulty(tmp_path: Path) -> None:
    strip = difficulty_strip(Pictures(tmp_path), *people(tmp_path, [0.5, 0.1, 0.9]))
    assert strip.size == (3 * 192, 2 * 256 + LABEL)
    assert [grey(strip, place) for place in range(3)] == [101, 100, 102]


@pytest.mark.parametrize("joints", [17, 14])
def test_the_strip_has_the_small_nets_pose_above_and_the_large_nets_below(
    tmp_path: Path, joints: int
) -> None:
    strip = difficulty_strip(Pictures(tmp_path), *people(tmp_path, [0.5, 0.1], joints))
    for place in range(2):
        for line, own, other, point, elsewhere in (
            (0, GREEN, ORANGE, (96, 128), (70, 77)),
            (1, ORANGE, GREEN, (70, 77), (96, 128)),
        ):
            x, y = place * 192, line * 256
            assert strip.getpixel((x + point[0], y + point[1])) == own
            assert strip.getpixel((x + elsewhere[0], y + elsewhere[1])) == (grey(strip, place),) * 3
            part = colours(strip.crop((x, y, x + 192, y + 256)))
            assert own in part
            assert other not in part
            for left, top in ((19, 60), (172, 60), (120, 25), (120, 230)):  # where the box's edges are
                assert own in colours(strip.crop((x + left, y + top, x + left + 2, y + top + 2)))


def test_every_person_of_the_strip_has_the_score_below(tmp_path: Path) -> None:
    strip = difficulty_strip(Pictures(tmp_path), *people(tmp_path, [0.1234, 0.1231, 0.5]))
    labels = [strip.crop((192 * place, 512, 192 * (place + 1), 512 + LABEL)) for place in range(3)]
    assert all(max(min(colours(label))) < 100 for label in labels)  # dark letters
    assert labels[0] == labels[1]  # three decimals
    assert labels[0] != labels[2]


def test_of_many_people_those_at_equal_steps_of_rank_are_shown(tmp_path: Path) -> None:
    images, estimates = people(tmp_path, [0.9, 0.8, 0.1, 0.11, 0.12])
    strip = difficulty_strip(Pictures(tmp_path), images, estimates, count=3)
    assert [grey(strip, place) for place in range(3)] == [102, 104, 100]
    everybody = difficulty_strip(Pictures(tmp_path), images, estimates)
    assert everybody.width == 5 * 192
