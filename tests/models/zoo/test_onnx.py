import builtins
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import helper

from models.geometry import Normalization, normalize
from models.zoo import (
    DetectorEntry,
    EstimatorEntry,
    PairError,
    load_detector,
    load_estimator,
    named_entry,
)
from models.zoo.onnx import (
    OnnxDetector,
    listed_people,
    open_batched,
    open_net,
    pose_network,
    yolox_candidates,
)
from tests.models.zoo.onnx_nets import (
    LISTED,
    RAW,
    constant_net,
    heatmap_net,
    mean_of_cells,
    mixing_net,
    reshaping_net,
    simcc_net,
    write,
)

CPU = torch.device("cpu")
SIZE = (48, 64)


def crops(count: int) -> Tensor:
    return torch.rand(count, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def cells(batch: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(batch.mean(1, keepdim=True), 4).expand(-1, 17, -1, -1)


def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that onnxruntime is given."""
    import onnxruntime

    seen: list[int] = []
    run = onnxruntime.InferenceSession.run

    def spy(self: Any, names: Any, given: dict[str, np.ndarray], *rest: Any) -> Any:
        seen.append(len(next(iter(given.values()))))
        return run(self, names, given, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", spy)
    return seen


@pytest.mark.parametrize("batch", [1, "batch"])
def test_people_share_a_batch_also_where_the_file_fixes_it_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Any
) -> None:
    net = open_batched(heatmap_net(tmp_path / "net.onnx", batch=batch), CPU, SIZE)
    seen = batches(monkeypatch)
    (found,) = net(crops(3))
    assert seen == [3]
    assert torch.allclose(found, cells(crops(3)), atol=1e-5)


def test_reshapes_that_spell_out_the_batch_are_freed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = open_batched(reshaping_net(tmp_path / "net.onnx", [1, 17, 192], [1, 17, 16, 12]), CPU, SIZE)
    seen = batches(monkeypatch)
    (found,) = net(crops(3))
    assert seen == [3]
    assert torch.allclose(found, cells(crops(3)), atol=1e-5)


@pytest.mark.parametrize("net", ["unfit", "mixing"])
def test_a_net_that_a_larger_batch_breaks_sees_people_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, net: str
) -> None:
    """One cannot take two; the other can, but lets each see the other."""
    if net == "unfit":
        path, factor, reason = (
            reshaping_net(tmp_path / "net.onnx", [17, 192], [1, 17, 16, 12]),
            1,
            "a batch of them fails",
        )
    else:
        path, factor, reason = mixing_net(tmp_path / "net.onnx"), 2, "other answers than alone"
    opened = open_batched(path, CPU, SIZE)
    (warning,) = caplog.messages
    assert f"people go through {path} one by one, which is slow: " in warning
    assert reason in warning
    seen = batches(monkeypatch)
    (found,) = opened(crops(3))
    assert seen == [1, 1, 1]
    assert torch.allclose(found, factor * cells(crops(3)), atol=1e-5)


def test_without_the_package_onnx_a_fixed_batch_stays_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = heatmap_net(tmp_path / "net.onnx")
    hide(monkeypatch, "onnx")
    net = open_batched(path, CPU, SIZE)
    seen = batches(monkeypatch)
    assert net(crops(2))[0].shape == (2, 17, 16, 12)
    assert seen == [1, 1]
    (warning,) = caplog.messages
    assert f"needs the package onnx: {sys.executable} -m pip install onnx" in warning


def test_a_net_for_cuda_that_runs_on_the_cpu_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    path = heatmap_net(tmp_path / "net.onnx")
    open_batched(path, torch.device("cuda"), SIZE)
    open_net(path, torch.device("cuda"))
    said = f"{path} runs on the CPU: onnxruntime has no usable CUDA"
    assert [message.startswith(said) for message in caplog.messages] == [True, True]


def test_what_runs_as_it_should_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_batched(heatmap_net(tmp_path / "net.onnx"), CPU, SIZE)
    assert caplog.messages == []


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_onnxruntime_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = heatmap_net(tmp_path / "net.onnx")
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(PairError, match="pip install onnx onnxruntime"):
        open_net(path, CPU)


def test_a_net_uses_as_many_threads_as_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    threads = []
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, **rest: Any) -> Any:
        threads.append(options.intra_op_num_threads)
        return real(content, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    open_net(heatmap_net(tmp_path / "net.onnx"), CPU)
    assert threads == [torch.get_num_threads()]


def test_weights_in_a_file_beside_the_net_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.onnx.export writes them by default; the net's sha256 does not cover them."""
    path = heatmap_net(tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    assert (tmp_path / "net.onnx.data").exists()
    monkeypatch.chdir(tmp_path)
    entry = named_entry(EstimatorEntry, "small", str(path))
    with pytest.raises(PairError, match=r"net\.onnx: its weights lie in another file"):
        load_estimator("pair", entry, CPU, torch.float32)
    with pytest.raises(PairError, match="lie in another file"):
        open_net(path, CPU)
    monkeypatch.setattr("models.zoo.onnx.EXTERNAL", b"however else it may be written")
    with pytest.raises(PairError, match="onnxruntime cannot open it"):
        open_net(path, CPU)
    onnx.save(onnx.load(path), tmp_path / "one.onnx")
    assert open_net(tmp_path / "one.onnx", CPU)(crops(1))[0].shape == (1, 17, 16, 12)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "onnxruntime cannot open it"), (b"no net", "onnxruntime cannot open it")],
)
def test_what_is_no_onnx_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(PairError, match=said) as refused:
        open_net(tmp_path / "net.onnx", CPU)
    assert "\n" not in str(refused.value)


