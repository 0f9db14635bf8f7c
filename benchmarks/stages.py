"""The stages alone, one after the other in one thread: the speed that queues, threads and HTTP can at best keep.

    python -m benchmarks.stages DATA --p 0 0.5 1 --threads 2
    python -m benchmarks.stages DATA --given --batch 16

Decodes, detects, scores, routes and estimates the pictures of DATA in batches, with the service's own stage objects,
and prints images/s, people/s and what a picture costs in each stage. `--given`: what routing is worth when the boxes
are there already, against the large net alone and against the ceiling that the costs of the three nets allow.
"""

import argparse
import contextlib
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor

from app.decode import decode
from app.policy import Route, SplitPolicy
from benchmarks.pictures import Post, read_posts
from calibration.commands import run_command
from calibration.data import DataError
from calibration.thresholds import read_calibration
from models.album import to_device
from models.defaults import MIN_SCORE, POLICY, THETA
from models.estimator import PoseEstimator
from models.runtime import (
    Device,
    Precision,
    Runtime,
    resolve_device,
    resolve_dtype,
    resolve_int8,
    set_cpu_threads,
)
from models.zoo import Pair, load_pair

T = TypeVar("T")

Boxed = tuple[Tensor, Tensor]
"""A picture and the box (5,) of one person."""

