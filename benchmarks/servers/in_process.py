"""Loops without a server: a library called on one picture after the other, for as long as a line of input says.

    python -m benchmarks.servers.in_process bound DATA

Each line of input is a JSON object, answered by one line: {"seconds", "p", "seed", "count"} runs for so long, or, where
count is not null, over so many pictures; {"pose": number} answers one picture, {"given": rounds} and {"batches": true}
say what the networks cost alone and at which batches.

`bound`: the service's networks back to back, each at the batch that was found best at start, with nothing between them
but decoding; one such process for each core is the speed that no service with these networks can pass.
`rtmlib`: a detector and a pose net of PEERS in ONNX Runtime, one person at a time, as rtmlib does it.
`yolo`: ultralytics' YOLOv8n-pose with its own `predict`. `yolo-openvino`: its network in OpenVINO, as the service's.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.loops import shuffled_forever
from benchmarks.peers import peer_detector, peer_pose_net
from benchmarks.pictures import Post, ordered, read_posts
from benchmarks.servers import RTMLIB_DETECTOR, RTMLIB_POSE, YOLO
from benchmarks.servers.answers import answer
from benchmarks.stages import GROUP, Stages, best_batches, given, open_pair
from models.defaults import MIN_SCORE, NMS_IOU
from models.detector import BoxDecoder, grid_cells, letterbox
from models.runtime import compile_network, resolve_dtype, set_cpu_threads

TRIED = 16
"""Pictures on which the best batches are found."""

YOLO_SIZE = 640
YOLO_SCORE = 0.25
"""ultralytics' default."""

Poses = tuple[Tensor, Sequence[Tensor]]
"""Boxes (M, 5) x, y, w, h, score and M keypoints (K, 3) of one picture."""


class Loop(Protocol):
    group: int
    """Pictures of one call."""

    def turn(self, p: float) -> None:
        """Begin anew with another p, where there is one."""

    def poses(self, bodies: Sequence[bytes]) -> list[Poses]: ...


class Bound:
    group = GROUP

    def __init__(self, options: argparse.Namespace, posts: Sequence[Post]) -> None:
        set_cpu_threads(1)
        self.pair = open_pair(options.pair)
        self.stages = Stages(self.pair, 0.5, best_batches(self.pair, posts[:TRIED]))

    def turn(self, p: float) -> None:
        self.stages.turn(p)

    def poses(self, bodies: Sequence[bytes]) -> list[Poses]:
        return list(self.stages.poses([self.stages.decode(body) for body in bodies]))


class OneByOne:
    """Loops that take a picture at a time and know no p."""

    group = 1

    def turn(self, p: float) -> None:
        pass

    def poses(self, bodies: Sequence[bytes]) -> list[Poses]:
        return [self.people(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)) for body in bodies]

    def people(self, bgr: Any) -> Poses:
        """bgr: (H, W, 3) uint8."""
        raise NotImplementedError


