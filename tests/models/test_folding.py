import pytest
import torch
from torch import nn

from models.folding import UnitPair, fold
from models.router import PoseFeatures
from models.tinypose import ShuffleUnit, TinyPose, TwoScaleTinyPose


@pytest.mark.parametrize("make", [TinyPose, TwoScaleTinyPose, PoseFeatures])
def test_a_folded_network_gives_the_same(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    folded = fold(network)
    assert any(isinstance(module, ShuffleUnit) for module in network.modules())
    assert not any(isinstance(module, ShuffleUnit) for module in folded.modules())
    crops = torch.randn(2, 3, 192, 96, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected, found = network(crops), folded(crops)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_network_without_a_tiny_pose_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert fold(network) is network


def test_a_pair_of_units_is_one_after_the_other() -> None:
    torch.manual_seed(1)
    first, second = ShuffleUnit(40), ShuffleUnit(40)
    x = torch.rand(1, 40, 8, 6)
    with torch.inference_mode():
        assert torch.allclose(UnitPair(first, second, factor=2)(x), 2 * second(first(x)), atol=1e-6)
