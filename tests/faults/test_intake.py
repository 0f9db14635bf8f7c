"""Bytes that were made or damaged to do harm: every one is a picture or an error for its sender, and costs little."""

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
import urllib.request

import pytest
from PIL import Image

from app.decode import decode, read_header
from app.errors import ApiError
from tests.app.conftest import picture_of
from tests.faults.conftest import Live, Record
from tests.faults.mutate import SEEDS, run
from tests.faults.wire import answer, connect, head
from tests.process import ROOT

LONG = 60
HANG_S = 900
GROWTH = 1.03


@pytest.mark.parametrize("kind", sorted(SEEDS))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_input_gives_an_answer_or_an_error_for_the_client(kind: str):
    found = asyncio.run(run(kind, 300))
    assert found.inputs == 300
    assert {outcome[:3] for outcome in found.outcomes if outcome[0].isdigit()} <= {"400", "413", "415", "422"}


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(SEEDS))
def test_a_hundred_thousand_damaged_inputs_do_no_harm_and_leave_nothing(kind: str, record: Record):
    """In a process of its own, since a decoder that breaks would take this one with it."""
    count = int(os.environ.get("MUTATIONS", "100000"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.mutate", kind, str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout)
    record(**{name: found[name] for name in ("inputs", "outcomes", "slowest_s", "memory", "seconds")})
    assert found["inputs"] == count
    assert found["memory"][-1] < GROWTH * found["memory"][0]


def jpeg_of_scans(count: int) -> bytes:
    """A small progressive JPEG whose last scan is there `count` times more."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def test_a_jpeg_may_have_many_scans_but_not_thousands():
    """Each costs a pass over the whole picture and needs only a few bytes."""
    assert read_header(jpeg_of_scans(50), 10_000).width == 64
    assert decode(jpeg_of_scans(50)).shape == (64, 64, 3)
    with pytest.raises(ApiError) as refused:
        read_header(jpeg_of_scans(5_000), 10_000)
    assert (refused.value.status, refused.value.code) == (422, "invalid_image")


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\x02", b"\xff\xbf"])
def test_scans_cannot_hide_behind_a_marker_without_length(marker: bytes):
    """Whoever reads a length after it passes over 65,498 bytes."""
    data = jpeg_of_scans(5_000)
    first = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(ApiError):
        read_header(data[:first] + marker + data[first:], 10_000)


def test_a_jpeg_of_thousands_of_segments_is_invalid():
    with pytest.raises(ApiError) as refused:
        read_header(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 5_000 + jpeg_of_scans(0)[2:], 10_000)
    assert (refused.value.status, refused.value.code) == (422, "invalid_image")


def test_what_follows_a_jpeg_is_not_counted_among_its_scans():
    """Phones append films."""
    data = jpeg_of_scans(0) + b"\xff\xda\x00\x02" * 5_000
    assert read_header(data, 10_000).width == 64
    assert decode(data).shape == (64, 64, 3)


def test_a_header_that_takes_long_holds_up_nobody(live: Live, monkeypatch: pytest.MonkeyPatch):
    server = live()
    entered, release = threading.Event(), threading.Event()

    def slow(data: bytes, max_pixels: int) -> object:
        entered.set()
        assert release.wait(LONG)
        return read_header(data, max_pixels)

    monkeypatch.setattr("app.intake.read_header", slow)
    data = picture_of([0.47])
    with connect(server.port) as client:
        client.sendall(head(len(data)) + data)
        assert entered.wait(LONG)
        with urllib.request.urlopen(server.url + "/healthz", timeout=LONG / 2) as answered:
            assert answered.status == 200
        release.set()
        assert answer(client)[0] == 200
