"""The commands and their options; what they do is in the modules beside this one.

Each command imports its own: only `annotate` needs the networks' libraries, which take seconds to load.
"""

import asyncio
import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli import split as splitting
from app.cli import top as watching
from app.cli.client import ServerError

LOCAL = "http://localhost:8000"
CANNOT = 2
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Human poses with a large network only for the people who need one.",
    epilog="Exit codes: 0 done, 1 something failed and was named, 2 nothing could be done, 130 Ctrl-C.",
)


class Estimator(enum.StrEnum):
    auto = "auto"
    small = "small"
    large = "large"


def fraction(value: float | None) -> float | None:
    """Also refuses NaN, which a range of typer's would let through."""
    if value is not None and not 0 <= value <= 1:
        raise typer.BadParameter(f"{value:g} is not between 0 and 1")
    return value


def end(message: str, code: int = CANNOT) -> typer.Exit:
    """Say why on stderr, in one line; to be raised."""
    print(f"dynpose: {message}", file=sys.stderr)
    return typer.Exit(code)


@app.command()
def annotate(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PHOTO|FOLDER|VIDEO...", help="folders at any depth")
    ],
    out: Annotated[Path, typer.Option(metavar="OUT", help="folder of the results")],
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="a running server; without it, in this process")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="DYNPOSE_TOKEN", help="the server's POSE_TOKEN", show_default=False)
    ] = None,
    p: Annotated[
        float | None, typer.Option(callback=fraction, help="share of people for the large net, 0 to 1")
    ] = None,
    estimator: Annotated[
        Estimator, typer.Option(help="small or large: for everybody, without the router")
    ] = Estimator.auto,
    min_score: Annotated[
        float | None, typer.Option(callback=fraction, help="detections below this are dropped, 0 to 1")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="of a video, look at each N-th frame")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="pictures in flight at a time")] = 4,
) -> None:
    """Find the people of pictures and videos and their keypoints.

    Without --server, the settings are the service's, from the environment and .env (PAIR, DEVICE, P, ...).

    OUT/poses.json has "images" (id, file_name, width, height, and frame of a video), "annotations", which are exactly
    the COCO keypoint results that POST /pose?format=coco answers (image_id, category_id, bbox, keypoints, score;
    pycocotools: loadRes(document["annotations"])), "categories", "failed" (file_name, error) and "info" (how it was
    made).

    OUT/poses.jsonl has a line for each picture and frame as it is done, with routes and difficulties. With the same
    command again only what is missing, failed or has changed is done.

    Drawn pictures go below OUT as the pictures lie in the folder, as JPEG; a drawn video has all frames, without
    sound, as MPEG-4 in .mp4, and between frames that were looked at it keeps the skeletons of the last one.
    """
    from app.cli.annotate import CannotAnnotate, Options
    from app.cli.annotate import annotate as run
    from app.cli.sources import shown

    options = Options(
        sources=sources,
        out=out,
        server=server,
        token=token,
        p=p,
        estimator=estimator.value,
        min_score=min_score,
        every=every,
        jobs=jobs,
    )
    try:
        outcome = asyncio.run(run(options))
    except KeyboardInterrupt:
        raise end(
            f"stopped; what is done is in {shown(str(out))}, and the same command goes on", INTERRUPTED
        ) from None
    except (CannotAnnotate, ServerError) as error:
        raise end(str(error)) from error
    print(outcome.line)
    raise typer.Exit(1 if outcome.failed else 0)


@app.command()
def split(
    share: Annotated[
        float | None, typer.Argument(metavar="P", callback=fraction, help="new share, 0 to 1")
    ] = None,
    server: Annotated[str, typer.Option(metavar="URL")] = LOCAL,
    all_pods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:PORT]", help="every address of this DNS name (headless Service), port 8000"
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="ADMIN_TOKEN", help="the server's ADMIN_TOKEN", show_default=False)
    ] = None,
) -> None:
    """Set the share p of people for the large net on a running server; without P, show what is in force."""
    try:
        urls = splitting.addresses(all_pods) if all_pods is not None else [server]
        outcomes = asyncio.run(splitting.split(urls, share, token, direct=all_pods is not None))
    except ServerError as error:
        raise end(str(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    for outcome in outcomes:
        print(outcome.text, file=sys.stderr if outcome.failed else sys.stdout)
    raise typer.Exit(1 if any(outcome.failed for outcome in outcomes) else 0)


@app.command()
def top(
    server: Annotated[str, typer.Option(metavar="URL")] = LOCAL,
    once: Annotated[bool, typer.Option("--once", help="print one view as plain text and end")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="seconds between two looks")] = 1.0,
) -> None:
    """Watch a server: throughput, routes against p, latencies, queues and stages, between two looks at /metrics."""
    try:
        asyncio.run(watching.once(server, interval) if once else watching.watch(server, interval))
    except ServerError as error:
        raise end(str(error), 1) from error
    except KeyboardInterrupt:
        raise typer.Exit(0 if not once else INTERRUPTED) from None
