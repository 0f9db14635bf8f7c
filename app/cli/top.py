"""`dynpose top`: what a server did between two looks at its /metrics."""

import asyncio
import math
import time
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.cli.client import Client, ServerError

QUANTILES = (0.5, 0.95, 0.99)
ROUTES = ("easy", "hard", "extremely_hard", "forced_small", "forced_large")
LARGE = ("hard", "forced_large")
STAGES = {
    "detect": ("detect",),
    "score": ("score",),
    "small": ("easy", "extremely_hard"),
    "large": ("hard",),
}
"""The queues that each stage serves, as in `app.service.build_stages`."""
WIDTH = 100

Buckets = list[tuple[float, float]]
"""(upper edge, count up to it) of a histogram, in rising order."""


class Scrape:
    """One look at /metrics. at: monotonic seconds."""

    def __init__(self, text: str, at: float) -> None:
        """Raises ValueError for what is not the text of a DynPose server."""
        self.at = at
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        if "dynpose_people_total" not in self._samples:
            raise ValueError("no metrics of a DynPose server")

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples that have these labels; 0 without any."""
        return sum(
            value
            for theirs, value in self._samples.get(f"dynpose_{name}", [])
            if labels.items() <= theirs.items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self._samples.get(f"dynpose_{name}", [])}

    def buckets(self, name: str, **labels: str) -> Buckets:
        found = self._samples.get(f"dynpose_{name}_bucket", [])
        return sorted((float(its["le"]), value) for its, value in found if labels.items() <= its.items())

    @property
    def started(self) -> float:
        """When the process began, seconds since 1970; 0 where that is not told."""
        return next((value for _, value in self._samples.get("process_start_time_seconds", [])), 0.0)


def quantile(buckets: Buckets, q: float) -> float | None:
    """The value below which the share q of the observations lies, linear within its bucket, as in Prometheus. The last
    finite edge where it lies beyond; None without observations."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for edge, count in buckets:
        if count >= rank and count > below:
            return low if math.isinf(edge) else low + (edge - low) * (rank - below) / (count - below)
        low, below = (low if math.isinf(edge) else edge), count
    return low


@dataclass(frozen=True, slots=True)
class Queue:
    """Times in seconds, None where nothing was taken from the queue between the two looks."""

    name: str
    stage: str
    depth: int
    wait: float | None
    wait_p95: float | None


@dataclass(frozen=True, slots=True)
class StageRow:
    """busy: share of the time in which a batch ran. size: items of a batch, run: its seconds, on average."""

    name: str
    busy: float
    batches_s: float
    size: float | None
    run: float | None


@dataclass(frozen=True, slots=True)
class View:
    """What happened between two looks `seconds` apart; rates are per second, latencies in seconds."""

    seconds: float
    people_s: float
    images_s: float
    statuses: dict[str, float]
    latencies: tuple[float | None, ...]
    in_flight: int
    routes: dict[str, int]
    p: float
    k1: float
    k2: float
    realised: float
    realised_people: int
    queues: list[Queue]
    stages: list[StageRow]

    @property
    def people(self) -> int:
        return sum(self.routes.values())


def view(before: Scrape, after: Scrape) -> View:
    """Raises ValueError where another process answered than before: counts of two cannot be compared."""
    if before.started != after.started:
        raise ValueError("another process answers than at the last look")
    seconds = max(1e-3, after.at - before.at)

    def grown(name: str, **labels: str) -> float:
        return max(0.0, after.total(name, **labels) - before.total(name, **labels))

    def grown_buckets(name: str, **labels: str) -> Buckets:
        old = dict(before.buckets(name, **labels))
        return [(edge, max(0.0, count - old.get(edge, 0.0))) for edge, count in after.buckets(name, **labels)]

    def queue_of(stage: str, name: str) -> Queue:
        waits = grown("queue_wait_seconds_count", queue=name)
        return Queue(
            name=name,
            stage=stage,
            depth=round(after.total("queue_depth", queue=name)),
            wait=grown("queue_wait_seconds_sum", queue=name) / waits if waits else None,
            wait_p95=quantile(grown_buckets("queue_wait_seconds", queue=name), 0.95),
        )

    def stage_of(name: str) -> StageRow:
        batches = grown("stage_duration_seconds_count", stage=name)
        ran = grown("stage_duration_seconds_sum", stage=name)
        slots = after.total("stage_slots", stage=name) or 1
        return StageRow(
            name=name,
            busy=min(1.0, ran / seconds / slots),  # a batch counts when it ends, and may have begun before
            batches_s=batches / seconds,
            size=grown("batch_size_sum", stage=name) / batches if batches else None,
            run=ran / batches if batches else None,
        )

    durations = grown_buckets("request_duration_seconds")
    thresholds = after.by("threshold", "name")
    return View(
        seconds=seconds,
        people_s=grown("people_total") / seconds,
        images_s=grown("images_total") / seconds,
        statuses={
            status: rate
            for status in sorted(after.by("requests_total", "status"))
            if (rate := grown("requests_total", status=status) / seconds)
        },
        latencies=tuple(quantile(durations, q) for q in QUANTILES),
        in_flight=round(after.total("in_flight")),
        routes={route: round(grown("people_total", route=route)) for route in ROUTES},
        p=after.total("split_target"),
        k1=thresholds.get("k1", math.nan),
        k2=thresholds.get("k2", math.nan),
        realised=after.total("large_share"),
        realised_people=round(after.total("large_share_people")),
        queues=[
            queue_of("-", "decode"),
            *(queue_of(stage, name) for stage, names in STAGES.items() for name in names),
        ],
        stages=[stage_of(name) for name in STAGES],
    )


