"""A clock that is set while the service runs: times are measured with one that nobody sets."""

import itertools
import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.app.conftest import picture_of
from tests.faults.conftest import Live, Record
from tests.faults.wire import answer, connect, head
from tests.process import ROOT, Start

YEAR_S = 31_557_600
LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


def test_a_clock_that_jumps_at_every_look_spoils_no_answer_and_no_figure(
    live: Live, monkeypatch: pytest.MonkeyPatch
):
    server = live(deadline_ms=60_000, stall_s=60)
    jumps = itertools.cycle((YEAR_S, -YEAR_S, 0))
    really = time.time
    monkeypatch.setattr(time, "time", lambda: really() + next(jumps))
    data = picture_of([0.41, 0.47])
    for _ in range(5):
        with connect(server.port) as client:
            client.sendall(head(len(data)) + data)
            status, told = answer(client)
        assert status == 200
        assert all(0 <= milliseconds < 60_000 for milliseconds in told["timing_ms"].values())
    assert server.service.unready() is None
    find = server.service.metrics.registry.get_sample_value
    assert 0 <= (find("dynpose_request_duration_seconds_sum") or 0) < 300


def test_no_time_is_measured_with_a_clock_that_can_be_set():
    files = [path for room in ("app", "models") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 30
    calls = re.compile(r"\btime\.time\(|datetime\.(now|utcnow)\(")
    found = {str(path.relative_to(ROOT)) for path in files if calls.search(path.read_text())}
    assert found <= {"app/tracing.py"}  # spans are shown beside those of other machines


@pytest.mark.long
def test_a_service_whose_clock_is_set_serves_on(start: Start, tmp_path: Path, record: Record):
    """Forward and back by a year and more, with libfaketime below Python and everything else in the process."""
    library = next(filter(os.path.exists, LIBRARIES), None)
    if library is None:
        pytest.skip("needs libfaketime: apt-get install faketime")
    setting = tmp_path / "clock"
    setting.write_text("+0")
    server = start(
        LD_PRELOAD=library,
        FAKETIME_TIMESTAMP_FILE=str(setting),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
        DEADLINE_MS="20000",
        BODY_TIMEOUT_S="20",
        STALL_S="20",
    )
    server.wait_ready()
    days = ("+400d", "-400d", "+1h", "-1h", "+0")
    slowest = 0.0
    for day in days:
        setting.write_text(day)
        for _ in range(5):
            status, body = server.pose()
            assert status == 200
            slowest = max(slowest, json.loads(body)["timing_ms"]["total"])
        assert server.get("/readyz")[0] == 200
    (total,) = server.metrics("dynpose_request_duration_seconds_sum")
    assert 0 <= total < 20 * 5 * len(days)
    assert server.stop() == 0
    record(jumps=days, answered=5 * len(days), slowest_ms=slowest)
