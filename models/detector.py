"""Person detector: pictures -> boxes. ultralytics' YOLO behind one class, so that another detector can take its place.

Only the network, its anchors and its non-maximum suppression are taken from ultralytics; its predictor, with its
settings file, downloads and telemetry, is not used.
"""

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.defaults import DETECTOR_SIZE, NMS_IOU
from models.runtime import Network, compile_network

# ultralytics reads these when it is first imported: no settings file at home, no event sent, nothing installed. The
# folder goes with the process.
_CONFIG = tempfile.TemporaryDirectory(prefix="dynpose-yolo-", ignore_cleanup_errors=True)
os.environ["YOLO_CONFIG_DIR"] = _CONFIG.name
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_VERBOSE"] = "false"

from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils.nms import non_max_suppression  # noqa: E402
from ultralytics.utils.tal import dist2bbox, make_anchors  # noqa: E402

FILL = 114
"""Grey around a letterboxed picture, as in training."""

STRIDE = 32
MAX_DETECTIONS = 300


def build_network(architecture: str) -> Any:
    """A YOLO detection model for the one class person.

    It is the 80-class network with one row in the last class layers: the layers before keep their width, so that the
    weights of a COCO detector carry over whole (ultralytics' own one-class network is narrower there).
    """
    network = DetectionModel(f"{architecture}.yaml", verbose=False)
    head = network.model[-1]
    for branch in head.cv3:
        branch[-1] = nn.Conv2d(branch[-1].in_channels, 1, 1)
    head.nc, head.no = 1, 1 + 4 * head.reg_max
    network.names = {0: "person"}
    return network


class BoxDecoder(nn.Module):
    """A one-class YOLO as one tensor function: (N, 3, h, w) in 0..1 -> (N, 5, anchors) float32 x, y (centre), w, h in
    input pixels, and score. The convolutions may run in half precision; boxes are decoded in float32, since
    bfloat16 would round them to several pixels."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.fuse(verbose=False)
        self.head = network.model[-1]

    def forward(self, batch: Tensor) -> Tensor:
        self.head.training = True  # only then the head gives its raw maps; it has no layer that minds
        raw = self.network(batch)
        maps = [level.new_empty(level.shape, dtype=torch.float32) for level in raw["feats"]]
        points, strides = (part.transpose(0, 1) for part in make_anchors(maps, self.head.stride, 0.5))
        distribution = raw["boxes"].float().unflatten(1, (4, self.head.reg_max)).softmax(2)
        bins = torch.arange(self.head.reg_max, device=batch.device, dtype=torch.float32)
        distances = (distribution * bins.view(1, 1, -1, 1)).sum(2)
        boxes = dist2bbox(distances, points.unsqueeze(0), xywh=True, dim=1) * strides
        return torch.cat([boxes, raw["scores"].float().sigmoid()], dim=1)


class YoloDetector:
    """Boxes of the people in a batch of pictures. `input_size`: pixels of the longest side of what the network sees."""

    def __init__(self, network: Network, *, input_size: int = DETECTOR_SIZE) -> None:
        self.network = network
        self.input_size = input_size

    @classmethod
    def from_weights(
        cls,
        weights: dict[str, Tensor],
        *,
        architecture: str,
        input_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "YoloDetector":
        """Load the weights of `build_network(architecture)`. Raises RuntimeError when they do not fit."""
        network = build_network(architecture)
        network.load_state_dict(weights, strict=True)
        return cls(compile_network(BoxDecoder(network.eval()), device, dtype), input_size=input_size)

    def __call__(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        """Detect people.

        pictures: tensors (H, W, 3) uint8 RGB. min_scores: of each picture, 0 to 1.
        Returns for each (M, 5) float32 on the CPU: x, y, w, h in picture pixels, clipped to the picture, and score;
        best first. A picture's boxes do not depend on the others in the batch: only equal shapes run together.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [letterbox(picture, self.input_size) for picture in pictures]
        for index, image in enumerate(inputs):
            groups[tuple(image.shape)].append(index)
        results: list[Tensor] = [torch.empty(0, 5)] * len(pictures)
        for members in groups.values():
            batch = torch.stack([inputs[index] for index in members]).float() / 255
            floor = min(min_scores[index] for index in members)
            kept = non_max_suppression(
                self.network(batch), floor, NMS_IOU, max_det=MAX_DETECTIONS, max_time_img=60.0
            )
            for index, found in zip(members, kept, strict=True):
                results[index] = to_boxes(found.cpu(), pictures[index], self.input_size, min_scores[index])
        return results


def letterbox(picture: Tensor, size: int) -> Tensor:
    """(H, W, 3) uint8 -> (3, h, w) uint8: longest side `size`, padded at the right and below to a multiple of 32."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if picture.is_cuda:
        image = picture.permute(2, 0, 1).unsqueeze(0).float()
        image = functional.interpolate(image, (new_height, new_width), mode="bilinear", antialias=True)
        resized = image[0].round().clamp(0, 255).to(torch.uint8)
    else:
        array = cv2.resize(picture.numpy(), (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        resized = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    pad = (0, -new_width % STRIDE, 0, -new_height % STRIDE)
    return functional.pad(resized, pad, value=FILL)


def to_boxes(found: Tensor, picture: Tensor, size: int, min_score: float) -> Tensor:
    """NMS rows (M, 6: x1, y1, x2, y2, score, class) in input pixels -> (M, 5) x, y, w, h, score in picture pixels."""
    height, width = picture.shape[:2]
    found = found[found[:, 4] >= min_score]
    corners = found[:, :4] * max(height, width) / size
    corners[:, 0::2].clamp_(0, width)
    corners[:, 1::2].clamp_(0, height)
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2], found[:, 4:5]], dim=1)
    return boxes[(boxes[:, 2] > 0) & (boxes[:, 3] > 0)]
