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
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from app.decode import decode
from app.policy import Route, SplitPolicy
from benchmarks.pictures import Post, read_posts
from calibration.thresholds import read_calibration
from models.defaults import MIN_SCORE, POLICY, THETA
from models.estimator import PoseEstimator
from models.runtime import Device, Precision, Runtime, resolve_device, resolve_dtype, set_cpu_threads
from models.zoo import Pair, load_pair

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    posts = read_posts(options.data, options.split)
    if not posts:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    posts = random.Random(0).sample(posts, min(options.pictures, len(posts)))
    set_cpu_threads(options.threads)
    pair = open_pair(options.pair, options.device, options.precision, options.runtime)
    run(pair, posts[: options.batch], options.batch, 0.5)  # warm
    if options.given:
        print("\n".join(given(pair, posts, options.batch)))
        return 0
    for p in options.p:
        print(f"p={p:g}: {run(pair, posts, options.batch, p)}")
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
    parser.add_argument("--runtime", default="auto", choices=["auto", "eager", "openvino"])
    return parser.parse_args(arguments)


def open_pair(pair: str, device: Device, precision: Precision, runtime: Runtime) -> Pair:
    where = resolve_device(device)
    return load_pair(pair, where, resolve_dtype(where, precision), runtime)


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


def run(pair: Pair, posts: list[Post], batch: int, p: float) -> str:
    """One pass over the pictures; its speed and the milliseconds of each stage per picture, as text."""
    policy = SplitPolicy(
        read_calibration(pair.calibration).scores, p=p, theta=THETA, mode="tracking", policy=POLICY
    )
    clock = Clock()
    people = 0
    begin = time.perf_counter()
    for chunk in batches(posts, batch):
        with clock("decode"):
            pictures = [decode(post.body).to(pair.device) for post in chunk]
        with clock("detect"):
            found = pair.detector(pictures, [MIN_SCORE] * len(pictures))
        boxes = [(picture, box) for picture, rows in zip(pictures, found, strict=True) for box in rows]
        people += len(boxes)
        routed: dict[str, list[tuple[Tensor, Tensor]]] = {"small": [], "large": []}
        for group in batches(boxes, batch):
            with clock("score"):
                difficulties = pair.router(
                    *stacked(group), torch.stack([box[4] for _, box in group])
                ).tolist()
            for person, difficulty in zip(group, difficulties, strict=True):
                route = policy.snapshot.route(difficulty)
                policy.observe(difficulty, route, own_p=True)
                routed["large" if route is Route.hard else "small"].append(person)
        for net, estimator in (("small", pair.small), ("large", pair.large)):
            for group in batches(routed[net], batch):
                with clock(net):
                    estimator(*stacked(group))
    wall = time.perf_counter() - begin
    costs = ", ".join(f"{stage} {1e3 * spent / len(posts):.1f}" for stage, spent in clock.seconds.items())
    return (
        f"{len(posts) / wall:.1f} images/s, {people / wall:.1f} people/s, "
        f"large share {policy.realised()[1]:.3f}; ms a picture: {costs}"
    )


def given(pair: Pair, posts: list[Post], batch: int, rounds: int = 5) -> Iterator[str]:
    """Milliseconds a person of the router, the small and the large net and of all three at p = 0.5, in turn over
    `rounds`; medians. Exactly half go to the large net here: what the thresholds make of p is another matter."""
    people: list[tuple[Tensor, Tensor]] = []
    for post in posts:
        picture = decode(post.body).to(pair.device)
        people += [(picture, box) for box in pair.detector([picture], [MIN_SCORE])[0]]

    def router(chosen: list[tuple[Tensor, Tensor]]) -> None:
        for group in batches(chosen, batch):
            pair.router(*stacked(group), torch.stack([box[4] for _, box in group]))

    def net(estimator: PoseEstimator, chosen: list[tuple[Tensor, Tensor]]) -> None:
        for group in batches(chosen, batch):
            estimator(*stacked(group))

    def routed() -> None:
        router(people)
        net(pair.large, people[::2])
        net(pair.small, people[1::2])

    runs: dict[str, Callable[[], None]] = {
        "router": lambda: router(people),
        "small": lambda: net(pair.small, people),
        "large": lambda: net(pair.large, people),
        "p = 0.5": routed,
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, execute in runs.items():
            started = time.perf_counter()
            execute()
            seconds[name].append(time.perf_counter() - started)
    cost = {name: 1e3 * statistics.median(spent) / len(people) for name, spent in seconds.items()}
    for name, spent in seconds.items():
        low, high = (1e3 * value / len(people) for value in (min(spent), max(spent)))
        yield (
            f"{name:8} {cost[name]:6.2f} ms a person ({low:.2f}-{high:.2f}), {1e3 / cost[name]:.1f} people/s, "
            f"{cost[name] / cost['large']:.3f} of the large net"
        )
    ceiling = 1 / (0.5 + 0.5 * cost["small"] / cost["large"] + cost["router"] / cost["large"])
    yield (
        f"large / small {cost['large'] / cost['small']:.1f}; at p = 0.5 {cost['large'] / cost['p = 0.5']:.2f} times "
        f"the people/s of the large net alone, ceiling {ceiling:.2f}; {len(people)} people"
    )


def stacked(people: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
    """Pictures and (N, 4) boxes, as the stages take them."""
    return [picture for picture, _ in people], torch.stack([box[:4] for _, box in people])


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """`items` in lists of `size`, the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


if __name__ == "__main__":
    sys.exit(main())
