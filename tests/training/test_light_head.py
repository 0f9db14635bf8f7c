import json
import random
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calibration.data import DataError, Pictures, read_split
from models.defaults import DETECTOR_SIZE
from models.detector import LIGHT, LIGHT_WIDTH, build_network, load_yolo
from models.zoo import save_weights
from training.detector import ARCHITECTURE
from training.light_head import begin, divergence, look, recall, remember, views

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_weights(build_network(ARCHITECTURE), path)
    return path


def test_views_are_of_the_detectors_size_and_all_pictures_come(labelled_noise: Path):
    images, pictures = read_split(labelled_noise, "train"), Pictures(labelled_noise)
    seen: list[int] = []

    def note(image):  # type: ignore[no-untyped-def]
        seen.append(image.id)
        return pictures(image)

    for canvas in islice(views(images, note, random.Random(0)), 10):
        assert canvas.shape == (DETECTOR_SIZE, DETECTOR_SIZE, 3)
    assert set(seen[:5]) == {image.id for image in images}


def test_without_a_picture_there_are_no_views(labelled_noise: Path):
    with pytest.raises(DataError, match="all are held back"):
        next(views([], Pictures(labelled_noise), random.Random(0)))


def test_what_is_remembered_of_views_is_what_the_teacher_made(teacher: Path):
    network = load_yolo(load_file(teacher), ARCHITECTURE).network
    network.model[-1].training = True
    rng = np.random.default_rng(0)
    canvases = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(3)]
    with tempfile.TemporaryFile() as file:
        rows, shapes = remember(network, iter(canvases), 3, file, CPU)
        found = recall(rows[1:], shapes, CPU)
    expected = look(network, canvases[1:], CPU)
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert [each.shape[1:] for each in found] == [(128, 8, 12), (256, 4, 6), (512, 2, 3), (1, 126)]
    for each, whole in zip(found, expected, strict=True):
        assert torch.allclose(each, whole, atol=1e-3, rtol=1e-3)


def test_scores_as_taught_diverge_by_nothing_and_others_by_more_the_further_they_are():
    taught = torch.tensor([[[-6.0, 0.5, 3.0]]])
    assert divergence(taught, taught).item() == pytest.approx(0, abs=1e-6)
    assert 0 < divergence(taught + 0.5, taught) < divergence(taught + 1, taught)
    assert 0 < divergence(taught - 0.5, taught) < divergence(taught - 1, taught)


def test_a_branch_begins_with_channels_of_its_teacher(teacher: Path):
    weights = load_file(teacher)
    branch, taught = build_network(LIGHT).model[-1].cv3[1], load_yolo_head(weights).cv3[1]
    begin(branch, taught)
    filters = {tuple(each.flatten()[:9].tolist()) for each in taught[0].conv.weight}
    begun = {tuple(each.flatten()[:9].tolist()) for each in branch[0].conv.weight}
    assert len(begun) == LIGHT_WIDTH
    assert begun <= filters
    assert torch.equal(branch[-1].bias, taught[-1].bias)


def load_yolo_head(weights: dict[str, torch.Tensor]) -> Any:
    network = build_network(ARCHITECTURE)
    network.load_state_dict(weights)
    return network.model[-1]


def test_the_command_changes_only_the_class_branch(teacher: Path, labelled_noise: Path):
    out = labelled_noise / "runs" / "light.safetensors"
    command = [sys.executable, "-m", "training.light_head", str(labelled_noise), "--teacher", str(teacher)]
    options = ["--out", str(out), "--views", "3", "--steps", "2", "--batch", "2"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    weights, before = load_file(out), load_file(teacher)
    load_yolo(weights, LIGHT)
    kept = [key for key in before if ".cv3." not in key]
    assert len(kept) > 300
    assert all(torch.equal(weights[key], before[key]) for key in kept)
    filters = {tuple(each.flatten()[:9].tolist()) for each in before["model.22.cv3.0.0.conv.weight"]}
    learned = {tuple(each.flatten()[:9].tolist()) for each in weights["model.22.cv3.0.0.conv.weight"]}
    assert not learned <= filters
    lines = [json.loads(line) for line in out.with_suffix(".log").read_text().splitlines()]
    assert [sorted(line.keys() & {"teacher", "of", "ap"}) for line in lines] == [["teacher"], ["of"], ["ap"]]
    assert sorted(path.name for path in out.parent.iterdir()) == ["light.log", "light.safetensors"]


def test_without_data_the_command_says_what_it_needs(tmp_path: Path):
    command = [sys.executable, "-m", "training.light_head", str(tmp_path), "--teacher", "x"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"skipped: needs pictures with people in {tmp_path}"
