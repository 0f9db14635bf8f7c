"""Every metric of the service, in one registry that belongs to one application."""

import math
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from app.admission import Ahead
from app.batching import BatchQueue, Stage
from app.errors import CLIENT_CLOSED_REQUEST
from app.policy import REALISED, Route, SplitPolicy

FORCED = ("forced_small", "forced_large")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STATUSES = ("200", "400", "401", "408", "413", "415", "422", "429", "499", "500", "503", "504")
REASONS = ("overloaded", "draining", "not_ready")


class Metrics:
    """Counted on the event loop and, as `batching.Observer`, in the crew's threads."""

    def __init__(self, *, version: str, pair: str, device: str, runtime: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._latest: deque[Route] = deque(maxlen=REALISED)

        def counter(name: str, text: str, label: str = "", values: Iterable[str] = ()) -> Counter:
            made = Counter(f"dynpose_{name}", text, [label] if label else [], registry=self.registry)
            for value in values:
                made.labels(value)
            return made

        def histogram(name: str, text: str, buckets: Sequence[float], label: str = "") -> Histogram:
            labels = [label] if label else []
            return Histogram(f"dynpose_{name}", text, labels, registry=self.registry, buckets=buckets)

        self._requests = counter("requests", "Requests of POST /pose, by status", "status", STATUSES)
        self._duration = histogram(
            "request_duration_seconds", "Time from the request line to the answer", SECONDS
        )
        self._images = counter("images", "Pictures answered")
        self._people = counter("people", "People, by route", "route", [*Route, *FORCED])
        self._people_per_image = histogram(
            "people_per_image", "People found in a picture", (0, 1, 2, 3, 5, 10, 20, 50, 100)
        )
        scores = [step / 50 for step in range(1, 51)]
        self._difficulty = histogram("difficulty", "The router's scores", scores)
        self._stage_duration = histogram("stage_duration_seconds", "Run time of a batch", SECONDS, "stage")
        self._batch_size = histogram("batch_size", "Items in a batch", (1, 2, 4, 8, 16, 32, 64), "stage")
        self._wait = histogram("queue_wait_seconds", "Time an item waited to be run", SECONDS, "queue")
        self.in_flight = Gauge("dynpose_in_flight", "Requests being worked on", registry=self.registry)
        self.ready = Gauge("dynpose_ready", "1 when /readyz is 200, else 0", registry=self.registry)
        self._rejected = counter("rejected", "Requests refused before work, by reason", "reason", REASONS)
        self._failures = counter(
            "stage_failures", "Batches that failed, and results that were not finite", "stage"
        )
        self._cancelled = counter("cancelled", "Requests whose client hung up")
        self._config_changes = counter("config_changes", "Changes of the configuration")
        info = Gauge(
            "dynpose_build_info",
            "Always 1; what is running is in the labels",
            ["version", "pair", "device", "runtime"],
            registry=self.registry,
        )
        info.labels(version, pair, device, runtime).set(1)

    def bind(
        self, policy: Callable[[], SplitPolicy], stages: Sequence[Stage], queues: Sequence[Ahead] = ()
    ) -> None:
        """Let scrapes read the live state of `policy`, `stages` and `queues` of no stage."""
        for stage in stages:
            self._stage_duration.labels(stage.name)
            self._batch_size.labels(stage.name)
            self._failures.labels(stage.name)
        waiting: list[Ahead | BatchQueue[Any, Any]] = [*queues]
        waiting += [queue for stage in stages for queue in stage.queues]
        for queue in waiting:
            self._wait.labels(queue.name)
        self.registry.register(_Live(policy, stages, waiting, self._latest))

    def request(self, status: int, seconds: float) -> None:
        self._requests.labels(str(status)).inc()
        if status == CLIENT_CLOSED_REQUEST:
            self._cancelled.inc()
        self._duration.observe(seconds)

    def image(self, people: int) -> None:
        self._images.inc()
        self._people_per_image.observe(people)

    def person(self, route: Route, difficulty: float) -> None:
        self._people.labels(route).inc()
        self._latest.append(route)
        self._difficulty.observe(difficulty)

    def forced(self, estimator: str) -> None:
        self._people.labels(f"forced_{estimator}").inc()

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def config_changed(self) -> None:
        self._config_changes.inc()

    # batching.Observer

    def waited(self, queue: str, seconds: float) -> None:
        self._wait.labels(queue).observe(seconds)

    def ran(self, stage: str, size: int, seconds: float) -> None:
        self._stage_duration.labels(stage).observe(seconds)
        self._batch_size.labels(stage).observe(size)

    def failed(self, stage: str) -> None:
        self._failures.labels(stage).inc()

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """(body, content type): OpenMetrics when `accept` asks for it, else Prometheus text."""
        try:
            encode, content_type = choose_encoder(accept or "")
        except (TypeError, ValueError):  # it asks for a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self.registry), content_type


class _Live:
    """State that is not counted but read when somebody asks."""

    def __init__(
        self,
        policy: Callable[[], SplitPolicy],
        stages: Sequence[Stage],
        queues: Sequence[Ahead | BatchQueue[Any, Any]],
        latest: Sequence[Route],
    ) -> None:
        self._policy = policy
        self._stages = stages
        self._queues = queues
        self._latest = latest

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        policy = self._policy()
        now = policy.snapshot
        people, share = policy.realised()
        yield _gauge("split_target", "p, the asked share of people for the large net", now.p)
        yield _gauge("large_share", "Share routed to the large net since the last change, newest 2000", share)
        yield _gauge("large_share_people", "People behind dynpose_large_share", people)
        yield _gauge(
            "difficulty_drift",
            "Distance (Kolmogorov-Smirnov) of live scores from calibration",
            policy.drift(),
        )
        thresholds = {"k1": now.k1, "k2": now.k2}
        yield _gauges("threshold", "Difficulty up to k1 is easy, from k2 extremely hard", "name", thresholds)
        routes = Tally(self._latest)
        total = max(1, len(self._latest))
        ratios = {str(route): routes[route] / total for route in Route}
        yield _gauges("route_ratio", "Shares of the routes, newest 2000 people", "route", ratios)
        depths = {queue.name: queue.depth for queue in self._queues}
        yield _gauges("queue_depth", "Items waiting", "queue", depths)
        cost = GaugeMetricFamily(
            "dynpose_stage_cost_seconds",
            "Fitted run time of a batch: per_item * n + base (without pictures that had several cores)",
            labels=["stage", "term"],
        )
        for stage in self._stages:
            for term, seconds in zip(("per_item", "base"), stage.cost.terms, strict=True):
                cost.add_metric([stage.name, term], seconds if math.isfinite(seconds) else 0.0)
        yield cost
        slots = {stage.name: stage.slots for stage in self._stages}
        yield _gauges("stage_slots", "Batches that may run at once", "stage", slots)
        limits = {stage.name: stage.limit for stage in self._stages}
        yield _gauges("stage_batch_limit", "Largest batch worth running, by warming", "stage", limits)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dynpose_{name}", text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"dynpose_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
