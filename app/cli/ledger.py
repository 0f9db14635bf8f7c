"""OUT/poses.jsonl: what is done, a line each, and the document that is made from it."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from app.pipeline import ImageResult, Person
from app.schemas import PersonAnswer, coco_results
from models.skeleton import KEYPOINT_NAMES, SKELETON

LINES = "poses.jsonl"
DOCUMENT = "poses.json"
HEADER = "made_with"
BEGIN = b'{"made_with": '


Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds, of a file."""


def is_written(folder: Path) -> bool:
    """Whether a folder is the OUT of some run."""
    try:
        with (folder / LINES).open("rb") as file:
            return file.read(len(BEGIN)) == BEGIN
    except OSError:
        return False


class LedgerError(Exception):
    """The results in OUT cannot be added to; one line says why."""


class Entry(BaseModel):
    """A picture or frame that is done, or the end of a video.

    size, modified: bytes and nanoseconds since 1970 of the file, by which a changed one is known. width, height:
    pixels, upright. frame: of a video, from 0. frames: only of a video's end, how many it has.
    """

    name: str
    size: int
    modified: int
    frame: int | None = None
    frames: int | None = None
    width: int = 0
    height: int = 0
    people: list[PersonAnswer] = []

    @property
    def stamp(self) -> Stamp:
        return self.size, self.modified

    def result(self) -> ImageResult:
        return result_of(self.people)


def result_of(people: list[PersonAnswer]) -> ImageResult:
    """People of an answer as the pipeline would have them."""
    return ImageResult(
        [
            Person(
                bbox=(one.bbox[0], one.bbox[1], one.bbox[2], one.bbox[3]),
                bbox_score=one.bbox_score,
                keypoints=one.keypoints,
                score=one.score,
                route=one.route,
                estimator=one.estimator,
                difficulty=one.difficulty if "difficulty" in one.model_fields_set else None,
            )
            for one in people
        ]
    )


class Ledger:
    """The file of lines, held by one process at a time. made_with: what must be the same for its results to be one set.
    The first line has it, and another one is refused. Raises LedgerError and OSError."""

    def __init__(self, folder: Path, made_with: Mapping[str, object]) -> None:
        self._folder = folder
        self._made_with = dict(made_with)
        self._done: dict[tuple[str, int | None], Entry] = {}
        self._file = (folder / LINES).open("a+b", buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Keep it: in the file, in one write, when this returns."""
        self._append(entry.model_dump_json(exclude_unset=True).encode())
        self._done[entry.name, entry.frame] = entry

    def find(self, name: str, stamp: Stamp, frame: int | None = None) -> Entry | None:
        """What is done of this file as it is now."""
        entry = self._done.get((name, frame))
        return entry if entry and entry.stamp == stamp else None

    def write_document(self, failed: Mapping[str, str], stamps: Mapping[str, Stamp]) -> tuple[int, int]:
        """Write OUT/poses.json anew, whole or not at all; (pictures and frames, people) in it. failed: name -> reason.
        stamps: of the files as they are now; results of another state of a file are left out."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for entry in sorted(self._done.values(), key=lambda entry: (entry.name, entry.frame or 0)):
            if entry.frames is not None or stamps.get(entry.name, entry.stamp) != entry.stamp:
                continue
            image: dict[str, Any] = {"id": len(images) + 1, "file_name": entry.name}
            image |= {"width": entry.width, "height": entry.height}
            if entry.frame is not None:
                image["frame"] = entry.frame
            images.append(image)
            annotations += coco_results([(image["id"], entry.result())])
        document = {
            "info": {"description": "COCO keypoint results by DynPose", HEADER: self._made_with},
            "images": images,
            "annotations": annotations,
            "categories": [
                {
                    "id": 1,
                    "name": "person",
                    "keypoints": KEYPOINT_NAMES,
                    "skeleton": [[a + 1, b + 1] for a, b in SKELETON],
                }
            ],
            "failed": [{"file_name": name, "error": reason} for name, reason in sorted(failed.items())],
        }
        unfinished = self._folder / f"{DOCUMENT}.new"
        unfinished.write_text(json.dumps(document) + "\n")
        unfinished.replace(self._folder / DOCUMENT)
        return len(images), len(annotations)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(f"another dynpose is writing to {self._folder}") from error

    def _read(self) -> None:
        self._file.seek(0)
        header, *lines = self._file.read().split(b"\n")
        if lines:
            self._check(header)
            # A process that was killed, or a full disk, leaves a last line without its end.
            os.ftruncate(self._file.fileno(), self._file.tell() - len(lines[-1]))
        elif not (header.startswith(BEGIN) or BEGIN.startswith(header)):
            raise LedgerError(f"{self._folder / LINES} is another program's file")
        else:
            os.ftruncate(self._file.fileno(), 0)
            self._append(json.dumps({HEADER: self._made_with}).encode())
        for line in lines[:-1]:
            try:
                entry = Entry.model_validate_json(line)
            except ValidationError:
                continue  # damaged, and so it is not done
            self._done[entry.name, entry.frame] = entry

    def _check(self, header: bytes) -> None:
        try:
            theirs = json.loads(header)[HEADER]
            differing = [key for key, value in self._made_with.items() if theirs.get(key) != value]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LedgerError(f"{self._folder / LINES} is another program's file") from error
        if differing:
            key = differing[0]
            old, new = (
                "not given" if value is None else value for value in (theirs.get(key), self._made_with[key])
            )
            raise LedgerError(
                f"{self._folder} has results of another kind ({key} was {old}, now {new}): give another --out"
            )

    def _append(self, line: bytes) -> None:
        written = self._file.write(line + b"\n")
        if written != len(line) + 1:
            raise OSError(f"{self._folder / LINES}: the disk is full")
