"""Pictures to look at: random ones with their poses, and people in the order of their difficulty."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from calibration.data import LabelledImage, Pictures
from calibration.estimates import Estimates
from calibration.thresholds.split import split_for
from models.defaults import MIN_SCORE, POLICY, ROUTER_SIZE, THETA, P
from models.drawing import DARK, GREEN, ORANGE, Colour, draw_person
from models.geometry import center_scale, crop_matrix, cut_crops
from models.zoo import Pair

COUNT, COLUMNS = 24, 6
CELL = (320, 240)
LABEL = 20
"""Pixels below the people of a strip."""


def contact_sheet(
    pair: Pair,
    pictures: Pictures,
    images: Sequence[LabelledImage],
    scores: Sequence[float] | None,
    *,
    count: int = COUNT,
    seed: int = 0,
) -> Image.Image:
    """Random pictures as the service answers them by default: who goes to the large net in orange. scores: of the
    calibration; without them everybody does."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(images))[:count]
    k1 = -math.inf if scores is None else split_for(np.sort(scores), P, THETA, POLICY).k1
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * CELL[1]), (255, 255, 255))
    for place, index in enumerate(chosen):
        cell = drawn(pair, pictures(images[index]), k1)
        cell.thumbnail(CELL)
        sheet.paste(cell, (place % COLUMNS * CELL[0], place // COLUMNS * CELL[1]))
    return sheet


def drawn(pair: Pair, picture: Tensor, k1: float) -> Image.Image:
    """picture: (H, W, 3) uint8 RGB. Whose score is above k1 goes to the large net."""
    found = pair.detector([picture], [MIN_SCORE])[0]
    if not len(found):
        return Image.fromarray(picture.numpy())
    boxes = found[:, :4]
    hard = pair.router([picture] * len(boxes), boxes, found[:, 4]) > k1
    poses: dict[int, list[list[float]]] = {}
    for net, chosen in ((pair.large, hard), (pair.small, ~hard)):
        if chosen.any():
            answers = net([picture] * int(chosen.sum()), boxes[chosen])
            poses |= zip(chosen.nonzero().flatten().tolist(), answers.tolist(), strict=True)
    colours = [ORANGE if each else GREEN for each in hard.tolist()]
    return with_people(picture, boxes.tolist(), [poses[row] for row in range(len(boxes))], colours)


def with_people(
    picture: Tensor,
    boxes: Sequence[Sequence[float]],
    poses: Sequence[Sequence[Sequence[float]]],
    colours: Sequence[Colour],
) -> Image.Image:
    """boxes: x, y, w, h; poses: (K, 3); one colour each."""
    image = Image.fromarray(picture.numpy())
    pen = ImageDraw.Draw(image)
    for box, pose, colour in zip(boxes, poses, colours, strict=True):
        draw_person(
            pen, box, pose, colour, factor=1.0, unit=max(image.size) / 200, size=(image.width, image.height)
        )
    return image


def difficulty_strip(
    pictures: Pictures, images: Sequence[LabelledImage], estimates: Estimates, count: int = 12
) -> Image.Image:
    """The paper's figure 9: people at equal steps of rank from the lowest difficulty to the highest, with the small
    net's pose above and the large one's below."""
    by_id = {image.id: image for image in images}
    order = np.argsort(estimates.difficulty, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    width, height = ROUTER_SIZE
    strip = Image.new("RGB", (len(chosen) * width, 2 * height + LABEL), (255, 255, 255))
    pen = ImageDraw.Draw(strip)
    for place, row in enumerate(chosen.tolist()):
        person = estimates.found[row]
        picture = pictures(by_id[person.image_id])
        center, scale = center_scale(torch.tensor([person.bbox]))
        matrix = crop_matrix(center, scale, ROUTER_SIZE)
        crop = cut_crops([picture], matrix, ROUTER_SIZE)[0].permute(1, 2, 0).contiguous()
        linear, shift = matrix[0, :, :2].numpy(), matrix[0, :, 2].numpy()
        x, y, w, h = person.bbox
        corners = np.array([[x, y], [x + w, y + h]]) @ linear.T + shift
        box = [*corners[0].tolist(), *(corners[1] - corners[0]).tolist()]
        for line, (poses, colour) in enumerate(((estimates.small, GREEN), (estimates.large, ORANGE))):
            pose = np.concatenate((poses[row, :, :2] @ linear.T + shift, poses[row, :, 2:]), axis=1)
            cell = with_people(crop, [box], [pose.tolist()], [colour])
            strip.paste(cell, (place * width, line * height))
        pen.text((place * width + 4, 2 * height + 4), f"s = {estimates.difficulty[row]:.3f}", DARK)
    return strip
