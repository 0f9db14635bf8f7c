import base64
import io
import json
import threading
import time

import pytest
from PIL import Image

from app.admission import Room
from app.batching import Run, Ticket
from app.intake import examine, read, to_picture
from app.routes.pose import timing
from tests.app.conftest import picture_of

EASY, HARD, EXTREME = 0.41, 0.47, 0.56
PEOPLE = picture_of([EASY, HARD, EXTREME, HARD])
FOUR = [[10, 10, 40, 40], [70, 10, 40, 40], [130, 10, 40, 40], [190, 10, 40, 40]]


def post(client, data=PEOPLE, kind="image/png", **query):
    return client.post("/pose", content=data, headers={"Content-Type": kind}, params=query)


def error(answer, status, code):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    return body["detail"]


def test_people_are_routed_by_difficulty_and_answered_by_the_right_net(client):
    answer = post(client)
    assert answer.status_code == 200
    body = answer.json()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["models"]) == {"pair", "detector", "router", "small", "large"}
    assert body["split"] == {
        "p": 0.5,
        "k1": 0.42,
        "k2": 0.52,
        "mode": "fixed",
        "policy": "band",
        "version": 1,
        "revision": 0,
    }
    (image,) = body["images"]
    assert (image["index"], image["name"], image["width"], image["height"]) == (0, None, 240, 60)
    assert image["routes"] == {"easy": 1, "hard": 2, "extremely_hard": 1}
    assert image["truncated"] is False
    assert [person["route"] for person in image["people"]] == ["easy", "hard", "extremely_hard", "hard"]
    assert [person["estimator"] for person in image["people"]] == ["small", "large", "small", "large"]
    first = image["people"][0]
    assert first["bbox"] == [10.0, 10.0, 40.0, 40.0]
    assert first["keypoints"] == [[11.0, 11.0, 0.8]] * 17
    assert first["score"] == pytest.approx(0.95 * 0.8, abs=1e-5)
    assert first["difficulty"] == pytest.approx(EASY, abs=1e-3)
    scores = [person["score"] for person in image["people"]]
    assert scores == sorted(scores, reverse=True)
    assert set(body["timing_ms"]) == {"decode", "detect", "score", "estimate", "queued", "total"}


def test_people_are_in_falling_order_of_their_score(client):
    client.pair.faint_at = 10
    people = post(client).json()["images"][0]["people"]
    assert [person["bbox"][0] for person in people] == [70, 130, 190, 10]


def test_coordinates_have_two_decimals_and_scores_six(client):
    client.pair.peaks = [1 / 3] * 17
    encoded = base64.b64encode(PEOPLE).decode()
    document = {"images": [{"data": encoded, "boxes": [[70 + 1 / 3, 10, 40, 40]]}, {"data": encoded}]}
    full = [image["people"][0] for image in client.post("/pose", json=document).json()["images"]]
    coco = client.post("/pose?format=coco", json=document).json()
    assert full[0]["bbox"] == coco[0]["bbox"] == [70.33, 10, 40, 40]
    assert full[0]["keypoints"][0] == coco[0]["keypoints"][:3] == [72.33, 12, 0.333333]
    for one in (*full, *coco):
        assert one["score"] == round(one["score"], 6)
    assert [one["bbox_score"] for one in full] == [1, 0.95]
    assert full[0]["difficulty"] == round(full[0]["difficulty"], 6)


def test_who_stays_with_the_small_net_needs_no_second_run_where_the_router_has_run_it(client):
    def never(_):
        pytest.fail("the small net ran again")

    before = post(client).json()["images"]
    client.pair.small_in_router = True
    client.pair.faults["small"] = never
    assert post(client).json()["images"] == before


def test_the_flip_test_and_a_forced_small_net_run_it_all_the_same(client):
    ran = []
    client.pair.small_in_router = True
    client.pair.faults["small"] = ran.extend
    forced = post(client, estimator="small").json()["images"][0]["people"]
    assert len(ran) == len(forced) == 4
    client.patch("/config", json={"flip_test": True})
    people = post(client).json()["images"][0]["people"]
    assert len(ran) == 4 + 2
    assert people[0]["keypoints"][0][0] == people[0]["bbox"][0] + 1.5