def rendered(url: str, now: View) -> RenderableType:
    """The view as tables without frames, which are plain text where there is no terminal."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("server", f"{url}, {now.seconds:.1f} s")
    facts.add_row("people/s", f"{now.people_s:.1f}")
    facts.add_row("images/s", f"{now.images_s:.1f}")
    statuses = "  ".join(f"{status} {rate:.1f}" for status, rate in now.statuses.items())
    facts.add_row("answers/s", f"{statuses or 'none'}  ({now.in_flight} in flight)")
    latencies = zip(QUANTILES, now.latencies, strict=True)
    facts.add_row("latency", "  ".join(f"p{round(100 * q)} {_ms(value)}" for q, value in latencies))
    facts.add_row("large share", _shares(now))
    routes = "  ".join(
        f"{route} {count} ({count / now.people:.2f})" for route, count in now.routes.items() if count
    )
    facts.add_row("routes", routes or "nobody")
    facts.add_row("thresholds", f"k1 {now.k1:.6f}  k2 {now.k2:.6f}")
    queues = _table("queue", "stage", "waiting", "wait", "wait p95")
    for queue in now.queues:
        queues.add_row(queue.name, queue.stage, str(queue.depth), _ms(queue.wait), _ms(queue.wait_p95))
    stages = _table("stage", "busy", "batches/s", "batch size", "batch run")
    for stage in now.stages:
        size = "-" if stage.size is None else f"{stage.size:.1f}"
        stages.add_row(stage.name, f"{stage.busy:.0%}", f"{stage.batches_s:.1f}", size, _ms(stage.run))
    return Group(facts, "", queues, "", stages)


def _shares(now: View) -> str:
    share = sum(now.routes[route] for route in LARGE) / now.people if now.people else None
    latest = "-" if share is None else f"{share:.2f}"
    return f"{latest} now  {now.realised:.2f} of {now.realised_people} people since p changed  target p {now.p:g}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", min_width=10 if index else 14)
    return table


def _ms(seconds: float | None) -> str:
    return (
        "-"
        if seconds is None
        else f"{1000 * seconds:.0f} ms"
        if seconds >= 0.01
        else f"{1000 * seconds:.1f} ms"
    )


async def look(client: Client) -> Scrape:
    """Raises ServerError."""
    text = await client.metrics()
    try:
        return Scrape(text, time.monotonic())
    except ValueError as error:
        raise ServerError(f"{client.url}: {error}") from error


async def once(url: str, interval_s: float) -> None:
    """Print one view as plain text. Raises ServerError."""
    async with Client(url) as client:
        before = await look(client)
        await asyncio.sleep(interval_s)
        after = await look(client)
        try:
            now = view(before, after)
        except ValueError as error:
            raise ServerError(f"{client.url}: {error}") from error
    console = Console(width=WIDTH, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as plain:
        console.print(rendered(client.url, now), markup=False)
    print("\n".join(line.rstrip() for line in plain.get().splitlines()))


class Watch:
    """What a terminal shows of a server, look by look. The last view stays while the server is gone."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: Scrape | None = None
        self._shown: RenderableType = Text("waiting for two looks at /metrics")

    async def look(self) -> RenderableType:
        """Look once; what to show now."""
        try:
            after = await look(self._client)
        except ServerError as error:
            self._before = None
            return self._with(f"{error}; trying again")
        before, self._before = self._before, after
        if before is not None:
            try:
                self._shown = rendered(self._client.url, view(before, after))
            except ValueError as error:
                return self._with(f"{self._client.url}: {error}")
        return self._shown

    def _with(self, remark: str) -> RenderableType:
        return Group(self._shown, "", Text(remark, style="bold red"))


async def watch(url: str, interval_s: float) -> None:
    """Show a new view every interval until Ctrl-C. Raises ServerError for a url that cannot be one."""
    async with Client(url) as client:
        watched = Watch(client)
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                live.update(await watched.look(), refresh=True)
                await asyncio.sleep(interval_s)
