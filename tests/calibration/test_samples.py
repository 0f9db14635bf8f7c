from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import samples
from calibration.data import LabelledImage, LabelledPerson
from calibration.samples import (
    CROP_BYTES,
    LABELLED,
    SLOPPY,
    WRONG,
    SamplesError,
    boxes_of,
    clipped,
    collect,
    folder_name,
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


def open_picture(image: LabelledImage) -> torch.Tensor:
    generator = torch.Generator().manual_seed(image.id)
    return torch.randint(0, 256, (300, 400, 3), generator=generator, dtype=torch.uint8)


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


def test_labelled_boxes_are_clipped_as_the_authors_do():
    assert clipped((-10, 20, 50, 400), image(1)) == (0, 20, 40, 279)
    assert clipped((390, 20, 50, 10), image(1)) == (390, 20, 9, 10)
    assert clipped((400, 20, 50, 10), image(1)) is None


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
    found = collect(tmp_path / "kept", IMAGES, open_picture, Net(0), Net(12), "labelled")
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
    expected = cut_crops([open_picture(IMAGES[3][0])], matrix, (192, 256))[0]
    assert (found.crops[3] == expected.permute(1, 2, 0).numpy()).all()


def test_wrong_boxes_are_not_shown_to_the_nets(tmp_path: Path):
    net = Net(0)
    found = collect(tmp_path / "kept", IMAGES, open_picture, net, Net(0), "all")
    nobody = found.kind == WRONG
    assert nobody.sum() == 6
    assert net.asked == (~nobody).sum() == 12
    assert (found.truth[nobody, :, 2] == 0).all()


def test_an_interrupted_collection_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "SHARD", 2)
    whole = collect(tmp_path / "whole", IMAGES, open_picture, Net(0), Net(12), "all")

    class Fails(Net):
        def __call__(self, pictures, boxes):
            if self.asked >= 8:
                raise KeyboardInterrupt
            return super().__call__(pictures, boxes)

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        collect(kept, IMAGES, open_picture, Fails(0), Net(12), "all")
    with (kept / "crops").open("ab") as file:
        file.write(b"half of a crop that was being written")
    small, large = Net(0), Net(12)
    resumed = collect(kept, IMAGES, open_picture, small, large, "all")
    assert small.asked == large.asked == 4
    for name in samples.Samples.__dataclass_fields__:
        assert (getattr(resumed, name) == getattr(whole, name)).all(), name
    again = Net(0)
    collect(kept, IMAGES, open_picture, again, again, "all")
    assert again.asked == 0


def test_crops_are_mapped_not_read(tmp_path: Path):
    found = collect(tmp_path / "kept", IMAGES, open_picture, Net(0), Net(12), "labelled")
    assert isinstance(found.crops, np.memmap)
    assert (tmp_path / "kept" / "crops").stat().st_size == 6 * CROP_BYTES


def test_pictures_that_cannot_be_read_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    def broken(image: LabelledImage) -> torch.Tensor:
        if image.id == 2:
            raise SyntaxError("broken PNG")
        return open_picture(image)

    found = collect(tmp_path / "kept", IMAGES, broken, Net(0), Net(12), "labelled")
    assert found.image_id.tolist() == [0, 1, 3, 4, 5]
    assert "skipped: 2.png cannot be read" in capsys.readouterr().err


def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SamplesError, match="no person has keypoints"):
        collect(tmp_path / "a", [(image(1), False)], open_picture, Net(0), Net(0), "all")
    fourteen = [(image(1, person((100, 50, 80, 200), keypoints=14)), False)]
    with pytest.raises(SamplesError, match="the nets have 17 keypoints, the people 14"):
        collect(tmp_path / "b", fourteen, open_picture, Net(0), Net(0), "all")
    found = collect(tmp_path / "c", fourteen, open_picture, Net(0, 14), Net(0, 14), "labelled")
    assert found.small.shape == (1, 14, 2)
    (tmp_path / "c" / "crops").write_bytes(b"")
    with pytest.raises(SamplesError, match="damaged"):
        collect(tmp_path / "c", fourteen, open_picture, Net(0, 14), Net(0, 14), "labelled")
    monkeypatch.setattr(samples, "CROP_BYTES", 10**16)
    with pytest.raises(SamplesError, match="GB are free"):
        collect(tmp_path / "d", IMAGES, open_picture, Net(0), Net(0), "all")


def test_other_nets_or_boxes_have_another_folder():
    assert folder_name({"nets": ["a", "b"]}) == folder_name({"nets": ["a", "b"]})
    assert folder_name({"nets": ["a", "b"]}) != folder_name({"nets": ["a", "c"]})
