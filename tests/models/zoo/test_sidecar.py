import json
from pathlib import Path
from typing import Any

import pytest

from models.skeleton import CROWDPOSE
from models.zoo import DetectorEntry, EstimatorEntry, PairError, named_entry
from models.zoo.sidecar import detector_fields, pose_fields, read_sidecar

POSE: dict[str, Any] = {
    "file": "pose.onnx",
    "input": {
        "shape": [1, 3, 64, 48],
        "layout": "NCHW",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "scale": "x/255 first",
        "channel_order": "RGB",
    },
    "outputs": [{"name": "heatmaps", "kind": "heatmap"}],
    "decoding": "argmax, then DARK",
    "licence": "for people to read",
}
SIMCC = [{"kind": "simcc_x"}, {"kind": "simcc_y"}]


def write(folder: Path, sidecar: dict[str, Any]) -> Path:
    """An ONNX file of no content with its sidecar."""
    (folder / "net.json").write_text(json.dumps(sidecar))
    (folder / "net.onnx").write_bytes(b"")
    return folder / "net.onnx"


def fields(folder: Path, sidecar: dict[str, Any]) -> dict[str, Any]:
    net = write(folder, sidecar)
    return pose_fields(read_sidecar(net), net)


def test_a_pose_net_is_read_from_the_file_beside_it(tmp_path: Path) -> None:
    found = fields(tmp_path, POSE)
    assert found.pop("mean") == pytest.approx((123.675, 116.28, 103.53))
    assert found.pop("std") == pytest.approx((58.395, 57.12, 57.375))
    assert found == {
        "input_size": (48, 64),
        "codec": "dark",
        "keypoints": "coco",
        "channel_order": "RGB",
        "padding": 1.25,
    }


def test_values_of_a_bgr_net_are_in_the_order_of_its_channels(tmp_path: Path) -> None:
    given = {"shape": [1, 3, 64, 48], "mean": [1, 2, 3], "std": [4, 5, 6], "scale": "none (0-255)"}
    found = fields(tmp_path, POSE | {"input": given | {"channel_order": "BGR"}, "crop": {"padding": 1.5}})
    assert (found["mean"], found["std"], found["channel_order"]) == ([3, 2, 1], [6, 5, 4], "BGR")
    assert found["padding"] == 1.5


@pytest.mark.parametrize(
    ("changes", "codec"),
    [
        ({"decoding": "argmax per channel, then DARK as published"}, "dark"),
        ({"decoding": "argmax plus a quarter cell"}, "quarter"),
        ({"decoding": "DARK", "codec": "dark_udp"}, "dark_udp"),
        ({"codec": "argmax"}, "argmax"),
        ({"outputs": SIMCC, "decoding": ""}, "simcc"),
        ({"outputs": SIMCC, "codec": "simcc"}, "simcc"),
    ],
)
def test_the_codec_is_named_or_follows_from_outputs_or_words(
    tmp_path: Path, changes: dict[str, Any], codec: str
) -> None:
    assert fields(tmp_path, POSE | changes)["codec"] == codec


