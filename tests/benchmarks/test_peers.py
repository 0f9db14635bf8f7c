import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import ultralytics
from PIL import Image
from torch import Tensor

from models.estimator import PoseEstimator
from models.geometry import normalize

pytest.importorskip("pycocotools")

from benchmarks import peers
from benchmarks.peers import (
    Timed,
    bundled_pose_net,
    codec,
    detector,
    listed_people,
    main,
    nms_iou,
    pose_net,
    prepared,
    read_boxes,
    read_peers,
    unnormalized,
    yolox_candidates,
)

PEERS_FOLDER = os.environ.get("PEERS_FOLDER")
BUS = Path(ultralytics.__file__).parent / "assets" / "bus.jpg"

POSE = {
    "file": "pose.onnx",
    "input": {
        "shape": [1, 3, 64, 48],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": "x/255 first",
        "channel_order": "RGB",
    },
    "outputs": [{"kind": "heatmap"}],
    "decoding": "argmax, then DARK",
}
LISTED = {
    "file": "listed.onnx",
    "input": {
        "shape": ["batch", 3, "height", "width"],
        "mean": [1, 2, 3],
        "std": [10, 20, 30],
        "scale": "none (0-255)",
        "channel_order": "BGR",
        "letterbox": "64x64, picture at top left",
    },
    "outputs": [{"kind": "boxes"}, {"kind": "class"}],
    "decoding": "NMS in the graph",
}
RAW = LISTED | {"file": "raw.onnx", "outputs": [{"kind": "raw boxes"}], "decoding": "grids; NMS IoU 0.65"}


def peer(folder: Path, sidecar: dict[str, Any]) -> peers.Peer:
    (folder / "net.json").write_text(json.dumps(sidecar))
    (found,) = read_peers(folder)
    return found


def test_a_net_is_read_from_the_file_beside_it(tmp_path: Path) -> None:
    found = peer(tmp_path, POSE)
    assert (found.name, found.path, found.size) == ("net", tmp_path / "pose.onnx", (48, 64))
    assert found.mean == pytest.approx((123.675, 116.28, 103.53))
    assert peer(tmp_path, LISTED).size == (64, 64)


def test_a_net_with_an_unknown_output_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"net\.json: unknown kind of output 'points'"):
        peer(tmp_path, POSE | {"outputs": [{"kind": "points"}]})


def test_an_input_has_the_channels_mean_and_deviation_of_its_net(tmp_path: Path) -> None:
    """mean and std of the file are in the order of its channels: 1 and 10 are of blue."""
    red, green, blue = 103.0, 42.0, 11.0
    pixels = torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    given = prepared(pixels, peer(tmp_path, LISTED))
    assert given[0, :, 0, 0].tolist() == pytest.approx([1.0, 2.0, 100 / 30])


def test_crops_normalized_for_the_bundled_nets_are_made_anew_for_a_peer(tmp_path: Path) -> None:
    crops = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    assert torch.allclose(unnormalized(normalize(crops)), crops.float(), atol=1e-3)
    assert torch.allclose(prepared(crops.float(), peer(tmp_path, POSE)), normalize(crops), atol=1e-5)


def test_words_name_a_decoding() -> None:
    assert codec("argmax per channel, then DARK as published") == "dark"
    assert codec("argmax plus a quarter cell") == "quarter"
    assert nms_iou("person = class 0; NMS IoU 0.65") == 0.65
    with pytest.raises(ValueError, match="unknown decoding"):
        codec("simcc")
    with pytest.raises(ValueError, match="no NMS IoU"):
        nms_iou("no number")


def test_raw_yolox_boxes_start_from_their_cell_of_their_grid(tmp_path: Path) -> None:
    """A 64 x 64 input has 8 x 8, 4 x 4 and 2 x 2 cells. One box in column 3, row 2 of the second grid."""
    rows = torch.zeros(64 + 16 + 4, 5 + 80)
    rows[64 + 2 * 4 + 3] = torch.tensor([0.5, 0.25, math.log(2), math.log(0.5), 0.8, 0.5, *79 * [0.9]])
    candidates = yolox_candidates(rows, 64)
    assert candidates.shape == (1, 5, 84)
    assert candidates[0, :, 64 + 11].tolist() == pytest.approx([56, 36, 32, 8, 0.4])
    found = read_boxes([rows[None]], peer(tmp_path, RAW), 0.1)
    assert found[:, :5].flatten().tolist() == pytest.approx([40, 32, 72, 40, 0.4])
    assert len(read_boxes([rows[None]], peer(tmp_path, RAW), 0.5)) == 0


