import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data import is_held_back


@pytest.fixture
def labelled_noise(tmp_path: Path) -> Path:
    """A folder with five pictures of noise and a person on each; the first is held back, and that alone."""
    rng = np.random.default_rng(0)
    held_back = next(index for index in range(1, 99) if is_held_back(index))
    images, annotations = [], []
    for index in [held_back, *[index for index in range(1, 99) if not is_held_back(index)][:4]]:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 60, "complete": True})
        annotations.append(
            {"id": index, "image_id": index, "category_id": 1, "bbox": [20, 10, 30, 40], "area": 900}
            | {"iscrowd": 0, "num_keypoints": 0, "keypoints": [0] * 51}
        )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path
