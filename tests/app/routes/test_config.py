import json
import threading
from pathlib import Path

import pytest

from app.config import ConfigPatch
from tests.app.conftest import calibration, picture_of
from tests.app.routes.test_pose import error

HARD = picture_of([0.47])


def patch(client, document, **headers):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {"Content-Type": "application/merge-patch+json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return client.patch("/config", content=body, headers=headers)


def test_the_configuration_says_what_is_in_force(client):
    answer = client.get("/config")
    assert answer.headers["etag"] == '"1"'
    assert answer.json() == {
        "p": 0.5,
        "theta": 0.1,
        "mode": "fixed",
        "policy": "band",
        "min_score": 0.3,
        "flip_test": False,
        "calibration": "calibration.json",
        "thresholds": {
            "k1": 0.42,
            "k2": 0.52,
            "k1_lowered": False,
            "reachable": 0.5,
            "samples": 1001,
            "revision": 0,
        },
        "realised": {"people": 0, "large_share": 0.0},
        "version": 1,
        "source": "environment",
        "warnings": [],
    }


def test_a_change_is_in_force_for_the_next_request(client):
    def post():
        return client.post("/pose", content=HARD, headers={"Content-Type": "image/png"}).json()

    assert post()["images"][0]["people"][0]["estimator"] == "large"
    answer = patch(client, {"p": 0})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert (answer.json()["p"], answer.json()["version"], answer.json()["source"]) == (0, 2, "patch")
    assert answer.json()["realised"] == {"people": 0, "large_share": 0.0}
    body = post()
    assert body["images"][0]["people"][0]["estimator"] == "small"
    assert (body["split"]["p"], body["split"]["version"]) == (0, 2)
    assert client.get("/config").json()["realised"] == {"people": 1, "large_share": 0.0}
    assert "dynpose_config_changes_total 1.0" in client.get("/metrics").text


def test_every_member_can_be_changed(client):
    changes = {
        "p": 0.25,
        "theta": 0.2,
        "mode": "tracking",
        "policy": "top",
        "min_score": 0.94,
        "flip_test": True,
    }
    body = patch(client, changes).json()
    assert {name: body[name] for name in changes} == changes
    assert body["thresholds"]["k2"] is None
    two = picture_of([0.47, 0.47])
    answer = client.post("/pose", content=two, headers={"Content-Type": "image/png"}).json()
    assert {name: answer["split"][name] for name in ("p", "mode", "policy")} == {
        "p": 0.25,
        "mode": "tracking",
        "policy": "top",
    }
    (person,) = answer["images"][0]["people"]  # the other one has 0.93
    assert person["keypoints"][0][0] % 1 == 0.5  # the fake nets' mark of a flip test


@pytest.mark.parametrize(
    ("document", "status"),
    [
        (b'{"p": NaN}', 422),
        (b'{"p": 1e400}', 422),
        (b'{"p": -Infinity}', 422),
        ({"p": True}, 422),
        ({"p": "0.5"}, 422),
        ({"p": 50}, 422),
        ({"p": -0.01}, 422),
        ({"p": None}, 422),
        ({"P": 0.5}, 422),
        ({"version": 7}, 422),
        ({"realised": {}}, 422),
        (b'{"p": 0.5, "p": 0.9}', 422),
        ({"p": 0.1, "theta": 7}, 422),
        ({"mode": "fast"}, 422),
        ({"flip_test": 1}, 422),
        ({}, 422),
        ([], 422),
        (b"null", 422),
        (b"", 400),
        (b"{", 400),
        (b"[" * 3000 + b"]" * 3000, 400),
        (b'{"p": \xff}', 400),
        (b'{"p": ' + b"9" * 5000 + b"}", 400),
        (b" " * 70_000, 413),
        ({"calibration": "../calibration.json"}, 422),
        ({"calibration": "/etc/passwd"}, 422),
        ({"calibration": "other.json"}, 422),
    ],
)
def test_what_is_not_wholly_right_is_refused_and_changes_nothing(client, document, status):
    before = client.get("/config").json()
    code = {400: "bad_request", 413: "too_large", 422: "invalid_parameter"}[status]
    error(patch(client, document), status, code)
    assert client.get("/config").json() == before


def test_a_refusal_names_the_member_and_its_unit(client):
    assert "fraction from 0 to 1" in patch(client, {"p": 50}).json()["detail"]
    assert "min_score" in patch(client, {"P": 0.5}).json()["detail"]


def test_another_content_type_is_refused(client):
    error(
        client.patch("/config", content=b"p=1", headers={"Content-Type": "text/plain"}),
        415,
        "unsupported_media_type",
    )


def test_the_methods_that_are_taken_are_all_named(client):
    answer = client.delete("/config")
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, PATCH"


@pytest.mark.parametrize(("value", "kept"), [(-0.0, 0.0), (1e-320, 1e-320), (0.1 + 0.2, 0.1 + 0.2), (1, 1.0)])
def test_odd_but_right_numbers_are_kept_canonical(client, value, kept):
    body = patch(client, {"p": value})
    assert body.json()["p"] == kept
    assert "-0" not in body.text


def test_if_match_guards_against_lost_updates(client):
    error(patch(client, {"p": 0.1}, If_Match='"7"'), 412, "precondition_failed")
    assert patch(client, {"p": 0.1}, If_Match='"1"').status_code == 200
    error(patch(client, {"p": 0.2}, If_Match='"1"'), 412, "precondition_failed")
    assert patch(client, {"p": 0.2}, If_Match='"9", "2"').status_code == 200
    assert patch(client, {"p": 0.3}, If_Match="*").status_code == 200
    error(patch(client, {"p": 0.4}, If_Match=""), 412, "precondition_failed")  # a script's variable was empty
    assert client.get("/config").json()["p"] == 0.3


def test_every_change_is_logged_with_its_version_and_no_refusal_is(client, caplog):
    caplog.set_level("INFO", "dynpose.config")
    patch(client, {"p": 0.1})
    patch(client, {"p": 7})
    patch(client, {"p": 0.2}, If_Match='"1"')
    patch(client, {"p": 0.3})
    assert [record.getMessage() for record in caplog.records if record.name == "dynpose.config"] == [
        "configuration changed to version 2: {'p': 0.1}",
        "configuration changed to version 3: {'p': 0.3}",
    ]


def test_a_token_guards_changes_but_not_reading(serve):
    client = serve(admin_token="secret")
    error(patch(client, {"p": 0.1}), 401, "unauthorized")
    error(patch(client, {"p": 0.1}, Authorization="Bearer wrong"), 401, "unauthorized")
    assert client.get("/config").json()["p"] == 0.5
    assert patch(client, {"p": 0.1}, Authorization="Bearer secret").status_code == 200


def test_another_calibration_file_brings_its_scores_and_theta(serve, tmp_path: Path):
    (tmp_path / "night.json").write_text(json.dumps(calibration(0.5, 0.7) | {"theta": 0.2}))
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "foreign.json").write_text(json.dumps(calibration(router_sha256="0" * 64)))
    (tmp_path / "strict.json").write_text(json.dumps(calibration(min_score=0.6)))
    client = serve(mode="fixed", calibration_dir=tmp_path)
    body = patch(client, {"calibration": "night.json"}).json()
    assert (body["calibration"], body["theta"], body["thresholds"]["k1"]) == ("night.json", 0.2, 0.54)
    error(patch(client, {"calibration": "broken.json"}), 422, "invalid_parameter")
    error(patch(client, {"calibration": "foreign.json"}), 422, "calibration_mismatch")
    assert client.get("/config").json() == body
    (warning,) = patch(client, {"calibration": "strict.json"}).json()["warnings"]
    assert "min_score 0.6" in warning
    assert patch(client, {"calibration": "calibration.json"}).json()["warnings"] == []


