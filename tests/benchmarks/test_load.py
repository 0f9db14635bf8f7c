import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.client import Answer, RequestFailed
from benchmarks.load import describe, main, parse, shares, turning, watched
from benchmarks.loops import Observed, Run, closed_loop, shuffled_forever
from benchmarks.pictures import read_posts
from tests.benchmarks.fake_service import PICTURES, FakeService


def test_a_load_posts_every_picture_as_it_is_and_adds_up_people_and_stage_time() -> None:
    service = FakeService()

    async def scenario() -> None:
        async with service.client() as client:
            before = await client.metrics()
            order = shuffled_forever(PICTURES, 0)
            answers = await closed_loop(client.pose, order, 1, lambda seen: len(seen) == 4)
            after = await client.metrics()
        assert sorted(service.posted) == 2 * [(b"a", "image/jpeg")] + 2 * [(b"b", "image/jpeg")]
        run = Run(answers, 4.0)
        assert run.people == 4
        assert run.failures == []
        assert "detect 50%" in describe(Observed(run, before, after))

    asyncio.run(scenario())


def test_a_refused_request_is_a_failure_and_counts_no_people() -> None:
    async def scenario() -> None:
        async with FakeService(full=True).client() as client:
            order = shuffled_forever(PICTURES, 0)
            run = Run(await closed_loop(client.pose, order, 2, lambda seen: len(seen) >= 6), 1.0)
        assert {answer.status for answer in run.failures} == {429}
        assert len(run.good) + len(run.failures) == len(run.answers)
        assert sum(answer.people for answer in run.failures) == 0

    asyncio.run(scenario())


def test_the_command_s_load_is_watched_through_the_service_s_metrics() -> None:
    async def scenario() -> None:
        options = parse(["somewhere", "--seconds", "0.25", "--warm-up", "0.01", "--clients", "2"])
        async with FakeService(delay=0.002).client() as client:
            seen = await watched(client, PICTURES, options)
        assert seen.run.good
        assert "0 failed" in describe(seen)

    asyncio.run(scenario())


def test_answers_are_grouped_by_the_p_that_they_carry() -> None:
    async def scenario() -> None:
        service = FakeService()
        answers: list[Answer] = []
        async with service.client() as client:
            for p, count in ((0.5, 2), (0.25, 3)):
                await client.set_p(p)
                answers += [await client.pose(PICTURES[0]) for _ in range(count)]
        assert shares(answers) == [(0.25, 6, 0.5), (0.5, 4, 0.5)]

    asyncio.run(scenario())


def test_a_refused_change_of_p_ends_the_load_with_an_error() -> None:
    async def scenario() -> None:
        async with FakeService(locked=True).client() as client:
            with pytest.raises(RequestFailed):
                async with turning(client, period_s=0.001, seed=0):
                    await asyncio.sleep(0.1)

    asyncio.run(scenario())


def test_a_folder_without_coco_file_gives_its_pictures_as_jpegs(tmp_path: Path) -> None:
    (tmp_path / "b.JPG").write_bytes(b"\xff\xd8 as it is")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.webp")
    (tmp_path / "notes.txt").write_text("not a picture")
    first, second = read_posts(tmp_path, "val")
    assert (first.name, Image.open(io.BytesIO(first.body)).format) == ("a.webp", "JPEG")
    assert (second.name, second.body) == ("b.JPG", b"\xff\xd8 as it is")


def test_without_pictures_the_benchmark_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 0
    assert "skipped: needs pictures with people in" in capsys.readouterr().out
