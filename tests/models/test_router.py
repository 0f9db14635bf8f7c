import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.estimator import PoseEstimator
from models.geometry import normalize
from models.router import (
    POSE_SIZE,
    DifficultyScorer,
    PoseRouter,
    PoseScorer,
    Router,
    RouterConfig,
    box_features,
    router_crops,
)

RELEASED = RouterConfig(outputs=3, score_index=1)
REFERENCE = os.environ.get("ROUTER_REFERENCE_DIR")


def random_router(config: RouterConfig) -> Router:
    torch.manual_seed(0)
    return Router(config).eval()


def test_the_released_size_and_cost():
    router = random_router(RELEASED)
    assert sum(parameter.numel() for parameter in router.parameters()) == 853_219
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        router(torch.zeros(1, 3, 256, 192))
    assert counter.get_total_flops() == 2 * 121_905_024


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("pconv", [True, False])
@pytest.mark.parametrize("sge", [True, False])
def test_every_ablation_gives_one_difficulty_per_crop(pooling, pconv, sge):
    router = random_router(RouterConfig(pooling=pooling, pconv=pconv, sge=sge))
    with torch.inference_mode():
        difficulty = router(torch.randn(3, 3, 256, 192))
    assert difficulty.shape == (3,)
    assert ((difficulty > 0) & (difficulty < 1)).all()
    names = {type(module).__name__ for module in router.modules()}
    assert ("PConv" in names, "SGE" in names) == (pconv, sge)


def test_a_crop_does_not_depend_on_its_batch():
    router = random_router(RouterConfig())
    crops = torch.randn(5, 3, 256, 192)
    with torch.inference_mode():
        together = router(crops)
        alone = torch.cat([router(crop[None]) for crop in crops])
    assert torch.allclose(together, alone, atol=1e-6)


def test_the_scorer_cuts_its_own_crops():
    router = random_router(RouterConfig())
    rng = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (120, 160, 3), dtype=torch.uint8, generator=rng) for _ in range(2)]
    boxes = torch.tensor([[10.0, 10.0, 60.0, 80.0], [50.0, 5.0, 40.0, 110.0]])
    with torch.inference_mode():
        found = DifficultyScorer(router)(pictures, boxes, torch.ones(2))
        expected = router(normalize(router_crops(pictures, boxes)))
    assert torch.equal(found, expected)


def pose_scorer() -> PoseScorer:
    torch.manual_seed(0)
    router = PoseRouter().eval()
    return PoseScorer(router.pose, router.head)


def pictures_of_noise(count: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (120, 160, 3), dtype=torch.uint8, generator=rng) for _ in range(count)]


def test_the_pose_router_scores_a_person_independently_of_the_batch() -> None:
    scorer, pictures = pose_scorer(), pictures_of_noise(3)
    boxes = torch.tensor([[10.0, 10.0, 60.0, 80.0], [50.0, 5.0, 40.0, 110.0], [0.0, 0.0, 160.0, 120.0]])
    scores = torch.tensor([0.9, 0.4, 1.0])
    together = scorer(pictures, boxes, scores)
    alone = [scorer(pictures[i : i + 1], boxes[i : i + 1], scores[i : i + 1]) for i in range(3)]
    assert ((together > 0) & (together < 1)).all()
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert len(set(together.tolist())) == 3


def test_the_pose_router_hands_over_what_its_net_says_of_the_pose() -> None:
    torch.manual_seed(0)
    router, pictures = PoseRouter().eval(), pictures_of_noise(2)
    boxes, scores = torch.tensor([[10.0, 10.0, 60.0, 80.0], [50.0, 5.0, 40.0, 110.0]]), torch.ones(2)
    small = PoseEstimator(router.pose.network, input_size=POSE_SIZE, codec="dark")
    with torch.inference_mode():
        expected = small(pictures, boxes)
    difficulty, keypoints = PoseScorer(router.pose, router.head, small).with_keypoints(
        pictures, boxes, scores
    )
    assert torch.equal(difficulty, PoseScorer(router.pose, router.head)(pictures, boxes, scores))
    assert keypoints is not None
    assert torch.allclose(keypoints, expected, atol=1e-3)
    assert PoseScorer(router.pose, router.head).with_keypoints(pictures, boxes, scores)[1] is None


def test_the_pose_router_sees_size_border_and_score_of_a_box() -> None:
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0], [20.0, 20.0, 60.0, 80.0], [1.0, 10.0, 30.0, 108.0]])
    found = box_features(pictures_of_noise(3), boxes, torch.tensor([0.9, 0.9, 0.4]))
    assert float(found[1, 0] - found[0, 0]) == pytest.approx(np.log(2), abs=1e-5)  # twice as large
    assert found[:, 1].tolist() == pytest.approx(np.log([3 / 4, 3 / 4, 30 / 108]).tolist())
    assert found[:, 3:7].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert found[:, 7].tolist() == pytest.approx([0.9, 0.9, 0.4])


def test_a_box_without_extent_has_a_finite_score() -> None:
    boxes = torch.tensor([[10.0, 10.0, 0.0, 0.0], [-50.0, -50.0, 1e-3, 5.0]])
    assert torch.isfinite(pose_scorer()(pictures_of_noise(2), boxes, torch.zeros(2))).all()


@pytest.mark.skipif(REFERENCE is None, reason="needs the authors' router: ROUTER_REFERENCE_DIR=folder")
def test_the_released_weights_give_the_reference_scores():
    folder = Path(str(REFERENCE))
    router = Router(RELEASED).eval()
    weights = load_file(folder / "router.safetensors")
    router.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in weights.items()}, strict=True
    )
    for case in json.loads((folder / "reference.json").read_text())["cases"]:
        crop = normalize(reference_crop(folder, case))
        with torch.inference_mode():
            assert np.allclose(router.scores(crop)[0].numpy(), case["scores"], atol=1e-4)
            assert float(router(crop.flip(3))) == pytest.approx(case["difficulty_of_mirrored_crop"], abs=1e-4)


def reference_crop(folder: Path, case: dict) -> Tensor:
    y, x = np.mgrid[0:256, 0:192]
    if "formula_k" in case:
        k = case["formula_k"]
        base = x * (3 + k) + y * (5 + 2 * k) + (x * y) // (7 + k)
        pixels = np.stack([(base + 37 * c * (k + 1)) % 256 for c in range(3)], axis=-1)
    elif "constant" in case:
        pixels = np.full((256, 192, 3), case["constant"])
    else:
        pixels = np.array(Image.open(folder / "crops" / f"{case['name']}.png").convert("RGB"))
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)[None]
