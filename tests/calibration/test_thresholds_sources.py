import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from app.decode import decode
from calibration.data import is_held_back
from calibration.thresholds.sources import EVERY, SourceError, open_picture, opened, pictures_of


def silent(_: str) -> None:
    pass


def names(
    *sources: Path, split: str | None = None, every: int | None = None, samples: int = 200
) -> list[str]:
    return [Path(picture.name).name for picture in pictures_of(sources, split, every, samples, silent)]


def draw(path: Path, size: tuple[int, int] = (4, 2), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 20, 30)).save(path, **options)
    return path


def film(path: Path, frames: int) -> Path:
    """A video whose frame i is of grey 20 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 20 * index % 250, dtype=np.uint8))
    writer.release()
    return path


def test_pictures_of_a_folder_are_found_at_any_depth(tmp_path: Path):
    for name in ("a.jpg", "b/c.PNG", "b/d/e.webp", "b/d/f.bmp", "g.tiff", "h.gif"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert sorted(names(tmp_path)) == ["a.jpg", "c.PNG", "e.webp", "f.bmp", "g.tiff", "h.gif"]
    assert names(tmp_path / "a.jpg", tmp_path / "b" / "d") == ["a.jpg", "e.webp", "f.bmp"]


def test_pictures_are_upright_and_transparency_is_white(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert open_picture(draw(tmp_path / "a.jpg", (40, 20), exif=turned)).shape == (40, 20, 3)
    Image.new("RGBA", (4, 2), (10, 20, 30, 0)).save(tmp_path / "b.png")
    assert open_picture(tmp_path / "b.png").unique().tolist() == [255]


def test_sixteen_bits_are_what_the_service_takes_them_for(tmp_path: Path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 257, 40_000, 65_535]], np.uint16)).save(path)
    assert open_picture(path)[0, :, 0].tolist() == [0, 1, 156, 255]
    assert torch.equal(open_picture(path), decode(path.read_bytes()))


def coco(folder: Path, split: str, ids: list[int]) -> None:
    images = [{"id": key, "file_name": f"{key}.png", "width": 4, "height": 2} for key in ids]
    for key in ids:
        draw(folder / f"{key}.png")
    (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": []}))


def test_of_a_training_split_only_the_held_back_tenth_is_used(tmp_path: Path):
    coco(tmp_path, "train", list(range(1, 60)))
    said: list[str] = []
    found = pictures_of([tmp_path], None, None, 200, said.append)
    assert {picture.name for picture in found} == {f"{key}.png" for key in range(1, 60) if is_held_back(key)}
    assert "knows its training people too well" in said[0]
    assert found[0].load().shape == (2, 4, 3)


def test_another_split_is_used_whole(tmp_path: Path):
    coco(tmp_path, "val", [3, 4, 5])
    assert names(tmp_path, split="val") == ["3.png", "4.png", "5.png"]
    draw(tmp_path / "beside.png")
    assert len(names(tmp_path)) == 4  # no `train`: simply the pictures


def test_pictures_of_people_are_upright_as_the_service_has_them(tmp_path: Path):
    turned = Image.Exif()
    turned[0x0112] = 6
    coco(tmp_path, "val", [3])
    draw(tmp_path / "3.png", (40, 20), exif=turned)
    (found,) = pictures_of([tmp_path], "val", None, 200, silent)
    assert found.load().shape == (40, 20, 3)


def test_frames_of_a_video_are_taken_at_equal_distances(tmp_path: Path):
    video = film(tmp_path / "a.avi", 12)
    found = pictures_of([video], None, 5, 200, silent)
    assert [picture.name.rpartition(", ")[2] for picture in found] == ["frame 0", "frame 5", "frame 10"]
    greys = [float(picture.load().float().mean()) for picture in reversed(found)]  # in any order
    assert greys == pytest.approx([200, 100, 0], abs=3)


def of_no_stated_length(path: Path) -> Path:
    """A film as a browser records one: the duration in the Matroska file (44 89, of eight bytes) becomes void (EC)."""
    content = film(path, 12).read_bytes()
    assert content.count(b"\x44\x89\x88") == 1
    path.write_bytes(content.replace(b"\x44\x89\x88", b"\xec\x89\x00"))
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) < 0
    return path


def test_a_video_that_does_not_say_how_long_it_is_is_read_through(tmp_path: Path):
    video = of_no_stated_length(tmp_path / "a.mkv")
    said: list[str] = []
    found = pictures_of([video], None, 5, 200, said.append)
    assert said == [f"{video}: 3 of 12 frames, one in 5"]
    assert [picture.name.rpartition(", ")[2] for picture in found] == ["frame 0", "frame 5", "frame 10"]
    greys = [float(picture.load().float().mean()) for picture in reversed(found)]
    assert greys == pytest.approx([200, 100, 0], abs=3)
    assert len(names(video, samples=4)) == 4


def test_as_many_frames_are_taken_as_there_should_be_people(tmp_path: Path):
    video = film(tmp_path / "a.avi", 12)
    assert len(names(video, samples=200)) == 12
    assert len(names(video, samples=4)) == 4
    assert EVERY > 12
    assert len(names(video, samples=0)) == 1


def test_what_is_no_source_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no video")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.json").write_text("[]")
    for source, split, reason in (
        ("missing", None, "does not exist"),
        ("empty", None, "has no pictures"),
        ("empty", "val", "has no split 'val'"),
        ("text.txt", None, "neither a picture nor a video"),
        ("bad", None, "not in COCO's keypoint format"),
    ):
        with pytest.raises(SourceError, match=reason):
            pictures_of([tmp_path / source], split, None, 200, silent)


def test_pictures_come_in_random_order_and_the_unreadable_are_named(tmp_path: Path):
    for key in range(20):
        draw(tmp_path / f"{key:02}.png", (key + 1, 2))
    (tmp_path / "07.png").write_bytes((tmp_path / "06.png").read_bytes()[:40])
    (tmp_path / "08.png").write_text("no picture")
    pictures = pictures_of([tmp_path], None, None, 200, silent)
    said: list[str] = []

    def widths(seed: int) -> list[int]:
        return [picture.shape[1] for picture in opened(pictures, np.random.default_rng(seed), said.append)]

    order = widths(0)
    assert sorted(order) == [key for key in range(1, 21) if key not in (8, 9)]
    assert order != sorted(order)
    assert sorted(said) == [f"skipped: {tmp_path / name}.png cannot be read" for name in ("07", "08")]
    assert widths(0) == order
    assert widths(1) != order
    assert all(isinstance(p, torch.Tensor) for p in opened(pictures, np.random.default_rng(0), said.append))
