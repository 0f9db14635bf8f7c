"""Person detectors: pictures -> boxes. Every detector is a `Detector`, so that any can take another's place; here is
ultralytics' YOLO, and what detectors have in common.

Only the network is taken from ultralytics, when one is loaded; its predictor, with its settings file, downloads and
telemetry, is not used, and who loads no YOLO does not import it.
"""

import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from models.defaults import DETECTOR_SIZE, MAX_DETECTIONS, NMS_IOU
from models.geometry import on_crops
from models.pickles import unpickle
from models.runtime import Network

# ultralytics reads these when it is first imported: no settings file at home, no event sent, nothing installed. The
# folder goes with the process.
_CONFIG = tempfile.TemporaryDirectory(prefix="dynpose-yolo-", ignore_cleanup_errors=True)
os.environ["YOLO_CONFIG_DIR"] = _CONFIG.name
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"

Detector = Callable[[Sequence[Tensor], Sequence[float]], list[Tensor]]
"""Pictures (H, W, 3) uint8 RGB and the least score of each, 0 to 1 -> of each (M, 5) float32 on the CPU: x, y, w, h in
picture pixels, clipped to the picture, and score; best first."""

LIGHT = "yolov8s-light"
"""YOLOv8s with a class branch of half the arithmetic: narrower, and its second convolution is depthwise."""

LIGHT_WIDTH = 96
"""Channels of that branch, of 128."""

YOLOS = (*(f"{family}{size}" for family in ("yolov8", "yolo11", "yolo12") for size in "nsmlx"), LIGHT)

FILL = 114
"""Grey around a letterboxed picture, as in training."""

STRIDE = 32

SHORT_SIDES = (5 / 16, 9 / 16, 2 / 3, 3 / 4, 4 / 5, 1)
"""The shorter side of what a detector sees, in longer ones, but for the stride: as cameras have them, and a panorama.
On a CPU a network is fitted to each shape that it meets, for 50 ms and 10 MB."""


def build_network(architecture: str) -> Any:
    """A YOLO detection model, one of YOLOS, for the one class person.

    It is the 80-class network with one row in the last class layers: the layers before keep their width, so that the
    weights of a COCO detector carry over whole (ultralytics' own one-class network can be narrower there). LIGHT has a
    class branch of its own.
    """
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.torch_utils import initialize_weights

    network = DetectionModel(f"{architecture.removesuffix('-light')}.yaml", verbose=False)
    head = network.model[-1]
    if architecture == LIGHT:
        head.cv3 = nn.ModuleList(light_class_branch(branch[0].conv.in_channels) for branch in head.cv3)
        initialize_weights(head.cv3)
    else:
        for branch in head.cv3:
            branch[-1] = nn.Conv2d(branch[-1].in_channels, 1, 1)
    head.nc, head.no = 1, 1 + 4 * head.reg_max
    network.names = {0: "person"}
    return network


def light_class_branch(channels: int) -> nn.Sequential:
    """(N, channels, h, w) -> (N, 1, h, w) logits of person."""
    from ultralytics.nn.modules import Conv, DWConv

    return nn.Sequential(
        Conv(channels, LIGHT_WIDTH, 3),
        nn.Sequential(DWConv(LIGHT_WIDTH, LIGHT_WIDTH, 3), Conv(LIGHT_WIDTH, LIGHT_WIDTH, 1)),
        nn.Conv2d(LIGHT_WIDTH, 1, 1),
    )


