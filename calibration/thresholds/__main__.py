"""Eq. 7 and 8 on your own pictures: scores of people the service would find there, as a calibration file.

    python -m calibration.thresholds SOURCE... --out calibrations/night.json

SOURCE is a folder of pictures (at any depth), a picture, a video, or a folder with people in COCO's format, of which
--split names the annotations (of a split that networks are trained on, only the held-back tenth is used). Labels are
not needed: the pair's own detector finds the people, as in the service, and its router scores them. Pictures are
visited in random order until there are enough people. The numbers that are printed go to OUT with the suffix
`.report.json` as well.

A service that was started with CALIBRATION_DIR=calibrations loads the file while it runs; the last lines say how.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from calibration.options import fraction
from calibration.thresholds import Calibration, MadeWith, write_calibration
from calibration.thresholds.report import as_text, report
from calibration.thresholds.sources import Picture, SourceError, opened, pictures_of
from models.defaults import MAX_PEOPLE, MIN_SCORE, THETA
from models.detector import Detector
from models.router import DifficultyScorer, PoseScorer
from models.runtime import resolve_device, resolve_dtype, resolve_int8
from models.zoo import PairError, load_detector, load_router
from models.zoo.options import add_pair_arguments, pair_from

SAMPLES = 200
"""People that are enough for k1, by the paper's figure 8."""

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
PROGRESS = 20


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def score_people(
    detector: Detector,
    router: DifficultyScorer | PoseScorer,
    pictures: Sequence[Picture],
    *,
    samples: int,
    min_score: float,
    max_people: int,
    seed: int,
) -> tuple[list[float], int]:
    """Difficulties of people in `pictures`, visited in random order until there are `samples` (0: all), and the number
    of pictures looked at. Of the last picture as many people as are missing, drawn at random."""
    rng = np.random.default_rng(seed)
    scores: list[float] = []
    looked_at = 0
    for picture in opened(pictures, rng, say):
        found = detector([picture], [min_score])[0][:max_people]
        looked_at += 1
        if len(found):
            difficulties = router([picture] * len(found), found[:, :4], found[:, 4]).tolist()
            wanted = min(len(found), samples - len(scores)) if samples else len(found)
            scores += rng.permutation(difficulties)[:wanted].tolist()
        if looked_at % PROGRESS == 0:
            goal = f" of {samples}" if samples else ""
            say(f"{len(scores)}{goal} people in {looked_at} of {len(pictures)} pictures")
        if samples and len(scores) >= samples:
            break
    return scores, looked_at


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", metavar="SOURCE", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/thresholds.json"))
    parser.add_argument("--samples", type=count, default=SAMPLES, help="people, 0 for all (%(default)s)")
    parser.add_argument("--p", type=fraction, nargs="+", default=SHARES, help="shares to report")
    parser.add_argument(
        "--theta", type=fraction, default=THETA, help="eq. 7; goes into the file (%(default)s)"
    )
    parser.add_argument("--split", help="of a folder in COCO's format (train where there is one)")
    parser.add_argument(
        "--every", type=count, help="of a video, each n-th frame (about one a second, or more often)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min-score", type=fraction, default=MIN_SCORE, help="of a detection (%(default)s)")
    parser.add_argument("--max-people", type=count, default=MAX_PEOPLE, help="of one picture (%(default)s)")
    add_pair_arguments(parser)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    options = parser.parse_args(arguments)
    if options.out.suffix != ".json":
        parser.error("--out ends in .json: a service loads no other name")
    return options


def how_to_load(out: Path, own_name: str, min_score: float) -> str:
    """What to do with the file; `own_name` is the pair's calibration, which a service never looks for elsewhere."""
    if out.name == own_name:
        return (
            f"{out.name} is also the name of the pair's own calibration, which a service takes for it: give it\n"
            "another name, or put it into the pair's folder and start the service anew"
        )
    changes: dict[str, object] = {"calibration": out.name}
    if min_score != MIN_SCORE:
        changes["min_score"] = min_score
    folder = out.resolve().parent
    return (
        f"a service started with CALIBRATION_DIR={folder} takes it by\n"
        f"  curl -X PATCH localhost:8000/config -H 'Content-Type: application/json' -d '{json.dumps(changes)}'"
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    manifest = pair_from(options)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        pictures = pictures_of(options.sources, options.split, options.every, options.samples, say)
        device = resolve_device(options.device)
        dtype = resolve_dtype(device, options.precision)
        int8 = resolve_int8(device, options.precision, "auto")
        detector = load_detector(str(manifest.folder), manifest.detector, device, dtype, int8=int8)
        router = load_router(str(manifest.folder), manifest.router, device, dtype)
    except (SourceError, PairError, OSError, ValueError) as error:
        say(str(error))
        return 2
    with torch.inference_mode():
        scores, images = score_people(
            detector,
            router,
            pictures,
            samples=options.samples,
            min_score=options.min_score,
            max_people=options.max_people,
            seed=options.seed,
        )
    if not scores:
        nobody = f"the detector found nobody in {images} pictures at --min-score {options.min_score:g}"
        say(nobody if images else "no picture could be read")
        return 1
    found = report(np.array(scores), options.theta, options.p, options.samples)
    calibration = Calibration(
        scores=[round(score, 6) for score in scores],
        theta=options.theta,
        made_with=MadeWith(
            pair=manifest.pair,
            router_sha256=manifest.router.sha256,
            detector_sha256=manifest.detector.sha256,
            min_score=options.min_score,
        ),
        people=len(scores),
        images=images,
    )
    try:
        write_calibration(calibration, options.out)
        numbers = found.numbers() | {"made_with": calibration.made_with.model_dump(), "images": images}
        options.out.with_suffix(".report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    except OSError as error:
        say(f"{options.out}: {error.strerror}")
        return 1
    print(as_text(found))
    print(f"\n{options.out}: {len(scores)} people of {images} pictures")
    print(how_to_load(options.out, manifest.calibration, options.min_score))
    return 0


if __name__ == "__main__":
    sys.exit(main())
