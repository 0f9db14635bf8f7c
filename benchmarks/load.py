"""Load of a running service: speed at several p, with p turning under load, and the share that p gives.

    python -m benchmarks.load DATA                        images/s, people/s and latency at p = 0, 0.5, 1
    python -m benchmarks.load DATA --patch-every 1        p turns every second; answers grouped by their p
    python -m benchmarks.load DATA --share 4000 --p 0.25  the realised share of 4,000 people

DATA is a folder with `val.json` (COCO format) or with plain pictures. The service's p is put back at the end.
"""

import argparse
import asyncio
import contextlib
import math
import os
import random
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

from benchmarks.client import CPU_SECONDS, RESIDENT_BYTES, Answer, Client, RequestFailed, stage_seconds
from benchmarks.loops import Observed, Over, Run, closed_loop, observe, quantile, shuffled_forever
from benchmarks.pictures import Post, read_posts

Metrics = dict[str, float]

PATCHED = tuple(tenths / 10 for tenths in range(11))
SHARE_TOLERANCE = 0.02
SHARE_BAR = 0.03
PATIENCE = 200
"""Answers without anybody after which there is no share to be had."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a request failed or a share missed its bar."""
    options = parse(arguments)
    pictures = read_posts(options.data, options.split)
    if not pictures:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    try:
        return asyncio.run(measure(options, pictures))
    except (OSError, asyncio.IncompleteReadError, RequestFailed) as error:
        print(f"{options.url}: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with pictures of people")
    parser.add_argument("--split", default="val", help="which JSON file of the folder")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of load before each, not counted")
    parser.add_argument("--p", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--patch-every", type=float, metavar="SECONDS", help="change p at random under load")
    parser.add_argument("--share", type=int, metavar="PEOPLE", help="post until so many people are routed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


async def measure(options: argparse.Namespace, pictures: list[Post]) -> int:
    client = Client(
        options.url, pose_token=os.environ.get("POSE_TOKEN"), admin_token=os.environ.get("ADMIN_TOKEN")
    )
    before = await client.get_p()
    try:
        if options.patch_every:
            return await measure_turning(client, pictures, options)
        if options.share:
            return await measure_share(client, pictures, options)
        return await measure_speed(client, pictures, options)
    finally:
        await client.set_p(before)
        await client.close()


async def measure_speed(client: Client, pictures: list[Post], options: argparse.Namespace) -> int:
    failed = 0
    print(f"{len(pictures)} pictures, {options.clients} clients, {options.seconds:g} s each")
    for p in options.p:
        await client.set_p(p)
        seen = await watched(client, pictures, options)
        failed += len(seen.run.failures)
        print(f"p={p:g}: {describe(seen)}")
    print(f"resident memory: {(await client.metrics())[RESIDENT_BYTES] / 2**20:.0f} MiB")
    return int(failed > 0)


async def measure_turning(client: Client, pictures: list[Post], options: argparse.Namespace) -> int:
    async with turning(client, options.patch_every, options.seed):
        seen = await watched(client, pictures, options)
    print(describe(seen))
    missed = 0
    for p, people, share in shares(seen.run.good):
        allowed = 3 * math.sqrt(p * (1 - p) / people) + SHARE_TOLERANCE
        within = abs(share - p) <= allowed
        missed += not within
        print(
            f"p={p:g}: {people} people, large share {share:.3f}, allowed +-{allowed:.3f}: {verdict(within)}"
        )
    return int(bool(seen.run.failures) or missed > 0)


async def measure_share(client: Client, pictures: list[Post], options: argparse.Namespace) -> int:
    def routed(answers: list[Answer]) -> bool:
        people = sum(answer.people for answer in answers)
        return people >= int(options.share) or (not people and len(answers) >= PATIENCE)

    missed = 0
    for p in options.p:
        await client.set_p(p)
        order = shuffled_forever(pictures, options.seed)
        run = Run(await closed_loop(client.pose, order, options.clients, routed), seconds=math.nan)
        people = sum(answer.people for answer in run.good)
        share = sum(answer.routes["hard"] for answer in run.good) / people if people else math.nan
        within = abs(share - p) <= SHARE_BAR and not run.failures
        missed += not within
        print(
            f"p={p:g}: {people} people, large share {share:.4f}, "
            f"{len(run.failures)} failed: {verdict(within)}"
        )
    return int(missed > 0)


async def watched(client: Client, pictures: list[Post], options: argparse.Namespace) -> Observed[Metrics]:
    order = shuffled_forever(pictures, options.seed)

    def load(over: Over) -> Awaitable[list[Answer]]:
        return closed_loop(client.pose, order, options.clients, over)

    return await observe(load, client.metrics, warm_up=options.warm_up, seconds=options.seconds)


@contextlib.asynccontextmanager
async def turning(client: Client, period_s: float, seed: int) -> AsyncIterator[None]:
    """Sets p to one of `PATCHED` at random every `period_s` seconds. Raises when a change is refused."""
    choice = random.Random(seed)

    async def turn() -> None:
        while True:
            await client.set_p(choice.choice(PATCHED))
            await asyncio.sleep(period_s)

    task = asyncio.create_task(turn())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def shares(answers: list[Answer]) -> list[tuple[float, int, float]]:
    """(p, people, share of them that the large net had) for each p that answers carry, rising."""
    people: dict[float, int] = defaultdict(int)
    large: dict[float, int] = defaultdict(int)
    for answer in answers:
        people[answer.p] += answer.people
        large[answer.p] += answer.routes["hard"]
    return [(p, people[p], large[p] / people[p]) for p in sorted(people) if people[p]]


def describe(seen: Observed[Metrics]) -> str:
    """Speed, latency, and the parts of wall time and of latency in which a stage was at work."""
    run = seen.run
    if not run.good:
        return f"no request was answered; {len(run.failures)} failed"
    seconds = [answer.seconds for answer in run.good]
    large = sum(answer.routes["hard"] for answer in run.good)
    stages = {stage: spent / run.seconds for stage, spent in stage_seconds(seen.before, seen.after).items()}
    cpu_seconds = seen.after.get(CPU_SECONDS, math.nan) - seen.before.get(CPU_SECONDS, math.nan)
    total = sum(answer.timing_ms["total"] for answer in run.good)
    own = ", ".join(
        f"{name} {sum(answer.timing_ms[name] for answer in run.good) / total:.0%}"
        for name in ("decode", "detect", "score", "estimate", "queued")
    )
    return (
        f"{len(run.good) / run.seconds:.1f} images/s, {run.people / run.seconds:.1f} people/s, "
        f"p50 {quantile(seconds, 0.5) * 1e3:.0f} ms, p95 {quantile(seconds, 0.95) * 1e3:.0f} ms, "
        f"large share {large / max(run.people, 1):.3f}, {len(run.failures)} failed\n"
        f"    stages at work: {sum(stages.values()):.0%} of wall time "
        f"({', '.join(f'{stage} {share:.0%}' for stage, share in sorted(stages.items()))}), "
        f"process: {cpu_seconds / run.seconds:.2f} cores\n"
        f"    parts of the time in the service: {own}"
    )


def verdict(good: bool) -> str:
    return "ok" if good else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