def test_the_three_ways_to_send_a_picture_give_the_same_people(client):
    raw = post(client).json()["images"][0]
    form = client.post("/pose", files={"images": ("crowd.png", PEOPLE, "image/png")}).json()["images"][0]
    document = {"images": [{"data": base64.b64encode(PEOPLE).decode()}]}
    as_json = client.post("/pose", json=document).json()["images"][0]
    assert form["name"] == "crowd.png"
    assert raw["people"] == form["people"] == as_json["people"]


def test_given_boxes_skip_the_detector(client):
    boxes = [[70, 10, 40, 40]]
    form = client.post("/pose", files=[("images", ("a.png", PEOPLE)), ("boxes", (None, json.dumps([boxes])))])
    encoded = base64.b64encode(PEOPLE).decode()
    as_json = client.post("/pose", json={"images": [{"data": encoded, "boxes": boxes}]})
    for answer in (form, as_json):
        (person,) = answer.json()["images"][0]["people"]
        assert (person["bbox"], person["bbox_score"], person["route"]) == (
            [70.0, 10.0, 40.0, 40.0],
            1.0,
            "hard",
        )


def test_an_empty_list_of_boxes_means_nobody_and_null_means_detect(client):
    encoded = base64.b64encode(PEOPLE).decode()
    document = {"images": [{"data": encoded, "boxes": []}, {"data": encoded, "boxes": None}]}
    nobody, detected = client.post("/pose", json=document).json()["images"]
    assert nobody["people"] == []
    assert len(detected["people"]) == 4


@pytest.mark.parametrize(
    ("p", "estimators"),
    [(0, ["small"] * 4), (1, ["large"] * 4), (0.9, ["small", "large", "large", "large"])],
)
def test_p_applies_to_its_request_alone(client, p, estimators):
    body = post(client, p=p).json()
    assert body["split"]["p"] == p
    assert [person["estimator"] for person in body["images"][0]["people"]] == estimators
    assert post(client).json()["split"]["p"] == 0.5
    assert client.get("/config").json()["realised"]["people"] == 4  # of the service's own p


def test_infinite_thresholds_are_null(client):
    split = post(client, p=1).json()["split"]
    assert (split["k1"], split["k2"]) == (None, None)


@pytest.mark.parametrize("choice", ["small", "large"])
def test_a_forced_estimator_skips_the_router(client, choice):
    people = post(client, estimator=choice).json()["images"][0]["people"]
    assert {person["estimator"] for person in people} == {choice}
    assert all(person["route"] is None and "difficulty" not in person for person in people)


def test_min_score_and_max_people_bound_what_is_found(client):
    people = post(client, min_score=0.92).json()["images"][0]["people"]
    assert [person["bbox_score"] for person in people] == pytest.approx([0.95, 0.93])
    image = post(client, max_people=3).json()["images"][0]
    assert (len(image["people"]), image["truncated"]) == (3, True)
    assert [person["bbox_score"] for person in image["people"]] == pytest.approx([0.95, 0.93, 0.91])


def test_the_service_bounds_people_who_are_found_but_not_those_who_are_given(serve):
    client = serve(max_people=2)
    image = post(client).json()["images"][0]
    assert (len(image["people"]), image["truncated"]) == (2, True)
    document = {"images": [{"data": base64.b64encode(PEOPLE).decode(), "boxes": FOUR[:2]}]}
    image = client.post("/pose?max_people=1", json=document).json()["images"][0]
    assert (len(image["people"]), image["truncated"]) == (2, False)


def test_a_picture_without_people_is_no_error(client):
    image = post(client, picture_of([])).json()["images"][0]
    assert (image["people"], image["routes"]) == ([], {"easy": 0, "hard": 0, "extremely_hard": 0})


def test_format_coco_is_what_pycocotools_reads(client):
    encoded = base64.b64encode(PEOPLE).decode()
    document = {"images": [{"data": encoded, "image_id": 139}, {"data": encoded}]}
    results = client.post("/pose?format=coco", json=document).json()
    assert [result["image_id"] for result in results] == [139] * 4 + [1] * 4
    assert results[0]["category_id"] == 1
    assert len(results[0]["keypoints"]) == 51
    assert results[0]["keypoints"][:3] == [11.0, 11.0, 0.8]