NETS = ("detect", "score", "small", "large")
SIZES = (1, 2, 4, 8, 16)
GROUP = 32
"""Pictures that are decoded before the first of them is looked at, so that people fill batches."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    posts = read_posts(options.data, options.split)
    if not posts:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    posts = random.Random(0).sample(posts, min(options.pictures, len(posts)))
    set_cpu_threads(options.threads)
    pair = open_pair(options.pair, options.device, options.precision, options.runtime)
    stages = Stages(pair, 0.5, dict.fromkeys(NETS, options.batch))
    if options.given:
        pass_over(stages, posts[: options.batch], options.batch)  # warm
        print(given(pair, posts, stages.batches))
        return 0
    for p in options.p:
        stages.turn(p)
        # Warm: on CUDA every size of a batch is recorded when it first comes.
        pass_over(stages, posts, options.batch)
        stages.turn(p)
        print(f"p={p:g}: {pass_over(stages, posts, options.batch)}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the stages without queues and HTTP.")
    parser.add_argument("data", type=Path, help="folder with pictures of people")
    parser.add_argument("--split", default="val", help="which JSON file of the folder")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument(
        "--given", action="store_true", help="time router and nets only, on the detector's boxes"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures, and people, of one run at most")
    parser.add_argument("--p", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--threads", type=int, default=1, help="of every network on the CPU")
    parser.add_argument("--pair", default="embedded")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--runtime", default="auto", choices=get_args(Runtime))
    return parser.parse_args(arguments)


def open_pair(
    pair: str, device: Device = "auto", precision: Precision = "auto", runtime: Runtime = "auto"
) -> Pair:
    where = resolve_device(device)
    int8 = resolve_int8(where, precision, runtime)
    return load_pair(pair, where, resolve_dtype(where, precision), runtime, int8=int8)


class Stages:
    """The service's stages called back to back, in the calling thread.

    batches: by net of NETS, pictures or people of one call. seconds: spent by stage, since the last `turn`.
    """

    def __init__(self, pair: Pair, p: float, batches: Mapping[str, int]) -> None:
        self.pair, self.batches = pair, batches
        self.turn(p)

    def turn(self, p: float) -> None:
        """Begin anew with another p."""
        scores = read_calibration(self.pair.manifest.calibration_path).scores
        self.policy = SplitPolicy(scores, p=p, theta=THETA, mode="tracking", policy=POLICY)
        self.seconds: dict[str, float] = defaultdict(float)

    def decode(self, body: bytes) -> Tensor:
        with self._clock("decode"):
            return to_device(decode(body), self.pair.device)

    def poses(self, pictures: Sequence[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
        """Boxes (M, 5) x, y, w, h, score and M keypoints (K, 3) of each picture."""
        boxes: list[Tensor] = [torch.empty(0, 5)] * len(pictures)
        # Pictures of one shape run together in the detector.
        order = sorted(range(len(pictures)), key=lambda index: tuple(pictures[index].shape))
        for rows in batches(order, self.batches["detect"]):
            with self._clock("detect"):
                found = self.pair.detector([pictures[row] for row in rows], [MIN_SCORE] * len(rows))
            for row, each in zip(rows, found, strict=True):
                boxes[row] = each
        people = [(picture, box) for picture, each in zip(pictures, boxes, strict=True) for box in each]
        routed, keypoints = self._route(people)
        for net, members in routed.items():
            estimator = self.pair.large if net == "large" else self.pair.small
            for group in batches(members, self.batches[net]):
                with self._clock(net):
                    answers = estimator(*stacked([people[member] for member in group]))
                keypoints.update(zip(group, answers, strict=True))
        rest = iter([keypoints[index] for index in range(len(people))])
        return [(each, list(itertools.islice(rest, len(each)))) for each in boxes]

    def _route(self, people: Sequence[Boxed]) -> tuple[dict[str, list[int]], dict[int, Tensor]]:
        """Net -> the people it gets, and the keypoints (K, 3) of those of whom the router has them already."""
        routed: dict[str, list[int]] = {"small": [], "large": []}
        keypoints: dict[int, Tensor] = {}
        for group in batches(range(len(people)), self.batches["score"]):
            chosen = [people[index] for index in group]
            with self._clock("score"):
                scores = torch.stack([box[4] for _, box in chosen])
                difficulties, known = self.pair.router.with_keypoints(*stacked(chosen), scores)
            for row, (index, difficulty) in enumerate(zip(group, difficulties.tolist(), strict=True)):
                route = self.policy.snapshot.route(difficulty)
                self.policy.observe(difficulty, route, own_p=True)
                if route is Route.hard or known is None:
                    routed["large" if route is Route.hard else "small"].append(index)
                else:
                    keypoints[index] = known[row]
        return routed, keypoints

    @contextlib.contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


def pass_over(stages: Stages, posts: Sequence[Post], group: int) -> str:
    """One pass over the pictures; its speed and the milliseconds of each stage per picture, as text."""
    people = 0
    begin = time.perf_counter()
    for chunk in batches(posts, group):
        people += sum(len(boxes) for boxes, _ in stages.poses([stages.decode(post.body) for post in chunk]))
    wall = time.perf_counter() - begin
    costs = ", ".join(f"{stage} {1e3 * spent / len(posts):.1f}" for stage, spent in stages.seconds.items())
    return (
        f"{len(posts) / wall:.1f} images/s, {people / wall:.1f} people/s, "
        f"large share {stages.policy.realised()[1]:.3f}; ms a picture: {costs}"
    )


def best_batches(pair: Pair, posts: Sequence[Post], rounds: int = 3) -> dict[str, int]:
    """The batch at which each net costs least, of SIZES, by the quickest of alternating rounds: what else runs on the
    machine only ever takes time."""
    pictures, people = _people(pair, posts)
    people = people[: 2 * max(SIZES)]
    chosen = {}
    for net in NETS:
        spent: dict[int, list[float]] = defaultdict(list)
        for _, size in itertools.product(range(rounds), SIZES):
            started = time.perf_counter()
            if net == "detect":
                # Of one shape, as batches of a detector must be.
                for group in batches([pictures[0]] * max(SIZES), size):
                    pair.detector(group, [MIN_SCORE] * len(group))
            elif net == "score":
                _score(pair, people, size)
            else:
                _estimate(pair.large if net == "large" else pair.small, people, size)
            spent[size].append(time.perf_counter() - started)
        chosen[net] = min(SIZES, key=lambda size: min(spent[size]))
    return chosen


@dataclass(frozen=True)
class Given:
    """Milliseconds a person, boxes given, of the router, the small and the large net and of all three with half of the
    people at each net (`routed`), in turn over some rounds: all of them. small_in_router: the router has the small
    net's keypoints, so that `routed` does without it."""

    people: int
    ms: Mapping[str, Sequence[float]]
    small_in_router: bool = False

    def median(self, name: str) -> float:
        return statistics.median(self.ms[name])

    @property
    def over_ideal(self) -> float:
        """Cost of the routed pair in shares of p T_large + (1 - p) T_small + T_router, median of the rounds. T_small
        is 0 where the router has the small net in it."""
        rounds = zip(self.ms["routed"], *(self.ms[net] for net in ("router", "small", "large")), strict=True)
        again = not self.small_in_router
        return float(
            statistics.median(
                routed / (router + (again * small + large) / 2) for routed, router, small, large in rounds
            )
        )

    def __str__(self) -> str:
        large = self.median("large")
        lines = [
            f"{name:8} {self.median(name):6.2f} ms a person ({min(ms):.2f}-{max(ms):.2f}), "
            f"{1e3 / self.median(name):.1f} people/s, {self.median(name) / large:.3f} of the large net"
            for name, ms in self.ms.items()
        ]
        small = 0.0 if self.small_in_router else self.median("small")
        ceiling = large / (0.5 * large + 0.5 * small + self.median("router"))
        lines.append(
            f"large / small {large / self.median('small'):.1f}; at p = 0.5 {large / self.median('routed'):.2f} times "
            f"the people/s of the large net alone, ceiling {ceiling:.2f}; {self.people} people"
        )
        return "\n".join(lines)


