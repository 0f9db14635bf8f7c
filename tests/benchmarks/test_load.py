import asyncio
import json
from pathlib import Path

import httpx
import pytest

from benchmarks.client import load, set_p
from benchmarks.load import describe, main, shares, turning
from benchmarks.pictures import Post, read_posts

PICTURES = [Post("a.webp", b"a", "image/webp"), Post("b.jpg", b"b", "image/jpeg")]


class FakeService:
    """Two people in `a`, one of them hard; `b` is refused when `full`. Detect takes 0.5 s a picture."""

    def __init__(self, *, full: bool = False) -> None:
        self.full = full
        self.p = 0.5
        self.posted: list[tuple[bytes, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.method, request.url.path:
            case "GET", "/metrics":
                seconds = 0.5 * len(self.posted)
                name = "dynpose_stage_duration_seconds"
                return httpx.Response(
                    200, text=f'# TYPE {name} histogram\n{name}_sum{{stage="detect"}} {seconds}\n'
                )
            case "PATCH", "/config":
                self.p = json.loads(request.content)["p"]
                return httpx.Response(200, json={"p": self.p})
            case "POST", "/pose":
                self.posted.append((request.content, request.headers["content-type"]))
                return self.answer(request.content)
        return httpx.Response(404)

    def answer(self, picture: bytes) -> httpx.Response:
        if picture == b"b" and self.full:
            return httpx.Response(429)
        timing = {"decode": 1, "detect": 5, "score": 1, "estimate": 2, "queued": 0, "total": 10}
        routes = {"easy": 1, "hard": 1, "extremely_hard": 0} if picture == b"a" else {"easy": 0, "hard": 0}
        body = {"split": {"p": self.p}, "images": [{"routes": routes}], "timing_ms": timing}
        return httpx.Response(200, json=body)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://service")


def test_a_load_posts_every_picture_as_it_is_and_adds_up_people_and_stage_time() -> None:
    service = FakeService()

    async def scenario() -> None:
        async with service.client() as client:
            run = await load(client, PICTURES, clients=1, until=lambda answers, _: len(answers) == 4)
        assert sorted(service.posted) == 2 * [(b"a", "image/webp")] + 2 * [(b"b", "image/jpeg")]
        assert sum(answer.people for answer in run.good) == 4
        assert run.stage_seconds == {"detect": 2.0}
        assert run.failures == []
        assert "detect 50%" in describe(run)

    asyncio.run(scenario())


def test_a_refused_request_is_a_failure_and_counts_no_people() -> None:
    async def scenario() -> None:
        async with FakeService(full=True).client() as client:
            run = await load(client, PICTURES, clients=2, until=lambda answers, _: len(answers) >= 6)
        assert {answer.status for answer in run.failures} == {429}
        assert len(run.good) + len(run.failures) == len(run.answers)
        assert sum(answer.people for answer in run.failures) == 0

    asyncio.run(scenario())


def test_answers_are_grouped_by_the_p_that_they_carry() -> None:
    async def scenario() -> None:
        service = FakeService()
        async with service.client() as client:
            first = await load(client, PICTURES[:1], clients=1, until=lambda answers, _: len(answers) == 2)
            await set_p(client, 0.25)
            second = await load(client, PICTURES[:1], clients=1, until=lambda answers, _: len(answers) == 3)
        assert shares(first.good + second.good) == [(0.25, 6, 0.5), (0.5, 4, 0.5)]

    asyncio.run(scenario())


def test_a_refused_change_of_p_ends_the_load_with_an_error() -> None:
    async def scenario() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(401))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            with pytest.raises(httpx.HTTPStatusError):
                async with turning(client, period_s=0.001, seed=0):
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_folder_without_coco_file_gives_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "b.JPG").write_bytes(b"b")
    (tmp_path / "a.webp").write_bytes(b"a")
    (tmp_path / "notes.txt").write_text("not a picture")
    posts = read_posts(tmp_path, "val")
    assert [(post.name, post.body, post.media_type) for post in posts] == [
        ("a.webp", b"a", "image/webp"),
        ("b.JPG", b"b", "image/jpeg"),
    ]


def test_without_pictures_the_benchmark_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 0
    assert "skipped: needs pictures with people in" in capsys.readouterr().out