def test_a_start_with_a_calibration_file_takes_its_theta_unless_it_is_told_another(serve, tmp_path: Path):
    (tmp_path / "night.json").write_text(json.dumps(calibration(0.5, 0.7) | {"theta": 0.2}))
    asked = {"calibration_dir": tmp_path, "calibration": "night.json"}
    assert serve(**asked).get("/config").json()["theta"] == 0.2
    assert serve(**asked, theta=0.3).get("/config").json()["theta"] == 0.3


def test_a_file_with_the_name_of_the_pairs_own_calibration_is_told_of(serve, tmp_path: Path):
    (tmp_path / "calibration.json").write_text(json.dumps(calibration(0.5, 0.7)))
    client = serve(calibration_dir=tmp_path)
    (warning,) = patch(client, {"calibration": "calibration.json"}).json()["warnings"]
    assert "give it another name" in warning


def test_a_calibration_folder_that_cannot_be_looked_into_does_no_harm(serve, tmp_path: Path):
    client = serve(calibration_dir=tmp_path / ("x" * 300))
    assert client.get("/config").json()["warnings"] == []
    assert patch(client, {"p": 0.1}).status_code == 200


def test_changes_survive_a_restart_with_a_state_file(serve, tmp_path: Path):
    state = tmp_path / "state.json"
    patch(serve(state_file=state), {"p": 0.125, "policy": "top"})
    body = serve(state_file=state, p=0.9).get("/config").json()
    assert (body["p"], body["policy"], body["version"], body["source"]) == (0.125, "top", 2, "state")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("state")] == ["state.json"]