def given(pair: Pair, posts: Sequence[Post], sizes: Mapping[str, int], rounds: int = 5) -> Given:
    """What routing costs on the detector's boxes, each net in batches of its own size. Exactly half go to the large net
    here: what the thresholds make of p is another matter."""
    _, people = _people(pair, posts)
    if not people:
        raise DataError(f"the detector found nobody in {len(posts)} pictures")

    def score() -> bool:
        return _score(pair, people, sizes["score"])

    def small(members: Sequence[Boxed]) -> None:
        _estimate(pair.small, members, sizes["small"])

    def large(members: Sequence[Boxed]) -> None:
        _estimate(pair.large, members, sizes["large"])

    def routed() -> None:
        known = score()
        large(people[::2])
        if not known:
            small(people[1::2])

    runs: dict[str, Callable[[], object]] = {
        "router": score,
        "small": lambda: small(people),
        "large": lambda: large(people),
        "routed": routed,
    }
    ms: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, execute in runs.items():
            started = time.perf_counter()
            execute()
            ms[name].append(1e3 * (time.perf_counter() - started) / len(people))
    return Given(len(people), dict(ms), _score(pair, people[:1], 1))


def _people(pair: Pair, posts: Sequence[Post]) -> tuple[list[Tensor], list[Boxed]]:
    pictures = [to_device(decode(post.body), pair.device) for post in posts]
    return pictures, [
        (picture, box) for picture in pictures for box in pair.detector([picture], [MIN_SCORE])[0]
    ]


def _score(pair: Pair, people: Sequence[Boxed], batch: int) -> bool:
    """Whether the router has the small net's keypoints of all."""
    known = True
    for group in batches(people, batch):
        scores = torch.stack([box[4] for _, box in group])
        known &= pair.router.with_keypoints(*stacked(group), scores)[1] is not None
    return known


def _estimate(estimator: PoseEstimator, people: Sequence[Boxed], batch: int) -> None:
    for group in batches(people, batch):
        estimator(*stacked(group))


def stacked(people: Sequence[Boxed]) -> tuple[list[Tensor], Tensor]:
    """Pictures and (N, 4) boxes, as the stages take them."""
    return [picture for picture, _ in people], torch.stack([box[:4] for _, box in people])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


if __name__ == "__main__":
    run_command(main)
