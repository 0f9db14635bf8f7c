"""Initial weights: reads the initialisers of a PP-TinyPose ONNX file into `models.tinypose.TinyPose`.

PP-TinyPose is part of PaddleDetection (Apache-2.0). The batch normalisation of the file is folded into its
convolutions. Needs the development package `onnx`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from calibration.data import DataError
from models.tinypose import TinyPose


def convolutions_in_file_order(network: TinyPose) -> Iterator[nn.Conv2d]:
    """Convolutions in the order of the ONNX graph: depth first, a sum only when it is needed."""

    def inside(module: nn.Module) -> Iterator[nn.Conv2d]:
        return (m for m in module.modules() if isinstance(m, nn.Conv2d))

    yield from inside(network.stem)
    yield from inside(network.transitions[0])
    rows: list[nn.Module] = []  # sums of the last module that are still to come, from the second branch on
    for stage in network.stages:
        for module in stage:  # type: ignore[attr-defined]
            for i, branch in enumerate(module.branches):
                if i > len(rows):
                    yield from inside(network.transitions[i])
                elif i > 0:
                    yield from inside(rows[i - 1])
                yield from inside(branch)
                if i > 0:
                    yield from inside(module.fuse[0][str(i)])
            rows = list(module.fuse[1:])
    for row in rows:
        yield from inside(row)
    yield from inside(network.head)


def read_onnx(path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight, bias) of every convolution of the file, in graph order; the bias is the `Add` after it."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in values:  # stored as fp16
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
    bias_of = {
        operand: values[other]
        for node in graph.node
        if node.op_type == "Add"
        for operand, other in (node.input, reversed(node.input))
        if other in values
    }
    for node in graph.node:
        if node.op_type == "Conv":
            weight, bias = values[node.input[1]], bias_of[node.output[0]]
            yield torch.tensor(weight, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32).flatten()


def load_onnx(path: Path) -> TinyPose:
    """A TinyPose with the weights of a published ONNX file. Raises OSError, or DataError for any other file."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    network = TinyPose()
    convolutions = list(convolutions_in_file_order(network))
    try:
        stored = list(read_onnx(path))
    except (DecodeError, KeyError) as error:  # no ONNX, or convolutions without the bias that is read here
        raise DataError(f"{path} is no PP-TinyPose in ONNX") from error
    if [each.weight.shape for each in convolutions] != [weight.shape for weight, _ in stored]:
        raise DataError(f"{path} holds another network than PP-TinyPose")
    with torch.no_grad():
        for convolution, (weight, bias) in zip(convolutions, stored, strict=True):
            convolution.weight.copy_(weight)
            assert convolution.bias is not None
            convolution.bias.copy_(bias)
    return network.eval()
