"""The service on a Ray cluster of this machine: what is promised over HTTP holds there, too, and the stages' replicas
do what the threads of the plain server do. Without Ray's package nothing of this runs."""

import inspect
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # Ray's own ports on the loopback address alone
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Ray is warned of while it is imported
    ray_serve = pytest.importorskip("ray.serve")
import ray
from ray.serve.config import HTTPOptions

from app.settings import Settings
from deploy.ray_serve import STAGES, UNBOUNDED, Replica
from tests.app.conftest import picture_of, write_pair
from tests.app.routes import test_config, test_health, test_metrics, test_page, test_pose
from tests.deploy.conftest import ROOT, START_S, free_port, wait_for
from tests.deploy.ray_fakes import FreshIngress, Loader, Wishes
from tests.process import PHOTO

# What Ray warns of is Ray's.
pytestmark = pytest.mark.filterwarnings("default")

IN_PROCESS = {
    "test_a_service_that_is_not_ready_says_why_and_is_alive",
    "test_a_dead_stage_fails_both_checks_and_everything_it_is_asked",
    "test_a_stage_that_is_stuck_is_given_up_on",
    "test_no_room_is_429_with_retry_after",
    "test_a_drawing_counts_until_its_client_has_it",
    "test_requests_are_refused_while_loading_and_while_draining",
    "test_bodies_that_have_no_room_are_refused_before_they_are_read",
    "test_every_change_is_logged_with_its_version_and_no_refusal_is",
    "test_the_flip_test_and_a_forced_small_net_run_it_all_the_same",
    "test_a_passed_deadline_is_504_and_nothing_is_run",
    "test_a_request_is_as_old_as_its_body_is_whole",
    "test_of_a_request_that_is_given_up_no_further_header_is_read",
}
"""Tests of the routes that reach into the service's process, read its log or count what its networks were asked; stages
that die are replaced here."""


def asks(test: Callable[..., None]) -> bool:
    return not {"client", "serve"}.isdisjoint(inspect.signature(test).parameters)


for module in (test_config, test_health, test_metrics, test_page, test_pose):
    for name, value in vars(module).items():
        if name.startswith("test_") and name not in IN_PROCESS and asks(value):
            globals()[name] = value


