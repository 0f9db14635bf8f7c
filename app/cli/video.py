"""Videos by OpenCV: frames out of one, drawn frames into another.

Both work in threads, which go on for a moment after Ctrl-C: a video is not released while one of them is inside.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from app import overlay
from app.pipeline import ImageResult

DEFAULT_FPS = 25.0
"""Where a container does not say."""
MISSING_SHARE = 0.02
"""By which containers are wrong about how many frames they have; a larger part is missing."""


class VideoError(Exception):
    """The video cannot be read, or the drawn one not written; one line says why."""


class Reader:
    """fps: frames a second. expected: frames that it should have, None where it does not say. frames: read so far.
    Raises VideoError."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._video = cv2.VideoCapture()
        try:
            opened = self._video.open(str(path))
        except (cv2.error, UnicodeError) as error:
            raise VideoError("OpenCV cannot open a file of this name") from error
        if not opened:
            raise VideoError("it is neither a picture nor a video that OpenCV reads")
        fps = self._video.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= 1000 else DEFAULT_FPS
        expected = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        self.expected = expected if expected > 0 else None
        self.frames = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._video.release()

    def read(self) -> Tensor | None:
        """(H, W, 3) uint8 RGB of the next frame, upright; None after the last."""
        with self._lock:
            found, frame = self._video.read()
        if not found:
            return None
        self.frames += 1
        return torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))

    def check_end(self) -> None:
        """Raises VideoError where frames are missing."""
        missing = (self.expected or 0) - self.frames
        if self.frames == 0 or missing > max(2, MISSING_SHARE * (self.expected or 0)):
            raise VideoError(
                f"only {self.frames} of {self.expected} frames can be read, it is cut off or damaged"
            )


class Writer:
    """An MPEG-4 video of frames with people drawn in, all as large as the first. Raises VideoError."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        self._fps = fps
        self._lock = threading.Lock()
        self._closed = False
        self._video: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            if self._video is not None:
                self._video.release()

    def add(self, pixels: Tensor, result: ImageResult) -> None:
        """pixels: (H, W, 3) uint8 RGB."""
        image = overlay.draw(pixels, result)
        with self._lock:
            if self._closed:
                return
            if self._video is None:
                self._size = image.size
                self._video = self._open()
            if image.size != self._size:
                image = image.resize(self._size)
            self._video.write(cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))

    def _open(self) -> cv2.VideoWriter:
        try:
            video = cv2.VideoWriter(
                str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), _ratio(self._fps), self._size
            )
        except (cv2.error, UnicodeError) as error:
            raise VideoError("OpenCV cannot write a video of this name") from error
        if not video.isOpened():
            raise VideoError(f"OpenCV cannot write {self._path.parent / '*.mp4'}")
        return video


def _ratio(fps: float) -> float:
    """MPEG-4 counts time in at most 65,535 ticks a second, which OpenCV takes as many decimals of."""
    decimals = next(decimals for decimals in (3, 2, 1) if fps * 10**decimals <= 65_535)
    return round(fps, decimals)
