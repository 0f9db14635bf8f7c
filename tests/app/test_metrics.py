"""The registry by itself; what requests do to it is in routes/test_metrics.py."""

import math
import threading

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse

from app.batching import BatchQueue, Stage
from app.metrics import REASONS, SECONDS, STATUSES, Metrics
from app.policy import Route, SplitPolicy

EVERY_ROUTE = ["easy", "hard", "extremely_hard", "forced_small", "forced_large"]


def new_metrics(device: str = "cpu") -> Metrics:
    return Metrics(version="1.2.3", pair="embedded", device=device, runtime="eager-float32")


def bound(metrics: Metrics, **split) -> tuple[Stage, SplitPolicy]:
    """Give `metrics` a stage that never starts and a policy in mode `fixed`."""
    queues = [BatchQueue("easy"), BatchQueue("extremely_hard")]
    stage = Stage("small", [list], queues, buckets=(1,), observer=metrics)
    scores = [index / 1000 for index in range(1001)]
    policy = SplitPolicy(scores, **{"p": 0.5, "theta": 0.1, "mode": "fixed", "policy": "band"} | split)
    metrics.bind(lambda: policy, [stage])
    return stage, policy


def samples(metrics: Metrics) -> dict:
    body, _ = metrics.render(None)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def test_every_label_that_can_be_known_is_there_at_zero_from_the_start():
    metrics = new_metrics()
    bound(metrics)
    found = samples(metrics)
    for route in EVERY_ROUTE:
        assert found["dynpose_people_total", route] == 0
    for status in STATUSES:
        assert found["dynpose_requests_total", status] == 0
    for reason in REASONS:
        assert found["dynpose_rejected_total", reason] == 0
    for route in Route:
        assert found["dynpose_route_ratio", route] == 0
    for name in ("stage_duration_seconds_count", "batch_size_count", "stage_failures_total"):
        assert found[f"dynpose_{name}", "small"] == 0
    for term in ("per_item", "base"):
        assert found["dynpose_stage_cost_seconds", "small", term] == 0
    assert found["dynpose_stage_batch_limit", "small"] == 1
    for queue in ("easy", "extremely_hard"):
        assert found["dynpose_queue_wait_seconds_count", queue] == 0
        assert found["dynpose_queue_depth", queue] == 0
    for name in ("images_total", "cancelled_total", "config_changes_total", "in_flight", "large_share"):
        assert found[f"dynpose_{name}",] == 0


def test_two_services_in_one_process_do_not_share_a_count():
    one, other = new_metrics(), new_metrics()
    one.request(499, 0.1)
    assert samples(one)["dynpose_cancelled_total",] == 1
    assert samples(other)["dynpose_cancelled_total",] == 0
    assert isinstance(one.registry, CollectorRegistry)
    assert one.registry is not other.registry


def test_what_runs_is_told_in_labels():
    labels = ("cuda", "embedded", "eager-float32", "1.2.3")  # in the order of their names
    assert samples(new_metrics("cuda"))["dynpose_build_info", *labels] == 1


def test_counts_from_many_threads_are_not_lost():
    metrics = new_metrics()
    bound(metrics)

    def work() -> None:
        for _ in range(500):
            metrics.ran("small", 4, 0.02)
            metrics.waited("easy", 0.003)
            metrics.failed("small")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics)
    assert found["dynpose_batch_size_count", "small"] == 2000
    assert found["dynpose_batch_size_sum", "small"] == 8000
    assert found["dynpose_queue_wait_seconds_count", "easy"] == 2000
    assert found["dynpose_stage_failures_total", "small"] == 2000


def test_route_ratios_are_of_the_newest_people():
    metrics = new_metrics()
    bound(metrics)
    for route in [Route.easy] * 500 + [Route.hard] * 1500 + [Route.extremely_hard] * 500:
        metrics.person(route, 0.5)
    found = samples(metrics)
    assert [found["dynpose_route_ratio", route] for route in Route] == [0, 0.75, 0.25]
    assert found["dynpose_people_total", "easy"] == 500


def test_the_realised_share_is_the_policys_and_starts_over_with_a_change():
    metrics = new_metrics()
    _, policy = bound(metrics)
    for difficulty in (0.05, 0.5, 0.5, 0.5):
        policy.observe(difficulty, policy.snapshot.route(difficulty), own_p=True)
    policy.observe(0.05, Route.easy, own_p=False)
    assert samples(metrics)["dynpose_large_share",] == 0.75
    assert samples(metrics)["dynpose_large_share_people",] == 4
    policy.configure(p=1, theta=0.1, mode="fixed", policy="band")
    found = samples(metrics)
    assert found["dynpose_large_share_people",] == 0
    assert found["dynpose_split_target",] == 1
    assert (found["dynpose_threshold", "k1"], found["dynpose_threshold", "k2"]) == (-math.inf, math.inf)


def test_the_cost_of_a_stage_is_shown_as_it_was_fitted():
    metrics = new_metrics()
    stage, _ = bound(metrics)
    for size in (1, 2, 4) * 10:
        stage.cost.add(size, 0.01 * size + 0.02)
    found = samples(metrics)
    assert abs(found["dynpose_stage_cost_seconds", "small", "per_item"] - 0.01) < 1e-6
    assert abs(found["dynpose_stage_cost_seconds", "small", "base"] - 0.02) < 1e-6


def test_times_between_a_millisecond_and_the_deadline_fall_into_buckets_of_their_own():
    metrics = new_metrics()
    for seconds in SECONDS:
        metrics.request(200, seconds)
    found = samples(metrics)
    edges = [found["dynpose_request_duration_seconds_bucket", str(float(edge))] for edge in SECONDS]
    assert edges == list(range(1, len(SECONDS) + 1))
    assert found["dynpose_requests_total", "200"] == len(SECONDS)