@pytest.mark.parametrize("keypoints", ["crowdpose", list(CROWDPOSE.keypoints)])
def test_keypoints_are_a_known_set_by_name_or_by_its_names(tmp_path: Path, keypoints: Any) -> None:
    assert fields(tmp_path, POSE | {"keypoints": keypoints})["keypoints"] == "crowdpose"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": [{"kind": "points"}]}, "outputs: unknown kind of output 'points'"),
        ({"outputs": [{}]}, r"outputs\.0\.kind: Field required"),
        ({"decoding": "somehow"}, "codec: missing"),
        ({"codec": "best"}, "codec: Input should be"),
        ({"codec": "simcc"}, "codec: simcc needs outputs"),
        ({"outputs": SIMCC, "codec": "dark"}, "codec: dark does not read"),
        ({"keypoints": ["nose"]}, "keypoints: neither of the known sets, coco and crowdpose"),
        ({"input": POSE["input"] | {"shape": ["batch", 3, "h", "w"]}}, r"input\.shape: missing"),
        ({"input": POSE["input"] | {"mean": [0.5, 0.5]}}, r"input\.mean"),
        ({"input": POSE["input"] | {"std": [0, 1, 1]}}, r"input\.std\.0"),
        ({"input": POSE["input"] | {"scale": "1/255"}}, r"input\.scale"),
        ({"input": POSE["input"] | {"layout": "NHWC"}}, r"input\.layout"),
        ({"input": POSE["input"] | {"channel_order": "GRB"}}, r"input\.channel_order"),
        ({"input": {"shape": [1, 3, 64, 48]}}, r"input\.mean, input\.std and input\.scale: missing"),
        ({"input": POSE["input"] | {"shape": [1, 3, 0, 48]}}, r"input_size"),
        ({"crop": {"padding": -1}}, r"crop\.padding"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_field(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    net = write(tmp_path, POSE | changes)
    with pytest.raises(PairError, match=said) as refused:
        named_entry(EstimatorEntry, "small", str(net))
    assert "net." in str(refused.value)
    assert "\n" not in str(refused.value)


def test_beside_a_detectors_weights_it_changes_the_size(tmp_path: Path) -> None:
    weights = tmp_path / "yolov8s.safetensors"
    weights.write_bytes(b"any")
    sidecar = weights.with_suffix(".json")
    for content, size in (("{}", 640), ('{"input": {"letterbox": "512x512"}}', 512)):
        sidecar.write_text(content)
        assert named_entry(DetectorEntry, "detector", str(weights)).input_size == size
    sidecar.write_text('{"input": {"letterbox": "512x256"}}')
    with pytest.raises(PairError, match=r"yolov8s\..*square"):
        named_entry(DetectorEntry, "detector", str(weights))


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_what_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    net = write(tmp_path, POSE)
    (tmp_path / "net.json").write_text(content)
    with pytest.raises(PairError, match=r"net\.json"):
        read_sidecar(net)


def test_an_onnx_net_without_the_file_beside_it_says_what_is_missing(tmp_path: Path) -> None:
    net = write(tmp_path, POSE)
    (tmp_path / "net.json").unlink()
    with pytest.raises(PairError, match=r"net\.onnx needs .*net\.json beside it"):
        named_entry(EstimatorEntry, "small", str(net))


BOXES: dict[str, Any] = {
    "input": {"letterbox": "320x320 (trained size)", "mean": [0, 0, 0], "std": [1, 1, 1], "scale": "none"},
    "outputs": [{"kind": "boxes"}, {"kind": "class"}],
}
RAW = {"outputs": [{"kind": "raw boxes"}]}


def test_a_detector_is_read_from_the_file_beside_it(tmp_path: Path) -> None:
    net = write(tmp_path, BOXES)
    assert read_sidecar(net).is_detector
    found = detector_fields(read_sidecar(net), net)
    assert found["input_size"] == 320
    assert found["onnx"]["output"] == "boxes"


@pytest.mark.parametrize("changes", [{"nms_iou": 0.65}, {"decoding": "person = class 0; NMS IoU 0.65"}])
def test_raw_boxes_name_their_nms_iou(tmp_path: Path, changes: dict[str, Any]) -> None:
    net = write(tmp_path, BOXES | RAW | changes)
    assert detector_fields(read_sidecar(net), net)["onnx"]["nms_iou"] == 0.65


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (RAW, "nms_iou: missing"),
        ({"outputs": [{"kind": "boxes"}]}, "outputs"),
        ({"input": BOXES["input"] | {"letterbox": "320x192"}}, "input: a detector needs a square"),
        ({"input": BOXES["input"] | {"letterbox": ""}}, "input: a detector needs a square"),
    ],
)
def test_a_detector_that_is_not_described_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    net = write(tmp_path, BOXES | changes)
    with pytest.raises(PairError, match=said):
        detector_fields(read_sidecar(net), net)
