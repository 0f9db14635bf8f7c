import asyncio
import gc
import hashlib
import json
import os
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.decode import decode
from app.errors import ApiError
from app.intake import to_picture
from app.metrics import Metrics
from app.service import (
    ASPECTS,
    BUCKETS,
    CREW_NICENESS,
    SWITCH_INTERVAL_S,
    Service,
    build_stages,
    crew_size,
    side_by_side,
    warm,
)
from app.settings import Settings
from models.detector import letterbox
from models.zoo import PairError, read_manifest
from tests.app.conftest import FakePair, picture_of
from tests.process import until


def service(pair_folder, **settings) -> Service:
    return Service(Settings(_env_file=None, pair=str(pair_folder), **settings))


def test_a_missing_pair_is_refused_at_once(tmp_path):
    with pytest.raises(PairError, match=r"pair\.json"):
        service(tmp_path)


def edit(pair_folder, role, **changes):
    path = pair_folder / "pair.json"
    manifest = json.loads(path.read_text())
    manifest[role] |= changes
    path.write_text(json.dumps(manifest))


def test_a_net_of_other_keypoints_is_refused_at_once(pair_folder):
    edit(pair_folder, "large", keypoints="crowdpose")
    with pytest.raises(PairError, match="the large net has the keypoints of crowdpose; COCO's 17 are served"):
        service(pair_folder)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"any")
    return path


def test_settings_replace_parts_of_the_pair_and_answers_name_what_runs(serve, weights):
    client = serve(small=f"resnet50={weights}", detector=f"yolov8x={weights}")
    digits = hashlib.sha256(b"any").hexdigest()[:8]
    models = client.get("/version").json()["models"]
    assert models["pair"] == "fake with another detector, small"
    assert models["small"] == f"resnet50-192x256-{digits}"
    assert models["detector"] == f"yolov8x-640-{digits}"
    assert models["large"] == "tinypose-192x256-cccccccc"


def test_a_file_that_is_not_there_is_refused_at_once(pair_folder):
    with pytest.raises(PairError, match=r"LARGE: cannot read /nowhere\.onnx"):
        service(pair_folder, large="/nowhere.onnx")


def test_another_router_is_served_with_one_warning_that_the_calibration_does_not_fit(serve, weights, caplog):
    client = serve(router=f"dynpose={weights}", detector=f"yolov8x={weights}")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "made with another router" in record.message
    config = client.get("/config").json()
    assert config["mode"] == "tracking"
    assert config["warnings"] == [record.message]
    answer = client.post("/pose", files={"images": picture_of([0.41, 0.59])})
    assert len(answer.json()["images"][0]["people"]) == 2


def test_another_detector_is_served_with_a_warning(serve, weights, caplog):
    serve(detector=f"yolov8x={weights}")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "made with another detector" in record.message


def test_a_start_says_who_may_do_what(serve, caplog):
    caplog.set_level("INFO", "dynpose")
    serve(admin_token="secret")
    lines = [record.getMessage() for record in caplog.records]
    assert "POST /pose is open to whoever can reach it" in lines
    assert "PATCH /config needs ADMIN_TOKEN" in lines


def test_the_pairs_own_parts_give_no_warning(serve, caplog):
    serve()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


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
    monkeypatch.setattr("app.service.warm", lambda *_: None)

    async def run():
        await stopping.load()
        await stopping.close()

    asyncio.run(run())
    assert stopping.status == "draining"


@pytest.mark.parametrize(("precision", "expected"), [("auto", True), ("bf16", False)])
def test_the_detector_runs_in_int8_where_the_cpu_has_use_for_it(
    pair_folder, monkeypatch, precision, expected
):
    loaded = []

    def load(*arguments):
        loaded.append(arguments[-1])
        return FakePair(None)

    monkeypatch.setattr("torch.cpu._is_avx2_supported", lambda: True)
    monkeypatch.setattr("app.service.load_pair", load)
    monkeypatch.setattr("app.service.warm", lambda *_: None)
    starting = service(pair_folder, precision=precision, device="cpu")

    async def run():
        await starting.load()
        await starting.close()

    asyncio.run(run())
    assert loaded == [expected]
    assert starting.detector_precision in ("float32", "bfloat16")  # the fake pair has none in int8
    starting.manifest = read_manifest("embedded")
    assert (starting.detector_precision == "int8") is expected


def test_nothing_is_served_before_it_is_ready(pair_folder):
    starting = service(pair_folder)
    assert starting.unready() == "loading"
    assert starting.unhealthy() is None
    with pytest.raises(ApiError, match="loading") as refusal:
        starting.ready_pipeline()
    assert (refusal.value.status, refusal.value.code) == (503, "not_ready")


