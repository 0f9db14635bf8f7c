import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from calibration.data import DataError, LabelledImage, LabelledPerson, Pictures
from models.defaults import DETECTOR_SIZE
from models.detector import FILL, YoloDetector, build_network, load_yolo
from models.runtime import compile_network
from training import detector
from training.checkpoints import save_checkpoint
from training.detector import ARCHITECTURE, augment, average_precision, hide_crowds, initial_network

from ultralytics.nn.tasks import DetectionModel  # isort: skip  # after models.detector has set its environment


@pytest.fixture(scope="module")
def coco_detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[DetectionModel, Path]:
    """An 80-class detector with random weights, and its file: one convolution stored as int8 with scales."""
    torch.manual_seed(0)
    network = DetectionModel(f"{ARCHITECTURE}.yaml", verbose=False).eval()
    for branch in network.model[-1].cv3:
        torch.nn.init.normal_(branch[-1].weight, std=0.2)
        torch.nn.init.normal_(branch[-1].bias)
    stored = dict(network.state_dict())
    key = "model.22.cv3.0.0.conv.weight"
    scale = stored[key].abs().amax(dim=(1, 2, 3)) / 127
    rounded = (stored[key] / scale.view(-1, 1, 1, 1)).round()
    network.load_state_dict(stored | {key: rounded * scale.view(-1, 1, 1, 1)})
    stored |= {key: rounded.to(torch.int8), f"{key}.scale": scale}
    path = tmp_path_factory.mktemp("weights") / "coco.safetensors"
    save_file({name: value.contiguous() for name, value in stored.items()}, path)
    return network, path


def test_training_starts_from_the_person_row_of_the_coco_detector(coco_detector: tuple[DetectionModel, Path]):
    full, path = coco_detector
    person = initial_network(path).eval()
    batch = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected, found = full(batch)[0], person(batch)[0]
    assert found.shape[1] == 5
    assert torch.allclose(found[:, :4], expected[:, :4], atol=1e-3)
    assert torch.allclose(found[:, 4], expected[:, 4], atol=1e-6)


def test_training_starts_from_no_other_network(tmp_path: Path):
    path = tmp_path / "yolov8n.safetensors"
    save_file(dict(build_network("yolov8n").state_dict()), path)
    with pytest.raises(DataError, match=rf"{path.name} holds another network than yolov8s"):
        initial_network(path)


def test_the_held_back_pictures_are_scored_through_the_services_detector(
    coco_detector: tuple[DetectionModel, Path], tmp_path: Path
):
    """A network whose own best boxes are the labels is perfect, and one with other weights is not."""
    _, path = coco_detector
    network = initial_network(path)
    content = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(content).save(tmp_path / "x.png")
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    reference = compile_network(load_yolo(weights, ARCHITECTURE), torch.device("cpu"), torch.float32)
    detector = YoloDetector(reference, input_size=DETECTOR_SIZE)
    best = detector([torch.from_numpy(content)], [0.01])[0][:20, :4].tolist()
    image = image_of(*((tuple(box), False) for box in best))
    pictures = Pictures(tmp_path)
    assert average_precision(network, [image], pictures) == {"ap": 1.0, "ap50": 1.0, "ar": 1.0}
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    for branch in network.model[-1].cv2:
        branch[-1].bias.data.view(4, -1)[:, 1] += 20  # boxes of two cells
    assert average_precision(network, [image], pictures)["ap"] < 0.5


def image_of(*people: tuple[tuple[float, float, float, float], bool]) -> LabelledImage:
    labelled = tuple(
        LabelledPerson(index, bbox, np.zeros((17, 3)), bbox[2] * bbox[3], crowd, None)
        for index, (bbox, crowd) in enumerate(people)
    )
    return LabelledImage(1, 100, 80, "test", True, labelled, "x.png", None)


def test_crowds_are_greyed_out_but_not_the_people_annotated_in_them():
    picture = np.full((80, 100, 3), 7, np.uint8)
    image = image_of(((10, 10, 60, 40), True), ((20, 20, 10, 10), False))
    hidden = hide_crowds(picture, image)
    assert (hidden[20:30, 20:30] == 7).all()
    assert (hidden[12:18, 12:68] == FILL).all()
    assert (hidden[:10] == 7).all()
    assert (picture == 7).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_box_stays_on_its_person_through_flip_scale_and_shift(seed: int):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[10:50, 20:50] = 255
    canvas, boxes = augment(picture, np.array([[20.0, 10.0, 30.0, 40.0]]), 128, random.Random(seed))
    assert canvas.shape == (128, 128, 3)
    rows, columns = np.nonzero(canvas[:, :, 0] > 180)
    x, y, w, h = boxes[0]
    assert [x, y, x + w, y + h] == pytest.approx(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=2
    )


def test_a_person_mostly_outside_the_canvas_is_no_target():
    boxes = np.array([[0.0, 0.0, 20.0, 20.0], [-500.0, 0.0, 510.0, 60.0]])
    kept = augment(np.zeros((60, 120, 3), np.uint8), boxes, 128, random.Random(0))[1]
    assert len(kept) == 1


def test_without_data_the_command_says_what_it_needs(tmp_path: Path):
    command = [sys.executable, "-m", "training.detector", str(tmp_path), "--initial", "x"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"skipped: needs pictures with people in {tmp_path}"


def test_the_command_trains_only_the_class_branch_and_measures_before_and_after(
    coco_detector: tuple[DetectionModel, Path], labelled_noise: Path
):
    full, path = coco_detector
    out = labelled_noise / "runs" / "detector.safetensors"
    command = [sys.executable, "-m", "training.detector", str(labelled_noise), "--initial", str(path)]
    subprocess.run(
        [*command, "--out", str(out), "--epochs", "1", "--batch", "2"], check=True, capture_output=True
    )
    weights = load_file(out)
    build_network(ARCHITECTURE).load_state_dict(weights, strict=True)
    learned = [key for key, value in full.state_dict().items() if value.is_floating_point()]
    learned = [
        key
        for key in learned
        if not torch.equal(weights[key], full.state_dict()[key][: len(weights[key])].half())
    ]
    assert learned
    assert all(key.startswith("model.22.cv3") for key in learned)
    lines = [json.loads(line) for line in out.with_suffix(".log").read_text().splitlines()]
    assert [line["step"] for line in lines if "ap" in line] == [0, 2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--batch", "5"], "a batch takes 5 pictures, and 4 are there to learn from"),
        (["--batch", "2", "--rate", "0.5"], "is of other data, weights or settings"),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_begins(
    coco_detector: tuple[DetectionModel, Path],
    labelled_noise: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    reason: str,
):
    _, path = coco_detector
    out = labelled_noise / "detector.safetensors"
    save_checkpoint(out.with_suffix(".checkpoint"), "a run of something else", {})
    command = ["detector", str(labelled_noise), "--initial", str(path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, *options])
    with pytest.raises(DataError, match=reason):
        detector.main()
