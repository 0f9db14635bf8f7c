"""What is made of two looks at /metrics."""

import asyncio
import io
import math
import urllib.request

import pytest
from rich.console import Console, RenderableType

from app.batching import BatchQueue, Stage
from app.cli.client import Client, ServerError
from app.cli.top import STAGES, Scrape, Watch, quantile, view, watch
from app.metrics import Metrics
from app.policy import Route, SplitPolicy
from tests.app.cli.conftest import Dynpose, Live
from tests.app.conftest import picture_of

EDGES = [(0.1, 0.0), (0.2, 50.0), (0.4, 100.0), (math.inf, 100.0)]


@pytest.mark.parametrize(("q", "value"), [(0.25, 0.15), (0.5, 0.2), (0.75, 0.3), (1.0, 0.4)])
def test_a_quantile_is_linear_within_its_bucket(q: float, value: float) -> None:
    assert quantile(EDGES, q) == pytest.approx(value)


def test_a_quantile_beyond_the_last_edge_is_that_edge_and_of_nothing_none() -> None:
    assert quantile([(0.1, 1.0), (math.inf, 10.0)], 0.5) == 0.1
    assert quantile([(0.1, 0.0), (math.inf, 0.0)], 0.5) is None
    assert quantile([], 0.5) is None


def registry() -> Metrics:
    """Of a service whose stages have their real names and do not run."""
    metrics = Metrics(version="1", pair="fake", device="cpu", runtime="eager")
    stages = [
        Stage(name, [list], [BatchQueue(queue) for queue in queues], buckets=(1,), observer=metrics)
        for name, queues in STAGES.items()
    ]
    policy = SplitPolicy([i / 100 for i in range(101)], p=0.5, theta=0.1, mode="fixed", policy="band")
    metrics.bind(lambda: policy, stages)
    return metrics


def scrape(metrics: Metrics, at: float) -> Scrape:
    return Scrape(metrics.render(None)[0].decode(), at)


def test_a_view_has_what_happened_between_the_looks_alone() -> None:
    metrics = registry()
    metrics.person(Route.easy, 0.1)
    metrics.request(500, 9.0)
    metrics.ran("large", 1, 5.0)
    before = scrape(metrics, 10.0)
    for route in [Route.easy] * 6 + [Route.hard] * 3 + [Route.extremely_hard]:
        metrics.person(route, 0.5)
    metrics.forced("large")
    for _ in range(4):
        metrics.image(people=3)
        metrics.request(200, 0.07)
    metrics.request(429, 0.0005)
    metrics.ran("large", 4, 0.5)
    metrics.waited("hard", 0.02)
    now = view(before, scrape(metrics, 12.0))
    assert (now.people_s, now.images_s) == (5.5, 2.0)
    assert now.statuses == {"200": 2.0, "429": 0.5}
    assert now.routes == {"easy": 6, "hard": 3, "extremely_hard": 1, "forced_small": 0, "forced_large": 1}
    assert (now.p, now.k1) == (0.5, 0.1)
    assert now.latencies[0] is not None
    assert 0.05 < now.latencies[0] < 0.1
    large = next(stage for stage in now.stages if stage.name == "large")
    assert (large.busy, large.batches_s, large.size, large.run) == (0.25, 0.5, 4.0, 0.5)
    hard = next(queue for queue in now.queues if queue.name == "hard")
    assert (hard.depth, hard.wait) == (0, pytest.approx(0.02))
    easy = next(queue for queue in now.queues if queue.name == "easy")
    assert (easy.wait, easy.wait_p95) == (None, None)


def test_the_queues_and_stages_are_those_of_a_service(live: Live) -> None:
    server = live()
    assert {
        stage.name: tuple(queue.name for queue in stage.queues) for stage in server.service.stages
    } == STAGES


def test_counts_of_two_processes_are_not_compared() -> None:
    text = registry().render(None)[0].decode()
    other = text.replace("process_start_time_seconds 1", "process_start_time_seconds 2")
    assert other != text
    with pytest.raises(ValueError, match="another process"):
        view(Scrape(text, 0.0), Scrape(other, 1.0))


@pytest.mark.parametrize("text", ["", "<html>", "up 1\n"])
def test_what_is_no_metrics_of_a_dynpose_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Scrape(text, 0.0)


def test_one_view_is_printed_as_plain_text(dynpose: Dynpose, live: Live) -> None:
    server = live()
    result = dynpose("top", "--server", server.url, "--once", "--interval", 0.1)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert set(lines) >= {
        "server",
        "people/s",
        "images/s",
        "latency",
        "decode",
        "large share",
        "routes",
        "queue",
        "detect",
    }
    assert lines["people/s"].split() == ["people/s", "0.0"]
    assert lines["latency"].split() == ["latency", "p50", "-", "p95", "-", "p99", "-"]
    assert lines["large share"].endswith("target p 0.5")
    assert not any(line != line.rstrip() for line in result.stdout.splitlines())


def test_one_view_of_no_server_ends_in_one_line(dynpose: Dynpose) -> None:
    result = dynpose("top", "--server", "http://127.0.0.1:9", "--once")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)


def text_of(shown: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_server_that_goes_and_comes_back_is_watched_on(live: Live) -> None:
    first = live()

    async def looks() -> list[str]:
        async with Client(first.url) as client:
            watched = Watch(client)
            shown = [await watched.look()]
            request = urllib.request.Request(
                f"{first.url}/pose", picture_of([0.41, 0.47]), {"Content-Type": "image/png"}
            )
            await asyncio.to_thread(urllib.request.urlopen, request)
            shown.append(await watched.look())
            await asyncio.to_thread(first.stop)
            shown.append(await watched.look())
            await asyncio.to_thread(live, port=first.port)
            shown += [await watched.look(), await watched.look()]
            return [text_of(one) for one in shown]

    waiting, busy, gone, back, again = asyncio.run(looks())
    assert "waiting for two looks" in waiting
    assert "easy 1 (0.50)  hard 1 (0.50)" in busy
    assert "easy 1 (0.50)  hard 1 (0.50)" in gone
    assert "trying again" in gone
    assert "trying again" not in back + again
    assert "nobody" in again


def test_a_url_that_cannot_be_one_is_not_watched() -> None:
    with pytest.raises(ServerError):
        asyncio.run(watch("localhost:8000", 1.0))
