"""What router and nets make of boxes, computed once for every question that is then asked about it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.accuracy import Area, Matches, Pose, match, without_doubles
from calibration.boxes import Array, Bbox, FoundPerson
from calibration.data import LabelledImage, Pictures
from calibration.okd import oks
from models.defaults import ASPECT, PADDING
from models.router import DifficultyScorer, PoseScorer
from models.skeleton import by_keypoints
from models.zoo import Pair

Scorer = DifficultyScorer | PoseScorer
Mask = NDArray[np.bool_]
NETS = ("router", "small", "large")


@dataclass(frozen=True)
class Costs:
    """Of one person, by net (`router`, `small`, `large`). macs: multiply-accumulates of the networks, empty where they
    were not counted. seconds: crop, network and decoding, in batches, one net at a time. flip_test: whether both have
    the pose nets' second pass in them, over the mirrored crop. small_in_router: whom the router leaves to the small net
    costs nothing more, as it has run that net itself."""

    macs: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flip_test: bool = False
    small_in_router: bool = False

    def macs_at(self, share: float) -> float:
        """Of a person when this share goes to the large net (paper, section 4.1); without the detector."""
        return self._mean(self.macs, share)

    def people_per_second(self, share: float) -> float:
        """Boxes given, nothing else running: what the stages' own times allow."""
        return 1 / self._mean(self.seconds, share)

    def _mean(self, of: dict[str, float], share: float) -> float:
        small = 0.0 if self.small_in_router else of["small"]
        return of["router"] + (1 - share) * small + share * of["large"]


@dataclass(frozen=True)
class Estimates:
    """What router and nets make of N boxes. small, large: (N, K, 3). difficulty: (N,). small_flipped: the small net's
    answer to the mirrored crop, (N, K, 3). others: difficulties by other routers, by name."""

    found: Sequence[FoundPerson]
    small: Array
    large: Array
    difficulty: Array
    small_flipped: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    def routed(self, to_large: Mask) -> Array:
        """(N, K, 3) keypoints when the people of the mask go to the large net."""
        return np.where(to_large[:, None, None], self.large, self.small)

    def take(self, rows: NDArray[np.int64] | Mask) -> "Estimates":
        """Those of some boxes."""
        return replace(
            self,
            found=[self.found[row] for row in np.arange(len(self.found))[rows]],
            small=self.small[rows],
            large=self.large[rows],
            difficulty=self.difficulty[rows],
            small_flipped=None if self.small_flipped is None else self.small_flipped[rows],
            others={name: values[rows] for name, values in self.others.items()},
        )


def estimate(
    pair: Pair,
    pictures: Pictures,
    images: Sequence[LabelledImage],
    found: Sequence[FoundPerson],
    *,
    batch: int = 32,
    flip_test: bool = False,
    others: Mapping[str, Scorer] | None = None,
    macs: Mapping[str, float] | None = None,
) -> Estimates:
    """Run router and both nets on every box; the small net once more on the mirrored crops, and other routers, both
    untimed, as is what each net needs before its first answer. macs: of one pass by net, for the costs."""
    by_id = {image.id: image for image in images}
    others = others or {}
    answers: dict[str, list[Array]] = {name: [] for name in (*NETS, "small_flipped", *others)}
    seconds = dict.fromkeys(NETS, 0.0)
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        opened = {key: pictures(by_id[key]) for key in {person.image_id for person in part}}
        tensors = [opened[person.image_id] for person in part]
        boxes = torch.tensor([person.bbox for person in part], dtype=torch.float32)
        scores = torch.tensor([person.score for person in part], dtype=torch.float32)
        for name in NETS:
            if start == 0:
                # A smaller last batch may run in a network of its own.
                for size in {len(part), len(found) % batch or len(part)}:
                    ask(pair, name, tensors[:size], boxes[:size], scores[:size], flip_test)
            began = time.perf_counter()
            answer = ask(pair, name, tensors, boxes, scores, flip_test)
            seconds[name] += time.perf_counter() - began
            answers[name].append(answer.double().numpy())
        answers["small_flipped"].append(mirrored(pair, tensors, boxes))
        for name, scorer in others.items():
            answers[name].append(scorer(tensors, boxes, scores).double().numpy())
    joined = {name: np.concatenate(parts) for name, parts in answers.items()}
    return Estimates(
        found,
        joined["small"],
        joined["large"],
        joined["router"],
        joined["small_flipped"],
        {name: joined[name] for name in others},
        Costs(
            {name: value * (1 + (flip_test and name != "router")) for name, value in (macs or {}).items()},
            {name: value / len(found) for name, value in seconds.items()},
            flip_test,
            pair.router.small is not None and not flip_test,
        ),
    )


