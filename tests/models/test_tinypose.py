import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.codec import decode
from models.tinypose import REDUCTION, TinyPose, TwoScaleTinyPose, enlarge, reduce

ONNX_FOLDER = os.environ.get("PP_TINYPOSE_FOLDER")


@pytest.fixture(scope="module")
def network() -> TinyPose:
    torch.manual_seed(0)
    return TinyPose().eval()


def test_it_has_the_parameters_of_pp_tinypose(network: TinyPose) -> None:
    assert sum(p.numel() for p in network.parameters()) == 1_300_177


@pytest.mark.parametrize(
    ("width", "height", "gigamacs"), [(96, 128, 0.076), (192, 256, 0.302), (288, 384, 0.680)]
)
def test_its_cost_and_heatmaps_grow_with_the_input(
    network: TinyPose, width: int, height: int, gigamacs: float
) -> None:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        heatmaps = network(torch.zeros(1, 3, height, width))
    assert heatmaps.shape == (1, 17, height // 4, width // 4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigamacs, abs=0.002)


def test_a_person_is_estimated_independently_of_the_batch(network: TinyPose) -> None:
    crops = torch.randn(3, 3, 128, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together, alone = network(crops), network(crops[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_enlarged_heatmaps_keep_their_peak_at_the_same_place() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    for x, y in ((20.0, 30.0), (40.25, 55.5), (3.5, 4.0)):
        heatmap = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)[None, None]
        points, _ = decode(enlarge(heatmap), "dark")
        assert points[0, 0].tolist() == pytest.approx([1.5 * x, 1.5 * y], abs=0.05)


def test_crops_are_reduced_as_torch_resizes_with_anti_aliasing() -> None:
    crops = torch.randn(2, 3, 96, 72, generator=torch.Generator().manual_seed(4))
    expected = functional.interpolate(crops, (64, 48), mode="bilinear", antialias=True)
    assert torch.allclose(reduce(crops, torch.tensor(REDUCTION)), expected, atol=1e-5)


def test_the_two_scale_net_averages_a_net_at_full_size_and_one_at_two_thirds() -> None:
    torch.manual_seed(3)
    both = TwoScaleTinyPose().eval()
    crops = torch.zeros(1, 3, 96, 96) + torch.tensor([0.5, -0.5, 1.0]).view(
        1, 3, 1, 1
    )  # the same at any size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        found = both(crops)
    with torch.inference_mode():
        expected = (both.fine(crops) + enlarge(both.coarse(crops[:, :, :64, :64]))) / 2
    assert torch.allclose(found, expected, atol=1e-5)
    assert counter.get_total_flops() / 2e9 == pytest.approx((0.680 + 0.302) / 12, abs=0.002)


def test_every_parameter_learns(network: TinyPose) -> None:
    crops = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(2))
    TinyPose.forward(network, crops).square().sum().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    network.zero_grad(set_to_none=True)
    assert idle == []


@pytest.mark.skipif(
    ONNX_FOLDER is None, reason="PP_TINYPOSE_FOLDER names no folder with the published ONNX files"
)
@pytest.mark.parametrize(("width", "height"), [(96, 128), (192, 256)])
def test_published_weights_give_the_published_heatmaps(width: int, height: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from training.initial import load_onnx

    path = Path(str(ONNX_FOLDER)) / f"pp-tinypose_{height}x{width}.onnx"
    crop = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"image": crop.numpy()})[0]
    with torch.inference_mode():
        heatmaps = load_onnx(path)(crop)
    assert (heatmaps - torch.from_numpy(expected)).abs().max() < 1e-5
