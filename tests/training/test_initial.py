from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibration.data import DataError
from models.tinypose import TinyPose
from training.initial import convolutions_in_file_order, load_onnx
from training.teacher import ask


def test_every_convolution_has_one_place_in_the_file() -> None:
    network = TinyPose()
    ordered = [id(module) for module in convolutions_in_file_order(network)]
    assert len(ordered) == len(set(ordered))
    assert set(ordered) == {id(module) for module in network.modules() if isinstance(module, nn.Conv2d)}


def test_what_is_no_pp_tinypose_is_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    text, other = tmp_path / "text.onnx", tmp_path / "other.onnx"
    text.write_text("no ONNX")
    with pytest.raises(DataError, match=r"text\.onnx is no PP-TinyPose"):
        load_onnx(text)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], [])), other)
    with pytest.raises(DataError, match=r"other\.onnx holds another network"):
        load_onnx(other)


def test_the_teacher_answers_in_picture_pixels_whatever_the_padding() -> None:
    def middle(crops: Tensor) -> Tensor:
        heatmaps = torch.zeros(len(crops), 17, 64, 48)
        y, x = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
        heatmaps[:] = 0.8 * torch.exp(-((x - 24) ** 2 + (y - 32) ** 2) / 8)
        return heatmaps

    boxes = torch.tensor([[10.0, 20, 30, 60], [-5, 0, 50, 20]])
    picture = torch.zeros(100, 90, 3, dtype=torch.uint8)
    answers = ask(middle, [picture, picture], boxes)  # type: ignore[arg-type]
    assert answers.shape == (2, 17, 3)
    for answer, center in zip(answers, ([25, 50], [20, 10]), strict=True):
        assert answer[:, :2].mean(0).tolist() == pytest.approx(center, abs=1e-3)
    assert (answers[..., 2] - 0.8).abs().max() < 1e-3
