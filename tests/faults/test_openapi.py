"""Requests made from the OpenAPI document, valid and not: no server error, and every answer is as it says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.process import ROOT, Start

EXAMPLES = os.environ.get("EXAMPLES", "300")
HANG_S = 600


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis: pip install -e '.[faults]'"
)
def test_answers_are_those_that_the_openapi_document_describes(start: Start, tmp_path: Path, record: Record):
    server = start(MAX_IMAGE_PIXELS="1000000")
    server.wait_ready()
    config = str(ROOT / "tests" / "faults" / "schemathesis.toml")
    command = ["--config-file", config, "run", f"{server.url}/openapi.json"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command, "--max-examples", EXAMPLES],
        cwd=tmp_path,  # it keeps notes where it runs
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    statuses = {
        status: round(float(value))
        for status, value in re.findall(
            r'dynpose_requests_total{status="(\d+)"} (\S+)', server.get("/metrics")[1]
        )
        if float(value)
    }
    assert statuses["200"] > 0
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None
    record(cases=int(cases[1]), statuses_of_pose=statuses)
