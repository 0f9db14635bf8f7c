import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.geometry import (
    CV2_MAX_SIDE,
    center_scale,
    crop_matrix,
    cut_crops,
    normalize,
    sample_crops,
    to_picture,
)

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "topdown_affine.json").read_text())
SIZE = (192, 256)
HEATMAP = (48, 64)


def reference(key: str) -> Tensor:
    return torch.tensor([box[key] for box in REFERENCE["boxes"]], dtype=torch.float64)


def xywh(corners: Tensor) -> Tensor:
    return torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1).float()


def furthest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def formula_picture(width: int, height: int) -> Tensor:
    y, x, channel = np.mgrid[:height, :width, :3]
    return torch.from_numpy(((x * (3 + channel) + y * (5 + channel) + x * y // 7) % 256).astype(np.uint8))


def test_centre_and_scale_agree_with_the_reference() -> None:
    center, scale = center_scale(xywh(reference("bbox_xyxy")))
    assert furthest(center, reference("center")) < 1e-4
    assert furthest(scale, reference("scale")) < 1e-4


@pytest.mark.parametrize(
    ("key", "udp", "degrees"),
    [("warp", False, 0), ("warp_udp", True, 0), ("warp_rot30", False, 30), ("warp_udp_rot30", True, 30)],
)
def test_crop_matrices_agree_with_the_reference(key: str, udp: bool, degrees: int) -> None:
    center, scale = center_scale(xywh(reference("bbox_xyxy")))
    rotation = torch.full((len(center),), float(degrees))
    assert furthest(crop_matrix(center, scale, SIZE, rotation=rotation, udp=udp), reference(key)) < 5e-3


def test_no_rotation_is_a_rotation_by_zero() -> None:
    center, scale = center_scale(xywh(reference("bbox_xyxy")))
    turned = crop_matrix(center, scale, SIZE, rotation=torch.zeros(len(center)))
    assert furthest(crop_matrix(center, scale, SIZE), turned) == 0


@pytest.mark.parametrize(("key", "udp"), [("heatmap_to_picture", False), ("heatmap_to_picture_udp", True)])
def test_heatmap_points_come_back_where_the_reference_says(key: str, udp: bool) -> None:
    center, scale = center_scale(xywh(reference("bbox_xyxy")))
    points = torch.tensor(REFERENCE["heatmap_points_xy"]).expand(len(center), -1, -1)
    assert furthest(to_picture(points, center, scale, HEATMAP, udp=udp), reference(key)) < 1e-3


@pytest.mark.parametrize(("key", "udp"), [("value", False), ("value_udp", True)])
def test_a_crop_has_the_pixels_of_the_reference(key: str, udp: bool) -> None:
    warp = REFERENCE["warp_picture"]
    center, scale = center_scale(xywh(torch.tensor([warp["bbox_xyxy"]])))
    crop = cut_crops([formula_picture(160, 120)], crop_matrix(center, scale, SIZE, udp=udp), SIZE)[0]
    pixels = crop.permute(1, 2, 0).reshape(-1, 3)[warp["pixel_index_y_times_192_plus_x"]]
    assert furthest(pixels, torch.tensor(warp[key])) <= 5  # OpenCV 4 interpolates in steps of 1/32 pixel


def test_the_batched_gather_cuts_the_same_crops_as_opencv() -> None:
    small, large = formula_picture(41, 57), formula_picture(160, 120)
    pictures = [small, large, small]
    boxes = torch.tensor([[5.0, 6, 20, 40], [30, 20, 60, 90], [-30, 30, 80, 50]])
    matrices = crop_matrix(*center_scale(boxes), (96, 128), rotation=torch.tensor([0.0, 25, -70]))
    crops = cut_crops(pictures, matrices, (96, 128))
    assert crops.shape == (3, 3, 128, 96)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert furthest(crops, sample_crops(pictures, matrices, (96, 128))) <= 5


def test_a_crop_is_black_outside_the_picture() -> None:
    white = torch.full((20, 20, 3), 255, dtype=torch.uint8)
    boxes = torch.tensor([[100.0, 100, 20, 20]])
    matrices = crop_matrix(*center_scale(boxes), SIZE)
    assert cut_crops([white], matrices, SIZE).max() == 0
    assert sample_crops([white], matrices, SIZE).max() == 0
    assert (cut_crops([white], matrices, SIZE, fill=7) == 7).all()
    assert (sample_crops([white], matrices, SIZE, fill=7) == 7).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, CV2_MAX_SIDE + 2), (CV2_MAX_SIDE + 2, 1), (1, 20000)])
def test_pictures_of_extreme_shape_can_be_cropped(shape: tuple[int, int]) -> None:
    picture = torch.full((*shape, 3), 200, dtype=torch.uint8)
    box = torch.tensor([[0.0, 0.0, shape[1], shape[0]]])
    matrices = crop_matrix(*center_scale(box), (96, 128))
    assert cut_crops([picture], matrices, (96, 128)).shape == (1, 3, 128, 96)


def test_a_box_without_extent_still_has_a_finite_crop() -> None:
    matrices = crop_matrix(*center_scale(torch.tensor([[3.0, 4, 0, 0]])), SIZE)
    assert matrices.isfinite().all()
    assert cut_crops([formula_picture(10, 10)], matrices, SIZE).shape == (1, 3, 256, 192)


def test_no_person_gives_an_empty_batch() -> None:
    center, scale = center_scale(torch.zeros(0, 4))
    crops = cut_crops([], crop_matrix(center, scale, SIZE), SIZE)
    assert normalize(crops).shape == (0, 3, 256, 192)


def test_normalized_crops_have_the_statistics_of_imagenet() -> None:
    crops = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert normalize(crops).abs().max() < 0.01
    white = normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-3)


coordinates = st.floats(-500, 2000, allow_nan=False, width=32)
extents = st.floats(1, 1500, allow_nan=False, width=32)


@settings(deadline=None, max_examples=100)
@given(
    x=coordinates,
    y=coordinates,
    width=extents,
    height=extents,
    u=st.floats(0, 1),
    v=st.floats(0, 1),
    udp=st.booleans(),
)
def test_a_point_survives_the_way_to_the_crop_and_back(
    x: float, y: float, width: float, height: float, u: float, v: float, udp: bool
) -> None:
    center, scale = center_scale(torch.tensor([[x, y, width, height]]))
    matrix = crop_matrix(center, scale, SIZE, udp=udp)
    point = torch.tensor([[x + u * width, y + v * height]], dtype=torch.float64)
    crop_point = point @ matrix[0, :, :2].T + matrix[0, :, 2]
    assert (crop_point >= -1e-2).all()
    assert (crop_point <= torch.tensor(SIZE) + 1e-2).all()
    cells = crop_point * ((torch.tensor(HEATMAP) - 1) / (torch.tensor(SIZE) - 1)) if udp else crop_point / 4
    back = to_picture(cells[None], center, scale, HEATMAP, udp=udp)
    assert furthest(back[0], point) < 5e-3


@settings(deadline=None, max_examples=50)
@given(width=extents, height=extents, aspect=st.floats(0.3, 3), padding=st.floats(1, 2))
def test_a_crop_has_the_aspect_and_covers_the_padded_box(
    width: float, height: float, aspect: float, padding: float
) -> None:
    _, scale = center_scale(torch.tensor([[0.0, 0, width, height]]), aspect=aspect, padding=padding)
    crop_width, crop_height = scale[0].tolist()
    assert crop_width / crop_height == pytest.approx(aspect, rel=1e-4)
    assert crop_width >= padding * width * (1 - 1e-5)
    assert crop_height >= padding * height * (1 - 1e-5)
