import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.teacher import save_answers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many people the teacher is asked about, call by call; it knows nothing of them."""
    counts: list[int] = []

    def ask(_: nn.Module, pictures: list[Tensor], boxes: Tensor) -> Tensor:
        assert len(pictures) == len(boxes)
        counts.append(len(boxes))
        return torch.zeros(len(boxes), 17, 3)

    monkeypatch.setattr("training.teacher.load_onnx", lambda _: nn.Identity())
    monkeypatch.setattr("training.teacher.ask", ask)
    return counts


@pytest.fixture
def data(labelled_noise: Path) -> Path:
    change(labelled_noise, lambda person: person | {"keypoints": [1, 2, 2] * 17, "num_keypoints": 17})
    return labelled_noise


def change(data: Path, person: object) -> None:
    content = json.loads((data / "train.json").read_text())
    content["annotations"] = [person(annotation) for annotation in content["annotations"]]  # type: ignore[operator]
    (data / "train.json").write_text(json.dumps(content))


def test_the_teacher_is_asked_again_where_its_weights_or_the_labels_are_others(
    data: Path, tmp_path: Path, asked: list[int]
) -> None:
    weights, out = tmp_path / "teacher.onnx", tmp_path / "teacher.npz"
    weights.write_bytes(b"one")
    np.savez(out, ids=np.array([1]), keypoints=np.zeros((1, 17, 3)))  # of who knows what
    for expected in (5, 5):
        save_answers(weights, data, out)
        assert len(asked) == expected
    change(data, lambda person: person | {"id": person["id"] + 100})
    save_answers(weights, data, out)
    assert len(asked) == 10
    with np.load(out) as kept:
        assert (kept["ids"] > 100).all()
        assert kept["keypoints"].shape == (5, 17, 3)
    weights.write_bytes(b"another")
    save_answers(weights, data, out)
    assert len(asked) == 15
    assert [path.name for path in tmp_path.glob("*.npz")] == ["teacher.npz"]
