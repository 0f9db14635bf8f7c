import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration import samples
from calibration.data import LabelledImage, LabelledPerson, Pictures
from calibration.samples import (
    CROP_BYTES,
    LABELLED,
    SLOPPY,
    WRONG,
    SamplesError,
    boxes_of,
    collect,
    sloppy,
    wrong,
)
from models.geometry import center_scale, crop_matrix, cut_crops


def person(
    box: tuple[float, float, float, float], keypoints: int = 17, crowd: bool = False
) -> LabelledPerson:
    x, y, w, h = box
    points = np.array([[x + w / 2, y + h / 4, 2.0]] * keypoints, dtype=np.float32)
    points[-1] = 0
    return LabelledPerson(1, box, points, 0.5 * w * h, crowd, None)


def image(key: int, *people: LabelledPerson, complete: bool = True) -> LabelledImage:
    return LabelledImage(key, 400, 300, "test", complete, people, f"{key}.png", None)


IMAGES = [(image(key, person((100.0 + key, 50, 80, 200))), key % 2 == 0) for key in range(6)]


class Noise(Pictures):
    """Files of noise, of 400 x 300 px. lost, damaged: pictures that are not there or no pictures."""

    def __init__(self, lost: tuple[int, ...] = (), damaged: tuple[int, ...] = ()) -> None:
        super().__init__(Path("nowhere"))
        self.lost, self.damaged = lost, damaged

    def read(self, image: LabelledImage) -> bytes:
        if image.id in self.lost:
            return super().read(image)
        if image.id in self.damaged:
            return b"no picture"
        generator = torch.Generator().manual_seed(image.id)
        pixels = torch.randint(0, 256, (300, 400, 3), generator=generator, dtype=torch.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "png", compress_level=1)
        return file.getvalue()


PICTURES = Noise()


class Net:
    """Answers with the middle of every box, a little to the right; counts the boxes it is asked about."""

    def __init__(self, right: float, keypoints: int = 17) -> None:
        self.right, self.keypoints, self.asked = right, keypoints, 0

    def __call__(self, pictures, boxes):
        self.asked += len(pictures)
        points = torch.zeros(len(boxes), self.keypoints, 3)
        points[:, :, 0] = (boxes[:, 0] + boxes[:, 2] / 2 + self.right)[:, None]
        points[:, :, 1] = (boxes[:, 1] + boxes[:, 3] / 2)[:, None]
        return points


def test_wrong_boxes_miss_everybody_and_sloppy_ones_do_not():
    rng = np.random.default_rng(0)
    somebody = person((100, 50, 80, 200))
    for _ in range(50):
        box = wrong(image(1, somebody), rng)
        assert box is not None
        x, y, w, h = box
        across = min(x + w, 180) - max(x, 100)
        down = min(y + h, 250) - max(y, 50)
        assert max(across, 0) * max(down, 0) <= 0.1 * min(w * h, 80 * 200)
        assert x >= 0
        assert x + w <= 400
        x, y, w, h = sloppy(np.array(somebody.bbox, dtype=float), rng)
        assert min(x + w, 180) - max(x, 100) > 20
        assert min(y + h, 250) - max(y, 50) > 50


def test_boxes_are_clipped_to_the_picture():
    beyond = image(7, person((350, 20, 80, 100)))
    assert [box.bbox for box in boxes_of(beyond, "labelled")] == [(350, 20, 49, 100)]


def test_the_paper_has_labelled_boxes_alone_and_small_data_two_more_kinds():
    two = image(
        7, person((20, 20, 60, 100)), person((200, 20, 60, 100)), person((300, 20, 60, 100), crowd=True)
    )
    assert [box.kind for box in boxes_of(two, "labelled")] == [LABELLED] * 2
    everything = boxes_of(two, "all")
    assert [box.kind for box in everything] == [LABELLED] * 2 + [SLOPPY] * 2 + [WRONG] * 2
    assert everything == boxes_of(two, "all")
    assert all((box.person is None) == (box.kind == WRONG) for box in everything)


def test_where_others_are_unlabelled_no_box_is_called_wrong():
    alone = image(7, person((20, 20, 60, 100)), complete=False)
    assert [box.kind for box in boxes_of(alone, "all")] == [LABELLED, SLOPPY]


def test_answers_labels_and_areas_are_kept_in_the_pixels_of_the_crop(tmp_path: Path):
    found = collect(tmp_path / "kept", IMAGES, PICTURES, Net(0), Net(12), "labelled")
    assert found.crops.shape == (6, 256, 192, 3)
    # Boxes are 80 x 200: enlarged to 187.5 x 250, so that one pixel becomes 1.024.
    assert np.allclose(found.small, [96, 128], atol=1e-3)
    assert np.allclose(found.large, [96 + 12 * 1.024, 128], atol=1e-3)
    assert np.allclose(found.truth[:, :-1], [96, 128 - 50 * 1.024, 2], atol=1e-3)
    assert (found.truth[:, -1, 2] == 0).all()
    assert np.allclose(found.area, 0.5 * 80 * 200 * 1.024**2)
    assert found.held_back.tolist() == [True, False] * 3
    assert found.height.tolist() == [200.0] * 6
    matrix = crop_matrix(*center_scale(torch.tensor([[103.0, 50, 80, 200]])), (192, 256))
    expected = cut_crops([PICTURES(IMAGES[3][0])], matrix, (192, 256))[0]
    assert (found.crops[3] == expected.permute(1, 2, 0).numpy()).all()


