"""The way of one picture: detect -> score -> route -> estimate -> answer.

    detect ─> boxes ─> score ─> s in (0, 1) ─ policy: k1, k2 ─┬─ s <= k1       easy            ─> small net
                                                              ├─ k1 < s < k2   hard            ─> large net
                                                              └─ s >= k2       extremely hard  ─> small net

A person travels alone between the router and the answer: the people of one picture may take different routes, and
the people of many requests share a batch. What travels is (picture, bbox); every network cuts its own crop. A router
that has the pair's small net in it gives its keypoints along with the score, and then that net need not run again.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from app.batching import BatchQueue, Ticket
from app.intake import Bbox, Picture
from app.metrics import Metrics
from app.policy import Route, Snapshot, SplitPolicy
from models.defaults import RESCORING_SCORE
from models.detector import Detector
from models.estimator import PoseEstimator
from models.zoo import Pair

Keypoints = list[list[float]]
"""17 rows x, y in picture pixels, and score."""
EstimatorChoice = Literal["auto", "small", "large"]


@dataclass(frozen=True, slots=True)
class PoseOptions:
    """What the client asked for; the service's settings where it asked for nothing."""

    p: float | None
    estimator: EstimatorChoice
    min_score: float
    max_people: int
    flip_test: bool


@dataclass(slots=True)
class PoseRequest:
    """One HTTP request. `split` is taken when its first person is routed and then kept, so that the split in the
    answer is exactly the one that routed all its people."""

    ticket: Ticket
    options: PoseOptions
    split: Snapshot | None = None


class DetectItem(NamedTuple):
    picture: Tensor
    min_score: float


class Found(NamedTuple):
    """Boxes with their scores, best first. `truncated`: there were more than `max_people`."""

    people: list[tuple[Bbox, float]]
    truncated: bool = False


class Score(NamedTuple):
    """keypoints: the small net's, where the router has run that very net on the person's crop."""

    difficulty: float
    keypoints: Keypoints | None


class PersonItem(NamedTuple):
    picture: Tensor
    bbox: Bbox
    bbox_score: float
    flip_test: bool


@dataclass(frozen=True, slots=True)
class Person:
    """bbox: x, y, w, h in picture pixels. The keypoints' scores are 0 to 1."""

    bbox: Bbox
    bbox_score: float
    keypoints: Keypoints
    score: float
    route: Route | None
    estimator: Literal["small", "large"]
    difficulty: float | None


@dataclass(frozen=True, slots=True)
class ImageResult:
    """People in falling order of score. `truncated`: more were found than `max_people`."""

    people: list[Person] = field(default_factory=list)
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Queues:
    detect: BatchQueue[DetectItem, Tensor]
    score: BatchQueue[PersonItem, Score]
    easy: BatchQueue[PersonItem, Keypoints]
    hard: BatchQueue[PersonItem, Keypoints]
    extremely_hard: BatchQueue[PersonItem, Keypoints]

    def of(
        self, route: Route | None, estimator: Literal["small", "large"]
    ) -> BatchQueue[PersonItem, Keypoints]:
        """Where a person waits; without a route (forced estimator) beside the people of that net's first queue."""
        if route is Route.extremely_hard:
            return self.extremely_hard
        return self.hard if estimator == "large" else self.easy


