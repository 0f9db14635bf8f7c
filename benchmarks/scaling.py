"""How the service's speed and memory go with clients, with people a picture, and with the size of pictures.

    python -m benchmarks.scaling DATA

DATA is as for `benchmarks.bench`; the records go to OUT/scaling.jsonl and into the same report. People a picture are
cut out of the labelled pictures and set side by side, so that these need `val.json`.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import cells
from benchmarks.bench import Bench, add_arguments, end_with_sigterm
from benchmarks.contenders import Server
from benchmarks.loops import shuffled_forever
from benchmarks.pictures import Post, ordered, read_posts
from benchmarks.records import Record
from benchmarks.report import write_report
from calibration.data import Pictures, decode, has_split, read_split
from models.detector import FILL

RECORDS = "scaling.jsonl"

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
PEOPLE = (1, 2, 5, 10, 20, 50)
MEGAPIXELS = (0.3, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0)
USUAL_CLIENTS = 8
PHOTOS = 8
"""Pictures of one size, and of one number of people."""

TILE = (160, 240)
COLUMNS, ROWS = 10, 5
MARGIN = 0.15
"""Around a labelled box, in shares of it."""
LEAST_HEIGHT = 120
"""Pixels: smaller people would be blown up."""

JPEG_QUALITY = 90


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    posts = ordered(read_posts(options.data, options.split))
    if not posts:
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    asyncio.run(measure(Bench(options, posts, RECORDS), options))
    print(write_report(options.out, options.results))
    return 0


async def measure(bench: Bench, options: argparse.Namespace) -> None:
    end_with_sigterm()
    bench.records.add(bench.about())
    async with bench.up("service"):
        for clients in CLIENTS:
            await cell(bench, bench.posts, "clients", clients, clients)
        cut = people_of(options.data, options.split)
        if not cut:
            print(f"people a picture: skipped: needs {options.split}.json with boxes in {options.data}")
        for count in PEOPLE if cut else ():
            await cell(bench, crowds(cut, count), "people", count, USUAL_CLIENTS)
        for megapixels in MEGAPIXELS:
            await cell(bench, resized(bench.posts, megapixels), "megapixels", megapixels, USUAL_CLIENTS)
        bench.records.add({"experiment": "end"})


async def cell(bench: Bench, posts: Sequence[Post], name: str, value: float, clients: int) -> None:
    """The service at p = 0.5 with these pictures."""
    server = bench.running["service"]
    assert isinstance(server, Server)

    async def run() -> Record:
        await server.client.set_p(0.5)
        row = await cells.closed(
            server,
            shuffled_forever(posts, 0),
            clients=clients,
            warm_up=bench.options.warm_up,
            seconds=bench.options.seconds,
        )
        return row | {"bound_by": bound_by(row, os.cpu_count() or 1)}

    key: dict[str, Any] = {
        "experiment": f"scaling {name}",
        "contender": "service",
        "clients": clients,
        name: value,
    }
    await bench.measure(run, **key)


def bound_by(row: Mapping[str, Any], cores: int) -> str:
    """The resource of which there is no more: the cores, or one stage, or neither; and who took most of it."""
    decoding = (row["decode_share"] or 0.0) / cores
    parts = dict(row["stages"]) | {"decoding": decoding, "load generator": row["own_cores"]}
    most, share = max(parts.items(), key=lambda part: part[1])
    used = row["server_cores"] + row["own_cores"]
    if used >= 0.9 * cores:
        return f"the cores ({used:.2f} of {cores} in use; at work longest: {most}, {share:.0%} of the time)"
    if share >= 0.9:
        return f"{most} ({share:.0%} of the time; {used:.2f} of {cores} cores in use)"
    return f"no resource ({used:.2f} of {cores} cores in use; at work longest: {most}, {share:.0%}): waiting"


def people_of(folder: Path, split: str) -> list[np.ndarray]:
    """Pictures of one person each, (TILE height, width, 3), cut out around labelled boxes that are large enough."""
    if not has_split(folder, split):
        return []
    pictures = Pictures(folder)
    cut: list[np.ndarray] = []
    for image in read_split(folder, split):
        for person in image.people:
            x, y, width, height = person.bbox
            if person.crowd or not person.has_pose or height < LEAST_HEIGHT or width > height:
                continue
            pixels = pictures(image).numpy()
            left, top = max(0, int(x - MARGIN * width)), max(0, int(y - MARGIN * height))
            right, bottom = int(x + (1 + MARGIN) * width), int(y + (1 + MARGIN) * height)
            cut.append(fitted(pixels[top:bottom, left:right]))
            if len(cut) == COLUMNS * ROWS:
                return cut
    return cut


def fitted(pixels: np.ndarray) -> np.ndarray:
    """Resized into a grey tile, as it is in proportion."""
    scale = min(TILE[0] / pixels.shape[1], TILE[1] / pixels.shape[0])
    size = (max(1, int(pixels.shape[1] * scale)), max(1, int(pixels.shape[0] * scale)))
    tile = np.full((TILE[1], TILE[0], 3), FILL, np.uint8)
    tile[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return tile


def crowds(people: Sequence[np.ndarray], count: int) -> list[Post]:
    """Pictures of one size with so many tiles, different people in each."""
    posts = []
    for number in range(PHOTOS):
        canvas = np.full((ROWS * TILE[1], COLUMNS * TILE[0], 3), FILL, np.uint8)
        for place in range(count):
            row, column = divmod(place, COLUMNS)
            top, left = row * TILE[1], column * TILE[0]
            canvas[top : top + TILE[1], left : left + TILE[0]] = people[
                (number * count + place) % len(people)
            ]
        posts.append(jpeg(canvas, f"{count}-{number}"))
    return posts


def resized(posts: Sequence[Post], megapixels: float) -> list[Post]:
    """The first photos, all of so many pixels."""
    return [jpeg(to_size(pixels, megapixels), f"{megapixels}-{number}") for number, pixels in photos(posts)]


def photos(posts: Sequence[Post]) -> Iterator[tuple[int, np.ndarray]]:
    for number, post in enumerate(posts[:PHOTOS]):
        yield number, decode(post.body).numpy()


def to_size(pixels: np.ndarray, megapixels: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = (megapixels * 1e6 / (height * width)) ** 0.5
    size = (int(width * scale), int(height * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def jpeg(rgb: np.ndarray, name: str) -> Post:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return Post(name, encoded.tobytes())


if __name__ == "__main__":
    sys.exit(main())