def test_metrics_tell_readiness_as_readyz_does(serve):
    client = serve()
    for status, told in (("warming", 0), ("ready", 1), ("draining", 0)):
        client.service.status = status
        assert f"dynpose_ready {told}.0" in client.get("/metrics").text.splitlines()


def test_the_garbage_collector_leaves_alone_what_was_loaded(serve, monkeypatch):
    monkeypatch.setattr("app.service.gc", gc)
    gc.unfreeze()
    serve()
    assert gc.get_freeze_count() > 0


def test_people_of_many_requests_share_batches(serve, monkeypatch):
    """While the router is busy with one request, the people of the others gather into one batch."""
    monkeypatch.setattr("app.service.side_by_side", lambda _: 1)
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
    assert until(lambda: 'dynpose_batch_size_count{stage="score"} 2.0' in client.get("/metrics").text)
    assert 'dynpose_batch_size_bucket{le="1.0",stage="score"} 1.0' in client.get("/metrics").text


def observer() -> Metrics:
    return Metrics(version="", pair="", device="cpu", runtime="")


def test_every_batch_size_and_usual_picture_is_warmed():
    pair, seen = FakePair(None), []
    pair.faults = {
        stage: lambda pictures, stage=stage: seen.append((stage, len(pictures), tuple(pictures[0].shape[:2])))
        for stage in ("detect", "score", "small", "large")
    }
    wide = []
    pair.wide_detector = lambda pictures, _: wide.append(pictures) or [torch.empty(0, 5)]
    stages = build_stages(pair, observer(), max_passed_over_s=0.2, at_once=2)
    warm(pair, stages)
    assert {tuple(picture.shape[:2]) for (picture,) in wide} == set(ASPECTS)
    assert {shape for stage, _, shape in seen if stage == "detect"} == set(ASPECTS)
    for stage, buckets in BUCKETS["cpu"].items():
        assert {size for name, size, _ in seen if name == stage} == set(buckets)


def test_usual_pictures_have_every_shape_but_that_of_panoramas():
    seen = {letterbox(torch.zeros(*aspect, 3, dtype=torch.uint8), 512).shape[1:] for aspect in ASPECTS}
    assert seen == {(512, side) for side in (288, 352, 384, 416, 512)} | {
        (side, 512) for side in (288, 352, 384, 416)
    }


def test_people_are_warmed_as_they_will_be_asked_for(pair_folder, monkeypatch):
    warmed = []
    monkeypatch.setattr("app.service.load_pair", lambda *_: FakePair(None))
    monkeypatch.setattr("app.service.warm", lambda *arguments: warmed.append(arguments[-1]))
    asyncio.run(service(pair_folder, flip_test=True).load())
    assert warmed == [True]
    pair, asked = FakePair(None), []
    pair.large = lambda _, boxes, *, flip_test: asked.append(flip_test) or torch.zeros(len(boxes), 17, 3)
    warm(pair, build_stages(pair, observer(), max_passed_over_s=0.2, at_once=1), flip_test=True)
    assert set(asked) == {True}


def test_on_a_cpu_one_crew_runs_all_stages_and_two_batches_of_each_at_once():
    pair = FakePair(None)
    pair.more_detectors = (pair.detector,)
    stages = build_stages(pair, observer(), max_passed_over_s=0.2, at_once=2)
    names = ("detect", "score", "small", "large")
    assert {stage.name: stage.slots for stage in stages} == dict.fromkeys(names, 2)
    assert len({id(stage.crew) for stage in stages}) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a niceness for each thread")
def test_networks_give_way_to_whoever_asks_meanwhile(serve):
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    client, seen = serve(mode="fixed"), []
    for stage in ("detect", "large"):
        client.pair.faults[stage] = lambda _: seen.append(niceness())
    client.post("/pose", content=picture_of([0.47]), headers={"Content-Type": "image/png"})
    assert seen == [min(19, niceness() + CREW_NICENESS)] * 2


def test_a_second_batch_of_a_persons_stage_waits_for_four(serve):
    """OpenVINO's network of one might be in use by the first."""
    client = serve(mode="fixed")
    entered, go_on, sizes = threading.Event(), threading.Event(), []

    def hold(people):
        sizes.append(len(people))
        entered.set()
        assert go_on.wait(10)

    client.pair.faults["large"] = hold
    image = {"Content-Type": "image/png"}
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(client.post, "/pose", content=picture_of([0.47]), headers=image)]
        assert entered.wait(10)
        answers.append(clients.submit(client.post, "/pose", content=picture_of([0.47] * 3), headers=image))
        hard = client.service.pipeline.queues.hard
        assert until(lambda: hard.depth == 3)
        time.sleep(0.02)
        assert sizes == [1]
        go_on.set()
    assert [answer.result().status_code for answer in answers] == [200, 200]


