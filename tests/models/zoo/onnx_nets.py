"""Small ONNX nets whose answers are known, written with their sidecars."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

POSE = {
    "input": {
        "shape": [1, 3, 64, 48],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": "x/255 first",
        "channel_order": "RGB",
    },
    "outputs": [{"kind": "heatmap"}],
    "decoding": "argmax, then DARK",
}
SIMCC = POSE | {"outputs": [{"kind": "simcc_x"}, {"kind": "simcc_y"}]}
LISTED = {
    "input": {
        "shape": ["batch", 3, "height", "width"],
        "mean": [1, 2, 3],
        "std": [10, 20, 30],
        "scale": "none (0-255)",
        "channel_order": "BGR",
        "letterbox": "64x64, picture at top left",
    },
    "outputs": [{"kind": "boxes"}, {"kind": "class"}],
}
RAW = LISTED | {"outputs": [{"kind": "raw boxes"}], "decoding": "grids; NMS IoU 0.65"}


def constant(name: str, values: Any, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    size: tuple[Any, Any, Any] = (1, 64, 48),
    outputs: tuple[str, ...] = ("y",),
    rank: int = 4,
    sidecar: dict[str, Any] | None = None,
) -> Path:
    """A net of one input `x` (batch, 3, height, width); size: (batch, height, width)."""
    batch, height, width = size
    shape = [batch] + [None] * (rank - 1)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def mean_of_cells(keypoints: int, output: str) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """Heatmaps of where the crop is bright, one cell for 4 x 4 pixels."""
    weights = constant("w", np.full((keypoints, 3, 4, 4), 1 / 48))
    return helper.make_node("Conv", ["x", "w"], [output], strides=[4, 4]), weights


def heatmap_net(path: Path, *, keypoints: int = 17, batch: Any = 1, **sidecar: Any) -> Path:
    """Its only trick is a fixed batch."""
    conv, weights = mean_of_cells(keypoints, "y")
    return write(path, [conv], [weights], size=(batch, 64, 48), sidecar=POSE | sidecar)


def reshaping_net(path: Path, *shapes: list[int]) -> Path:
    """The same through reshapes that spell out the batch."""
    conv, weights = mean_of_cells(17, "y0")
    constants, nodes = [weights], [conv]
    for index, shape in enumerate(shapes, start=1):
        output = "y" if index == len(shapes) else f"y{index}"
        constants.append(constant(f"s{index}", shape, np.int64))
        nodes.append(helper.make_node("Reshape", [f"y{index - 1}", f"s{index}"], [output]))
    return write(path, nodes, constants, sidecar=POSE)


def mixing_net(path: Path) -> Path:
    """Takes the mean over the batch from each: with a batch of one nothing is left, so that only a comparison shows
    that two people meet."""
    conv, weights = mean_of_cells(17, "y0")
    mean = helper.make_node("ReduceMean", ["y0"], ["m"], axes=[0], keepdims=1)
    half = helper.make_node("Add", ["y0", "m"], ["y"])
    return write(path, [conv, mean, half], [weights], size=("batch", 64, 48), sidecar=POSE)


def simcc_net(path: Path, *, keypoints: int = 17, size: tuple[Any, Any, Any] = (1, 64, 48)) -> Path:
    """Vectors of the brightest value along each axis, two bins a pixel."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["same"]),
        helper.make_node("Resize", ["same", "", "scales"], ["twice"], mode="nearest"),
        helper.make_node("ReduceMax", ["twice"], ["simcc_x"], axes=[2], keepdims=0),
        helper.make_node("ReduceMax", ["twice"], ["simcc_y"], axes=[3], keepdims=0),
    ]
    constants = [
        constant("w", np.full((keypoints, 3, 1, 1), 1 / 3)),
        constant("scales", [1, 1, 2, 2]),
    ]
    return write(path, nodes, constants, size=size, outputs=("simcc_x", "simcc_y"), rank=3, sidecar=SIMCC)


def constant_net(path: Path, sidecar: dict[str, Any], *outputs: Any) -> Path:
    """A detector that gives `outputs` whatever it sees."""
    nodes, constants = [], [constant("zero", 0)]
    nodes.append(helper.make_node("ReduceMax", ["x"], ["any"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["any", "zero"], ["nothing"]))
    names = []
    for index, values in enumerate(outputs):
        names.append(f"y{index}")
        constants.append(constant(f"c{index}", values))
        nodes.append(helper.make_node("Add", [f"c{index}", "nothing"], [f"y{index}"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path