def test_wrong_boxes_are_not_shown_to_the_nets(tmp_path: Path):
    net = Net(0)
    found = collect(tmp_path / "kept", IMAGES, PICTURES, net, Net(0), "all")
    nobody = found.kind == WRONG
    assert nobody.sum() == 6
    assert net.asked == (~nobody).sum() == 12
    assert (found.truth[nobody, :, 2] == 0).all()


def test_an_interrupted_collection_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "SHARD", 2)
    whole = collect(tmp_path / "whole", IMAGES, PICTURES, Net(0), Net(12), "all")

    class Fails(Net):
        def __call__(self, pictures, boxes):
            if self.asked >= 8:
                raise KeyboardInterrupt
            return super().__call__(pictures, boxes)

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        collect(kept, IMAGES, PICTURES, Fails(0), Net(12), "all")
    with (kept / "crops").open("ab") as file:
        file.write(b"half of a crop that was being written")
    small, large = Net(0), Net(12)
    resumed = collect(kept, IMAGES, PICTURES, small, large, "all")
    assert small.asked == large.asked == 4
    for name in samples.Samples.__dataclass_fields__:
        assert (getattr(resumed, name) == getattr(whole, name)).all(), name
    again = Net(0)
    collect(kept, IMAGES, PICTURES, again, again, "all")
    assert again.asked == 0


def test_crops_are_mapped_not_read(tmp_path: Path):
    found = collect(tmp_path / "kept", IMAGES, PICTURES, Net(0), Net(12), "labelled")
    assert isinstance(found.crops, np.memmap)
    assert (tmp_path / "kept" / "crops").stat().st_size == 6 * CROP_BYTES


def test_damaged_pictures_are_named_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    pictures = Noise(damaged=(2, 4))
    found = collect(tmp_path / "kept", IMAGES, pictures, Net(0), Net(12), "labelled")
    assert found.image_id.tolist() == [0, 1, 3, 5]
    said = capsys.readouterr().err
    assert "skipped: 2.png cannot be decoded" in said
    assert "skipped 2 pictures that cannot be decoded" in said


def test_missing_pictures_end_the_collection_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Kept samples would lack them for ever, though the pictures come back."""
    monkeypatch.setattr(samples, "SHARD", 2)
    kept = tmp_path / "kept"
    with pytest.raises(SamplesError, match=r"3\.png cannot be read: .*No such file"):
        collect(kept, IMAGES, Noise(lost=(3,)), Net(0), Net(12), "labelled")
    with pytest.raises(SamplesError, match=r"none of 2 pictures from 2\.png on can be decoded"):
        collect(kept, IMAGES, Noise(damaged=(2, 3)), Net(0), Net(12), "labelled")
    assert [path.name for path in kept.glob("part-*")] == ["part-00000.npz"]
    found = collect(kept, IMAGES, Noise(), Net(0), Net(12), "labelled")
    assert found.image_id.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content", [None, b"", {}], ids=["no archive", "damaged archive", "not in the archive"]
)
def test_what_is_wrong_with_an_archive_is_one_line(tmp_path: Path, content: bytes | dict | None):
    if isinstance(content, bytes):
        (tmp_path / "some.zip").write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(tmp_path / "some.zip", "w"):
            pass
    inside = replace(IMAGES[0][0], shard="some.zip")
    with pytest.raises(SamplesError, match=r"^some\.zip cannot be read: .+$"):
        collect(tmp_path / "kept", [(inside, False)], Pictures(tmp_path), Net(0), Net(12), "labelled")


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SamplesError, match="no person has keypoints"):
        collect(tmp_path / "a", [(image(1), False)], PICTURES, Net(0), Net(0), "all")
    fourteen = [(image(1, person((100, 50, 80, 200), keypoints=14)), False)]
    with pytest.raises(SamplesError, match="the nets have 17 keypoints, the people 14"):
        collect(tmp_path / "b", fourteen, PICTURES, Net(0), Net(0), "all")
    found = collect(tmp_path / "c", fourteen, PICTURES, Net(0, 14), Net(0, 14), "labelled")
    assert found.small.shape == (1, 14, 2)
    (tmp_path / "c" / "crops").write_bytes(b"")
    with pytest.raises(SamplesError, match="damaged"):
        collect(tmp_path / "c", fourteen, PICTURES, Net(0, 14), Net(0, 14), "labelled")
    monkeypatch.setattr(samples, "CROP_BYTES", 10**16)
    with pytest.raises(SamplesError, match="GB are free"):
        collect(tmp_path / "d", IMAGES, PICTURES, Net(0), Net(0), "all")