@pytest.mark.parametrize(("accept", "format"), [("*/*", "PNG"), ("image/jpeg", "JPEG"), ("image/png", "PNG")])
def test_the_overlay_is_a_picture_of_the_accepted_type(client, accept, format):
    answer = client.post(
        "/pose?render=overlay", content=PEOPLE, headers={"Content-Type": "image/png", "Accept": accept}
    )
    assert answer.headers["content-type"] == f"image/{format.lower()}"
    assert Image.open(io.BytesIO(answer.content)).format == format


def test_a_bad_picture_carries_its_error_and_the_others_are_answered(client):
    files = [
        ("images", ("a.png", PEOPLE)),
        ("images", ("b.png", PEOPLE[:200])),
        ("images", ("c.txt", b"text")),
    ]
    answer = client.post("/pose", files=files)
    assert answer.status_code == 200
    good, cut, text = answer.json()["images"]
    assert len(good["people"]) == 4
    assert (cut["index"], cut["name"], cut["error"]["code"]) == (1, "b.png", "invalid_image")
    assert text["error"]["code"] == "unsupported_media_type"
    assert "people" not in cut


def test_when_all_pictures_are_bad_the_first_error_is_the_answer(client):
    files = [("images", ("c.txt", b"text")), ("images", ("b.png", PEOPLE[:200]))]
    error(client.post("/pose", files=files), 415, "unsupported_media_type")


def test_format_coco_fails_whole_with_any_bad_picture(client):
    files = [("images", ("a.png", PEOPLE)), ("images", ("b.png", PEOPLE[:200]))]
    error(client.post("/pose?format=coco", files=files), 422, "invalid_image")


def test_coordinates_are_those_of_the_upright_picture(client):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = post(client, picture_of([HARD], exif=exif)).json()["images"][0]
        assert (image["width"], image["height"]) == (60, 60)
    exif[0x0112] = 6
    image = post(client, picture_of([HARD, HARD], exif=exif)).json()["images"][0]
    assert (image["width"], image["height"]) == (60, 120)


@pytest.mark.parametrize(
    "query",
    [
        {"p": "NaN"},
        {"p": "inf"},
        {"p": 1.5},
        {"p": -0.1},
        {"p": "half"},
        {"estimator": "huge"},
        {"min_score": "nan"},
        {"max_people": 0},
        {"max_people": 101},
        {"format": "xml"},
        {"render": "video"},
        {"deadline_ms": 0},
        {"deadline_ms": "soon"},
        {"P": 0.5},
    ],
)
def test_parameters_out_of_range_are_refused(client, query):
    detail = error(post(client, **query), 422, "invalid_parameter")
    assert next(iter(query)) in detail


@pytest.mark.parametrize(
    ("boxes", "status", "code"),
    [
        ([[0, 0, 0, 10]], 422, "invalid_box"),
        ([[0, 0, 10, -1]], 422, "invalid_box"),
        ([[500, 0, 10, 10]], 422, "invalid_box"),
        ([[-20, 0, 10, 10]], 422, "invalid_box"),
        ([[0, 0, 10]], 422, "invalid_box"),
        ([[0, 0, "10", 10]], 422, "invalid_box"),
        ([[0, 0, True, 10]], 422, "invalid_box"),
        ("boxes", 422, "invalid_box"),
        ([[1, 1, 10, 10]] * 101, 413, "too_large"),
    ],
)
def test_bad_boxes_are_refused(client, boxes, status, code):
    document = {"images": [{"data": base64.b64encode(PEOPLE).decode(), "boxes": boxes}]}
    error(client.post("/pose", json=document), status, code)


