"""Damaged pictures, forms and JSON for the intake, the same ones for the same seed.

    python -m tests.faults.mutate pictures 100000    what came of them and of this process's memory, as JSON

Ends with a traceback that has the input, where something else than an ApiError came out.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from PIL import Image
from starlette.requests import Request

from app.decode import decode, read_header
from app.errors import ApiError
from app.intake import read
from app.settings import Settings

MAX_PIXELS = 1_000_000
BOUNDARY = "XX"
WORDS = [value.to_bytes(size, order) for size in (1, 2, 4) for order in ("big", "little")  # type: ignore[arg-type]
         for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)]  # fmt: skip

Check = Callable[[bytes], Awaitable[str]]


@dataclass
class Outcome:
    """slowest_s: processor time. memory: resident bytes after each fifth of the inputs."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    memory: list[int] = field(default_factory=list)


def pictures() -> list[bytes]:
    """One of each kind that the service takes, some ten kilobytes in all."""
    y, x = np.mgrid[0:16, 0:24]
    colour = Image.fromarray(np.stack([10 * x, 15 * y, 255 - 10 * x], axis=-1).astype(np.uint8))
    grey, clear = colour.convert("L"), colour.convert("RGBA")
    clear.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames: dict[str, Any] = {"save_all": True, "append_images": [grey.convert("RGB")]}
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "JPEG", {"exif": turned}),
        (colour, "JPEG", {"progressive": True}),
        (colour, "JPEG", {"subsampling": 0, "restart_marker_blocks": 1}),
        (grey, "JPEG", {}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "MPO", frames),
        (colour, "PNG", {"exif": turned}),
        (clear, "PNG", {}),
        (deep, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour, "PNG", frames),
        (colour, "WEBP", {"exif": turned}),
        (clear, "WEBP", {"lossless": True}),
        (clear, "WEBP", frames),
        (colour, "GIF", frames),
        (colour.convert("P"), "GIF", {"transparency": 3}),
        (colour, "TIFF", {"compression": "raw"}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (deep, "TIFF", {}),
        (colour.convert("1"), "TIFF", {"compression": "group4"}),
        (colour, "BMP", {}),
        (colour.convert("P"), "BMP", {}),
        (colour.convert("1"), "BMP", {}),
    ]
    made = []
    for image, format, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        made.append(buffer.getvalue())
    return made


def forms() -> list[bytes]:
    def part(name: str, content: bytes, rest: str = "") -> bytes:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{rest}\r\n\r\n'
        return head.encode() + content + b"\r\n"

    end = f"--{BOUNDARY}--\r\n".encode()
    picture = part("images", b"\xff\xd8\r\n--X\xff\xd9", '; filename="a.jpg"\r\nContent-Type: image/jpeg')
    boxes = part("boxes", b"[[[1, 2, 3.5, 4]], null]")
    return [picture + picture + boxes + end, boxes + picture + picture + end, b"preamble\r\n" + picture + end]


def documents() -> list[bytes]:
    data = base64.b64encode(b"picture").decode()
    images = [{"data": data, "boxes": [[0, -1.5, 3e2, 4]], "image_id": "a"}, {"data": data, "boxes": None}]
    return [json.dumps({"images": some}).encode() for some in (images, images[:1], images[1:] * 3)]


SEEDS: dict[str, Callable[[], list[bytes]]] = {"pictures": pictures, "forms": forms, "json": documents}
MEDIA_TYPES = {"forms": f"multipart/form-data; boundary={BOUNDARY}", "json": "application/json"}
TOKENS = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"null", b"NaN", b"1e999", b"-0", b"\\ud800", b"\r\n", b"--XX",
          b"--", b"; filename*=utf-8''%ff", b"Content-Disposition: form-data", b"\xff\xda", b"\xff\xd9"]  # fmt: skip


def mutated(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Each with one to three of: a byte or a word changed, something put in, taken out, doubled, cut off, or taken from
    another of the seeds."""
    draw = random.Random(seed)

    def edit(data: bytearray) -> None:
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 2, 4, 16, 64)))
        match draw.randrange(8):
            case 0:
                data[at : at + 1] = draw.randbytes(1)
            case 1 | 2:
                word = draw.choice(WORDS)
                data[at : at + len(word)] = word
            case 3:
                data[at:at] = draw.choice(TOKENS)
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * draw.choice((1, 2, 50))
            case 6:
                del data[draw.randrange(len(data) // 2, len(data) + 1) :]
            case 7:
                other = draw.choice(seeds)
                data[at:end] = other[draw.randrange(len(other)) :][: end - at]

    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 3)):
            edit(data)
        yield bytes(data)


async def check_picture(data: bytes) -> str:
    """What `POST /pose` does with a picture before the networks."""
    header = read_header(data, MAX_PIXELS)
    height, width, colours = decode(data).shape
    if sorted((height, width)) != sorted((header.height, header.width)) or colours != 3:
        raise AssertionError(f"the header says {header}, the pixels are {width} x {height} x {colours}")
    return "taken"


def checker(kind: str) -> Check:
    if kind == "pictures":
        return check_picture
    limits = Settings(_env_file=None)  # type: ignore[call-arg]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/pose",
        "query_string": b"",
        "headers": [(b"content-type", MEDIA_TYPES[kind].encode())],
    }

    async def check_body(data: bytes) -> str:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        await read(Request(scope, receive), limits)
        return "taken"

    return check_body


async def run(kind: str, count: int, seed: int = 0) -> Outcome:
    """Raises what is no ApiError, with the input as a note."""
    check, found = checker(kind), Outcome()
    process = psutil.Process()
    inputs = mutated(SEEDS[kind](), seed)
    for found.inputs in range(1, count + 1):
        data = next(inputs)
        begun = time.process_time()
        try:
            outcome = await check(data)
        except ApiError as error:
            outcome = f"{error.status} {error.code}"
        except BaseException as error:
            error.add_note(f"input {found.inputs} of seed {seed}: {data!r}")
            raise
        found.slowest_s = max(found.slowest_s, time.process_time() - begun)
        found.outcomes[outcome] += 1
        if found.inputs % max(1, count // 5) == 0:
            found.memory.append(process.memory_info().rss)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(SEEDS))
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the service does
    begun = time.monotonic()
    found = asyncio.run(run(options.kind, options.count, options.seed))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = round(time.monotonic() - begun, 1)
    sys.stdout.write(json.dumps(vars(found) | {"peak_memory": peak, "seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