def person_rows(weights: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """The weights of a detector of COCO's 80 classes, person first, cut down to fit `build_network`'s. Raises
    RuntimeError for other classes than those or one: the first of them may be anything."""
    last = f"model.{len(network.model) - 1}.cv3."
    by_class = {
        key for key, value in network.state_dict().items() if key.startswith(last) and value.shape[:1] == (1,)
    }
    if any(weights[key].shape[:1] not in ((1,), (80,)) for key in by_class & weights.keys()):
        raise RuntimeError("the detector is of other classes than person or COCO's 80")
    return {key: value[:1] if key in by_class else value for key, value in weights.items()}


def read_ultralytics(path: Path) -> dict[str, Tensor]:
    """The weights in one of ultralytics' own files (.pt).

    Such a file is a pickle of the whole model, of which only the weights are read and nothing runs. Raises ValueError
    for any other content.
    """
    try:
        content = unpickle(path)
        model = (content.get("ema") or content.get("model")) if isinstance(content, dict) else None
        weights = model.state_dict() if isinstance(model, nn.Module) else {}
    except Exception as error:  # whatever a damaged or foreign pickle makes torch raise
        raise ValueError("it is no checkpoint of ultralytics' that this release can read") from error
    if not weights:
        raise ValueError("it is no checkpoint of ultralytics'")
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def grid_cells(
    sizes: Sequence[Sequence[int]],
    strides: Sequence[float] | Tensor,
    offset: float,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """The cells of grids (height, width) one after the other, row by row: (cells, 2) x, y + `offset` in cells, and
    (cells, 1) the stride of each."""
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        axes = [torch.arange(length, device=device) + offset for length in (height, width)]
        y, x = torch.meshgrid(*axes, indexing="ij")
        points.append(torch.stack((x.flatten(), y.flatten()), dim=1))
        steps.append(torch.full((height * width, 1), float(stride), device=device))
    return torch.cat(points), torch.cat(steps)


class BoxDecoder(nn.Module):
    """A one-class YOLO as one tensor function: (N, 3, h, w) in 0..1 -> (N, 5, anchors) float32 x, y (centre), w, h in
    input pixels, and score. The convolutions may run in half precision; boxes are decoded in float32, since
    bfloat16 would round them to several pixels."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.fuse(verbose=False)
        self.head = network.model[-1]
        self.strides: list[float] = self.head.stride.tolist()

    def forward(self, batch: Tensor) -> Tensor:
        self.head.training = True  # only then the head gives its raw maps; it has no layer that minds
        raw = self.network(batch)
        cells = grid_cells([level.shape[2:] for level in raw["feats"]], self.strides, 0.5, batch.device)
        points, strides = (part.T for part in cells)
        distribution = raw["boxes"].float().unflatten(1, (4, self.head.reg_max)).softmax(2)
        bins = torch.arange(self.head.reg_max, device=batch.device, dtype=torch.float32)
        before, behind = (distribution * bins.view(1, 1, -1, 1)).sum(2).chunk(2, 1)
        low, high = points - before, points + behind
        boxes = torch.cat([(low + high) / 2, high - low], dim=1) * strides
        return torch.cat([boxes, raw["scores"].float().sigmoid()], dim=1)


def load_yolo(weights: dict[str, Tensor], architecture: str) -> BoxDecoder:
    """The network for weights of one of YOLOS, of one class or of COCO's 80. Raises RuntimeError when they do not
    fit."""
    network = build_network(architecture)
    network.load_state_dict(person_rows(weights, network), strict=True)
    return BoxDecoder(network.eval())


class YoloDetector:
    """A `Detector`. `input_size`: pixels of the longest side of what the network sees."""

    def __init__(self, network: Network, *, input_size: int = DETECTOR_SIZE) -> None:
        self.network = network
        self.input_size = input_size

    def __call__(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        """As `Detector`. A picture's boxes do not depend on the others in the batch: only equal shapes run together."""
        if pictures and pictures[0].is_cuda:
            return self._in_squares(pictures, min_scores)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [letterbox(picture, self.input_size) for picture in pictures]
        for index, image in enumerate(inputs):
            groups[tuple(image.shape)].append(index)
        results: list[Tensor] = [torch.empty(0, 5)] * len(pictures)
        for members in groups.values():
            outputs = self._run(torch.stack([inputs[index].permute(1, 2, 0) for index in members])).cpu()
            for index, candidates in zip(members, outputs, strict=True):
                results[index] = self._boxes(candidates, pictures[index], min_scores[index])
        return results

    def _in_squares(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        """On CUDA all in one go: there equal shapes are worth more than few pixels, as a network is recorded for
        each."""
        size = self.input_size
        outputs = on_crops(
            pictures, square_matrices(pictures, size), (size, size), self._of_squares, fill=FILL
        )
        # On the CPU, since on CUDA every step of the suppression would wait for the device.
        return list(map(self._boxes, outputs.cpu(), pictures, min_scores))

    def _of_squares(self, crops: Tensor) -> Tensor:
        return self._run(crops.permute(0, 2, 3, 1))

    def _run(self, images: Tensor) -> Tensor:
        """(N, h, w, 3) uint8 -> what the network gives."""
        return self.network(images.float().div_(255).permute(0, 3, 1, 2))  # channels last, as they came

    def _boxes(self, candidates: Tensor, picture: Tensor, min_score: float) -> Tensor:
        return to_boxes(suppress(candidates, min_score, NMS_IOU), picture, self.input_size, min_score)


def suppress(candidates: Tensor, min_score: float, iou: float) -> Tensor:
    """Non-maximum suppression: of boxes that overlap by more than `iou` the best stays.

    candidates: (5, anchors) x, y (centre), w, h, score. Returns (M, 5) x1, y1, x2, y2, score, best first.
    """
    values = candidates.numpy()  # small steps, as in `models.geometry`
    rows = values[:, values[4] >= min_score].T
    boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1)
    # torchvision's would do as well, but importing it takes 160 MB and seconds.
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), rows[:, 4].tolist(), 0.0, iou)[:MAX_DETECTIONS]
    boxes[:, 2:] += boxes[:, :2]
    return torch.from_numpy(np.concatenate([boxes, rows[:, 4:]], axis=1)[np.array(kept, dtype=np.int64)])