class Pipeline:
    """Runs on the event loop; the networks run in the crew's threads behind the queues."""

    def __init__(self, queues: Queues, policy: SplitPolicy, metrics: Metrics) -> None:
        self.queues = queues
        self.policy = policy
        self.metrics = metrics

    async def pose(self, picture: Picture, boxes: Sequence[Bbox] | None, request: PoseRequest) -> ImageResult:
        """Keypoints of everybody in `picture`, or of the people in `boxes` when those are given."""
        return await self.estimate(picture, await self.find(picture, boxes, request), request)

    async def find(self, picture: Picture, boxes: Sequence[Bbox] | None, request: PoseRequest) -> Found:
        """Everybody in `picture`, at most `max_people`, or those in `boxes` when those are given."""
        if boxes is not None:
            return Found([(bbox, 1.0) for bbox in boxes])
        item = DetectItem(picture.pixels, request.options.min_score)
        rows = (await self.queues.detect.submit(item, request.ticket)).tolist()
        most = request.options.max_people
        return Found([((x, y, w, h), score) for x, y, w, h, score in rows[:most]], len(rows) > most)

    async def estimate(self, picture: Picture, found: Found, request: PoseRequest) -> ImageResult:
        """Keypoints of those who were found."""
        people = await asyncio.gather(
            *(self._person(picture, bbox, score, request) for bbox, score in found.people)
        )
        finite = [person for person in people if person is not None]
        self.metrics.image(people=len(finite))
        return ImageResult(sorted(finite, key=lambda person: -person.score), found.truncated)

    async def _person(
        self, picture: Picture, bbox: Bbox, bbox_score: float, request: PoseRequest
    ) -> Person | None:
        item = PersonItem(picture.pixels, bbox, bbox_score, request.options.flip_test)
        choice = request.options.estimator
        route: Route | None = None
        difficulty: float | None = None
        found: Keypoints | None = None
        if choice == "auto":
            difficulty, seen = await self.queues.score.submit(item, request.ticket)
            route = self._route(difficulty, request)
            choice = "large" if route is Route.hard else "small"
            found = seen if choice == "small" and not item.flip_test else None
        else:
            self.metrics.forced(choice)
        if found is None:
            found = await self.queues.of(route, choice).submit(item, request.ticket)
        if not all(map(math.isfinite, chain.from_iterable(found))):
            self.metrics.failed(choice)
            return None
        keypoints = [[x, y, min(max(peak, 0.0), 1.0)] for x, y, peak in found]  # raw peaks may pass 1
        return Person(
            bbox=bbox,
            bbox_score=bbox_score,
            keypoints=keypoints,
            score=bbox_score * _pose_score(keypoints),
            route=route,
            estimator=choice,
            difficulty=difficulty,
        )

    def split(self, options: PoseOptions) -> Snapshot:
        """The split in force for a request with these options."""
        return self.policy.snapshot if options.p is None else self.policy.for_p(options.p)

    def _route(self, difficulty: float, request: PoseRequest) -> Route:
        if request.split is None:
            request.split = self.split(request.options)
        route = request.split.route(difficulty)
        # A split taken before the last PATCH says nothing of how the present p is kept.
        own_p = request.options.p is None and request.split.version == self.policy.snapshot.version
        self.policy.observe(difficulty, route, own_p=own_p, revision=request.split.revision)
        self.metrics.person(route, difficulty)
        return route


def _pose_score(keypoints: Keypoints) -> float:
    """Mean score of the joints above 0.2, 0 without any."""
    sure = [score for _, _, score in keypoints if score > RESCORING_SCORE]
    return sum(sure) / len(sure) if sure else 0.0


def detect_stage(detector: Detector) -> Callable[[list[DetectItem]], list[Tensor]]:
    """Pictures -> (M, 5) boxes x, y, w, h, score of each, best first."""

    def run(items: list[DetectItem]) -> list[Tensor]:
        return detector([item.picture for item in items], [item.min_score for item in items])

    return run


def score_stage(pair: Pair) -> Callable[[list[PersonItem]], list[Score]]:
    """People -> difficulty of each, 0 to 1, and what the router knows of the pose. A difficulty that is not finite is
    a failure of that person's item."""

    def run(items: list[PersonItem]) -> list[Score]:
        boxes = torch.tensor([item.bbox for item in items])
        bbox_scores = torch.tensor([item.bbox_score for item in items])
        pictures = [item.picture for item in items]
        difficulty, keypoints = pair.router.with_keypoints(pictures, boxes, bbox_scores)
        if not difficulty.isfinite().all():
            raise FloatingPointError("the router's score is not finite")
        poses = [None] * len(items) if keypoints is None else keypoints.tolist()
        return list(map(Score, difficulty.tolist(), poses))

    return run


def estimate_stage(estimator: PoseEstimator) -> Callable[[list[PersonItem]], list[Keypoints]]:
    """People -> keypoints of each, scores raw. `flip_test` may differ within a batch, as it can be changed at any
    time."""

    def run(items: list[PersonItem]) -> list[Keypoints]:
        results: dict[int, Keypoints] = {}
        for flip_test in {item.flip_test for item in items}:
            group = [index for index, item in enumerate(items) if item.flip_test == flip_test]
            boxes = torch.tensor([items[index].bbox for index in group])
            keypoints = estimator([items[index].picture for index in group], boxes, flip_test=flip_test)
            results.update(zip(group, keypoints.tolist(), strict=True))
        return [results[index] for index in range(len(items))]

    return run