class Rtmlib(OneByOne):
    def __init__(self, options: argparse.Namespace, _: Sequence[Post]) -> None:
        set_cpu_threads(os.cpu_count() or 1)
        self.detector = peer_detector(options.peers / RTMLIB_DETECTOR)
        self.estimator = peer_pose_net(options.peers / RTMLIB_POSE)

    def people(self, bgr: Any) -> Poses:
        picture = torch.from_numpy(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        (boxes,) = self.detector([picture], [MIN_SCORE])
        return boxes, [self.estimator([picture], box[None, :4])[0] for box in boxes]


class Ultralytics(OneByOne):
    def __init__(self, options: argparse.Namespace, _: Sequence[Post]) -> None:
        self.yolo = load_yolo_pose(options.initial / YOLO)
        self.people(np.zeros((YOLO_SIZE, YOLO_SIZE, 3), np.uint8))
        set_cpu_threads(os.cpu_count() or 1)  # of which ultralytics leaves one at its first picture

    def people(self, bgr: Any) -> Poses:
        (found,) = self.yolo.predict(bgr, verbose=False, imgsz=YOLO_SIZE, conf=YOLO_SCORE, device="cpu")
        corners, scores = found.boxes.xyxy, found.boxes.conf[:, None]
        return corner_boxes(torch.cat([corners, scores], dim=1)), list(found.keypoints.data)


class UltralyticsOpenvino(OneByOne):
    def __init__(self, options: argparse.Namespace, _: Sequence[Post]) -> None:
        set_cpu_threads(os.cpu_count() or 1)
        network = PoseDecoder(load_yolo_pose(options.initial / YOLO).model)
        device = torch.device("cpu")
        self.network = compile_network(network, device, resolve_dtype(device, "auto"), "auto")

    def people(self, bgr: Any) -> Poses:
        picture = torch.from_numpy(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        rows = self.network(letterbox(picture, YOLO_SIZE)[None].float() / 255)[0].T
        found = suppressed(rows[rows[:, 4] >= YOLO_SCORE])
        scale = max(picture.shape[:2]) / YOLO_SIZE
        keypoints = found[:, 5:].reshape(len(found), (found.shape[1] - 5) // 3, 3) * torch.tensor(
            [scale, scale, 1.0]
        )
        return corner_boxes(found[:, :5] * torch.tensor([*4 * [scale], 1.0])), list(keypoints)


class PoseDecoder(nn.Module):
    """A one-class YOLO pose net as one tensor function: (N, 3, h, w) in 0..1 -> (N, 5 + 3 K, anchors) float32: x, y
    (centre), w, h in input pixels, score, and x, y, score of each keypoint."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.boxes = BoxDecoder(network)
        self.raw: dict[str, Any] = {}
        network.register_forward_hook(lambda *run: self.raw.update(run[-1]))

    def forward(self, batch: Tensor) -> Tensor:
        boxes = self.boxes(batch)
        cells, strides = grid_cells([level.shape[2:] for level in self.raw["feats"]], self.boxes.strides, 0.0)
        keypoints = self.raw["kpts"].float()
        x, y, score = keypoints[:, 0::3], keypoints[:, 1::3], keypoints[:, 2::3]
        x, y = ((2 * axis + cell) * strides[:, 0] for axis, cell in ((x, cells[:, 0]), (y, cells[:, 1])))
        return torch.cat([boxes, torch.stack([x, y, score.sigmoid()], dim=2).flatten(1, 2)], dim=1)


def suppressed(rows: Tensor) -> Tensor:
    """Rows (n, 5 + ...) with x, y (centre), w, h, score -> those that non-maximum suppression keeps, best first, with
    corners instead."""
    from torchvision.ops import nms  # type: ignore[import-untyped]

    half = rows[:, 2:4] / 2
    corners = torch.cat([rows[:, :2] - half, rows[:, :2] + half], dim=1)
    kept = nms(corners, rows[:, 4], NMS_IOU)
    return torch.cat([corners, rows[:, 4:]], dim=1)[kept]


def corner_boxes(rows: Tensor) -> Tensor:
    """(M, 5) x1, y1, x2, y2, score -> (M, 5) x, y, w, h, score."""
    return torch.cat([rows[:, :2], rows[:, 2:4] - rows[:, :2], rows[:, 4:5]], dim=1)


def load_yolo_pose(path: Path) -> Any:
    """ultralytics' YOLO with the weights of a safetensors file, which may be int8 with a scale per output channel."""
    from safetensors.torch import load_file
    from ultralytics import YOLO as Yolo

    stored = load_file(path)
    weights = {
        key: value.float() * stored[f"{key}.scale"].float().view(-1, 1, 1, 1)
        if f"{key}.scale" in stored
        else value.float()
        if value.is_floating_point()
        else value
        for key, value in stored.items()
        if not key.endswith(".scale")
    }
    yolo = Yolo(f"{path.stem}.yaml")
    yolo.model.load_state_dict(weights, strict=True)
    yolo.model.eval()
    return yolo


LOOPS: dict[str, Callable[[argparse.Namespace, Sequence[Post]], Loop]] = {
    "bound": Bound,
    "rtmlib": Rtmlib,
    "yolo": Ultralytics,
    "yolo-openvino": UltralyticsOpenvino,
}


def run(
    loop: Loop, posts: Iterator[Post], seconds: float, p: float, count: int | None = None
) -> dict[str, Any]:
    """Pictures and people of so many seconds, or of `count` pictures, and the time of each call in milliseconds."""
    loop.turn(p)
    images = people = 0
    ms: list[float] = []
    begin = now = time.perf_counter()
    while now - begin < seconds if count is None else images < count:
        size = loop.group if count is None else min(loop.group, count - images)
        bodies = [post.body for post in itertools.islice(posts, size)]
        people += sum(len(boxes) for boxes, _ in loop.poses(bodies))
        images += len(bodies)
        now, before = time.perf_counter(), now
        ms.append(1e3 * (now - before))
    return {"images": images, "people": people, "seconds": now - begin, "ms": ms}


def respond(
    loop: Any, posts: Sequence[Post], share: Callable[[int], Iterator[Post]], asked: dict[str, Any]
) -> Any:
    """share: this process's pictures, in the order of a seed."""
    if "seconds" in asked:
        return run(loop, share(asked["seed"]), asked["seconds"], asked["p"], asked["count"])
    if "given" in asked:
        costs = given(loop.pair, posts[:100], loop.stages.batches, asked["given"])
        return {"people": costs.people, "ms": costs.ms, "small_in_router": costs.small_in_router}
    if "batches" in asked:
        return loop.stages.batches
    ((boxes, keypoints),) = loop.poses([posts[asked["pose"]].body])
    return answer(boxes, keypoints)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=LOOPS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--initial", type=Path, default=Path("initial"))
    parser.add_argument("--every", type=int, default=1, help="take each so-manieth picture only")
    parser.add_argument("--first", type=int, default=0, help="begin with this picture")
    options = parser.parse_args()
    # Libraries print; what is asked for goes out alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    posts = ordered(read_posts(options.data, options.split))

    def share(seed: int) -> Iterator[Post]:
        return itertools.islice(shuffled_forever(posts, seed), options.first, None, options.every)

    loop = LOOPS[options.name](options, posts)
    run(loop, share(0), 1.0, 0.5)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(respond(loop, posts, share, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