def square_matrices(pictures: Sequence[Tensor], size: int) -> Tensor:
    """(N, 2, 3) float64 from each picture to the left upper part of a square of `size` pixels, as `letterbox` puts it
    there."""
    matrices = np.zeros((len(pictures), 2, 3))
    for matrix, picture in zip(matrices, pictures, strict=True):
        extents = picture.shape[1], picture.shape[0]
        for axis, (new, old) in enumerate(zip(resized_extents(*extents, size), extents, strict=True)):
            matrix[axis, axis] = new / old
            matrix[axis, 2] = (new / old - 1) / 2  # corners of pictures coincide, not their first pixels
    return torch.from_numpy(matrices)


def letterbox(picture: Tensor, size: int) -> Tensor:
    """(H, W, 3) uint8 -> (3, h, w) uint8 with channels last in memory: longest side `size`, padded at the right and
    below to one of SHORT_SIDES and multiples of 32."""
    height, width = picture.shape[:2]
    new_width, new_height = resized_extents(width, height, size)
    resized = cv2.resize(picture.numpy(), (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    below, right = padded_side(new_height, size) - new_height, padded_side(new_width, size) - new_width
    padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL))
    return torch.from_numpy(padded).permute(2, 0, 1)


def padded_side(pixels: int, size: int) -> int:
    """The least side of an input of at least so many pixels, where `size` is that of the longest."""
    return min(side for share in SHORT_SIDES if (side := math.ceil(share * size / STRIDE) * STRIDE) >= pixels)


def resized_extents(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of a picture whose longest side becomes `size`."""
    scale = size / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def to_boxes(found: Tensor, picture: Tensor, size: int, min_score: float) -> Tensor:
    """Rows (M, 5) x1, y1, x2, y2, score in pixels of what `letterbox` made -> (M, 5) as of a `Detector`."""
    height, width = picture.shape[:2]
    rows = found.numpy()
    rows = rows[rows[:, 4] >= min_score]
    corners = rows[:, :4] * (max(height, width) / size)
    left, top, right, bottom = corners.clip(0, (width, height, width, height), dtype=np.float32).T
    boxes = np.stack([left, top, right - left, bottom - top, rows[:, 4]], axis=1)
    return torch.from_numpy(boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)])
