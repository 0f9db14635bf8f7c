from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.codec import Method, decode, decode_simcc, encode, flip_heatmaps, flip_simcc
from models.skeleton import CROWDPOSE, FLIP_INDEX

DATA = Path(__file__).parents[1] / "data"
HEATMAP = (48, 64)
UDP_CELLS_PER_PIXEL = torch.tensor([47 / 191, 63 / 255])


def load(name: str) -> dict[str, Tensor]:
    with np.load(DATA / name) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load("heatmap.npz")


@pytest.mark.parametrize(
    ("method", "key", "tolerance"),
    [
        ("argmax", "argmax", 0),
        ("quarter", "refined_quarter", 0),
        ("dark", "refined_dark", 1e-3),
        ("dark_udp", "refined_dark_udp", 1e-3),
    ],
)
def test_decoding_agrees_with_the_reference(
    reference: dict[str, Tensor], method: Method, key: str, tolerance: float
) -> None:
    points, scores = decode(reference["heatmaps"][None], method)
    assert (points[0] - reference[key]).abs().max() <= tolerance
    assert torch.equal(scores[0], reference["score"])


def test_a_quarter_point_times_four_is_the_msra_keypoint(reference: dict[str, Tensor]) -> None:
    points, _ = decode(reference["heatmaps"][None], "quarter")
    assert torch.equal(4 * points[0], reference["msra_keypoints"])


@pytest.mark.parametrize(
    ("method", "key", "cells_per_pixel"),
    [("quarter", "msra", 0.25), ("dark", "dark", 0.25), ("dark_udp", "udp", UDP_CELLS_PER_PIXEL)],
)
def test_targets_agree_with_the_reference(
    reference: dict[str, Tensor], method: Method, key: str, cells_per_pixel: Tensor | float
) -> None:
    points = reference["encode_keypoints"][None] * cells_per_pixel
    heatmaps, weights = encode(points, reference["encode_visible"][None], HEATMAP, 2, method)
    assert (heatmaps[0] - reference[f"{key}_encoded"].float()).abs().max() < 1e-3
    assert torch.equal(weights[0], reference[f"{key}_weights"])


@pytest.mark.parametrize(("shift", "key"), [(True, "merged_shift"), (False, "merged_noshift")])
def test_mirrored_heatmaps_merge_as_the_reference_does(
    reference: dict[str, Tensor], shift: bool, key: str
) -> None:
    flip = load("flip.npz")
    merged = (reference["heatmaps"] + flip_heatmaps(flip["heatmaps_flipped_input"][None], shift)[0]) / 2
    assert (merged[:, 30] - flip[f"{key}_row30"]).abs().max() < 1e-6


def test_the_flip_index_of_the_reference_is_ours() -> None:
    assert load("flip.npz")["flip_indices"].tolist() == list(FLIP_INDEX)


def test_flipping_twice_without_shift_changes_nothing() -> None:
    heatmaps = torch.rand(2, 17, 8, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flip_heatmaps(flip_heatmaps(heatmaps, False), False), heatmaps)


def test_the_maps_of_another_keypoint_set_swap_its_own_left_and_right() -> None:
    heatmaps = torch.zeros(1, 14, 2, 3)
    heatmaps[0, 0, 0, 0] = heatmaps[0, 13, 1, 2] = 1  # left shoulder, neck
    flipped = flip_heatmaps(heatmaps, False, CROWDPOSE)
    assert flipped.nonzero().tolist() == [[0, 1, 0, 2], [0, 13, 1, 0]]


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load("simcc.npz")


def test_simcc_vectors_decode_as_the_reference_does(vectors: dict[str, Tensor]) -> None:
    points, scores = decode_simcc(vectors["simcc_x"][None], vectors["simcc_y"][None])
    assert torch.equal(points[0], vectors["keypoints"])
    assert torch.equal(scores[0], vectors["scores"])


def test_a_mirrored_crops_simcc_vectors_are_turned_back_as_the_reference_does(
    vectors: dict[str, Tensor],
) -> None:
    x, y = flip_simcc(vectors["simcc_x"][None], vectors["simcc_y"][None])
    assert torch.equal(x[0, 3], vectors["flip_x_row3"])
    assert torch.equal(y[0, 3], vectors["flip_y_row3"])


def test_simcc_finer_than_half_a_pixel() -> None:
    x, y = torch.zeros(1, 1, 40), torch.zeros(1, 1, 60)
    x[0, 0, 5], y[0, 0, 6] = 0.9, 0.7
    points, scores = decode_simcc(x, y, split_ratio=4)
    assert points.flatten().tolist() == [1.25, 1.5]
    assert scores.item() == pytest.approx(0.7)


@pytest.mark.parametrize("method", ["argmax", "quarter", "dark", "dark_udp"])
def test_a_map_without_a_positive_value_has_no_location(method: Method) -> None:
    points, scores = decode(torch.full((1, 17, 64, 48), -0.5), method)
    assert (points == -1).all()
    assert (scores == -0.5).all()


@pytest.mark.parametrize("method", ["argmax", "quarter", "dark", "dark_udp"])
def test_people_are_decoded_independently_of_their_batch(
    reference: dict[str, Tensor], method: Method
) -> None:
    maps = reference["heatmaps"][None]
    other = maps.flip(2)
    alone = decode(maps, method)[0]
    together = decode(torch.cat((other, maps)), method)[0][1:]
    assert torch.allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("method", ["argmax", "quarter", "dark", "dark_udp"])
def test_nobody_decodes_to_nobody(method: Method) -> None:
    points, scores = decode(torch.zeros(0, 17, 64, 48), method)
    assert points.shape == (0, 17, 2)
    assert scores.shape == (0, 17)


def test_an_unlabelled_keypoint_has_an_empty_target() -> None:
    heatmaps, weights = encode(torch.tensor([[[5.0, 5.0]]]), torch.tensor([[0.0]]), HEATMAP)
    assert heatmaps.max() == 0
    assert weights.item() == 0


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown decoding method"):
        decode(torch.zeros(1, 17, 64, 48), "simcc")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([(24, 32), (48, 64), (72, 96)]),
    u=st.floats(0.2, 0.8),
    v=st.floats(0.2, 0.8),
    case=st.sampled_from([("dark", 0.05), ("dark_udp", 0.05), ("quarter", 0.6), ("argmax", 0.6)]),
)
def test_a_point_survives_encoding_and_decoding(
    size: tuple[int, int], u: float, v: float, case: tuple[Method, float]
) -> None:
    method, tolerance = case
    width, height = size
    point = torch.tensor([u * (width - 1), v * (height - 1)])
    heatmaps, weights = encode(point.view(1, 1, 2), torch.ones(1, 1), size, sigma=height / 32, method=method)
    decoded, scores = decode(heatmaps, method)
    assert weights.item() == 1
    assert 0 < scores.item() <= 1
    assert (decoded.flatten() - point).abs().max() <= tolerance
