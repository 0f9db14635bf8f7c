"""A closed loop of clients: each posts a picture, waits for the answer, and posts the next."""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.pictures import Post

STAGE_SECONDS = "dynpose_stage_duration_seconds_sum "
CPU_SECONDS = "process_cpu_seconds_total"
RESIDENT_BYTES = "process_resident_memory_bytes"


@dataclass(frozen=True)
class Answer:
    """One request. `seconds` is what the client waited; `timing_ms` is what the service says of itself."""

    status: int
    seconds: float
    p: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    timing_ms: dict[str, float] = field(default_factory=dict)

    @property
    def people(self) -> int:
        return sum(self.routes.values())


@dataclass(frozen=True)
class Run:
    """Everything that one load gave, in order of arrival. `stage_seconds`: stage -> time its batches ran;
    `cpu_seconds` of the service's process, over all its cores."""

    answers: list[Answer]
    seconds: float
    cpu_seconds: float
    stage_seconds: dict[str, float]

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]


async def post(client: httpx.AsyncClient, picture: Post) -> Answer:
    """Posts one picture. A request that gets no answer at all has status 0."""
    begin = time.perf_counter()
    try:
        response = await client.post(
            "/pose", content=picture.body, headers={"Content-Type": picture.media_type}
        )
    except httpx.TransportError:
        return Answer(0, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    if response.status_code != 200:
        return Answer(response.status_code, seconds)
    body = response.json()
    return Answer(
        200,
        seconds,
        p=body["split"]["p"],
        routes=body["images"][0]["routes"],
        timing_ms=body["timing_ms"],
    )


async def load(
    client: httpx.AsyncClient,
    pictures: list[Post],
    *,
    clients: int,
    until: Callable[[list[Answer], float], bool],
    seed: int = 0,
) -> Run:
    """`clients` closed loops over the shuffled pictures, again and again until `until(answers, seconds)`."""
    answers: list[Answer] = []
    order = shuffled_forever(pictures, seed)
    before = await metrics(client)
    begin = time.perf_counter()

    async def one_client() -> None:
        while not until(answers, time.perf_counter() - begin):
            answers.append(await post(client, next(order)))

    await asyncio.gather(*(one_client() for _ in range(clients)))
    seconds = time.perf_counter() - begin
    after = await metrics(client)
    return Run(
        answers,
        seconds,
        cpu_seconds=after.get(CPU_SECONDS, math.nan) - before.get(CPU_SECONDS, math.nan),
        stage_seconds={
            stage: after[name] - before.get(name, 0.0)
            for name in after
            if (stage := name.removeprefix(STAGE_SECONDS)) != name
        },
    )


def shuffled_forever(pictures: list[Post], seed: int) -> Iterator[Post]:
    """Every picture once, in an order of its own for each pass."""
    order = random.Random(seed)
    for _ in itertools.count():
        yield from order.sample(pictures, len(pictures))


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Every sample by its name, with the values of its labels behind a space each."""
    response = await client.get("/metrics", headers={"Accept": "text/plain"})
    response.raise_for_status()
    return {
        " ".join([sample.name, *sample.labels.values()]): float(sample.value)
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def get_p(client: httpx.AsyncClient) -> float:
    response = await client.get("/config")
    response.raise_for_status()
    return float(response.json()["p"])


async def set_p(client: httpx.AsyncClient, p: float) -> None:
    response = await client.patch("/config", json={"p": p})
    response.raise_for_status()
