import gc
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import geometry
from models.album import Album, _made, places, to_device
from models.geometry import center_scale, crop_matrix, on_crops, sample_crops

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=random)


def test_a_device_without_memory_for_an_album_does_without(monkeypatch, caplog):
    class Wanting(Album):
        def __init__(self, device: torch.device, size: int) -> None:
            if size:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(device, size)

    monkeypatch.setattr("models.album.Album", Wanting)
    album = _made(CPU, 300)
    assert "no album" in caplog.text
    assert album.put(picture(1, 1)) is None
    assert album.place(picture(1, 1)) is None


def test_a_picture_in_the_album_has_its_pixels_and_is_found_there():
    album = Album(CPU, 3 * 100)
    first, second = album.put(picture(4, 5)), album.put(picture(6, 5, seed=1))
    assert first is not None
    assert second is not None
    assert torch.equal(first, picture(4, 5))
    assert torch.equal(second, picture(6, 5, seed=1))
    assert (album.place(first), album.place(second)) == (0, 20)
    assert album.place(picture(4, 5)) is None


def test_a_full_album_takes_no_more_until_a_picture_goes():
    album = Album(CPU, 3 * 100)
    kept = [album.put(picture(5, 5, seed)) for seed in range(4)]
    assert album.put(picture(1, 1)) is None
    del kept[1]
    gc.collect()
    assert album.put(picture(2, 13)) is None  # there is room for 25 pixels
    between = album.put(picture(1, 25))
    assert between is not None
    assert album.place(between) == 25
    assert torch.equal(kept[0], picture(5, 5, 0))  # type: ignore[arg-type]
    assert torch.equal(kept[1], picture(5, 5, 2))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), max_size=60))
def test_pictures_never_overlap_whatever_comes_and_goes(steps: list[tuple[int, int]]):
    album = Album(CPU, 3 * 100)
    kept: list[tuple[Tensor, Tensor]] = []
    for seed, (width, leaves) in enumerate(steps):
        original = picture(1, width, seed)
        copy = album.put(original)
        if copy is not None:
            kept.append((original, copy))
        copy = None
        if leaves < len(kept):
            del kept[leaves]
        assert all(torch.equal(*each) for each in kept)


def test_on_a_cpu_pictures_lie_in_no_album():
    one = picture(3, 3)
    assert to_device(one, CPU) is one
    assert places([one]) is None
    assert places([]) is None


def test_what_is_made_of_crops_does_not_depend_on_where_the_pictures_lie(monkeypatch: pytest.MonkeyPatch):
    album = Album(CPU, 3 * 100_000)
    pictures = [picture(120, 160), picture(90, 70, seed=1)]
    pictures.append(pictures[0])
    boxes = torch.tensor([[10.0, 20, 50, 80], [-20, 10, 60, 60], [100, 60, 90, 90]])
    matrices = crop_matrix(*center_scale(boxes), (48, 64), rotation=torch.tensor([0.0, 20, -50]))
    expected = sample_crops(pictures, matrices, (48, 64), fill=7)

    def in_album(copies: Sequence[Tensor]) -> tuple[Album, list[int]]:
        return album, [start for each in copies if (start := album.place(each)) is not None]

    copies = {id(each): album.put(each) for each in pictures}
    monkeypatch.setattr(geometry, "places", in_album)
    found = on_crops([copies[id(each)] for each in pictures], matrices, (48, 64), torch.neg, fill=7)  # type: ignore[misc]
    assert torch.equal(found, torch.neg(expected))
