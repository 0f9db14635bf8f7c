"""The bundled pair on real photographs, over HTTP: what a new user does first.

The reference joints were read off the photographs by eye; the tolerance is OKS.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ultralytics
from fastapi.testclient import TestClient
from PIL import Image

from app.main import create_app
from app.service import Service
from app.settings import Settings
from calibration.okd import oks
from models.skeleton import KEYPOINT_NAMES

ASSETS = Path(ultralytics.__file__).parent / "assets"

PEOPLE = {
    "bus.jpg": [
        {  # in the fur coat
            "nose": (144, 443),
            "left_eye": (150, 434),
            "right_eye": (133, 433),
            "left_shoulder": (160, 492),
            "right_shoulder": (82, 498),
            "left_elbow": (186, 562),
            "right_elbow": (117, 564),
            "left_hip": (153, 640),
            "right_hip": (96, 643),
            "left_knee": (170, 750),
            "right_knee": (92, 757),
            "left_ankle": (192, 858),
            "right_ankle": (70, 857),
        },
        {  # with the hand at his chest
            "nose": (292, 450),
            "left_eye": (299, 441),
            "right_eye": (280, 441),
            "left_shoulder": (321, 495),
            "right_shoulder": (248, 499),
            "left_elbow": (331, 552),
            "left_wrist": (285, 529),
            "left_hip": (309, 622),
            "right_hip": (262, 623),
            "left_knee": (313, 716),
            "right_knee": (265, 720),
            "left_ankle": (270, 787),
            "right_ankle": (269, 819),
        },
    ],
    "zidane.jpg": [
        {  # leaning forward
            "nose": (638, 357),
            "right_ear": (516, 309),
            "left_shoulder": (636, 432),
            "right_shoulder": (313, 380),
            "left_elbow": (789, 482),
            "left_wrist": (960, 468),
        },
        {  # upright
            "nose": (1000, 195),
            "left_eye": (1026, 169),
            "right_eye": (970, 164),
            "left_ear": (1050, 187),
            "right_ear": (911, 173),
            "left_shoulder": (1031, 338),
            "right_shoulder": (840, 326),
        },
    ],
}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    service = Service(Settings(_env_file=None, device="cpu", precision="fp32"))
    with TestClient(create_app(service)) as client:
        while client.get("/readyz").status_code != 200:
            assert service.failure is None
        yield client


def post(client: TestClient, name: str, **query: object) -> list[dict]:
    files = {"images": (name, (ASSETS / name).read_bytes(), "image/jpeg")}
    answer = client.post("/pose", files=files, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["images"][0]["people"]


def likeness(person: dict, reference: dict[str, tuple[float, float]]) -> float:
    """OKS of an answered person with reference joints."""
    truth, visible = np.zeros((1, 17, 2)), np.zeros((1, 17))
    for joint, point in reference.items():
        index = KEYPOINT_NAMES.index(joint)
        truth[0, index], visible[0, index] = point, 2
    predicted = np.array(person["keypoints"])[None, :, :2]
    area = np.array([0.53 * person["bbox"][2] * person["bbox"][3]])
    return float(oks(predicted, truth, visible, area)[0])


@pytest.mark.parametrize("estimator", ["auto", "small", "large"])
@pytest.mark.parametrize("name", PEOPLE)
def test_skeletons_sit_on_the_people_of_two_photos(client: TestClient, name: str, estimator: str):
    people = post(client, name, estimator=estimator)
    for reference in PEOPLE[name]:
        assert max(likeness(person, reference) for person in people) > 0.75


def test_the_large_net_sits_better_than_the_small_one(client: TestClient):
    def mean(estimator: str) -> float:
        found = {name: post(client, name, estimator=estimator) for name in PEOPLE}
        best = [
            max(likeness(p, reference) for p in found[name]) for name in PEOPLE for reference in PEOPLE[name]
        ]
        return float(np.mean(best))

    assert mean("large") > mean("small")


def test_a_turned_photo_gives_the_same_people(client: TestClient):
    """EXIF orientation 6, as phones write it: the stored picture lies on its side."""
    upright = Image.open(ASSETS / "bus.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    upright.rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    answer = client.post("/pose", content=buffer.getvalue(), headers={"Content-Type": "image/png"}).json()
    turned = answer["images"][0]
    assert (turned["width"], turned["height"]) == upright.size
    for reference in PEOPLE["bus.jpg"]:
        assert max(likeness(person, reference) for person in turned["people"]) > 0.75


def test_the_same_photo_gives_the_same_answer_alone_and_among_others(client: TestClient):
    client.patch("/config", json={"mode": "fixed"})
    alone = post(client, "bus.jpg")
    files = [("images", (name, (ASSETS / name).read_bytes())) for name in ["bus.jpg", "zidane.jpg"] * 4]
    images = client.post("/pose", files=files).json()["images"]
    for image in images[::2]:
        assert [person["route"] for person in image["people"]] == [person["route"] for person in alone]
        for person, single in zip(image["people"], alone, strict=True):
            assert np.allclose(person["keypoints"], single["keypoints"], atol=0.02)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((480, 640, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8),
        np.full((1, 1, 3), 200, np.uint8),
        np.full((8, 8, 3), 200, np.uint8),
        np.full((20000, 1, 3), 200, np.uint8),
        np.full((1, 65000, 3), 200, np.uint8),
    ],
    ids=["black", "noise", "1x1", "8x8", "1x20000", "65000x1"],
)
def test_pictures_without_people_have_none(client: TestClient, pixels: np.ndarray):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    answer = client.post("/pose", content=buffer.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["people"] == []


@pytest.mark.parametrize(
    "box", [[0, 0, 1, 1], [-300, -300, 400, 400], [809.5, 1079.5, 900, 900], [0, 0, 810, 0.02]]
)
def test_boxes_of_any_shape_that_touch_the_picture_are_answered(client: TestClient, box: list[float]):
    files = [
        ("images", ("bus.jpg", (ASSETS / "bus.jpg").read_bytes())),
        ("boxes", (None, json.dumps([[box]]))),
    ]
    answer = client.post("/pose", files=files)
    assert answer.status_code == 200, answer.text
    (person,) = answer.json()["images"][0]["people"]
    assert np.isfinite(person["keypoints"]).all()