def ask(
    pair: Pair,
    name: str,
    pictures: Sequence[Tensor],
    boxes: Tensor,
    scores: Tensor,
    flip_test: bool,
) -> Tensor:
    """Difficulties (N,) of the router, keypoints (N, K, 3) of the small or large net."""
    if name == "router":
        return pair.router.with_keypoints(pictures, boxes, scores)[0]  # as it is in the service
    net = pair.small if name == "small" else pair.large
    return net(pictures, boxes, flip_test=flip_test)


def mirrored(pair: Pair, pictures: Sequence[Tensor], boxes: Tensor) -> Array:
    """(N, K, 3): the small net's keypoints when the pictures are mirrored, mirrored back."""
    unique = {id(picture): picture.flip(1) for picture in pictures}
    width = torch.tensor([picture.shape[1] for picture in pictures], dtype=torch.float32)
    turned = boxes.clone()
    turned[:, 0] = width - 1 - (boxes[:, 0] + boxes[:, 2])
    answer = pair.small([unique[id(picture)] for picture in pictures], turned).double().numpy()
    answer = answer[:, list(by_keypoints(answer.shape[1]).flip_index)]
    answer[:, :, 0] = width.double().numpy()[:, None] - 1 - answer[:, :, 0]
    return answer


def padded_area(bbox: Bbox) -> float:
    """Square pixels of the crop that a box is cut with."""
    height = max(bbox[3], bbox[2] / ASPECT) * PADDING
    return height * height * ASPECT


def similarity(keypoints: Array, found: Sequence[FoundPerson]) -> Array:
    """(N,) OKS of keypoints (N, K, 3) with the labelled person of each box; NaN without one, or without a labelled
    keypoint."""
    result = np.full(len(found), np.nan)
    labels = {row: p.label for row, p in enumerate(found) if p.label is not None and p.label.has_pose}
    if labels:
        rows = list(labels)
        truth = np.array([label.keypoints for label in labels.values()], dtype=np.float64)
        areas = np.array([label.area for label in labels.values()])
        sigmas = by_keypoints(truth.shape[1]).sigmas
        result[rows] = oks(keypoints[rows][:, :, :2], truth[:, :, :2], truth[:, :, 2], areas, sigmas)
    return result


def oks_gain(estimates: Estimates) -> Array:
    """(N,) OKS of the large net minus that of the small one; 0 for a box that no labelled person belongs to."""
    small, large = (
        similarity(keypoints, estimates.found) for keypoints in (estimates.small, estimates.large)
    )
    return np.nan_to_num(large - small)


class Matcher:
    """Matches routed poses with labels, after OKS-NMS. What becomes of a picture depends on who of its own people goes
    where alone, so that each such case is matched once."""

    def __init__(self, images: Sequence[LabelledImage], estimates: Estimates, area: Area = "all") -> None:
        self.images, self.estimates, self.area = images, estimates, area
        self.rows: dict[int, list[int]] = {image.id: [] for image in images}
        for row, person in enumerate(estimates.found):
            if person.image_id in self.rows:
                self.rows[person.image_id].append(row)
        self._known: dict[tuple[int, bytes], Matches] = {}

    def __call__(self, to_large: Mask, dropped: Mask | None = None) -> list[Matches]:
        """One entry per image. to_large: (N,). dropped: (N,) boxes without an answer."""
        state = to_large.astype(np.int8)
        if dropped is not None:
            state[dropped] = -1
        keys = [(image.id, state[self.rows[image.id]].tobytes()) for image in self.images]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            images = [self.images[i] for i in new]
            poses = {image.id: self.poses(image.id, state) for image in images}
            self._known |= zip((keys[i] for i in new), match(images, poses, self.area), strict=True)
        return [self._known[key] for key in keys]

    def poses(self, image_id: int, state: NDArray[np.int8]) -> list[Pose]:
        """What is answered for one picture; state: (N,) 1 large net, 0 small net, -1 not asked."""
        rows = [row for row in self.rows[image_id] if state[row] >= 0]
        both = (self.estimates.small, self.estimates.large)
        poses = [Pose(self.estimates.found[row].score, both[state[row]][row]) for row in rows]
        kept = without_doubles(poses, [padded_area(self.estimates.found[row].bbox) for row in rows])
        return [poses[index] for index in kept]
