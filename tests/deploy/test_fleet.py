"""Two processes at once: p turned in all of them, and Prometheus reading what they did."""

import json
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from app.cli.commands import app as commands
from app.cli.top import Scrape, quantile
from tests.app.conftest import picture_of
from tests.deploy.conftest import DEPLOY, answers, documents, free_port, wait_for

Ask = Callable[[str], dict[str, float]]


def test_p_is_turned_in_every_process_behind_a_name(fleet: list[str], monkeypatch: pytest.MonkeyPatch):
    port = int(fleet[0].rsplit(":", 1)[1])
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "dynpose-pods":
            return real(host, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{pod}", port)) for pod in (1, 2)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for p in (0.25, 0.5):
        result = CliRunner().invoke(commands, ["split", str(p), "--all-pods", f"dynpose-pods:{port}"])
        assert result.exit_code == 0, result.output
        assert [line.split(": ")[0] for line in result.stdout.splitlines()] == fleet
        assert [httpx.get(f"{url}/config", trust_env=False).json()["p"] for url in fleet] == [p, p]


@pytest.fixture
def prometheus(fleet: list[str], tmp_path: Path) -> Iterator[Ask]:
    """Prometheus with the configuration of deploy/, but the two processes as targets, and looking every second.
    `prometheus(query)`: value by instance."""
    if not shutil.which("prometheus"):
        pytest.skip("needs Prometheus: Debian's package `prometheus`, or its release on PATH")
    (config,) = documents("prometheus", "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    targets = [url.removeprefix("http://") for url in fleet]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = targets
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def ask(query: str) -> dict[str, float]:
        answer = httpx.get(f"http://{address}/api/v1/query", params={"query": query}, trust_env=False).json()
        assert answer["status"] == "success", answer
        found = answer["data"]["result"]
        return {series["metric"].get("instance", ""): float(series["value"][1]) for series in found}

    try:
        wait_for(lambda: process.poll() is not None or answers(f"http://{address}/-/ready"))
        assert process.poll() is None, (tmp_path / "log").read_text()
        yield ask
    finally:
        process.kill()
        process.wait()


def test_prometheus_gives_back_the_share_and_the_p99_that_were_there(fleet: list[str], prometheus: Ask):
    instances = [url.removeprefix("http://") for url in fleet]
    # Counts are seen from 0 on, so that what they grew by is what they are.
    wait_for(lambda: prometheus("dynpose_ready") == dict.fromkeys(instances, 1))
    routes = {instance: Counter[str]() for instance in instances}
    for url, instance, requests in zip(fleet, instances, (12, 30), strict=True):
        for index in range(requests):
            crowd = [0.4 + 0.2 * (person + index / requests) / 20 for person in range(20)]
            headers = {"Content-Type": "image/png"}
            answer = httpx.post(f"{url}/pose", content=picture_of(crowd), headers=headers, trust_env=False)
            routes[instance] += Counter(person["route"] for person in answer.json()["images"][0]["people"])
    share = {
        instance: pytest.approx(routes[instance]["hard"] / routes[instance].total()) for instance in instances
    }
    assert [routes[instance].total() for instance in instances] == [240, 600]
    assert all(0.45 < found["hard"] / found.total() < 0.55 for found in routes.values())

    def p99(url: str) -> float:
        text = httpx.get(f"{url}/metrics", trust_env=False).text
        return quantile(Scrape(text, 0).buckets("request_duration_seconds"), 0.99)

    slowest = {instance: pytest.approx(p99(url)) for url, instance in zip(fleet, instances, strict=True)}
    wait_for(lambda: prometheus("instance:dynpose_request_duration_seconds:p99_5m") == slowest, 20)
    assert prometheus("instance:dynpose_hard_share:rate5m") == share
    assert prometheus("dynpose_large_share") == share
    assert prometheus("dynpose_split_target") == dict.fromkeys(instances, 0.5)
    assert prometheus('ALERTS{alertstate="firing"}') == {}
    for panel in json.loads((DEPLOY / "grafana" / "dashboards" / "dynpose.json").read_text())["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            assert prometheus(query) or "ALERTS" in query, f"{panel['title']} shows nothing"
