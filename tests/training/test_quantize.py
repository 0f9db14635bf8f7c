from typing import Any

import pytest
import torch

from models.detector import BoxDecoder, build_network
from models.openvino import convert
from training.quantize import left_alone, quantize


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return convert(BoxDecoder(build_network("yolov8n").eval()), None)


def test_what_makes_boxes_stays_in_floating_point_and_the_rest_does_not(model: Any) -> None:
    alone = set(left_alone(model))
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    convolutions = [name for name, kind in kinds.items() if kind == "Convolution"]
    assert len(convolutions) == 63
    assert sum(name in alone for name in convolutions) == 2 + 4 + 12
    for kind in ("Softmax", "ReduceSum", "Subtract"):
        assert {name for name in kinds if kinds[name] == kind} <= alone


def test_layers_are_quantized_and_coordinates_are_not(model: Any) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")
    rng = torch.Generator().manual_seed(0)
    examples = [torch.rand(1, 64, 96, 3, generator=rng).numpy() for _ in range(4)]
    alone = set(left_alone(model))
    rounded = [each for each in quantize(model, examples).get_ops() if each.get_type_name() == "FakeQuantize"]
    readers = {
        reader.get_node().get_friendly_name()
        for each in rounded
        for reader in each.output(0).get_target_inputs()
    }
    assert len(readers) > 40
    assert not readers & alone
