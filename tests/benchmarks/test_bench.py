import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from benchmarks import scaling
from benchmarks.accuracy import poses
from benchmarks.bench import LEAST_PICTURES, Bench, main, parse
from benchmarks.contenders import Contender, Loops, NotReady, Server, Setup, contenders
from benchmarks.processes import Started, Usage
from benchmarks.servers.in_process import run
from calibration.data import decode
from tests.benchmarks.fake_service import PICTURES, FakeService

LOOP = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "seconds" not in asked:
        sys.exit()
    print(json.dumps({"images": 4, "people": 8, "seconds": 2.0, "ms": [500.0] * 4}), flush=True)
"""


class FakeServer(Server):
    """The service, as far as the load generator sees it, without a process."""

    def __init__(self, client: object) -> None:
        self.contender = contenders(2)[0]
        self.processes = []
        self.client = client  # type: ignore[assignment]

    async def stop(self) -> None: ...


class FakeLoops(Loops):
    """Two processes that say what they always say."""

    def __init__(self, folder: Path, script: str = LOOP) -> None:
        self.contender = Contender("bound", "loops", "", turns=True, processes=2)
        command = [sys.executable, "-c", script]
        self.processes = [Started(command, folder / "log", pipes=True) for _ in range(2)]
        self.started = 0.0


@asynccontextmanager
async def bench(folder: Path, *arguments: str) -> AsyncIterator[Bench]:
    options = parse(["data", "--out", str(folder), "--seconds", "0.2", "--warm-up", "0", *arguments])
    async with FakeService(delay=0.002).client() as client:
        measured = Bench(options, PICTURES[:1], "bench.jsonl")
        measured.running["service"] = FakeServer(client)
        yield measured


def test_a_cell_has_speed_latency_and_what_was_used(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as measured:
            await measured.closed("service", "grid", 2, 0.25)
            (row,) = measured.records
        assert row["images"] > 0
        assert row["people_per_s"] == pytest.approx(2 * row["images_per_s"])
        assert 2 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["large_share"] == 0.5
        assert row["over_stages_ms"] == pytest.approx(row["p50_ms"] - 9)
        assert set(row["stages"]) == {"detect"}

    asyncio.run(scenario())


def test_what_is_recorded_is_not_measured_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as first:
            await first.closed("service", "grid", 1, 0.5)
        async with bench(tmp_path) as second:
            await second.closed("service", "grid", 1, 0.5)
            assert len(second.records.rows) == 1
            await second.closed("service", "grid", 2, 0.5)
            assert len(second.records.rows) == 2

    asyncio.run(scenario())


def test_overload_is_twice_the_best_of_the_closed_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, "--overload-seconds", "0.1") as measured:
            await measured.overload()
            assert not measured.records.rows
            await measured.closed("service", "grid", 1, 0.5)
            await measured.overload()
        best, over, answered = measured.records.rows
        assert over["offered_per_s"] == pytest.approx(2 * best["images_per_s"])
        assert len(over["pictures"]) == over["images"] == answered["images"]

    asyncio.run(scenario())


def test_loops_work_side_by_side_and_are_added_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as measured:
            loops = FakeLoops(tmp_path)
            measured.running["bound"] = loops
            await loops.start(PICTURES[0])
            await measured.closed("bound", "grid", 0, 0.5)
            (row,) = measured.records
            assert (row["images_per_s"], row["people_per_s"], row["clients"]) == (4, 8, None)
            assert row["p95_ms"] is None  # of two processes none is the contender's
            with pytest.raises(NotReady, match="bound has ended"):
                await loops.ask(pose=1)
            await loops.stop()

    asyncio.run(scenario())


def test_a_soak_samples_memory_all_the_while(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as measured:
            await measured.soak(40)
        (row,) = measured.records
        assert (row["requests"], row["failed"]) == (40, 0)
        assert [done for done, _ in row["samples"]] == list(range(1, 41))

    asyncio.run(scenario())


def test_a_contender_that_cannot_be_had_is_recorded_with_the_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path, "--peers", str(tmp_path), "--initial", str(tmp_path)) as measured:
            measured.running.clear()
            async with measured.up("rtmlib", "yolo"):
                assert not measured.running
        reasons = [row["reason"] for row in measured.records]
        assert reasons[1] == "needs yolov8n-pose.safetensors"
        assert "needs rtmdet-nano_person.onnx" in reasons[0] or "needs the package onnxruntime" in reasons[0]

    asyncio.run(scenario())


def test_a_package_that_is_not_there_is_named() -> None:
    setup = Setup(Path(), "val", "embedded", Path(), Path(), Path())
    contender = Contender("x", "server", "", packages=("no_such_package",))
    assert contender.missing(setup) == "needs the package no_such_package"


def test_a_process_is_measured_with_its_children_and_ends_with_them(tmp_path: Path) -> None:
    child = "import time; sum(range(3_000_000)); print('up', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); import time; time.sleep(60)"
    started = Started([sys.executable, "-c", parent], tmp_path / "log", pipes=True)
    assert started.pipes[1].readline() == b"up\n"
    started.look()
    tree = list(started._tree)
    assert len(tree) == 2
    usage = started.usage()
    assert usage.cpu_seconds > 0
    assert usage.resident_mib > 5
    started.stop()
    assert not started.alive
    assert started.usage() == Usage(0, 0)
    assert not any(process.is_running() and process.status() != "zombie" for process in tree)


def test_without_pictures_it_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "absent"), "--out", str(tmp_path), "--results", str(tmp_path / "R.md")]
    for command in (main, scaling.main):
        assert command(arguments) == 0
        assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path / 'absent'}\n"


def test_of_poses_that_are_nearly_the_same_the_best_is_kept() -> None:
    points = np.full((17, 3), 0.9)
    points[:, :2] = np.arange(34).reshape(17, 2)
    people = [
        {
            "bbox": [0.0, 0, 40, 60],
            "bbox_score": score,
            "keypoints": (points + np.array([shift, 0, 0])).tolist(),
        }
        for score, shift in ((0.5, 0.0), (0.9, 0.1), (0.8, 500.0))
    ]
    kept = poses({"images": [{"people": people}]})
    assert sorted(pose.bbox_score for pose in kept) == [0.8, 0.9]


def person_tiles() -> Sequence[np.ndarray]:
    return [scaling.fitted(np.full((100, 50, 3), shade, np.uint8)) for shade in (0, 255)]


def test_crowds_are_pictures_of_one_size_with_so_many_people() -> None:
    few, many = scaling.crowds(person_tiles(), 2), scaling.crowds(person_tiles(), 50)
    pictures = [decode(post.body) for post in (few[0], many[0])]
    assert pictures[0].shape == pictures[1].shape == (1200, 1600, 3)
    tiles = pictures[1].unfold(0, 240, 240).unfold(1, 160, 160).float().mean((2, 3, 4))
    assert ((tiles - 114).abs() > 20).all()
    assert (pictures[0][240:].float() - 114).abs().max() < 20


def test_photos_get_the_wanted_size(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (post,) = scaling.resized([PICTURES[0].__class__("a", (tmp_path / "a.png").read_bytes())], 0.24)
    assert decode(post.body).shape == (400, 600, 3)


@pytest.mark.parametrize(
    ("server", "share", "named"),
    [
        (1.7, 0.8, "the cores (1.90 of 2 in use; at work longest: large, 80% of the time)"),
        (1.2, 0.95, "large (95% of the time; 1.40 of 2 cores in use)"),
        (0.4, 0.3, "no resource (0.60 of 2 cores in use; at work longest: large, 30%): waiting"),
    ],
)
def test_the_resource_that_bounds_is_the_one_used_up(server: float, share: float, named: str) -> None:
    row = {"stages": {"large": share}, "decode_share": 0.1, "own_cores": 0.2, "server_cores": server}
    assert scaling.bound_by(row, 2) == named


def test_the_machine_is_named_by_what_it_can() -> None:
    from benchmarks.machine import describe

    machine = describe()
    assert machine["processor"].endswith(f"{os.cpu_count()} cores")
    assert "torch" in machine["versions"]


def test_in_the_rounds_everybody_gets_the_same_pictures(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(tmp_path) as measured:
            await measured.closed("service", "rounds", 2, 0.5, turn=1)
            (row,) = measured.records
            assert row["images"] == LEAST_PICTURES

    asyncio.run(scenario())


def test_a_loop_ends_after_as_many_pictures_as_it_is_asked_for() -> None:
    class Loop:
        group = 4
        asked: ClassVar[list[int]] = []

        def turn(self, p: float) -> None: ...

        def poses(self, bodies: Sequence[bytes]) -> list[tuple[list[int], list[int]]]:
            self.asked.append(len(bodies))
            return [([1, 2], [])] * len(bodies)

    row = run(Loop(), itertools.repeat(PICTURES[0]), 0.0, 0.5, 10)  # type: ignore[arg-type]
    assert (row["images"], row["people"], Loop.asked) == (10, 20, [4, 4, 2])


async def stopped(process: Started) -> None:
    """A signal takes its time on a busy machine."""
    async with asyncio.timeout(30):
        while process._tree[0].status() != "stopped":
            await asyncio.sleep(0.01)


def test_a_restless_contender_is_held_but_for_its_own_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        loops = FakeLoops(tmp_path)
        loops.contender = Contender("restless", "loops", "", processes=2, restless=True)
        await loops.start(PICTURES[0])
        loops.hold()
        for process in loops.processes:
            await stopped(process)
        with loops.awake():
            assert len(await loops.ask(seconds=1, p=0.5, seed=0, count=None)) == 2
        await stopped(loops.processes[0])
        await loops.stop()
        assert not any(process.alive for process in loops.processes)

    asyncio.run(scenario())


def test_a_failure_is_recorded_and_no_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with FakeService(locked=True).client() as client:
            measured = Bench(parse(["data", "--out", str(tmp_path)]), PICTURES, "bench.jsonl")
            measured.running["service"] = FakeServer(client)
            await measured.closed("service", "grid", 1, 0.5)
        (row,) = measured.records
        assert row["experiment"] == "failed"
        assert "PATCH /config: 401" in row["reason"]

    asyncio.run(scenario())
