import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.app.conftest import picture_of
from tests.process import until

NAMES = {
    "dynpose_requests",
    "dynpose_request_duration_seconds",
    "dynpose_images",
    "dynpose_people",
    "dynpose_people_per_image",
    "dynpose_route_ratio",
    "dynpose_large_share",
    "dynpose_split_target",
    "dynpose_threshold",
    "dynpose_difficulty",
    "dynpose_stage_duration_seconds",
    "dynpose_batch_size",
    "dynpose_queue_wait_seconds",
    "dynpose_queue_depth",
    "dynpose_in_flight",
    "dynpose_rejected",
    "dynpose_stage_failures",
    "dynpose_cancelled",
    "dynpose_difficulty_drift",
    "dynpose_stage_cost_seconds",
    "dynpose_stage_batch_limit",
    "dynpose_stage_slots",
    "dynpose_config_changes",
    "dynpose_build_info",
    "process_resident_memory_bytes",
}


def samples(client) -> dict:
    families = list(parse(client.get("/metrics").text))
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def post(client, difficulties, **query):
    headers = {"Content-Type": "image/png"}
    assert (
        client.post("/pose", content=picture_of(difficulties), headers=headers, params=query).status_code
        == 200
    )


def test_every_documented_name_is_there_from_the_start(client):
    families = {family.name for family in parse(client.get("/metrics").text)}
    assert families >= NAMES


def test_openmetrics_is_given_to_who_asks_for_it(client):
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(answer.text)} >= NAMES


def test_people_are_counted_by_route(client):
    post(client, [0.41, 0.47, 0.47, 0.56])
    post(client, [0.47], estimator="small")
    found = samples(client)
    people = {route: found["dynpose_people_total", route] for route in ("easy", "hard", "extremely_hard")}
    assert people == {"easy": 1, "hard": 2, "extremely_hard": 1}
    assert found["dynpose_people_total", "forced_small"] == 1
    assert found["dynpose_route_ratio", "hard"] == 0.5
    assert found["dynpose_large_share",] == 0.5
    assert found["dynpose_difficulty_count",] == 4
    assert found["dynpose_images_total",] == 2
    assert found["dynpose_people_per_image_sum",] == 5
    assert found["dynpose_requests_total", "200"] == 2
    assert found["dynpose_in_flight",] == 0


def test_the_split_is_reported_with_its_infinities(client):
    found = samples(client)
    assert found["dynpose_split_target",] == 0.5
    assert (found["dynpose_threshold", "k1"], found["dynpose_threshold", "k2"]) == pytest.approx((0.42, 0.52))
    client.patch("/config", json={"p": 1})
    assert samples(client)["dynpose_threshold", "k2"] == float("inf")


def test_stages_and_queues_are_timed(client):
    post(client, [0.41, 0.47, 0.56])
    stages = ("detect", "score", "small", "large")
    # Reported after the answer.
    assert until(lambda: all(("dynpose_batch_size_count", stage) in samples(client) for stage in stages))
    found = samples(client)
    for stage in stages:
        assert found["dynpose_batch_size_count", stage] >= 1
        assert found["dynpose_stage_duration_seconds_sum", stage] > 0
        assert ("dynpose_stage_cost_seconds", *sorted([stage, "per_item"])) in found
    for queue in ("decode", "detect", "score", "easy", "hard", "extremely_hard"):
        assert found["dynpose_queue_depth", queue] == 0
        assert found["dynpose_queue_wait_seconds_count", queue] >= 1


def test_refused_requests_are_counted_by_status(client):
    client.post("/pose", content=b"x", headers={"Content-Type": "image/png"})
    assert samples(client)["dynpose_requests_total", "415"] == 1


@pytest.mark.parametrize(
    "accept", ["text/plain; version=abc", "application/openmetrics-text; version=1.x.0", "\xff;;=,", "*/*"]
)
def test_what_accept_asks_for_in_vain_comes_as_text(client, accept):
    answer = client.get("/metrics", headers={"Accept": accept.encode("latin-1")})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


def test_only_post_counts_as_a_request_for_poses(client):
    assert client.get("/pose").status_code == 405
    post(client, [0.47])
    counted = {name: value for name, value in samples(client).items() if name[0] == "dynpose_requests_total"}
    assert {name: value for name, value in counted.items() if value} == {("dynpose_requests_total", "200"): 1}
