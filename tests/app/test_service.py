import asyncio
import threading
import time

import pytest

from app.errors import ApiError
from app.service import Service
from app.settings import Settings
from models.zoo import PairError
from tests.app.conftest import FakePair, picture_of


def service(pair_folder, **settings) -> Service:
    return Service(Settings(_env_file=None, pair=str(pair_folder), **settings))


def test_a_missing_pair_is_refused_at_once(tmp_path):
    with pytest.raises(PairError, match=r"pair\.json"):
        service(tmp_path)


def test_a_pair_that_does_not_load_stops_the_service_and_says_why(pair_folder):
    stopped = []
    broken = service(pair_folder)  # it has no weights
    broken.on_failure = lambda: stopped.append(True)
    asyncio.run(broken.load())
    assert "cannot read" in broken.failure
    assert stopped == [True]


def test_whatever_goes_wrong_while_loading_stops_the_service(pair_folder, monkeypatch):
    def load(*_):
        raise LookupError

    monkeypatch.setattr("app.service.load_pair", load)
    stopped = []
    broken = service(pair_folder)
    broken.on_failure = lambda: stopped.append(True)
    asyncio.run(broken.load())
    assert broken.failure == "LookupError"
    assert stopped == [True]


def test_a_service_told_to_stop_while_it_loads_keeps_refusing(pair_folder, monkeypatch):
    stopping = service(pair_folder)

    def load(*_):
        stopping.drain()
        return FakePair(stopping.manifest)

    monkeypatch.setattr("app.service.load_pair", load)
    monkeypatch.setattr("app.service.warm", lambda _: None)

    async def run():
        await stopping.load()
        await stopping.close()

    asyncio.run(run())
    assert stopping.status == "draining"


def test_nothing_is_served_before_it_is_ready(pair_folder):
    starting = service(pair_folder)
    assert starting.unready() == "loading"
    assert starting.unhealthy() is None
    with pytest.raises(ApiError, match="loading") as refusal:
        starting.ready_pipeline()
    assert (refusal.value.status, refusal.value.code) == (503, "not_ready")


def test_people_of_many_requests_share_batches(serve):
    """While the router is busy with one request, the people of the others gather into one batch."""
    client = serve(mode="fixed")
    first_runs, go_on = threading.Event(), threading.Event()

    def hold(_):
        first_runs.set()
        go_on.wait(10)

    client.pair.faults["score"] = hold

    def post():
        client.post("/pose", content=picture_of([0.47]), headers={"Content-Type": "image/png"})

    threads = [threading.Thread(target=post) for _ in range(9)]
    threads[0].start()
    first_runs.wait(10)
    for thread in threads[1:]:
        thread.start()
    (score,) = (stage for stage in client.service.stages if stage.name == "score")
    deadline = time.monotonic() + 10
    while score.queues[0].depth < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert 'dynpose_batch_size_bucket{le="1.0",stage="score"} 1.0' in client.get("/metrics").text
    assert 'dynpose_batch_size_count{stage="score"} 2.0' in client.get("/metrics").text
