"""One measurement: a load on one contender for some seconds, and what came of it as a record."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.client import Answer, stage_seconds
from benchmarks.contenders import Loops, Server
from benchmarks.loops import Observed, Run, closed_loop, observe, observe_pictures, open_loop, quantile
from benchmarks.pictures import Post
from benchmarks.processes import Usage, own_usage
from benchmarks.records import Record

STAGES = ("decode", "detect", "score", "estimate")
"""Of an answer's `timing_ms`: the stages' own run times."""


@dataclass(frozen=True)
class Reading:
    """own: of this process, the load generator."""

    server: Usage
    own: Usage
    metrics: dict[str, float]


Watch = Callable[[], Awaitable[Reading]]


async def closed(
    server: Server,
    pictures: Iterator[Post],
    *,
    clients: int,
    warm_up: float,
    seconds: float,
    count: int | None = None,
) -> Record:
    """So many clients, each of which posts its next picture when it has the answer. count: pictures to be measured,
    after two for each client, in place of times."""

    def load(over: Any) -> Any:
        return closed_loop(server.client.pose, pictures, clients, over)

    def watched(watch: Watch) -> Awaitable[Observed[Reading]]:
        if count is not None:
            return observe_pictures(load, watch, first=2 * clients, count=count)
        return observe(load, watch, warm_up=warm_up, seconds=seconds)

    return await _measure(server, watched)


async def opened(
    server: Server,
    pictures: Iterator[Post],
    *,
    rate: float,
    warm_up: float,
    seconds: float,
) -> Record:
    """`rate` pictures a second, whether or not the answers keep up."""

    def load(over: Any) -> Any:
        return open_loop(server.client.pose, pictures, rate, over)

    return await _measure(server, lambda watch: observe(load, watch, warm_up=warm_up, seconds=seconds))


async def loops(
    running: Loops,
    *,
    p: float,
    warm_up: float,
    seconds: float,
    seed: int,
    count: int | None = None,
) -> Record:
    """A contender without a server, all of whose processes run for so long, or until they have had `count` pictures
    together."""
    running.look()
    each = None if count is None else -(-count // running.contender.processes)
    await running.ask(seconds=warm_up, p=p, seed=seed + 1, count=None)
    before = running.usage()
    answers = await running.ask(seconds=seconds, p=p, seed=seed, count=each)
    wall = max(answer["seconds"] for answer in answers)
    after = running.usage()
    ms = [each for answer in answers for each in answer["ms"]]
    return {
        "seconds": wall,
        "images": sum(answer["images"] for answer in answers),
        # Processes end a little apart from each other, each after its last picture.
        "images_per_s": sum(answer["images"] / answer["seconds"] for answer in answers),
        "people_per_s": sum(answer["people"] / answer["seconds"] for answer in answers),
        "p50_ms": quantile(ms, 0.5) if running.contender.processes == 1 else None,
        "p95_ms": quantile(ms, 0.95) if running.contender.processes == 1 else None,
        "p99_ms": quantile(ms, 0.99) if running.contender.processes == 1 else None,
        "server_cores": (after.cpu_seconds - before.cpu_seconds) / wall,
        "resident_mib": after.resident_mib,
        "failed": {},
    }


async def _measure(server: Server, watched: Callable[[Watch], Awaitable[Observed[Reading]]]) -> Record:
    server.look()
    peak = 0.0

    async def watch() -> Reading:
        metrics = await server.client.metrics() if server.contender.kind == "service" else {}
        return Reading(server.usage(), own_usage(), metrics)

    async def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, server.usage().resident_mib)
            await asyncio.sleep(1)

    sampling = asyncio.create_task(sample())
    try:
        seen = await watched(watch)
    finally:
        sampling.cancel()
    wall, before, after = seen.run.seconds, seen.before, seen.after
    stages = stage_seconds(before.metrics, after.metrics)
    return summary(seen.run) | {
        "server_cores": (after.server.cpu_seconds - before.server.cpu_seconds) / wall,
        "own_cores": (after.own.cpu_seconds - before.own.cpu_seconds) / wall,
        "resident_mib": after.server.resident_mib,
        "peak_mib": max(peak, after.server.resident_mib),
        "stages": {  # in shares of their slots' time
            stage: spent / wall / after.metrics.get(f"dynpose_stage_slots {stage}", 1)
            for stage, spent in stages.items()
        },
    }


def summary(run: Run) -> Record:
    """Speed, and the latency of what was answered 200; of what was refused (429), the time from sending to answer."""
    ms = [1e3 * answer.seconds for answer in run.good]
    refused = [1e3 * (answer.end - answer.sent) for answer in run.answers if answer.status == 429]
    told = [answer for answer in run.good if answer.timing_ms]
    return {
        "seconds": run.seconds,
        "images": len(run.good),
        "pictures": [answer.picture for answer in run.good],
        "images_per_s": len(run.good) / run.seconds,
        "people_per_s": run.people / run.seconds,
        "p50_ms": quantile(ms, 0.5),
        "p95_ms": quantile(ms, 0.95),
        "p99_ms": quantile(ms, 0.99),
        "ms": [round(each, 1) for each in ms],
        "failed": {str(status): count for status, count in Counter(a.status for a in run.failures).items()},
        "refused_p50_ms": quantile(refused, 0.5) if refused else None,
        "refused_p99_ms": quantile(refused, 0.99) if refused else None,
        "large_share": _large_share(run),
        "over_stages_ms": quantile([_over_stages(answer) for answer in told], 0.5) if told else None,
        "decode_share": sum(answer.timing_ms["decode"] for answer in told) / 1e3 / run.seconds
        if told
        else None,
    }


def _over_stages(answer: Answer) -> float:
    """Milliseconds that a client waited beyond the stages' own run times."""
    return 1e3 * answer.seconds - sum(answer.timing_ms[stage] for stage in STAGES)


def _large_share(run: Run) -> float | None:
    large = sum(answer.routes.get("hard", 0) for answer in run.good)
    routed = sum(sum(answer.routes.values()) for answer in run.good)
    return large / routed if routed else None
