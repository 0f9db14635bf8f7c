from typing import Any

import pytest
import torch

from models.detector import BoxDecoder, build_network, load_yolo
from models.openvino import convert, package
from models.zoo import read_manifest, read_weights
from models.zoo.pairs import verified_int8
from training.quantize import left_alone, quantize


def converted(architecture: str) -> Any:
    torch.manual_seed(0)
    return convert(BoxDecoder(build_network(architecture).eval()), None)


@pytest.fixture(scope="module")
def model() -> Any:
    return converted("yolov8n")


@pytest.mark.parametrize(("architecture", "depthwise"), [("yolov8n", 0), ("yolov8s-light", 3)])
def test_what_makes_boxes_stays_in_floating_point_and_the_rest_does_not(
    architecture: str, depthwise: int
) -> None:
    model = converted(architecture)
    alone = set(left_alone(model))
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    convolutions = [name for name, kind in kinds.items() if kind in ("Convolution", "GroupConvolution")]
    assert len(convolutions) == 63 + depthwise
    assert sum(name in alone for name in convolutions) == 1 + 6
    for kind in ("Softmax", "ReduceSum", "Subtract"):
        assert {name for name in kinds if kinds[name] == kind} <= alone


def test_layers_are_quantized_and_coordinates_are_not(model: Any) -> None:
    pytest.importorskip("nncf", reason="needs the extra `quantize`")
    rng = torch.Generator().manual_seed(0)
    examples = [torch.rand(1, 64, 96, 3, generator=rng).numpy() for _ in range(4)]
    assert rounded(quantize(model, examples), set(left_alone(model))) > 40


def test_the_bundled_detector_is_quantized_so() -> None:
    entry = read_manifest("embedded").detector
    float_model = convert(load_yolo(read_weights("embedded", entry), entry.architecture), None)
    path = verified_int8("embedded", entry)
    assert rounded(package().Core().read_model(path), set(left_alone(float_model))) > 40


def rounded(quantized: Any, alone: set[str]) -> int:
    """How many operations read rounded values; none of `alone` may, but for their shape."""
    readers = {
        reader.get_node().get_friendly_name()
        for operation in quantized.get_ops()
        if operation.get_type_name() == "FakeQuantize"
        for reader in operation.output(0).get_target_inputs()
        if reader.get_node().get_type_name() != "ShapeOf"
    }
    assert not readers & alone
    return len(readers)
