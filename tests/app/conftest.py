"""A service whose networks are arithmetic: it finds a person in every white square of a picture, and the brightness of
a dot in the square is how difficult that person is. Everything around the networks is the real thing."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor

from app.main import create_app
from app.service import Service
from app.settings import Settings
from models.router import RouterConfig

ROUTER_SHA = "a" * 64
DETECTOR_SHA = "b" * 64
SIDE, GAP = 40, 60


def picture_of(difficulties: list[float], format: str = "PNG", **options: Any) -> bytes:
    """A picture of one person per difficulty (0.4 to 0.6), left to right, encoded."""
    pixels = np.zeros((GAP, max(1, len(difficulties)) * GAP, 3), dtype=np.uint8)
    for index, difficulty in enumerate(difficulties):
        x = index * GAP + 10
        pixels[10 : 10 + SIDE, x : x + SIDE] = 255
        pixels[20 : 20 + SIDE // 2, x + 10 : x + 10 + SIDE // 2] = round((difficulty - 0.4) / 0.2 * 250)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


class FakePair:
    """What `models.zoo.load_pair` would return. A function put into `faults` under a stage's name runs first; the
    keypoints of a person whose box begins at `nan_at` are not finite, nor the difficulty at `difficulty_nan_at`, and
    peaks are halved at `faint_at`. peaks: scores of the keypoints. small_in_router: the router has the small net's
    keypoints."""

    def __init__(self, manifest: Any) -> None:
        self.manifest = manifest
        self.device = torch.device("cpu")
        self.more_detectors = ()
        self.wide_detector = None
        self.faults: dict[str, Callable[[list[Tensor]], None]] = {}
        self.nan_at = self.difficulty_nan_at = self.faint_at = -1.0
        self.peaks = [0.8] * 17
        self.small_in_router = False
        self.router = SimpleNamespace(with_keypoints=self._score)
        self.small, self.large = self._estimator("small", 1.0), self._estimator("large", 2.0)

    def _enter(self, stage: str, pictures: list[Tensor]) -> None:
        if stage in self.faults:
            self.faults[stage](pictures)

    def detector(self, pictures: list[Tensor], min_scores: list[float]) -> list[Tensor]:
        self._enter("detect", pictures)
        found = []
        for picture, floor in zip(pictures, min_scores, strict=True):
            columns = np.flatnonzero(picture[12, ::GAP].shape[0] * [1]) if picture.shape[0] == GAP else []
            rows = [
                [x * GAP + 10, 10, SIDE, SIDE, 0.95 - 0.02 * x]
                for x in columns
                if x * GAP + 12 < picture.shape[1] and picture[12, x * GAP + 12, 0] > 200
            ]
            boxes = torch.tensor([row for row in rows if row[4] >= floor], dtype=torch.float32)
            found.append(boxes.reshape(-1, 5))
        return found

    def _score(self, pictures: list[Tensor], boxes: Tensor, _scores: Tensor) -> tuple[Tensor, Tensor | None]:
        self._enter("score", pictures)
        centers = (boxes[:, :2] + boxes[:, 2:] / 2).long()
        dots = [picture[y, x, 0].item() for picture, (x, y) in zip(pictures, centers.tolist(), strict=True)]
        known = self._keypoints(boxes, 1.0) if self.small_in_router else None
        difficulty = 0.4 + 0.2 * torch.tensor(dots) / 250
        difficulty[boxes[:, 0] == self.difficulty_nan_at] = float("nan")
        return difficulty, known

    def _estimator(self, name: str, offset: float) -> Callable[..., Tensor]:
        def run(pictures: list[Tensor], boxes: Tensor, *, flip_test: bool = False) -> Tensor:
            self._enter(name, pictures)
            return self._keypoints(boxes, offset + (0.5 if flip_test else 0.0))

        return run

    def _keypoints(self, boxes: Tensor, offset: float) -> Tensor:
        keypoints = torch.tensor(self.peaks).view(1, 17, 1).repeat(len(boxes), 1, 3)
        keypoints[:, :, :2] = boxes[:, None, :2] + offset
        keypoints[boxes[:, 0] == self.faint_at, :, 2] /= 2
        keypoints[boxes[:, 0] == self.nan_at] = float("nan")
        return keypoints


Serve = Callable[..., TestClient]


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    return write_pair(tmp_path / "pair")


def write_pair(folder: Path) -> Path:
    """Make a folder with `pair.json` and calibration scores spread evenly over 0.4 to 0.6, without weights."""
    folder.mkdir()
    net = {"sha256": "c" * 64, "architecture": "tinypose", "codec": "dark"}
    manifest = {
        "pair": "fake",
        "detector": {"file": "d", "sha256": DETECTOR_SHA, "architecture": "yolov8n", "input_size": 640},
        "router": {"file": "r", "sha256": ROUTER_SHA, "config": RouterConfig().model_dump()},
        "small": {"file": "s", "input_size": [96, 128]} | net,
        "large": {"file": "l", "input_size": [192, 256]} | net,
        "calibration": "calibration.json",
    }
    (folder / "pair.json").write_text(json.dumps(manifest))
    (folder / "calibration.json").write_text(json.dumps(calibration()))
    return folder


def calibration(low: float = 0.4, high: float = 0.6, **made_with: Any) -> dict[str, Any]:
    """The content of a calibration file."""
    origin = {"pair": "fake", "router_sha256": ROUTER_SHA, "detector_sha256": DETECTOR_SHA, "min_score": 0.3}
    scores = [round(low + (high - low) * index / 1000, 6) for index in range(1001)]
    return {"scores": scores, "theta": 0.1, "made_with": origin | made_with, "people": 1001, "images": 300}


@pytest.fixture(autouse=True)
def nothing_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that starts looks for garbage among all that PyTorch is made of, which takes a fifth of a second."""
    monkeypatch.setattr("app.service.gc", SimpleNamespace(collect=int, freeze=int, unfreeze=int))


@pytest.fixture
def serve(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """`serve(mode="fixed", ...)` starts a service with these settings and returns its client; `client.pair` is the fake
    pair, `client.service` the service."""
    monkeypatch.setattr("app.service.load_pair", lambda *_: FakePair(None))
    monkeypatch.setattr("app.service.warm", lambda *_: None)
    clients = []

    def start(*, ready: bool = True, **settings: Any) -> TestClient:
        settings = {"policy": "band", "min_score": 0.3} | settings  # band: so that all three routes are taken
        service = Service(Settings(_env_file=None, pair=str(pair_folder), **settings))
        fakes: list[FakePair] = []

        def load(*_: Any) -> FakePair:
            fakes.append(FakePair(service.manifest))
            return fakes[-1]

        monkeypatch.setattr("app.service.load_pair", load)
        client = TestClient(create_app(service), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        client.service = service
        if ready:
            while client.get("/readyz").status_code != 200:
                assert service.failure is None
            client.pair = fakes[-1]
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve) -> TestClient:
    """A service in mode `fixed`: its thresholds at p = 0.5 are k1 = 0.42 and k2 = 0.52."""
    return serve(mode="fixed")
