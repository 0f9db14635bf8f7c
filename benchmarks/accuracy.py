"""How good a contender's answers are: COCO's keypoint AP of what it answers, by one protocol for all."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.client import RequestFailed
from benchmarks.contenders import Loops, Running, Server
from benchmarks.pictures import MEDIA_TYPE, Post
from benchmarks.records import Record
from calibration.accuracy import Pose, accuracy, interval, match, without_doubles
from calibration.data import LabelledImage, has_split, read_split
from calibration.detection import complete
from calibration.estimates import padded_area

CLIENTS = 8


def labelled(folder: Path, split: str, limit: int) -> list[LabelledImage]:
    """The first pictures whose people are all annotated; none where the folder has no annotations."""
    return complete(read_split(folder, split))[:limit] if has_split(folder, split) else []


async def measure(
    running: Running, posts: Sequence[Post], images: Sequence[LabelledImage], p: float | None
) -> Record:
    """AP with its 95 % interval over pictures. Boxes, scores and thresholds are the contender's own; of poses that are
    nearly the same the best counts."""
    numbers = {post.name: number for number, post in enumerate(posts)}
    turn = asyncio.Semaphore(CLIENTS if isinstance(running, Server) else 1)

    async def ask(image: LabelledImage) -> list[Pose]:
        number = numbers[image.file_name]
        async with turn:
            if isinstance(running, Loops):
                return poses(await running.ask_one(pose=number))
            assert isinstance(running, Server)
            query = "" if p is None else f"?p={p}"
            post = posts[number]
            status, body = await running.client.request("POST", f"/pose{query}", post.body, MEDIA_TYPE)
            if status != 200:
                raise RequestFailed(f"{running.contender.name} answered {status} to {image.file_name}")
            return poses(json.loads(body))

    found = await asyncio.gather(*(ask(image) for image in images))
    matches = match(images, {image.id: each for image, each in zip(images, found, strict=True)})
    low, high = interval(matches)
    return {
        "pictures": len(images),
        "ap": accuracy(matches).ap,
        "low": low,
        "high": high,
        "people_per_picture": sum(map(len, found)) / len(images),
    }


def poses(answer: dict[str, Any]) -> list[Pose]:
    """The people of an answer, doubles left out as in `calibration.evaluate`."""
    people = answer["images"][0]["people"]
    found = [Pose(person["bbox_score"], np.array(person["keypoints"])) for person in people]
    kept = without_doubles(found, [padded_area(person["bbox"]) for person in people])
    return [found[index] for index in kept]