class Cluster:
    """Two replicas of each stage, and an ingress that begins anew for each test."""

    def __init__(self, folder: Path) -> None:
        self.pair = write_pair(folder / "pair")
        self.wishes = folder / "wishes"
        Wishes(self.wishes)
        self.url = f"http://127.0.0.1:{free_port()}"
        ray.init(
            "local", num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
        )
        ray_serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(self.url.rsplit(":", 1)[1])))
        options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": UNBOUNDED}
        stages = {
            name: ray_serve.deployment(Replica, name=name, num_replicas=2, **options).bind(
                name, self.settings(), Loader(self.wishes)
            )
            for name in STAGES
        }
        ingress = ray_serve.deployment(FreshIngress, name="ingress", **options).bind(**stages)
        self.ingress = ray_serve.run(ingress, name="dynpose")

    def settings(self, **settings: Any) -> Settings:
        usual = {"policy": "band", "min_score": 0.3, "device": "cpu", "runtime": "eager", "threads": 1}
        return Settings(_env_file=None, pair=str(self.pair), **usual | settings)

    def begin(self, **settings: Any) -> None:
        self.ingress.begin.remote(self.settings(**settings)).result(timeout_s=60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield Cluster(tmp_path_factory.mktemp("ray"))
    ray_serve.shutdown()
    ray.shutdown()


class Client(httpx.Client):
    """As the test client of the plain server."""

    pair: Wishes


@pytest.fixture
def serve(cluster: Cluster) -> Iterator[Callable[..., Client]]:
    clients = []

    def start(*, ready: bool = True, **settings: Any) -> Client:
        cluster.begin(**settings)
        clients.append(Client(base_url=cluster.url, timeout=60, trust_env=False))
        clients[-1].pair = Wishes(cluster.wishes)
        while ready and clients[-1].get("/readyz").status_code != 200:
            time.sleep(0.01)
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def post(client: Client, difficulties: list[float]) -> httpx.Response:
    return client.post("/pose", content=picture_of(difficulties), headers={"Content-Type": "image/png"})


def test_a_change_is_in_force_in_every_replica_with_the_answer_to_it(serve, tmp_path: Path):
    client = serve()
    seen = {stage: tmp_path / stage for stage in ("small", "large")}
    for stage, folder in seen.items():
        folder.mkdir()
        client.pair.faults[stage] = lambda _, folder=folder: (folder / str(os.getpid())).touch()
    with ThreadPoolExecutor(4) as clients:
        before = [clients.submit(post, client, [0.41, 0.47]) for _ in range(20)]
        version = client.patch("/config", json={"flip_test": True}).json()["version"]
        after = [clients.submit(post, client, [0.41, 0.47]) for _ in range(40)]
        assert all(answer.result().status_code == 200 for answer in before)
        answers = [answer.result().json() for answer in after]
    assert {answer["split"]["version"] for answer in answers} == {version}
    people = [person for answer in answers for person in answer["images"][0]["people"]]
    assert {person["keypoints"][0][0] - person["bbox"][0] for person in people} == {1.5, 2.5}
    assert [len(list(folder.iterdir())) for folder in seen.values()] == [2, 2]


def test_p_turns_for_the_next_request(serve):
    client = serve()
    for p, routes in ((1, {"hard"}), (0, {"easy", "extremely_hard"})):
        client.patch("/config", json={"p": p})
        people = post(client, [0.41, 0.47, 0.56]).json()["images"][0]["people"]
        assert {person["route"] for person in people} <= routes


def end(_):
    os._exit(1)


def die(_):
    raise SystemExit


@pytest.mark.parametrize("fault", [end, die])
def test_people_of_a_replica_that_is_lost_are_run_by_another(serve, tmp_path: Path, fault):
    client = serve()
    once = tmp_path / "once"

    def lose(pictures):
        if not once.exists():
            once.touch()
            fault(pictures)

    client.pair.faults["large"] = lose
    answer = post(client, [0.47, 0.47])
    assert once.exists()
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["images"][0]["people"]) == 2


def test_what_waits_for_a_client_that_hangs_up_is_not_run(serve, tmp_path: Path):
    client = serve()
    release, ran = tmp_path / "release", tmp_path / "ran"
    ran.mkdir()

    def hold(pictures):
        (ran / f"{os.getpid()}-{max(picture.shape[1] for picture in pictures)}").touch()
        while not release.exists():
            time.sleep(0.01)

    client.pair.faults["detect"] = hold
    with ThreadPoolExecutor(8) as clients:
        held = [clients.submit(post, client, [0.47]) for _ in range(8)]
        while len(list(ran.iterdir())) < 2:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/pose", content=picture_of([0.47] * 2), headers={"Content-Type": "image/png"}, timeout=1
            )
        while "dynpose_in_flight 8.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        release.touch()
        assert [answer.result().status_code for answer in held] == [200] * 8
    assert {name.name.split("-")[1] for name in ran.iterdir()} == {"60"}
    metrics = client.get("/metrics").text
    assert "dynpose_cancelled_total 1.0" in metrics
    assert 'dynpose_requests_total{status="499"} 1.0' in metrics


def test_the_command_serves_and_ends_when_told_to_with_everything_answered(tmp_path: Path):
    port, log = free_port(), tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "deploy.ray_serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--large",
        "2",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"DEVICE": "cpu"}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_for(lambda: process.poll() is not None or b"\nready on" in log.read_bytes(), 300)
        assert process.poll() is None, log.read_text()
        with (
            Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
            ThreadPoolExecutor(1) as other,
        ):
            files = [("images", ("bus.jpg", PHOTO))] * 8
            answer = other.submit(client.post, "/pose?p=1", files=files)
            wait_for(lambda: "dynpose_in_flight 1.0" in client.get("/metrics").text)
            process.terminate()
            images = answer.result().json()["images"]
        assert [image["routes"]["hard"] for image in images] == [4] * 8
        assert process.wait(START_S) == 0
    finally:
        process.kill()
