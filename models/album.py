"""Pictures on a GPU, side by side in one piece of memory.

A recording of CUDA kernels (`models.cuda`) reads from where it read when it was made. In an album it finds any picture
by its place, so that all from the pictures to the keypoints can be one recording.
"""

import logging
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

log = logging.getLogger("dynpose.album")

SIZE = 1_500_000_000
SHARE = 8
"""Bytes of an album: `SIZE`, as many as the service admits at once (`MAX_PENDING_BYTES`), or this part of the device's
memory where that is less."""

CHANNELS = 3


class Album:
    """Room for pictures, `size` bytes of `device`. pixels: (size / 3, 3) uint8, all of it."""

    def __init__(self, device: torch.device, size: int = SIZE) -> None:
        self.pixels = torch.empty(size // CHANNELS, CHANNELS, dtype=torch.uint8, device=device)
        self._lock = threading.Lock()
        self._taken: list[tuple[int, int]] = []
        """Where pictures lie, begin and end, in rising order."""
        self._left: deque[tuple[int, int]] = deque()
        """Those of pictures that are gone: a picture may go at any time, in whichever thread."""

    def put(self, picture: Tensor) -> Tensor | None:
        """A copy of `picture` (H, W, 3) uint8 in the album, which keeps its place for as long as it is referred to.
        None without room."""
        length = picture.shape[0] * picture.shape[1]
        begin = self._take(length)
        if begin is None:
            return None
        copy = self.pixels[begin : begin + length].view(picture.shape)
        weakref.finalize(copy, self._left.append, (begin, begin + length)).atexit = False
        return copy.copy_(picture)

    def place(self, picture: Tensor) -> int | None:
        """Which of the pixels is the picture's first; None for one that lies elsewhere."""
        if picture.untyped_storage().data_ptr() != self.pixels.data_ptr():
            return None
        return int(picture.storage_offset()) // CHANNELS

    def _take(self, length: int) -> int | None:
        with self._lock:
            while self._left:
                self._taken.remove(self._left.popleft())
            begin = 0
            for start, end in self._taken:
                if start - begin >= length:
                    break
                begin = end
            else:
                if len(self.pixels) - begin < length:
                    return None
            insort(self._taken, (begin, begin + length))
            return begin


_albums: dict[int, Album] = {}
_making = threading.Lock()


def to_device(picture: Tensor, device: torch.device) -> Tensor:
    """A picture (H, W, 3) uint8 onto `device`; on CUDA into its album, if there is room. Any thread."""
    if device.type != "cuda":
        return picture.to(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    with _making, torch.inference_mode(False):
        if index not in _albums:
            total = torch.cuda.get_device_properties(index).total_memory
            _albums[index] = _made(torch.device("cuda", index), min(SIZE, total // SHARE))
    kept = _albums[index].put(picture)
    return picture.to(device) if kept is None else kept


def _made(device: torch.device, size: int) -> Album:
    try:
        return Album(device, size)
    except torch.OutOfMemoryError:
        log.warning("no album for pictures: %s has not the %d bytes for it", device, size)
        return Album(device, 0)


def places(pictures: Sequence[Tensor]) -> tuple[Album, list[int]] | None:
    """The album in which all of these lie, and where; None unless they do."""
    album = _albums.get(pictures[0].device.index) if pictures and pictures[0].is_cuda else None
    if album is None:
        return None
    starts = [start for picture in pictures if (start := album.place(picture)) is not None]
    return (album, starts) if len(starts) == len(pictures) else None
