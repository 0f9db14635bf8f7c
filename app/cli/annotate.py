"""`dynpose annotate`: pictures and videos -> OUT, where what is done stays done."""

import asyncio
import errno
import hashlib
import os
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from app import overlay
from app.cli.ledger import Entry, Ledger, LedgerError, Stamp
from app.cli.posers import CannotPose, Found, PictureError, Poser, poser
from app.cli.sources import Source, SourceError, shown, sources_of
from app.cli.video import Reader, VideoError, Writer
from app.pipeline import EstimatorChoice, ImageResult
from app.schemas import PoseQuery

T = TypeVar("T")

FOR_ALL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of writing that no other picture would be spared."""
FRAMES_AHEAD = 32
"""Frames of a video that are decoded and not yet written."""


class CannotAnnotate(Exception):
    """Nothing more can be done; one line says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. server: URL, or None for this process. every: of a video, each n-th frame."""

    sources: Sequence[Path]
    out: Path
    server: str | None = None
    token: str | None = None
    p: float | None = None
    estimator: EstimatorChoice = "auto"
    min_score: float | None = None
    every: int = 1
    jobs: int = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """line: what was done. failed: how many pictures, videos and frames were not."""

    line: str
    failed: int


async def annotate(options: Options) -> Outcome:
    """Do what is missing in OUT. Raises CannotAnnotate and app.cli.client.ServerError."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of each kind of damage in a picture
    os.environ.setdefault(
        "OPENCV_FFMPEG_LOGLEVEL", "-8"
    )  # what a damaged video lacks is said in one line here
    query = PoseQuery(p=options.p, estimator=options.estimator, min_score=options.min_score)
    failed: dict[str, str] = {}
    try:
        sources = sources_of(options.sources, options.out, failed.__setitem__)
        async with poser(options.server, options.token, query) as found:
            options.out.mkdir(parents=True, exist_ok=True)
            made_with: dict[str, object] = {
                "sources": [
                    os.fsencode(path.resolve()).decode("utf-8", "backslashreplace")
                    for path in options.sources
                ],
                **found.models,
                **found.settings,
                "estimator": options.estimator,
                "every": options.every,
            }
            with Ledger(options.out, made_with) as ledger:
                run = Run(found, ledger, options, failed)
                try:
                    await run.all(sources)
                finally:
                    done = run.finish()
                return done
    except (SourceError, LedgerError, CannotPose) as error:
        raise CannotAnnotate(str(error)) from error
    except OSError as error:
        raise CannotAnnotate(_reason(error)) from error


