import pytest

from tests.app.conftest import picture_of

PERSON = picture_of([0.47])


def post(client):
    return client.post("/pose", content=PERSON, headers={"Content-Type": "image/png"})


def test_a_running_service_is_alive_and_ready(client):
    for path in ("/healthz", "/readyz"):
        assert client.get(path).json() == {"status": "ok"}


@pytest.mark.parametrize("status", ["loading", "warming", "draining"])
def test_a_service_that_is_not_ready_says_why_and_is_alive(client, status):
    client.service.status = status
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, status)
    assert client.get("/healthz").status_code == 200


def test_a_dead_stage_fails_both_checks_and_everything_it_is_asked(client):
    def die(_):
        raise SystemExit

    client.pair.faults["score"] = die
    assert post(client).status_code == 500
    for path in ("/healthz", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "score" in answer.json()["reason"]
    assert post(client).status_code == 503


def test_a_stage_that_is_stuck_is_given_up_on(serve):
    import threading

    client = serve(stall_s=0.2)
    release = threading.Event()
    client.pair.faults["detect"] = lambda _: release.wait(30)
    answer = post(client)  # answered although the stage never comes back
    release.set()
    assert answer.status_code == 500
    assert client.get("/healthz").status_code == 503


def test_version_names_the_networks_and_the_keypoints(client):
    body = client.get("/version").json()
    assert body["models"]["pair"] == "fake"
    assert body["detector_precision"] == body["precision"]  # the fake pair has none in int8
    assert len(body["keypoint_names"]) == 17
    assert body["keypoint_names"][0] == "nose"
    assert [15, 13] in body["skeleton"]
    assert [1, 2] in body["flip_pairs"]
