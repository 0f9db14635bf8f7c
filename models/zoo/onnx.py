"""Networks in ONNX files, run by onnxruntime in float32 or whatever the file holds.

A batch dimension fixed to 1, as exports often have, is made free, for which the package onnx is needed. Whether the
network then means the same, and whether one that calls its batch free really is, is tried out at load with two
different inputs; otherwise people go through it one by one, and the log says so.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.codec import Codec
from models.detector import FILL, grid_cells, letterbox, suppress, to_boxes
from models.geometry import Normalization, normalize
from models.runtime import Network
from models.zoo.errors import PairError

log = logging.getLogger("dynpose.onnx")

OnnxNet = Callable[[Tensor], list[Tensor]]
"""(N, 3, h, w) float32 -> all outputs, on the CPU, floating ones as float32."""

TOLERANCE = 1e-3
"""Of a batch's outputs, in shares of the largest: batched kernels add in another order."""

YOLOX_STRIDES = (8, 16, 32)

EXTERNAL = b"\n\x08location\x12"
"""How a tensor begins to say in which file its values lie, as every writer of the format has it."""

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


def open_net(path: Path, device: torch.device) -> OnnxNet:
    """The network with one input that `path` holds, for as many pictures at once as it says.

    Runs on CUDA where `device` is and onnxruntime can, else on the CPU with torch's number of threads. Raises
    PairError.
    """
    session = _session(path.read_bytes(), path, device)
    _warn_of_cpu(session, path, device)
    return _runs(session)


def open_batched(path: Path, device: torch.device, size: tuple[int, int]) -> OnnxNet:
    """The same for any number of pictures of `size` (width, height) at once. Raises PairError."""
    content = path.read_bytes()
    session = _session(content, path, device)
    _warn_of_cpu(session, path, device)
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int) and batch != 1:
        raise PairError(f"{path}: its batch is fixed to {batch}; export it with a free batch or a batch of 1")
    alone = one_by_one(_runs(session))
    probe = torch.randn(2, 3, size[1], size[0], generator=torch.Generator().manual_seed(0))
    try:
        expected = alone(probe)
    except Exception as error:
        raise PairError(f"{path}: it does not run on {size[0]}x{size[1]} pixels: {_line(error)}") from error
    try:
        together = _runs(_session(_free_batch(content, session), path, device) if batch == 1 else session)
        if _agree(together(probe), expected):
            return together
        reason = "in a batch they get other answers than alone"
    except ImportError:
        reason = f"its batch is fixed to 1, and to free it needs the package onnx: {_install('onnx')}"
    except Exception as error:
        reason = f"a batch of them fails: {_line(error)}"
    log.warning("people go through %s one by one, which is slow: %s", path, reason)
    return alone


def one_by_one(net: OnnxNet) -> OnnxNet:
    """The same, one picture after the other."""

    def run(batch: Tensor) -> list[Tensor]:
        each = [net(picture) for picture in batch[:, None]]
        return [torch.cat(outputs) for outputs in zip(*each, strict=True)]

    return run


def pose_network(
    path: Path, device: torch.device, *, size: tuple[int, int], codec: Codec, keypoints: int
) -> Network:
    """A pose net as `PoseEstimator` takes it. Raises PairError when its outputs are not what the sidecar says."""
    net = open_batched(path, device, size)

    def run(crops: Tensor) -> Tensor:
        outputs = net(crops)
        return torch.cat(outputs[:2], dim=2) if codec == "simcc" else outputs[0]

    shapes = [tuple(output.shape) for output in net(torch.zeros(1, 3, size[1], size[0]))]
    if codec == "simcc":
        fits = len(shapes) >= 2 and all(
            len(shape) == 3 and shape[:2] == (1, keypoints) for shape in shapes[:2]
        )
        fits = fits and shapes[0][2] * size[1] == shapes[1][2] * size[0]
        wanted = f"(1, {keypoints}, bins) along x and y"
    else:
        fits = len(shapes[0]) == 4 and shapes[0][:2] == (1, keypoints)
        wanted = f"(1, {keypoints}, h, w)"
    if not fits:
        raise PairError(f"{path}: its outputs have shapes {shapes}, not {wanted}")
    return run


