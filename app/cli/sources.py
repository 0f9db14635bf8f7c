"""The pictures and videos that a command line names, and what their results are called."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.cli.ledger import DOCUMENT, LINES, is_written
from calibration.thresholds.sources import SUFFIXES

PICTURE_SUFFIXES = SUFFIXES | {".avif", ".heic", ".heif"}
"""Pictures of a folder. Those of many a phone cannot be read, and fail rather than be passed over in silence."""
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
"""Videos of a folder; one that is named itself may have any suffix."""
JPEG_SUFFIXES = {".jpg", ".jpeg"}


class SourceError(Exception):
    """The sources cannot be used as they were given; one line says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """name: what the results call it, with / between folders, and what is not UTF-8 as backslash escapes. drawn: path
    of the drawn picture or video below OUT."""

    name: str
    path: Path
    drawn: Path
    is_video: bool


def sources_of(given: Sequence[Path], out: Path, missed: Callable[[str, str], None]) -> list[Source]:
    """Everything to be annotated, sorted by name. Names begin below a folder that is the only source, else with its own
    name. missed: hears (name, reason) of what a folder has and nobody can read. Raises SourceError."""
    found: list[Source] = []
    for path in given:
        if path.is_dir():
            prefix = Path() if len(given) == 1 else Path(path.resolve().name)
            files = [
                _source(prefix / file.relative_to(path), file, missed)
                for file in _files(path, out.resolve(), missed)
                if file.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES
            ]
            if not files:
                raise SourceError(f"{shown(str(path))} has no pictures or videos")
            found += [source for source in files if source is not None]
        elif path.is_file():
            source = _source(Path(path.name), path, missed)
            found += [source] if source is not None else []
        else:
            raise SourceError(f"{shown(str(path))} does not exist, or is neither file nor folder")
    _refuse_collisions(found)
    _refuse_to_overwrite(found, out)
    return [source for _, source in sorted({source.name: source for source in found}.items())]


def _source(relative: Path, path: Path, missed: Callable[[str, str], None]) -> Source | None:
    name = os.fsencode(relative).decode("utf-8", "backslashreplace")
    if not os.path.isfile(path):
        missed(name, "it is no file, or a link to none")
        return None
    suffix = path.suffix.lower()
    is_video = suffix not in PICTURE_SUFFIXES
    kept = suffix == ".mp4" if is_video else suffix in JPEG_SUFFIXES
    drawn = relative if kept else relative.with_name(relative.name + (".mp4" if is_video else ".jpg"))
    return Source(name, path, drawn, is_video)


def _files(folder: Path, out: Path, missed: Callable[[str, str], None]) -> Iterator[Path]:
    """Files below a folder and the folders it links to, each once, but not those below `out` or another run's."""

    def unreadable(error: OSError) -> None:
        missed(shown(str(error.filename)), error.strerror or "it cannot be read")

    seen: set[str] = {str(out)}
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(root)
        drawings = Path(root) != folder and is_written(Path(root))
        if drawings or real in seen:  # also what ends a circle of links
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def _refuse_collisions(sources: Sequence[Source]) -> None:
    paths: dict[Path | str, Path] = {}
    for source in sources:
        for key in (source.drawn, source.name):
            other = paths.setdefault(key, source.path)
            if other != source.path:
                both = f"{shown(str(other))} and {shown(str(source.path))}"
                raise SourceError(f"{both} would have the same name in OUT: annotate them into two folders")


def _refuse_to_overwrite(sources: Sequence[Source], out: Path) -> None:
    """What is drawn takes the place of an earlier run's, but of nothing else."""
    originals = {os.path.realpath(source.path) for source in sources}
    ours = (out / LINES).exists()
    for path in (out / DOCUMENT, *(out / source.drawn for source in sources)):
        if os.path.realpath(path) in originals:
            raise SourceError(f"{shown(str(path))} would be drawn over itself: choose another folder for OUT")
        if not ours and path.exists():
            raise SourceError(f"{shown(str(path))} is there already: choose a new folder for OUT")


def shown(text: str) -> str:
    """A file's name as a terminal may show it: without control characters and what is no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
