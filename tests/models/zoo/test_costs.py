from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from models.router import Router, RouterConfig
from models.zoo import PairError, read_manifest, save_weights
from models.zoo.costs import pair_macs
from models.zoo.networks import SPECS, build_network
from models.zoo.networks import count_macs as network_macs
from models.zoo.onnx import count_macs
from tests.models.zoo.onnx_nets import constant, heatmap_net, write


def test_the_bundled_pair_costs_what_its_model_card_says() -> None:
    macs = pair_macs(read_manifest("embedded"))
    assert macs["router"] == macs["small"] == pytest.approx(0.0756e9, rel=1e-3)
    assert macs["large"] == pytest.approx(0.9875e9, rel=1e-3)


def test_parts_from_elsewhere_are_counted_at_their_own_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(build_network("mobilenetv2"), tmp_path / "mobilenetv2.safetensors")
    save_weights(Router(RouterConfig()), tmp_path / "dynpose.safetensors")
    net = heatmap_net(tmp_path / "net.onnx")
    manifest = read_manifest(
        "embedded",
        small=str(net),
        large=str(tmp_path / "mobilenetv2.safetensors"),
        router=str(tmp_path / "dynpose.safetensors"),
    )
    macs = pair_macs(manifest)
    assert macs["small"] == 16 * 12 * 17 * 3 * 4 * 4
    assert macs["large"] == pytest.approx(SPECS["mobilenetv2"].mmengine_gmacs * 1e9, rel=0.02)
    assert macs["router"] == pytest.approx(0.1219e9, rel=1e-3)


def test_a_net_of_14_keypoints_is_counted_as_one(tmp_path: Path) -> None:
    save_weights(build_network("mobilenetv2", 14), tmp_path / "mobilenetv2.safetensors")
    (tmp_path / "mobilenetv2.json").write_text('{"keypoints": "crowdpose"}')
    with torch.device("meta"):
        expected = network_macs(build_network("mobilenetv2", 14))
    macs = pair_macs(read_manifest("embedded", small=str(tmp_path / "mobilenetv2.safetensors")))
    assert macs["small"] == expected


@pytest.mark.parametrize(
    ("operator", "weights", "attributes", "macs"),
    [
        ("Conv", (8, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 16 * 24 * 8 * 3 * 9),
        ("Conv", (6, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 3}, 32 * 48 * 6 * 9),
        ("ConvTranspose", (3, 5, 4, 4), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 32 * 48 * 3 * 5 * 16),
        ("MatMul", (48, 7), {}, 3 * 32 * 7 * 48),
    ],
)
def test_multiply_accumulates_of_one_operator(
    tmp_path: Path,
    operator: str,
    weights: tuple[int, ...],
    attributes: dict[str, Any],
    macs: int,
) -> None:
    node = onnx.helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    path = write(
        tmp_path / "net.onnx", [node], [constant("w", np.zeros(weights))], size=(1, "height", "width")
    )
    assert count_macs(path, (48, 32)) == macs


@pytest.mark.parametrize("operator", ["Conv", "MatMul"])
@pytest.mark.parametrize("unknown", ["input", "weights"])
def test_what_has_no_known_shape_is_not_counted(tmp_path: Path, operator: str, unknown: str) -> None:
    """An operator of somebody else's, of which nobody knows what it gives."""
    own = onnx.helper.make_node("Own", ["x" if unknown == "input" else "w"], ["v"], domain="mine")
    inputs = ["v", "w"] if unknown == "input" else ["x", "v"]
    node = onnx.helper.make_node(operator, inputs, ["y"], name="layer1")
    weights = constant("w", np.zeros((8, 3, 3, 3) if operator == "Conv" else (48, 7)))
    path = write(tmp_path / "net.onnx", [own, node], [weights], size=(1, 32, 48))
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    onnx.save(model, path)
    with pytest.raises(
        PairError, match=rf"net\.onnx: cannot count {operator} layer1: the shape of \w is not known"
    ):
        count_macs(path, (48, 32))