def test_a_calibration_file_survives_a_restart_while_it_is_this_routers(serve, tmp_path: Path):
    night = tmp_path / "night.json"
    night.write_text(json.dumps(calibration(0.5, 0.7)))
    asked = {"mode": "fixed", "calibration_dir": tmp_path, "state_file": tmp_path / "state.json"}
    patch(serve(**asked), {"calibration": "night.json"})
    body = serve(**asked).get("/config").json()
    assert (body["calibration"], body["thresholds"]["k1"], body["source"]) == ("night.json", 0.52, "state")


def test_of_a_state_file_whose_calibration_is_another_routers_the_rest_is_kept(serve, tmp_path: Path):
    night = tmp_path / "night.json"
    night.write_text(json.dumps(calibration(0.5, 0.7) | {"theta": 0.2}))
    asked = {"mode": "fixed", "calibration_dir": tmp_path, "state_file": tmp_path / "state.json"}
    before = serve(**asked).get("/config").json()
    patch(serve(**asked), {"calibration": "night.json", "p": 0.125})
    night.write_text(json.dumps(calibration(0.5, 0.7, router_sha256="0" * 64)))
    body = serve(**asked).get("/config").json()
    assert (body["p"], body["source"], body["version"]) == (0.125, "state", 2)
    assert (body["calibration"], body["theta"]) == (before["calibration"], before["theta"])
    (warning,) = body["warnings"]
    assert warning.startswith(
        "STATE_FILE's calibration and theta are ignored: calibration: night.json was made"
    )


def test_who_sends_what_is_in_force_resets_nothing(serve, tmp_path: Path):
    client = serve(state_file=tmp_path / "state.json")
    for _ in range(3):
        client.post("/pose", content=HARD, headers={"Content-Type": "image/png"})
    before = client.get("/config").json()
    assert before["realised"]["people"] == 3
    settings = {name: before[name] for name in ConfigPatch.model_fields}
    body = patch(client, settings, If_Match='"1"').json()
    assert body == before
    assert "dynpose_config_changes_total 0.0" in client.get("/metrics").text
    assert patch(client, settings | {"p": 0.1}, If_Match='"1"').json()["realised"]["people"] == 0


def test_without_a_state_file_a_restart_returns_to_the_environment(serve):
    patch(serve(p=0.9), {"p": 0.125})
    body = serve(p=0.9).get("/config").json()
    assert (body["p"], body["source"]) == (0.9, "environment")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"p": 7, "version": 2}', b'{"p": 0.1}', b"\xff"])
def test_a_damaged_state_file_is_told_of_and_the_service_runs_on(serve, tmp_path: Path, content: bytes):
    state = tmp_path / "state.json"
    state.write_bytes(content)
    client = serve(state_file=state, p=0.75)
    body = client.get("/config").json()
    assert (body["p"], body["source"]) == (0.75, "environment")
    assert "STATE_FILE is ignored" in body["warnings"][0]
    assert patch(client, {"p": 0.5}).json()["warnings"] == []


def test_a_state_file_that_cannot_be_written_is_told_of_and_the_change_holds(serve, tmp_path: Path):
    client = serve(state_file=tmp_path / "missing" / "state.json")
    (warning,) = client.get("/config").json()["warnings"]
    assert "cannot be written" in warning
    body = patch(client, {"p": 0.1}).json()
    assert body["p"] == 0.1
    assert "cannot be written" in body["warnings"][0]


@pytest.mark.parametrize("name", ["x" * 300, "folder"])
def test_a_state_file_that_cannot_even_be_looked_at_is_told_of(serve, tmp_path: Path, name: str):
    (tmp_path / "folder").mkdir()
    client = serve(state_file=tmp_path / name, p=0.75)
    body = client.get("/config").json()
    assert (body["p"], body["source"]) == (0.75, "environment")
    assert "STATE_FILE is ignored" in body["warnings"][0]
    body = patch(client, {"p": 0.1}).json()
    assert body["p"] == 0.1
    assert "cannot be written" in body["warnings"][0]


def test_every_answer_under_changes_is_of_one_version(client):
    """Answers never mix the p of one version with the thresholds of another."""
    seen = {}
    stop = threading.Event()

    def turn():
        for step in range(40):
            patch(client, {"p": (step % 9 + 1) / 10})
        stop.set()

    turning = threading.Thread(target=turn)
    turning.start()
    while not stop.is_set():
        split = client.post("/pose", content=HARD, headers={"Content-Type": "image/png"}).json()["split"]
        assert seen.setdefault(split["version"], split) == split
    turning.join()
    assert client.get("/config").json()["version"] == 41
    for split in seen.values():
        assert split["k2"] == pytest.approx(split["k1"] + 0.2 * split["p"], abs=1e-3) or split["k2"] is None