def test_a_fixed_batch_of_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="batch is fixed to 8"):
        open_batched(heatmap_net(tmp_path / "net.onnx", batch=8), CPU, SIZE)


def test_a_net_of_two_inputs_is_refused(tmp_path: Path) -> None:
    path = heatmap_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [1, 2]))
    onnx.save(model, path)
    with pytest.raises(PairError, match="must take one input"):
        open_net(path, CPU)


def test_a_size_that_the_net_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="does not run on 96x128 pixels"):
        open_batched(heatmap_net(tmp_path / "net.onnx"), CPU, (96, 128))


def test_outputs_for_other_keypoints_than_the_sidecars_are_refused(tmp_path: Path) -> None:
    path = heatmap_net(tmp_path / "net.onnx", keypoints=14)
    pose_network(path, CPU, size=SIZE, codec="dark", keypoints=14)
    with pytest.raises(PairError, match=r"\(1, 14, 16, 12\).*not \(1, 17, h, w\)"):
        pose_network(path, CPU, size=SIZE, codec="dark", keypoints=17)
    with pytest.raises(PairError, match="bins"):
        pose_network(path, CPU, size=SIZE, codec="simcc", keypoints=14)


def picture_with_spots() -> Tensor:
    picture = torch.zeros(200, 300, 3, dtype=torch.uint8)
    picture[76:84, 56:64] = 255
    picture[116:124, 206:214] = 255
    return picture


@pytest.mark.parametrize("make", [heatmap_net, simcc_net])
@pytest.mark.parametrize("flip_test", [False, True])
def test_a_pose_net_answers_in_the_pictures_pixels(tmp_path: Path, make: Any, flip_test: bool) -> None:
    entry = named_entry(EstimatorEntry, "small", str(make(tmp_path / "net.onnx")))
    assert entry.codec == ("simcc" if make is simcc_net else "dark")
    estimator = load_estimator("pair", entry, CPU, torch.float32)
    boxes = torch.tensor([[30.0, 40, 60, 80], [180, 80, 60, 80]])
    keypoints = estimator([picture_with_spots()] * 2, boxes, flip_test=flip_test)
    assert keypoints.shape == (2, 17, 3)
    assert (keypoints[:, :, :2] - torch.tensor([[[60.0, 80]], [[210, 120]]])).abs().max() < 5.5
    assert (keypoints[:, :, 2] > 0).all()