def test_boxes_that_are_not_finite_are_refused(client):
    for number in ("NaN", "Infinity", "1e400"):
        body = f'{{"images": [{{"data": "", "boxes": [[0, 0, {number}, 10]]}}]}}'
        answer = client.post("/pose", content=body, headers={"Content-Type": "application/json"})
        error(answer, 422, "invalid_box")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_request"),
        (b"\xff", "application/json", 400, "bad_request"),
        (b"[" * 3000 + b"]" * 3000, "application/json", 400, "bad_request"),
        (b'{"images": [], "images": []}', "application/json", 422, "invalid_parameter"),
        (b'{"images": []}', "application/json", 422, "invalid_parameter"),
        (b'{"pictures": []}', "application/json", 422, "invalid_parameter"),
        (b'{"images": [{"data": "???"}]}', "application/json", 400, "bad_request"),
        (b'{"images": [{"data": "", "url": "http://x"}]}', "application/json", 422, "invalid_parameter"),
        (b'{"images": [{"data": ""}]}', "application/json", 422, "invalid_image"),
        (b"", "image/png", 422, "invalid_image"),
        (b"<svg/>", "image/svg+xml", 415, "unsupported_media_type"),
        (b"%PDF-1.7", "image/jpeg", 415, "unsupported_media_type"),
        (b"text", "text/plain", 415, "unsupported_media_type"),
        (PEOPLE, "", 415, "unsupported_media_type"),
        (iter([PEOPLE]), "", 415, "unsupported_media_type"),
        (b"", "", 422, "invalid_parameter"),
        (PEOPLE[:200], "image/png", 422, "invalid_image"),
        (b"--x\r\n", "multipart/form-data", 400, "bad_request"),
        (b"--y\r\n", "multipart/form-data; boundary=x", 400, "bad_request"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 422, "invalid_parameter"),
    ],
)
def test_bad_bodies_are_refused_with_their_code(client, body, kind, status, code):
    error(post(client, body, kind), status, code)


def test_a_multipart_body_that_is_cut_off_is_refused(client):
    request = client.build_request("POST", "/pose", files={"images": ("a.png", PEOPLE)})
    body = request.read()
    error(post(client, body[:-20], request.headers["content-type"]), 400, "bad_request")


def test_heic_is_told_to_become_jpeg(client):
    detail = error(
        post(client, b"\0\0\0\x18ftypheic" + b"\0" * 40, "image/heic"), 415, "unsupported_media_type"
    )
    assert "HEIC" in detail
    assert "convert to JPEG" in detail


def test_a_compressed_body_is_refused(client):
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    error(client.post("/pose", content=b"x", headers=headers), 415, "unsupported_media_type")


def test_limits_on_bytes_pixels_and_pictures(serve):
    client = serve(max_body_bytes=5000, max_image_pixels=20_000, max_images=2)
    error(post(client, b"x" * 5001), 413, "too_large")
    error(post(client, iter([b"x" * 3000] * 2)), 413, "too_large")
    error(post(client, picture_of([HARD] * 6)), 413, "too_large")
    error(client.post("/pose", files=[("images", ("a.png", picture_of([])))] * 3), 413, "too_large")
    assert post(client, picture_of([HARD] * 5)).status_code == 200


def test_the_overlay_takes_one_picture(client):
    files = [("images", ("a.png", PEOPLE)), ("images", ("b.png", PEOPLE))]
    error(client.post("/pose?render=overlay", files=files), 422, "invalid_parameter")


def test_a_token_guards_the_route_when_one_is_set(serve):
    client = serve(pose_token="secret")
    error(post(client), 401, "unauthorized")
    headers = {"Content-Type": "image/png", "Authorization": "Bearer wrong"}
    error(client.post("/pose", content=PEOPLE, headers=headers), 401, "unauthorized")
    error(post(client, deadline=1), 401, "unauthorized")  # what is wrong with it is told to nobody
    headers["Authorization"] = "Bearer secret"
    assert client.post("/pose", content=PEOPLE, headers=headers).status_code == 200


def test_a_passed_deadline_is_504_and_nothing_is_run(client, monkeypatch):
    ran, decode = [], threading.Event()
    for stage in ("detect", "score", "large"):
        client.pair.faults[stage] = lambda pictures, stage=stage: ran.extend([stage] * len(pictures))
    monkeypatch.setattr("app.routes.pose.to_picture", lambda *work: decode.wait(60) and to_picture(*work))
    error(post(client, picture_of([HARD]), deadline_ms=50), 504, "deadline")
    decode.set()
    assert post(client, picture_of([HARD])).status_code == 200
    assert ran == ["detect", "score", "large"]  # of the second one