@pytest.mark.parametrize(("iou", "kept"), [("0.65", [0.9]), ("0.75", [0.9, 0.6])])
def test_of_two_boxes_that_overlap_above_the_nets_own_iou_the_better_stays(
    tmp_path: Path, iou: str, kept: list[float]
) -> None:
    rows = torch.zeros(84, 6)
    rows[0] = torch.tensor([4.0, 4.0, math.log(4), math.log(4), 0.6, 1.0])
    rows[1] = torch.tensor(
        [3.0 + 0.7, 4.0, math.log(4), math.log(4), 0.9, 1.0]
    )  # 5.6 px to the right: IoU 0.70
    found = read_boxes([rows[None]], peer(tmp_path, RAW | {"decoding": f"NMS IoU {iou}"}), 0.1)
    assert found[:, 4].tolist() == pytest.approx(kept)


def test_listed_boxes_are_those_of_people_best_first() -> None:
    boxes = torch.tensor([[0, 0, 9, 9, 0.2], [1, 1, 9, 9, 0.9], [2, 2, 9, 9, 0.7]])
    found = listed_people(boxes, torch.tensor([0, 5, 0]))
    assert found[:, 0].tolist() == [2, 0]
    assert found.shape == (2, 6)


def test_a_detector_sees_the_picture_at_the_top_left_and_answers_in_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def net(batch: Tensor) -> list[Tensor]:
        seen.append(batch)
        return [torch.tensor([[[8.0, 4, 24, 20, 0.9], [0, 0, 8, 8, 0.3]]]), torch.zeros(1, 2)]

    monkeypatch.setattr(peers, "open_net", lambda _: net)
    picture = torch.full((40, 128, 3), 200, dtype=torch.uint8)
    (boxes,) = detector(peer(tmp_path, LISTED))([picture], [0.5])
    assert boxes.tolist() == [pytest.approx([16, 8, 32, 32, 0.9])]
    blue = seen[0][0, 0] * 10 + 1
    assert blue.shape == (64, 64)
    assert (blue[:20] - 200).abs().max() < 1e-3
    assert (blue[20:] - 114).abs().max() < 1e-3


def bright_spot(crops: Tensor) -> Tensor:
    """Heatmaps (N, 17, h / 4, w / 4) of where a crop is bright."""
    return torch.nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 4).clamp(min=0).expand(-1, 17, -1, -1)


def picture_with_spots() -> Tensor:
    picture = torch.zeros(200, 300, 3, dtype=torch.uint8)
    picture[76:84, 56:64] = 255
    picture[116:124, 206:214] = 255
    return picture


@pytest.mark.parametrize("bundled", [True, False])
def test_a_pose_net_sees_one_person_at_a_time_and_answers_in_the_pictures_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled: bool
) -> None:
    batches: list[int] = []

    def network(crops: Tensor) -> Tensor:
        batches.append(len(crops))
        return bright_spot(crops)

    monkeypatch.setattr(peers, "open_net", lambda _: lambda crops: [network(crops)])
    if bundled:
        estimator, timed = bundled_pose_net(PoseEstimator(network, input_size=(48, 64), codec="dark"))
    else:
        estimator, timed = pose_net(peer(tmp_path, POSE))
    assert estimator.codec == "dark"
    boxes = torch.tensor([[30.0, 40, 60, 80], [180, 80, 60, 80]])
    keypoints = estimator([picture_with_spots()] * 2, boxes)
    assert keypoints.shape == (2, 17, 3)
    assert (keypoints[:, :, :2] - torch.tensor([[[60.0, 80]], [[210, 120]]])).abs().max() < 4
    assert batches == [1, 1]
    assert len(timed.seconds) == 2


def test_the_median_call_is_what_a_net_takes() -> None:
    timed = Timed(lambda x: x + 1)
    assert timed(1) == 2
    assert len(timed.seconds) == 1
    timed.seconds[:] = [0.001, 0.002, 9.0]
    assert timed.median_ms == pytest.approx(2)


@dataclass(frozen=True)
class FakeManifest:
    def names(self) -> dict[str, str]:
        return {"small": "s", "large": "l", "detector": "d"}