def test_pictures_are_decoded_no_further_ahead_of_the_detector(serve, monkeypatch):
    monkeypatch.setattr("app.service.AHEAD", 1)
    monkeypatch.setattr("app.service.crew_size", lambda: 2)
    decoded = []

    def decode(upload, device):
        decoded.append(upload)
        return to_picture(upload, device)

    monkeypatch.setattr("app.routes.pose.to_picture", decode)
    client = serve()
    go_on = {stage: threading.Event() for stage in ("detect", "score")}
    for stage, event in go_on.items():
        client.pair.faults[stage] = lambda _, event=event: event.wait(10)
    image = {"Content-Type": "image/png"}
    with ThreadPoolExecutor(5) as clients:
        answers = [
            clients.submit(client.post, "/pose", content=picture_of([0.47]), headers=image) for _ in range(5)
        ]
        assert until(lambda: client.service.ahead.depth == 3 and len(decoded) == 2)
        time.sleep(0.02)
        assert len(decoded) == 2
        assert 'dynpose_queue_depth{queue="decode"} 3.0' in client.get("/metrics").text
        go_on["detect"].set()  # nobody waits for the people of pictures before it
        assert until(lambda: len(decoded) > 2)
        go_on["score"].set()
    assert [answer.result().status_code for answer in answers] == [200] * 5
    assert 'dynpose_queue_wait_seconds_count{queue="decode"} 5.0' in client.get("/metrics").text


def test_a_picture_that_is_done_takes_no_memory_while_others_of_its_request_are_not(serve, monkeypatch):
    monkeypatch.setattr("app.service.crew_size", lambda: 2)
    client = serve()
    go_on, done = threading.Event(), []

    def hold(pictures):
        if any(picture.shape[1] == 120 for picture in pictures):
            assert go_on.wait(10)
        else:
            done.extend(map(weakref.ref, pictures))

    def decode_last(data):
        assert data != held or until(lambda: bool(done))
        return decode(data)

    client.pair.faults["detect"] = hold
    monkeypatch.setattr("app.intake.decode", decode_last)
    held = picture_of([0.47] * 2)
    files = [("images", ("a.png", picture_of([0.47]))), ("images", ("b.png", held))]
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(client.post, "/pose", files=files)
        assert until(lambda: done and not any(picture() is not None for picture in done))
        assert not answer.done()
        go_on.set()
    assert [len(image["people"]) for image in answer.result().json()["images"]] == [1, 2]


def test_on_a_gpu_each_stage_has_a_thread(monkeypatch):
    monkeypatch.setattr("app.service.own_stream", lambda run, _: run)
    pair = FakePair(None)
    pair.device = torch.device("cuda")
    stages = build_stages(pair, observer(), max_passed_over_s=0.2, at_once=1)
    assert len({id(stage.crew) for stage in stages}) == 4


def test_on_a_gpu_threads_let_go_of_the_interpreter_soon(pair_folder, monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr("sys.setswitchinterval", asked.append)
    service(pair_folder, device="cpu")
    assert asked == []
    monkeypatch.setattr("app.service.resolve_device", torch.device)
    service(pair_folder, device="cuda")
    assert asked == [SWITCH_INTERVAL_S]


@pytest.mark.parametrize(
    ("cores", "each", "size", "at_once"), [(2, 1, 2, 2), (8, 2, 4, 2), (2, 2, 1, 1), (1, 4, 1, 1)]
)
def test_no_more_networks_run_at_once_than_there_are_cores_for(cores, each, size, at_once, monkeypatch):
    monkeypatch.setattr("app.service.cores", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: each)
    assert crew_size() == size
    assert side_by_side(torch.device("cpu")) == at_once
    assert side_by_side(torch.device("cuda")) == 1


def test_all_stages_share_the_cores(serve, monkeypatch):
    monkeypatch.setattr("app.service.crew_size", lambda: 1)
    client = serve(mode="fixed")
    running, seen = [], []

    def run(_):
        running.append(1)
        seen.append(len(running))
        time.sleep(0.005)
        running.pop()

    client.pair.faults = dict.fromkeys(("detect", "score", "small", "large"), run)

    def post():
        client.post("/pose", content=picture_of([0.41, 0.47]), headers={"Content-Type": "image/png"})

    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1}


def test_a_runtime_that_cannot_run_is_refused_at_once(pair_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="RUNTIME=openvino"):
        service(pair_folder, runtime="openvino")
