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
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx

from benchmarks.client import RESIDENT_BYTES, Answer, Run, get_p, load, metrics, set_p
from benchmarks.pictures import Post, read_posts

PATCHED = tuple(tenths / 10 for tenths in range(11))
SHARE_TOLERANCE = 0.02
SHARE_BAR = 0.03


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a request failed or a share missed its bar."""
    options = parse(arguments)
    pictures = read_posts(options.data, options.split)
    if not pictures:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    return asyncio.run(measure(options, pictures))


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
    token = os.environ.get("ADMIN_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=options.url, timeout=60, headers=headers) as client:
        before = await get_p(client)
        try:
            if options.patch_every:
                return await measure_turning(client, pictures, options)
            if options.share:
                return await measure_share(client, pictures, options)
            return await measure_speed(client, pictures, options)
        finally:
            await set_p(client, before)


async def measure_speed(client: httpx.AsyncClient, pictures: list[Post], options: argparse.Namespace) -> int:
    failed = 0
    print(f"{len(pictures)} pictures, {options.clients} clients, {options.seconds:g} s each")
    for p in options.p:
        await set_p(client, p)
        await load_for(options.warm_up, client, pictures, options)
        run = await load_for(options.seconds, client, pictures, options)
        failed += len(run.failures)
        print(f"p={p:g}: {describe(run)}")
    resident = (await metrics(client)).get(RESIDENT_BYTES, math.nan)
    print(f"resident memory: {resident / 2**20:.0f} MiB")
    return int(failed > 0)


async def measure_turning(
    client: httpx.AsyncClient, pictures: list[Post], options: argparse.Namespace
) -> int:
    async with turning(client, options.patch_every, options.seed):
        run = await load_for(options.seconds, client, pictures, options)
    print(describe(run))
    missed = 0
    for p, people, share in shares(run.good):
        allowed = 3 * math.sqrt(p * (1 - p) / people) + SHARE_TOLERANCE
        within = abs(share - p) <= allowed
        missed += not within
        print(
            f"p={p:g}: {people} people, large share {share:.3f}, allowed +-{allowed:.3f}: {verdict(within)}"
        )
    return int(bool(run.failures) or missed > 0)


async def measure_share(client: httpx.AsyncClient, pictures: list[Post], options: argparse.Namespace) -> int:
    missed = 0
    for p in options.p:
        await set_p(client, p)
        run = await load(
            client,
            pictures,
            clients=options.clients,
            until=lambda answers, _: sum(answer.people for answer in answers) >= options.share,
            seed=options.seed,
        )
        people = sum(answer.people for answer in run.good)
        share = sum(answer.routes["hard"] for answer in run.good) / people
        within = abs(share - p) <= SHARE_BAR and not run.failures
        missed += not within
        print(
            f"p={p:g}: {people} people, large share {share:.4f}, "
            f"{len(run.failures)} failed: {verdict(within)}"
        )
    return int(missed > 0)


async def load_for(
    seconds: float, client: httpx.AsyncClient, pictures: list[Post], options: argparse.Namespace
) -> Run:
    return await load(
        client,
        pictures,
        clients=options.clients,
        until=lambda _, elapsed: elapsed >= seconds,
        seed=options.seed,
    )


@contextlib.asynccontextmanager
async def turning(client: httpx.AsyncClient, period_s: float, seed: int) -> AsyncIterator[None]:
    """Sets p to one of `PATCHED` at random every `period_s` seconds. Raises when a change is refused."""
    choice = random.Random(seed)

    async def turn() -> None:
        while True:
            await set_p(client, choice.choice(PATCHED))
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


def describe(run: Run) -> str:
    """Speed, latency, and the parts of wall time and of latency in which a stage was at work."""
    if not run.good:
        return f"no request was answered; {len(run.failures)} failed"
    seconds = sorted(answer.seconds for answer in run.good)
    people = sum(answer.people for answer in run.good)
    large = sum(answer.routes["hard"] for answer in run.good)
    busy = ", ".join(f"{stage} {part / run.seconds:.0%}" for stage, part in sorted(run.stage_seconds.items()))
    total = sum(answer.timing_ms["total"] for answer in run.good)
    own = ", ".join(
        f"{name} {sum(answer.timing_ms[name] for answer in run.good) / total:.0%}"
        for name in ("decode", "detect", "score", "estimate", "queued")
    )
    return (
        f"{len(run.good) / run.seconds:.1f} images/s, {people / run.seconds:.1f} people/s, "
        f"p50 {quantile(seconds, 0.5) * 1e3:.0f} ms, p95 {quantile(seconds, 0.95) * 1e3:.0f} ms, "
        f"large share {large / max(people, 1):.3f}, {len(run.failures)} failed\n"
        f"    stages at work: {sum(run.stage_seconds.values()) / run.seconds:.0%} of wall time ({busy}), "
        f"process: {run.cpu_seconds / run.seconds:.2f} cores\n"
        f"    parts of the time in the service: {own}"
    )


def quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def verdict(good: bool) -> str:
    return "ok" if good else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
