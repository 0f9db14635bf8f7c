"""A trace tells where a request's time went, and costs nothing where nobody asked for one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app import tracing
from app.logs import PROBES
from tests.app.conftest import picture_of

EASY, HARD = 0.41, 0.45  # difficulties, at p = 0.5 of the arithmetic networks' calibration
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ("decode", "detect", "score", "large")
IMAGE = {"Content-Type": "image/png"}

Spans = Callable[..., list[ReadableSpan]]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Finished spans, of one trace or of all, of whatever service is started after this."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setitem(tracing.CONFIG, "tracer_provider", provider)

    def finished(trace: str = "") -> list[ReadableSpan]:
        found = exporter.get_finished_spans()
        return [span for span in found if f"{span.context.trace_id:032x}".startswith(trace)]

    return finished


def by_name(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_the_waits_and_runs_of_a_request_lie_within_its_span_and_in_order(spans: Spans, client):
    assert client.post("/pose", content=picture_of([HARD]), headers=IMAGE).status_code == 200
    found = by_name(spans())
    request = found.pop("POST /pose")
    for span in found.values():
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    way = ["read", *(f"{stage}{part}" for stage in STAGES for part in (" queue", ""))]
    assert sorted(found, key=lambda name: found[name].start_time) == way
    assert all(found[f"{stage} queue"].end_time == found[stage].start_time for stage in STAGES)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/pose"


def test_a_run_says_how_large_its_batch_was_with_the_people_of_others(
    spans: Spans, serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.service.side_by_side", lambda _: 1)
    client = serve()
    entered, go_on = threading.Event(), threading.Event()
    client.pair.faults["small"] = lambda _: (entered.set(), go_on.wait(10))
    queue = client.service.pipeline.queues.easy

    def pose(people: int, **headers: str) -> None:
        client.post("/pose", content=picture_of([EASY] * people), headers={**IMAGE, **headers})

    with ThreadPoolExecutor() as clients:
        clients.submit(pose, 1)
        assert entered.wait(10)
        clients.submit(pose, 3)
        clients.submit(pose, 1, traceparent=f"00-{TRACE}-{CALLER}-01")
        assert until(lambda: queue.depth == 4)
        go_on.set()
    sizes = {span.attributes["dynpose.batch_size"] for span in spans(TRACE) if span.name == "small"}
    assert sizes == {4}


def test_a_request_joins_the_trace_of_its_caller_and_its_line_of_the_log_says_which(
    spans: Spans, client, caplog: pytest.LogCaptureFixture
):
    headers = {**IMAGE, "traceparent": f"00-{TRACE}-{CALLER}-01"}
    with caplog.at_level("INFO", "dynpose.request"):
        client.post("/pose", content=picture_of([EASY]), headers=headers)
    assert len(spans(TRACE)) == len(spans()) > 1
    assert f"{by_name(spans())['POST /pose'].parent.span_id:016x}" == CALLER
    (record,) = [record for record in caplog.records if record.name == "dynpose.request"]
    assert record.facts["trace_id"] == TRACE


def test_a_caller_that_does_not_sample_gets_no_spans(spans: Spans, client):
    headers = {**IMAGE, "traceparent": f"00-{TRACE}-{CALLER}-00"}
    assert client.post("/pose", content=picture_of([EASY]), headers=headers).status_code == 200
    assert spans() == []


def test_a_request_that_failed_shows_what_was_done_for_it(spans: Spans, client):
    def fail(_pictures):
        raise RuntimeError("exploded")

    client.pair.faults["score"] = fail
    assert client.post("/pose", content=picture_of([EASY]), headers=IMAGE).status_code == 500
    found = by_name(spans())
    assert {"read", "decode", "detect", "score"} <= set(found)
    assert "small" not in found
    assert not found["POST /pose"].status.is_ok


@pytest.mark.parametrize("path", sorted(PROBES))
def test_probes_leave_no_spans(spans: Spans, client, path: str):
    assert client.get(path).status_code == 200
    assert spans() == []


def test_without_an_address_to_send_them_to_nothing_of_the_sdk_is_loaded():
    program = """if True:
        import sys
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from app import tracing

        app = FastAPI(telemetry=tracing.CONFIG)
        app.get("/")(lambda: tracing.record([]) or tracing.trace_id())
        with TestClient(app) as client:
            assert client.get("/", headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}).json() is None
        print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
