"""The networks of the paper against what MMPose's own modules answered, for weights that a formula makes."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.zoo.checkpoints import load_checkpoint
from models.zoo.networks import NETWORKS, SPECS, build_network, count_macs
from models.zoo.networks.swin import Block

DATA = Path(__file__).parents[2] / "data" / "networks"
META = torch.device("meta")


def reference(name: str) -> dict:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def formula_tensor(key: str, shape: list[int]) -> Tensor:
    """The tensor of one key: uniform numbers from a generator that the key seeds."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("relative_position_index"):
        y, x = np.divmod(np.arange(49), 7)
        return torch.from_numpy((y[:, None] - y + 6) * 13 + x[:, None] - x + 6)
    numbers = np.random.Generator(np.random.PCG64(crc32(key.encode()))).random(int(np.prod(shape)))
    if key.endswith("running_var"):
        factor, offset = 1.0, 0.5
    else:
        scale, mean = 0.1, 0.0
        if not key.endswith(("running_mean", "pos_embed", "relative_position_bias_table", ".bias")):
            scale, mean = (1 / np.sqrt(np.prod(shape[1:])), 0.0) if len(shape) > 1 else (0.1, 1.0)
        factor, offset = 2 * np.sqrt(3) * scale, mean - np.sqrt(3) * scale
    numbers *= factor
    numbers += offset
    return torch.from_numpy(numbers.astype(np.float32)).view(shape)


@pytest.fixture(scope="module")
def formula_weights() -> Callable[[dict], dict[str, Tensor]]:
    """Makes a network's weights. Those of the network before are used again, which halves the time of ViTPose's."""
    kept: dict[str, Tensor] = {}

    def weights(wanted: dict) -> dict[str, Tensor]:
        shapes = {key: shape for key, shape, _ in wanted["state_dict"]}
        for key in [key for key, value in kept.items() if list(value.shape) != shapes.get(key)]:
            del kept[key]
        for key, shape in shapes.items():
            if key not in kept:
                kept[key] = formula_tensor(key, shape)
        return kept

    return weights


def formula_crop() -> Tensor:
    c, i, j = np.ogrid[1:4, :256, :192]
    crop = np.sin(0.05 * c * i + 0.07 * j) + 0.5 * np.cos(0.11 * c * (i - j))
    return torch.from_numpy(crop[None].astype(np.float32))


def on_meta(name: str, keypoints: int = 17) -> nn.Module:
    with META:
        return build_network(name, keypoints).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_is_that_of_the_original(name: str, formula_weights: Callable[[dict], dict[str, Tensor]]):
    wanted = reference(name)
    network = on_meta(name)
    load_checkpoint(network, formula_weights(wanted))
    with torch.inference_mode():
        heatmaps = network(formula_crop())
    assert list(heatmaps.shape) == wanted["output_shape"]
    found = heatmaps.flatten()[wanted["probe_index"]].double().numpy()
    assert np.abs(found - wanted["probe_float64"]).max() <= 1e-4 * wanted["output_std"]


@pytest.mark.parametrize("name", NETWORKS)
def test_size_cost_and_codec_are_those_of_the_original(name: str):
    wanted = reference(name)
    network = on_meta(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == wanted["params"]
    assert count_macs(network) == pytest.approx(wanted["macs_backbone_head"], rel=0.005)
    codecs = {("MSRAHeatmap", True): "quarter", ("UDPHeatmap", False): "dark_udp"}
    assert SPECS[name].codec == codecs[wanted["codec"]["type"], wanted["test_cfg"]["shift_heatmap"]]


@pytest.mark.parametrize("name", NETWORKS)
def test_keypoints_are_free_and_so_is_the_size_but_for_vitpose(name: str):
    network = on_meta(name, keypoints=14)
    assert network(torch.empty(2, 3, 256, 192, device=META)).shape == (2, 14, 64, 48)
    larger = torch.empty(1, 3, 384, 288, device=META)
    if name.startswith("vitpose"):
        with pytest.raises(RuntimeError):
            network(larger)
    else:
        assert network(larger).shape == (1, 14, 96, 72)


def test_windows_and_their_masks_do_not_mix_the_crops_of_a_batch():
    torch.manual_seed(0)
    block = Block(12, 2, shifted=True).eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    maps = torch.randn(3, 16, 12, 12)
    with torch.inference_mode():
        together = block(maps)
        alone = torch.cat([block(map_[None]) for map_ in maps])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError):
        build_network("resnet18")