class Run:
    """One run over the sources. failed: name -> reason, so far."""

    def __init__(self, found: Poser, ledger: Ledger, options: Options, failed: dict[str, str]) -> None:
        self._poser = found
        self._ledger = ledger
        self._options = options
        self._failed = failed
        self._stamps: dict[str, Stamp] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
        )

    async def all(self, sources: Sequence[Source]) -> None:
        """The pictures, several at a time, then the videos."""
        for name, reason in self._failed.items():
            self._say(name, reason)
        todo = [source for source in sources if not self._is_done(source)]
        if not todo:
            return
        with self._progress:
            pictures = [source for source in todo if not source.is_video]
            total = sum(not source.is_video for source in sources)
            bar = self._progress.add_task(
                "pictures", total=total, completed=total - len(pictures), visible=bool(total)
            )

            async def picture(source: Source) -> None:
                await self._each(source, self._picture)
                self._progress.advance(bar)

            await in_parallel(picture, pictures, self._options.jobs)
            for source in todo:
                if source.is_video:
                    await self._each(source, self._video)

    def finish(self) -> Outcome:
        """Write the document of all that is done."""
        pictures, people = self._ledger.write_document(self._failed, self._stamps)
        line = f"{shown(str(self._options.out))}: {people} people in {pictures} pictures and frames"
        return Outcome(f"{line}, {len(self._failed)} failed" if self._failed else line, len(self._failed))

    def _is_done(self, source: Source) -> bool:
        try:
            stamp = self._stamps[source.name] = _stamp(source.path)
        except OSError:
            return False
        drawn = self._options.out / source.drawn
        return self._ledger.find(source.name, stamp) is not None and drawn.exists()

    async def _each(self, source: Source, work: Callable[[Source], Awaitable[None]]) -> None:
        try:
            await work(source)
        except (PictureError, VideoError) as error:
            self._fail(source.name, str(error))
        except OSError as error:
            if error.errno in FOR_ALL:
                raise
            self._fail(source.name, _reason(error))

    async def _picture(self, source: Source) -> None:
        data, stamp = await asyncio.to_thread(_read, source.path)
        self._stamps[source.name] = stamp
        found = await self._poser.picture(data)
        await asyncio.to_thread(_write_drawn, self._options.out / source.drawn, found)
        self._ledger.add(_entry(source.name, stamp, found))

    async def _video(self, source: Source) -> None:
        """Frames that are done are drawn again, as a video cannot be gone on with, but not looked at again."""
        stamp = self._stamps[source.name] = _stamp(source.path)
        drawn = self._options.out / source.drawn
        drawn.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(drawn)
        at_once = asyncio.Semaphore(self._options.jobs)
        ahead: deque[tuple[Tensor, asyncio.Task[ImageResult | None] | None]] = deque()
        result = ImageResult()
        failed = len(self._failed)

        async def one(index: int, pixels: Tensor) -> ImageResult | None:
            async with at_once:
                return await self._frame(source.name, stamp, index, pixels)

        async def write_next(writer: Writer) -> None:
            nonlocal result
            pixels, task = ahead.popleft()
            if task is not None:
                result = await task or ImageResult()
            await asyncio.to_thread(writer.add, pixels, result)
            self._progress.advance(bar)

        try:
            with Reader(source.path) as reader, Writer(unfinished, reader.fps) as writer:
                bar = self._progress.add_task(shown(source.name), total=reader.expected)
                while (pixels := await asyncio.to_thread(reader.read)) is not None:
                    index = reader.frames - 1
                    due = index % self._options.every == 0
                    ahead.append((pixels, asyncio.create_task(one(index, pixels)) if due else None))
                    if len(ahead) >= FRAMES_AHEAD:
                        await write_next(writer)
                while ahead:
                    await write_next(writer)
            if reader.frames:
                unfinished.replace(drawn)
            reader.check_end()
        finally:
            await _cancelled([task for _, task in ahead if task is not None])
            unfinished.unlink(missing_ok=True)
        if len(self._failed) == failed:
            self._ledger.add(Entry(name=source.name, size=stamp[0], modified=stamp[1], frames=reader.frames))

    async def _frame(self, name: str, stamp: Stamp, index: int, pixels: Tensor) -> ImageResult | None:
        if (done := self._ledger.find(name, stamp, index)) is not None:
            return done.result()
        try:
            found = await self._poser.frame(pixels)
        except PictureError as error:
            self._fail(f"{name}, frame {index}", str(error))
            return None
        self._ledger.add(_entry(name, stamp, found, frame=index))
        return found.result

    def _fail(self, name: str, reason: str) -> None:
        self._failed[name] = reason
        self._say(name, reason)

    def _say(self, name: str, reason: str) -> None:
        self._progress.console.print(f"failed: {shown(name)}: {reason}", markup=False, soft_wrap=True)


async def in_parallel(work: Callable[[T], Awaitable[None]], items: Sequence[T], jobs: int) -> None:
    """Work on `jobs` items at a time. What one raises ends the others and is raised."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    tasks = [asyncio.create_task(worker()) for _ in range(min(jobs, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _entry(name: str, stamp: Stamp, found: Found, **frame: int) -> Entry:
    return Entry(
        name=name,
        size=stamp[0],
        modified=stamp[1],
        width=found.answer.width,
        height=found.answer.height,
        people=found.answer.people,
        **frame,
    )


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[bytes, Stamp]:
    stamp = _stamp(path)
    return path.read_bytes(), stamp


def _write_drawn(path: Path, found: Found) -> None:
    """The drawn picture as JPEG, whole or not at all."""
    encoded, _ = overlay.encode(overlay.draw(found.pixels, found.result), "image/jpeg")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    unfinished.write_bytes(encoded)
    unfinished.replace(path)


def _unfinished(path: Path) -> Path:
    """Where a file is written before it gets its name: always the same place, and short for a long name."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}{path.suffix[-8:]}")


def _reason(error: OSError) -> str:
    name = f"{shown(os.fsdecode(error.filename))}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}"
