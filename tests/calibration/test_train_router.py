import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from calibration import train_router
from calibration.data import LabelledImage, LabelledPerson
from calibration.train_router import Samples, recovered_gain, sloppy, validate, weights_and_targets, wrong
from models.router import Router, RouterConfig


def samples(n: int, **columns: np.ndarray) -> Samples:
    defaults = {
        "crops": np.zeros((n, 1), np.uint8),
        "kind": np.zeros(n, int),
        "held_back": np.ones(n, bool),
        "target": np.full(n, 0.5),
        "oks_small": np.full(n, 0.5),
        "oks_large": np.full(n, 0.6),
        "height": np.arange(n, dtype=float),
    }
    return Samples(**(defaults | columns))


def test_only_people_on_whom_the_nets_differ_clearly_but_not_wholly_are_counted():
    large = np.array([0.50, 0.54, 0.56, 0.79, 0.81, 0.41])
    weights, targets = weights_and_targets(samples(6, oks_large=large))
    assert weights.tolist() == [0, 0, 1, 1, 0, 1]
    assert set(targets) == {0.5}


def test_a_box_without_a_person_has_target_one_and_a_lower_weight():
    nothing = np.full(1, np.nan)
    weights, targets = weights_and_targets(
        samples(1, kind=np.array([2]), oks_small=nothing, oks_large=nothing, target=np.array([1.0]))
    )
    assert 0 < weights[0] < 1
    assert targets[0] == 1


def test_targets_are_clamped_and_always_finite():
    targets = weights_and_targets(samples(3, target=np.array([-4.0, np.nan, 1.0])))[1]
    assert targets.tolist() == [-1, 0, 1]


def test_the_recovered_gain_is_that_of_the_people_sent_to_the_large_net():
    gain = np.array([0.4, 0.1, 0.3, 0.2])
    assert recovered_gain(np.array([0, 2, 3, 1]), gain) == pytest.approx([0, 0.4, 0.7, 0.9, 1.0], abs=1e-3)


def test_a_router_that_knows_the_gain_is_as_good_as_the_oracle():
    rng = np.random.default_rng(0)
    large = 0.5 + rng.uniform(0, 0.3, 200)
    everybody = samples(200, oks_large=large)
    found = validate(large, everybody)
    assert found["top"] == found["oracle"]
    assert found["correlation"] == pytest.approx(1.0)
    assert found["people"] == 200


def test_wrong_boxes_above_the_right_ones_have_an_auc_of_one():
    kind = np.repeat([0, 2], 50)
    scores = np.where(kind == 2, 0.9, np.linspace(0.1, 0.8, 100))
    everybody = samples(100, kind=kind, oks_small=np.where(kind == 2, np.nan, 0.5))
    assert validate(scores, everybody)["auc_wrong_box"] == 1.0


def test_wrong_boxes_miss_everybody_and_sloppy_ones_do_not():
    rng = np.random.default_rng(0)
    person = LabelledPerson(1, (100, 50, 80, 200), np.zeros((17, 3)), 8000, False, None)
    image = LabelledImage(1, 400, 300, "test", True, (person,), "x.png", None)
    for _ in range(50):
        box = wrong(image, rng)
        assert box is not None
        x, y, w, h = box
        across = min(x + w, 180) - max(x, 100)
        down = min(y + h, 250) - max(y, 50)
        assert max(across, 0) * max(down, 0) <= 0.1 * min(w * h, 80 * 200)
        assert x >= 0
        assert x + w <= 400
        x, y, w, h = sloppy(np.array(person.bbox, dtype=float), rng)
        assert min(x + w, 180) - max(x, 100) > 20
        assert min(y + h, 250) - max(y, 50) > 50


def test_without_data_the_command_says_what_it_needs(tmp_path: Path):
    command = [sys.executable, "-m", "calibration.train_router", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"skipped: needs pictures with people in {tmp_path}"


def test_the_command_trains_a_router_that_loads_and_spreads_its_scores(tmp_path: Path):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(1, 25):
        pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        images.append(
            {"id": index, "file_name": f"{index}.png", "width": 160, "height": 120, "complete": True}
        )
        keypoints = [value for _ in range(17) for value in (*rng.uniform(20, 100, 2).round(1).tolist(), 2)]
        annotations.append(
            {"id": index, "image_id": index, "category_id": 1, "bbox": [20, 20, 60, 80], "area": 2500}
            | {"iscrowd": 0, "num_keypoints": 17, "keypoints": keypoints}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    out = tmp_path / "runs" / "router.safetensors"
    command = [sys.executable, "-m", "calibration.train_router", str(tmp_path), "--out", str(out)]
    subprocess.run([*command, "--epochs", "1", "--batch", "8"], check=True, capture_output=True)
    Router(RouterConfig()).load_state_dict(load_file(out), strict=True)
    line = json.loads(out.with_suffix(".log").read_text().splitlines()[-1])
    assert line["epoch"] == 1
    assert line["samples"] > 0


def test_nets_are_asked_once_and_again_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the nets said is kept beside OUT, but never taken for the answers of other nets."""
    asked = []
    small, large = SimpleNamespace(sha256="a"), SimpleNamespace(sha256="b")
    monkeypatch.setattr(train_router, "read_manifest", lambda _: SimpleNamespace(small=small, large=large))
    monkeypatch.setattr(train_router, "load_estimator", lambda *arguments: arguments[1].sha256)
    monkeypatch.setattr(train_router, "collect", lambda *arguments: asked.append(arguments[1]) or samples(3))
    arguments = Namespace(pair="x", data=tmp_path, out=tmp_path / "router.safetensors", limit=None, seed=0)
    first = train_router.ask(arguments, torch.device("cpu"))
    again = train_router.ask(arguments, torch.device("cpu"))
    assert asked == ["a"]
    assert (again.height == first.height).all()
    small.sha256 = "c"
    train_router.ask(arguments, torch.device("cpu"))
    assert asked == ["a", "c"]


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    everybody = samples(
        16,
        crops=rng.integers(0, 256, (16, 3, 256, 192), dtype=np.uint8),
        held_back=np.arange(16) >= 8,
        target=rng.uniform(-1, 1, 16),
        oks_large=np.full(16, 0.7),
        height=np.arange(16.0),
    )

    def run(out: str) -> Router:
        arguments = Namespace(
            seed=0, epochs=2, batch=4, rate=1e-3, filter=(0.05, 0.3), out=tmp_path / f"{out}.safetensors"
        )
        return train_router.train(everybody, arguments, torch.device("cpu"))

    whole = run("whole").state_dict()
    real = torch.save

    def interrupt(state: object, path: Path) -> None:
        real(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    monkeypatch.undo()
    resumed = run("resumed").state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