def count_macs(path: Path, size: tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions and matrix products for one picture of `size` (width, height), as
    `models.zoo.networks.count_macs` has them. Raises PairError."""
    try:
        import onnx
    except ImportError as error:
        raise PairError(f"counting needs the package onnx: {_install('onnx')}") from error
    model = onnx.load(path, load_external_data=False)
    inputs = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    for value in model.graph.input:
        if value.name in inputs:
            for dimension, length in zip(
                value.type.tensor_type.shape.dim, (1, 3, size[1], size[0]), strict=True
            ):
                dimension.dim_value = length
    del model.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {constant.name: list(constant.dims) for constant in graph.initializer}

    def shape(node: Any, name: str) -> list[int]:
        found = shapes.get(name, [])
        if not found or 0 in found:  # 0 is what a free dimension reads as
            where = f"{node.op_type} {node.name or node.output[0]}"
            raise PairError(f"{path}: cannot count {where}: the shape of {name} is not known")
        return found

    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            # A kernel's first axis goes over outputs, or over inputs.
            spread = shape(node, node.output[0] if node.op_type == "Conv" else node.input[0])
            total += math.prod(spread) * math.prod(shape(node, node.input[1])[1:])
        elif node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            inner = shape(node, node.input[0])[-2 if transposed else -1]
            total += math.prod(shape(node, node.output[0])) * inner
    return total


class OnnxDetector:
    """A `models.detector.Detector` of the RTMDet or YOLOX kind, one picture at a time.

    `net` sees `side` x `side` pixels, the picture at the top left. `iou`: of the suppression that raw boxes need; None
    where the network does its own.
    """

    def __init__(self, net: OnnxNet, *, side: int, normalization: Normalization, iou: float | None) -> None:
        self.net = net
        self.side = side
        self.normalization = normalization
        self.iou = iou

    def __call__(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        return [self._people(*each) for each in zip(pictures, min_scores, strict=True)]

    def _people(self, picture: Tensor, min_score: float) -> Tensor:
        image = letterbox(picture.cpu(), self.side)
        image = functional.pad(
            image, (0, self.side - image.shape[2], 0, self.side - image.shape[1]), value=FILL
        )
        outputs = self.net(normalize(image[None], self.normalization))
        if self.iou is None:
            found = listed_people(outputs[0][0], outputs[1][0])
        else:
            found = suppress(yolox_candidates(outputs[0][0], self.side), min_score, self.iou)
        return to_boxes(found, picture, self.side, min_score)


def listed_people(boxes: Tensor, labels: Tensor) -> Tensor:
    """Boxes (n, 5) x1, y1, x2, y2, score whose duplicates the net itself has removed, and their classes (n,) -> those
    of people, best first."""
    people = boxes[labels == 0]
    return people[people[:, 4].argsort(descending=True, stable=True)]


def yolox_candidates(rows: Tensor, side: int) -> Tensor:
    """YOLOX's raw output (Ge et al., 2021) as (5, anchors): x, y (centre), w, h in input pixels, score.

    rows: (anchors, 5 + classes), one per cell of the grids of stride 8, 16 and 32 over a side x side input, row by row:
    centre from the cell's corner, in cells; logarithms of width and height in cells; probability of an object and of
    every class, person first.
    """
    cells, strides = grid_cells([(side // stride,) * 2 for stride in YOLOX_STRIDES], YOLOX_STRIDES, 0.0)
    center, extent = (rows[:, :2] + cells) * strides, rows[:, 2:4].exp() * strides
    return torch.cat([center, extent, rows[:, 4:5] * rows[:, 5:6]], dim=1).T


def _session(content: bytes, path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise PairError(
            f"{path.name} needs the package onnxruntime: {_install('onnx onnxruntime')}"
        ) from error
    if EXTERNAL in content:
        raise PairError(
            f"{path}: its weights lie in another file, which its sha256 says nothing of; export it with "
            "external_data=False, or write it as one: onnx.save(onnx.load(FILE), NEW)"
        )

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # what fails here is tried out or reported
    # Stages run side by side: idle threads of one must not spin on the cores of another.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without a folder other files are looked for in the present one; in this no file is.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    cuda = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:
        raise PairError(f"{path}: onnxruntime cannot open it: {_line(error)}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _DTYPES:
        found = [(value.name, value.shape, value.type) for value in inputs]
        raise PairError(f"{path}: it must take one input (N, 3, h, w) of floating numbers, not {found}")
    return session


def _warn_of_cpu(session: Any, path: Path, device: torch.device) -> None:
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        log.warning("%s runs on the CPU: onnxruntime has no usable CUDA; onnxruntime-gpu has", path)


def _install(packages: str) -> str:
    return f"{sys.executable} -m pip install {packages}"


def _runs(session: Any) -> OnnxNet:
    name, dtype = session.get_inputs()[0].name, _DTYPES[session.get_inputs()[0].type]

    def run(batch: Tensor) -> list[Tensor]:
        given = {name: batch.to("cpu", dtype).contiguous().numpy()}
        outputs = (torch.from_numpy(output) for output in session.run(None, given))
        return [output.float() if output.is_floating_point() else output for output in outputs]

    return run


def _free_batch(content: bytes, session: Any) -> bytes:
    """The model with a free batch dimension. Reshapes that spell out a batch of 1 take it from their input instead."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    name = session.get_inputs()[0].name
    for value in [value for value in graph.input if value.name == name] + list(graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]  # shapes inferred for a batch of 1
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        constant = constants[node.input[1]]
        shape = onnx.numpy_helper.to_array(constant).copy()
        if shape.size > 1 and shape[0] == 1:
            shape[0] = 0  # ONNX for: as in the input
            constant.CopyFrom(onnx.numpy_helper.from_array(shape, constant.name))
    free: bytes = model.SerializeToString()
    return free


def _agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max())
        for a, b in zip(found, expected, strict=True)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