def test_a_request_is_as_old_as_its_body_is_whole(client, monkeypatch):
    """A slow upload would go before all that came meanwhile."""
    tickets, whole = [], []

    async def read_and_note(*arguments):
        uploads = await read(*arguments)
        whole.append(time.monotonic())
        return uploads

    monkeypatch.setattr("app.routes.pose.read", read_and_note)
    monkeypatch.setattr("app.routes.pose.Ticket", lambda *of: tickets.append(Ticket(*of)) or tickets[-1])
    assert post(client).status_code == 200
    assert tickets[0].since >= whole[0]


def test_no_room_is_429_with_retry_after(serve):
    client = serve(max_pending_pictures=2, max_body_bytes=100_000)
    with Room(client.service.admission) as room:
        room.take(2, 100)
        answer = post(client)
        error(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        error(post(client, deadline=1), 429, "overloaded")  # without a look at what it asks for
        error(post(client, bytes(100_001)), 413, "too_large")  # however often it comes again
    assert post(client).status_code == 200
    assert 'dynpose_rejected_total{reason="overloaded"} 2.0' in client.get("/metrics").text


def test_a_drawing_counts_until_its_client_has_it(client, monkeypatch):
    counted, sending = [], client.service.admission.sending
    monkeypatch.setattr(
        client.service.admission, "sending", lambda size: counted.append(size) or sending(size)
    )
    answer = post(client, render="overlay")
    assert answer.status_code == 200
    assert counted == [len(answer.content)]
    assert client.service.admission.bytes == 0


@pytest.mark.parametrize("path", ["/pose/", "/config/"])
def test_a_picture_is_not_sent_elsewhere_for_a_slash_too_many(client, path):
    answer = client.post(path, content=PEOPLE, headers={"Content-Type": "image/png"}, follow_redirects=False)
    error(answer, 404, "not_found")


def test_pictures_that_never_fit_are_413(serve):
    client = serve(max_pending_bytes=1000)
    error(post(client), 413, "too_large")


def test_pictures_that_never_fit_beside_their_own_body_are_413(serve):
    decoded = 3 * 240 * 60
    client = serve(max_pending_bytes=decoded + len(PEOPLE))
    assert post(client).status_code == 200
    client = serve(max_pending_bytes=decoded + len(PEOPLE) - 1)
    error(post(client), 413, "too_large")


def test_a_body_of_unknown_length_has_room_where_less_may_wait_than_a_body_may_have(serve):
    client = serve(max_pending_bytes=1_000_000)
    assert post(client, iter([PEOPLE])).status_code == 200
    error(post(client, iter([bytes(1_000_001)])), 413, "too_large")


@pytest.mark.parametrize("stage", ["detect", "score", "small", "large"])
def test_a_stage_that_fails_once_is_not_noticed_and_twice_is_500(client, stage):
    failures = []

    def fail(times):
        def raise_first(_):
            if len(failures) < times:
                failures.append(stage)
                raise RuntimeError("secret path /models/x")

        return raise_first

    client.pair.faults[stage] = fail(1)
    assert post(client).status_code == 200
    failures.clear()
    client.pair.faults[stage] = fail(10**9)
    answer = post(client)
    detail = error(answer, 500, "internal")
    assert "secret" not in answer.text
    assert "request_id" in detail
    client.pair.faults.clear()
    assert post(client).status_code == 200


def test_a_failure_hurts_only_its_own_picture(client):
    poisoned = picture_of([EXTREME])

    def fail_on_one_person(pictures):
        if any(picture.shape[1] == 60 for picture in pictures):
            raise RuntimeError

    client.pair.faults["small"] = fail_on_one_person
    files = [("images", ("bad.png", poisoned)), ("images", ("good.png", PEOPLE))]
    bad, good = client.post("/pose", files=files).json()["images"]
    assert bad["error"]["code"] == "internal"
    assert len(good["people"]) == 4


def test_a_person_whose_keypoints_are_not_finite_is_left_out_and_counted(client):
    client.pair.nan_at = 70  # the first of the two hard people
    answer = post(client)
    assert "NaN" not in answer.text
    image = answer.json()["images"][0]
    assert sorted(person["bbox"][0] for person in image["people"]) == [10, 130, 190]
    assert image["routes"] == {"easy": 1, "hard": 1, "extremely_hard": 1}
    assert 'dynpose_stage_failures_total{stage="large"} 1.0' in client.get("/metrics").text
    client.pair.small_in_router, client.pair.nan_at = True, 10  # the easy one
    assert len(post(client).json()["images"][0]["people"]) == 3
    assert 'dynpose_stage_failures_total{stage="small"} 1.0' in client.get("/metrics").text


def test_a_difficulty_that_is_not_finite_fails_its_picture_and_moves_no_threshold(serve):
    client = serve(mode="tracking")
    client.pair.difficulty_nan_at = 70
    error(post(client), 500, "internal")
    client.pair.difficulty_nan_at = -1
    for _ in range(60):  # people enough for new thresholds
        split = post(client).json()["split"]
        assert 0.4 < split["k1"] < split["k2"] < 0.6
    assert split["revision"] > 5


def test_keypoint_scores_are_between_0_and_1_whatever_a_nets_peaks_are(client):
    client.pair.peaks = [1.5, -0.5, *[0.6] * 15]
    person = post(client).json()["images"][0]["people"][0]
    assert [score for _, _, score in person["keypoints"]] == pytest.approx([1, 0, *[0.6] * 15])
    assert person["score"] == pytest.approx(person["bbox_score"] * (1 + 15 * 0.6) / 16, abs=1e-6)


def test_requests_are_refused_while_loading_and_while_draining(serve):
    client = serve()
    client.service.status = "warming"
    loading = post(client)
    error(loading, 503, "not_ready")
    client.service.drain()
    draining = post(client)
    error(draining, 503, "draining")
    assert loading.headers["retry-after"] == draining.headers["retry-after"] == "1"


def test_unknown_paths_and_methods_are_problems_too(client):
    error(client.get("/nowhere"), 404, "not_found")
    answer = client.put("/pose")
    error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_pictures_are_taken_by_post_alone(client, method):
    answer = client.request(method, "/pose")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_what_a_client_calls_its_file_is_in_no_log(client, caplog):
    caplog.set_level("DEBUG")
    names = ("../../etc/passwd", "a\x00b.png", "caf\u00e9\u202e.png", "x\r\n500 forged.png")
    files = [("images", (name, data)) for name in names for data in (PEOPLE, PEOPLE[:200])]
    assert client.post("/pose", files=files).status_code == 200
    assert caplog.records
    text = caplog.text
    assert not any(part in text for part in ("passwd", "b.png", "caf\u00e9", "caf\\u00e9", "forged"))


def test_a_sane_request_id_is_kept_and_another_replaced(client):
    assert client.get("/version", headers={"X-Request-ID": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    assert client.get("/version", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


def test_bodies_that_have_no_room_are_refused_before_they_are_read(serve):
    client = serve(max_pending_bytes=100_000, max_body_bytes=100_000)
    with Room(client.service.admission) as room:
        room.take(0, 60_000)
        error(post(client, b"x" * 50_000), 429, "overloaded")
        error(
            post(client, iter([PEOPLE])), 429, "overloaded"
        )  # of unknown length, so it may be as long as any
        assert post(client, picture_of([HARD])).status_code == 200


def test_of_a_request_that_is_given_up_no_further_header_is_read(client, monkeypatch):
    examined, go_on = [], threading.Event()

    def slow(upload, settings):
        examined.append(upload)
        go_on.wait(60)
        return examine(upload, settings)

    monkeypatch.setattr("app.routes.pose.examine", slow)
    files = [("images", ("a.png", PEOPLE))] * 16
    error(client.post("/pose?deadline_ms=500", files=files), 504, "deadline")
    assert len(examined) == 1
    go_on.set()
    assert post(client).status_code == 200
    assert len(examined) == 1 + 1


def test_batches_that_run_at_the_same_time_count_once_in_the_timing():
    ticket = Ticket("request", 0.0)
    runs = [
        ("small", 1.0, 3.0),
        ("large", 2.0, 4.0),
        ("large", 2.5, 3.5),
        ("small", 5.0, 6.0),
        ("detect", 3.5, 4.5),
    ]
    ticket.runs += [Run(stage, started, started, ended, 1) for stage, started, ended in runs]
    found = timing(ticket, total_s=7.0)
    assert found == {"decode": 0, "detect": 1000, "score": 0, "estimate": 4000, "queued": 2500, "total": 7000}
