import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import ultralytics
from PIL import Image
from torch import Tensor

from models.estimator import PoseEstimator
from models.zoo import PairError
from tests.models.zoo.onnx_nets import LISTED, constant_net, heatmap_net

pytest.importorskip("pycocotools")
pytest.importorskip("onnxruntime")

from benchmarks import peers
from benchmarks.peers import Timed, main, peer_detector, peer_files, peer_pose_net, timed

PEERS_FOLDER = os.environ.get("PEERS_FOLDER")
BUS = Path(ultralytics.__file__).parent / "assets" / "bus.jpg"


def test_the_nets_of_a_folder_are_those_with_a_file_beside_them(tmp_path: Path) -> None:
    pose = heatmap_net(tmp_path / "pose.onnx")
    finder = constant_net(tmp_path / "finder.onnx", LISTED)
    (tmp_path / "alone.onnx").touch()
    (tmp_path / "notes.json").write_text("{}")
    assert peer_files(tmp_path) == ([pose], [finder])


def test_a_net_with_an_unknown_output_is_refused_by_name(tmp_path: Path) -> None:
    net = heatmap_net(tmp_path / "net.onnx", outputs=[{"kind": "points"}])
    assert peer_files(tmp_path) == ([net], [])
    with pytest.raises(PairError, match=r"net\.json: outputs: unknown kind of output 'points'"):
        peer_pose_net(net)


def bright_spot(crops: Tensor) -> Tensor:
    """Heatmaps (N, 17, h / 4, w / 4) of where a crop is bright."""
    return torch.nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 4).clamp(min=0).expand(-1, 17, -1, -1)


def picture_with_spots() -> Tensor:
    picture = torch.zeros(200, 300, 3, dtype=torch.uint8)
    picture[76:84, 56:64] = 255
    picture[116:124, 206:214] = 255
    return picture


def test_a_pose_net_sees_one_person_at_a_time_and_answers_in_the_pictures_pixels(tmp_path: Path) -> None:
    batches: list[int] = []
    peer = peer_pose_net(heatmap_net(tmp_path / "net.onnx"))
    network = peer.network

    def counted(crops: Tensor) -> Tensor:
        batches.append(len(crops))
        return network(crops)

    peer.network = counted
    estimator, alone = timed(peer)
    assert estimator.codec == "dark"
    boxes = torch.tensor([[30.0, 40, 60, 80], [180, 80, 60, 80]])
    keypoints = estimator([picture_with_spots()] * 2, boxes)
    assert keypoints.shape == (2, 17, 3)
    assert (keypoints[:, :, :2] - torch.tensor([[[60.0, 80]], [[210, 120]]])).abs().max() < 4
    assert batches == [1, 1]
    assert len(alone.seconds) == 2
    assert peer.network is counted


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
    heatmap_net(folder / "seer.onnx")
    # A false box and a right one, of two in a picture: 300 x 200 pixels have become 64 x 43.
    rows = torch.tensor([[200.0, 0, 260, 40, 0.95], [30, 40, 90, 120, 0.9]])
    constant_net(
        folder / "finder.onnx", LISTED, (rows * torch.tensor([*4 * [64 / 300], 1]))[None].numpy(), [[0, 0]]
    )

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
    picture = torch.from_numpy(np.array(Image.open(BUS).convert("RGB")))
    box = torch.tensor([[221.0, 406, 124, 452]])
    pose_nets, finders = peer_files(Path(str(PEERS_FOLDER)))
    shoulders_to_knees = torch.tensor(
        [[321.0, 495], [248, 499], [309, 622], [262, 623], [313, 716], [265, 720]]
    )
    for net in pose_nets:
        keypoints = peer_pose_net(net)([picture], box)[0]
        off = (keypoints[[5, 6, 11, 12, 13, 14], :2] - shoulders_to_knees).norm(dim=1)
        assert off.max() < 0.06 * 452, net.name
    for net in finders:
        (boxes,) = peer_detector(net)([picture], [0.5])
        assert (boxes[:, :4] - box).abs().max(dim=1).values.min() < 0.05 * 452, net.name