class FakePair:
    """Finds both spots of the picture; its small net looks nowhere."""

    manifest = FakeManifest()
    small = PoseEstimator(lambda crops: 0 * bright_spot(crops), input_size=(48, 64), codec="argmax")
    large = PoseEstimator(bright_spot, input_size=(48, 64), codec="dark")

    def detector(self, pictures: Sequence[Tensor], min_scores: Sequence[float]) -> list[Tensor]:
        assert len(pictures) == len(min_scores) == 1
        return [torch.tensor([[30, 40, 60, 80, 0.9], [180.0, 80, 60, 80, 0.8]])]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two people in each of two pictures, all joints at their spots."""
    images, annotations = [], []
    for i in range(2):
        Image.fromarray(picture_with_spots().numpy()).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 300, "height": 200, "complete": True})
        for j, (x, y) in enumerate([(59.5, 79.5), (209.5, 119.5)]):
            box = [30 + 150 * j, 40 + 40 * j, 60, 80]
            person = {"id": 2 * i + j + 1, "image_id": i, "bbox": box, "area": 4800.0}
            annotations.append(person | {"keypoints": [x, y, 2] * 17})
    (tmp_path / "val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return tmp_path


def test_the_command_sets_all_nets_side_by_side(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled / "nets"
    folder.mkdir()
    for name, sidecar in (("seer", POSE), ("finder", LISTED)):
        (folder / f"{name}.json").write_text(json.dumps(sidecar))

    def open_net(path: Path) -> Any:
        # A false box and a right one, of two in a picture: 300 x 200 pixels have become 64 x 43.
        rows = torch.tensor([[200.0, 0, 260, 40, 0.95], [30, 40, 90, 120, 0.9]])
        found = [(rows * torch.tensor([*4 * [64 / 300], 1]))[None], torch.zeros(1, 2)]
        return lambda batch: [bright_spot(batch)] if path.name == "pose.onnx" else found

    monkeypatch.setattr(peers, "open_net", open_net)
    monkeypatch.setattr(peers, "set_cpu_threads", lambda _: 1)
    monkeypatch.setattr(peers, "load_pair", lambda *_: FakePair())
    assert main([str(labelled), "--peers", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "2 pictures; one thread" in out
    assert "pose nets: 4 people with keypoints" in out
    assert "detectors: 4 people who are no crowd, 4 of them of 64 px and above" in out
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    ap, _, ap50, ar, _ = rows["small"][1:]
    assert (ap, ap50, ar) == ("0.000", "0.000", "0.000")
    assert rows["large"][3] == "1.000"  # AP50
    assert rows["seer"][:4] == rows["large"][1:5]
    assert rows["bundled"][1:5] == ["1.000", "(1.000-1.000)", "1.000", "1.000"]
    assert rows["finder"][3] == "0.500"  # AR
    score, equal, _, false, usual, _, _ = rows["finder"][4:]
    assert (score, equal) == ("0.950", "0.000")  # no box of it can be had without its false one
    assert (false, usual) == ("1.000", "0.500")


def test_without_pictures_it_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--peers", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"skipped: needs pictures with people in {tmp_path}\n"


def test_without_nets_it_is_skipped(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(labelled), "--peers", str(labelled / "absent")]) == 0
    assert "skipped: needs ONNX nets with their JSON files in" in capsys.readouterr().out


@pytest.mark.skipif(PEERS_FOLDER is None, reason="PEERS_FOLDER names no folder with ONNX nets")
def test_published_nets_agree_on_the_man_with_the_hand_at_his_chest() -> None:
    pytest.importorskip("onnxruntime")
    picture = torch.from_numpy(np.array(Image.open(BUS).convert("RGB")))
    box = torch.tensor([[221.0, 406, 124, 452]])
    nets = read_peers(Path(str(PEERS_FOLDER)))
    shoulders_to_knees = torch.tensor(
        [[321.0, 495], [248, 499], [309, 622], [262, 623], [313, 716], [265, 720]]
    )
    for net in (net for net in nets if net.kind == "heatmap"):
        keypoints = pose_net(net)[0]([picture], box)[0]
        off = (keypoints[[5, 6, 11, 12, 13, 14], :2] - shoulders_to_knees).norm(dim=1)
        assert off.max() < 0.06 * 452, net.name
    for net in (net for net in nets if net.kind != "heatmap"):
        (boxes,) = detector(net)([picture], [0.5])
        assert (boxes[:, :4] - box).abs().max(dim=1).values.min() < 0.05 * 452, net.name
