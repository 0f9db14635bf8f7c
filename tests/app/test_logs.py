"""One line a request, nothing of a client's in it, and every other record beside it in the same form."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app import logs
from tests.app.conftest import picture_of

HARD, EASY, EXTREME = 0.45, 0.41, 0.55  # difficulties, at p = 0.5 of the arithmetic networks' calibration

Lines = Callable[[], list[dict[str, Any]]]


class Stream(io.StringIO):
    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """What the process would have written, as JSON."""
    stream, root = Stream(), logging.getLogger()
    handler, level = logs.handler("auto", stream), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # the tests' own client
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def lines(stream: Stream) -> Lines:
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def requests(lines: Lines) -> Lines:
    return lambda: [line for line in lines() if line["logger"] == "dynpose.request"]


def test_a_request_for_poses_is_one_line_with_people_by_route_and_milliseconds_by_stage(client, requests):
    body = picture_of([HARD, EASY, EASY, EXTREME])
    answer = client.post(
        "/pose", content=body, headers={"Content-Type": "image/png", "X-Request-ID": "frame-17"}
    )
    (line,) = requests()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    milliseconds, parts = line.pop("ms"), line.pop("timing_ms")
    assert line.pop("message") == f"POST /pose 200 in {milliseconds} ms"
    assert line == {
        "level": "info",
        "logger": "dynpose.request",
        "request_id": "frame-17",
        "method": "POST",
        "path": "/pose",
        "status": 200,
        "bytes": len(body),
        "pictures": 1,
        "people": {"easy": 2, "hard": 1, "extremely_hard": 1},
    }
    assert set(parts) == set(answer.json()["timing_ms"]) | {"read", "render"}
    assert parts["total"] <= sum(parts.values()) - parts["total"] + 0.1  # stages may run at the same time
    assert 0 < parts["decode"] < parts["total"] <= milliseconds


def test_people_with_a_forced_net_and_the_drawing_of_them_are_seen_too(client, requests):
    headers = {"Content-Type": "image/png"}
    client.post("/pose?estimator=large&render=overlay", content=picture_of([HARD]), headers=headers)
    (line,) = requests()
    assert line["people"] == {"forced_large": 1}
    assert line["timing_ms"]["render"] > 0


def test_a_refused_request_has_the_code_of_its_error(client, requests):
    client.post("/pose", content=b"not a picture", headers={"Content-Type": "image/png"})
    client.get("/static/none.js")
    client.put("/config")
    found = [(line["method"], line["path"], line["status"], line["code"]) for line in requests()]
    assert found == [
        ("POST", "/pose", 415, "unsupported_media_type"),
        ("GET", "/static/{name}", 404, "not_found"),
        ("PUT", "/config", 405, "method_not_allowed"),
    ]
    assert requests()[0]["message"].startswith("POST /pose 415 unsupported_media_type in ")


def test_what_a_failure_says_stands_under_the_request_s_id(client, lines):
    def fail(_pictures):
        raise RuntimeError("the network exploded")

    client.pair.faults["detect"] = fail
    headers = {"Content-Type": "image/png", "X-Request-ID": "find.me"}
    assert client.post("/pose", content=picture_of([EASY]), headers=headers).status_code == 500
    found = [line for line in lines() if line.get("request_id") == "find.me"]
    assert [line["level"] for line in found] == ["error", "info"]
    assert "the network exploded" in found[0]["exception"]
    assert found[1]["code"] == "internal"


def test_probes_are_seen_only_when_they_fail(serve, requests):
    client = serve(mode="fixed")
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    before = [line for line in requests() if line["status"] < 400]  # while the service was loading
    client.service.drain()
    client.get("/readyz")
    assert before == []
    assert (requests()[-1]["path"], requests()[-1]["status"]) == ("/readyz", 503)


def test_nothing_secret_or_of_a_picture_is_in_the_log_whatever_happens(serve, stream):
    client = serve(mode="fixed", pose_token="pose-hunter2", admin_token="admin-hunter2")
    told = {"Authorization": "Bearer pose-hunter2"}
    picture, files = picture_of([EASY, HARD]), {"images": ("hunter2-at-home.png", picture_of([EASY]))}
    admin = {"Authorization": "Bearer admin-hunter2", "Content-Type": "application/json"}

    def fail(_pictures):
        raise RuntimeError("exploded")

    statuses = [
        client.post("/pose", files=files, headers=told).status_code,
        client.post("/pose?token=hunter2", files=files, headers=told).status_code,
        client.post("/pose/hunter2", files=files, headers=told).status_code,
        client.post("/pose?p=hunter2", files=files, headers=told).status_code,
        client.post("/pose", files=files, headers={"Authorization": "Bearer hunter2"}).status_code,
        client.post("/pose", files={"images": ("hunter2.png", picture[:90])}, headers=told).status_code,
        client.post("/pose", content=b"hunter2", headers=told | {"Content-Type": "hunter2"}).status_code,
        client.post("/pose", json={"images": [{"data": "hunter2"}]}, headers=told).status_code,
        client.post("/pose", files=files, headers=told | {"X-Request-ID": "hunter2\t"}).status_code,
        client.patch("/config", content='{"p": 0.25}', headers=admin).status_code,
        client.patch("/config", content='{"hunter2": "hunter2"}', headers=admin).status_code,
        client.request("HUNTER2", "/pose").status_code,
        client.get("/static/hunter2").status_code,
    ]
    client.pair.faults["small"] = fail
    statuses.append(client.post("/pose", files=files, headers=told).status_code)
    assert statuses == [200, 422, 404, 422, 401, 422, 415, 400, 200, 200, 422, 405, 404, 500]
    text = stream.getvalue()
    assert len(re.findall('"dynpose.request"', text)) == len(statuses)
    assert "exploded" in text
    assert "hunter2" not in text.lower()


def test_every_record_is_one_line_whatever_is_in_it(stream, lines):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("anybody").exception('with "quotes",\nnew lines and %s', "\u2028\x00")
    (line,) = lines()
    assert line["message"] == 'with "quotes",\nnew lines and \u2028\x00'
    assert line["exception"].startswith("Traceback")
    assert "request_id" not in line
    assert len(stream.getvalue().splitlines()) == 1


def test_tasks_of_a_request_log_under_its_id(lines):
    async def work() -> None:
        logging.getLogger("anybody").warning("far below")

    async def request() -> None:
        logs.REQUEST_ID.set("above")
        await asyncio.gather(work(), asyncio.to_thread(logging.getLogger("anybody").warning, "in a thread"))

    asyncio.run(request())
    assert [line["request_id"] for line in lines()] == ["above", "above"]


@pytest.mark.parametrize(
    ("form", "terminal", "is_json"),
    [("auto", False, True), ("auto", True, False), ("json", True, True), ("text", False, False)],
)
def test_a_terminal_gets_text_and_everybody_else_json(form: logs.LogFormat, terminal: bool, is_json: bool):
    stream = Stream(terminal=terminal)
    handler = logs.handler(form, stream)
    handler.handle(logging.LogRecord("anybody", logging.WARNING, "", 0, "hello", None, None))
    assert stream.getvalue().startswith("{") == is_json
    assert "hello" in stream.getvalue()


def test_text_names_the_request_at_the_end_of_the_line():
    stream = Stream()
    handler = logs.handler("text", stream)
    token = logs.REQUEST_ID.set("abc")
    handler.handle(logging.LogRecord("anybody", logging.WARNING, "", 0, "hello", None, None))
    logs.REQUEST_ID.reset(token)
    handler.handle(logging.LogRecord("anybody", logging.WARNING, "", 0, "bye", None, None))
    assert [line.partition(" WARNING ")[2] for line in stream.getvalue().splitlines()] == [
        "anybody: hello [abc]",
        "anybody: bye",
    ]