def test_an_input_has_the_channels_mean_and_deviation_of_its_net(tmp_path: Path) -> None:
    """mean and std of the file are in the order of its channels: 1 and 10 are of blue."""
    entry = named_entry(DetectorEntry, "detector", str(constant_net(tmp_path / "net.onnx", LISTED)))
    assert entry.onnx is not None
    pixels = torch.tensor([103, 42, 11], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    given = normalize(pixels, entry.onnx.normalization)
    assert given[0, :, 0, 0].tolist() == pytest.approx([1.0, 2.0, 100 / 30])


def test_a_detector_with_its_own_suppression_answers_in_the_pictures_pixels(tmp_path: Path) -> None:
    boxes = [[[0.0, 0, 8, 8, 0.3], [8, 4, 24, 20, 0.8], [1, 1, 9, 9, 0.95], [0, 0, 64, 20, 0.9]]]
    path = constant_net(tmp_path / "net.onnx", LISTED, boxes, [[0, 0, 7, 0]])
    detector = load_detector("pair", named_entry(DetectorEntry, "detector", str(path)), CPU, torch.float32)
    picture = torch.full((40, 128, 3), 200, dtype=torch.uint8)
    found, none = detector([picture, picture], [0.5, 0.99])
    assert found.flatten().tolist() == pytest.approx([0, 0, 128, 40, 0.9, 16, 8, 32, 32, 0.8])
    assert none.shape == (0, 5)


def test_a_detector_sees_the_picture_at_the_top_left() -> None:
    seen: list[Tensor] = []

    def net(batch: Tensor) -> list[Tensor]:
        seen.append(batch)
        return [torch.zeros(1, 0, 5), torch.zeros(1, 0)]

    normalization = Normalization((3.0, 2.0, 1.0), (30.0, 20.0, 10.0), bgr=True)
    detector = OnnxDetector(net, side=64, normalization=normalization, iou=None)
    (boxes,) = detector([torch.full((40, 128, 3), 200, dtype=torch.uint8)], [0.5])
    assert boxes.shape == (0, 5)
    blue = seen[0][0, 0] * 10 + 1
    assert blue.shape == (64, 64)
    assert (blue[:20] - 200).abs().max() < 1e-3
    assert (blue[20:] - 114).abs().max() < 1e-3


def test_raw_yolox_boxes_start_from_their_cell_of_their_grid(tmp_path: Path) -> None:
    """A 64 x 64 input has 8 x 8, 4 x 4 and 2 x 2 cells. One box in column 3, row 2 of the second grid."""
    rows = torch.zeros(64 + 16 + 4, 5 + 80)
    rows[64 + 2 * 4 + 3] = torch.tensor([0.5, 0.25, math.log(2), math.log(0.5), 0.8, 0.5, *79 * [0.9]])
    candidates = yolox_candidates(rows, 64)
    assert candidates.shape == (5, 84)
    assert candidates[:, 64 + 11].tolist() == pytest.approx([56, 36, 32, 8, 0.4])
    path = constant_net(tmp_path / "net.onnx", RAW, rows[None].numpy())
    detector = load_detector("pair", named_entry(DetectorEntry, "detector", str(path)), CPU, torch.float32)
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8)
    found, none = detector([picture, picture], [0.1, 0.5])
    assert found.flatten().tolist() == pytest.approx([40, 32, 24, 8, 0.4])  # cut off at the border
    assert none.shape == (0, 5)


@pytest.mark.parametrize(("iou", "kept"), [("0.65", [0.9]), ("0.75", [0.9, 0.6])])
def test_of_two_boxes_that_overlap_above_the_nets_own_iou_the_better_stays(
    tmp_path: Path, iou: str, kept: list[float]
) -> None:
    rows = torch.zeros(84, 6)
    rows[0] = torch.tensor([4.0, 4.0, math.log(4), math.log(4), 0.6, 1.0])
    rows[1] = torch.tensor([3.7, 4.0, math.log(4), math.log(4), 0.9, 1.0])  # 5.6 px to the right: IoU 0.70
    path = constant_net(tmp_path / "net.onnx", RAW | {"decoding": f"NMS IoU {iou}"}, rows[None].numpy())
    detector = load_detector("pair", named_entry(DetectorEntry, "detector", str(path)), CPU, torch.float32)
    (found,) = detector([torch.zeros(64, 64, 3, dtype=torch.uint8)], [0.1])
    assert found[:, 4].tolist() == pytest.approx(kept)


def test_listed_boxes_are_those_of_people_best_first() -> None:
    boxes = torch.tensor([[0, 0, 9, 9, 0.2], [1, 1, 9, 9, 0.9], [2, 2, 9, 9, 0.7]])
    found = listed_people(boxes, torch.tensor([0, 5, 0]))
    assert found[:, 0].tolist() == [2, 0]


def test_a_net_in_half_precision_takes_and_gives_float32(tmp_path: Path) -> None:
    conv, weights = mean_of_cells(17, "y")
    path = write(tmp_path / "net.onnx", [conv], [weights])
    model = onnx.load(path)
    half = onnx.TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = half
    array = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    onnx.save(model, path)
    (found,) = open_net(path, CPU)(crops(1))
    assert found.dtype == torch.float32
    assert torch.allclose(found, cells(crops(1)), atol=1e-2)
