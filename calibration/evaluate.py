"""Keypoint AP of the small net, the large net and the routed pair, and what choosing whom to send is worth.

    python -m calibration.evaluate DATA [--split val] [--pair embedded] [--boxes labelled detector FILE.json]
        [--min-score 0.05 0.35] [--p 0.25 0.5 0.75] [--policy band top] [--flip-test] [--out runs/evaluation]

DATA: see `calibration.data`. Boxes are the labelled ones, the detector's, or those of a COCO results file; the last two
from each of the least scores up: 0.05 is about what the paper measures with, the other the service's default.

Runs the stage objects that the service runs, by COCO's protocol: a pose is ranked by its box's score times the mean of
its keypoint scores above 0.2, OKS-NMS at 0.9, 20 poses a picture. The first table routes with the stored thresholds of
the pair's calibration file, not with the measured people, so that the share sent to the large net is a result; the
second compares the router with rules that need none, at equal shares (those that run the small net first: at equal
cost), with thresholds from the measured boxes (as the paper does). Intervals: bootstrap over pictures. Needs the
development package pycocotools.

Writes OUT/evaluation.json, from which `calibration.report` draws figures, OUT/people.png (people of the last kind of
boxes from easy to hard, with both nets' poses) and, with --contact-sheet, two dozen pictures with the poses drawn in.
For a split without labels (test-dev) it writes only OUT/results/*.json, as COCO's server takes them; --write-results
does that for others too.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from subprocess import CalledProcessError
from typing import get_args

import numpy as np
import torch

from calibration.commands import run_command
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.estimates import Estimates, Mask, Scorer, estimate, oks_gain
from calibration.gain import Gain, recovered_gains
from calibration.inputs import (
    box_files,
    boxes_of,
    check_keypoints,
    conditions,
    fitting_calibration,
    missing_split,
)
from calibration.measured import Row, coco_results, gain_table, measured_rows, quality, routings, table
from calibration.memory import measure
from calibration.options import fraction
from calibration.sheet import contact_sheet, difficulty_strip
from models.defaults import MIN_SCORE, THETA
from models.runtime import Runtime, resolve_device, resolve_dtype, resolve_int8
from models.zoo import PairError, load_pair, load_router, read_manifest
from models.zoo.costs import pair_macs
from models.zoo.options import add_pair_arguments, pair_from

PAPER_MIN_SCORE = 0.05


def evaluate(
    images: Sequence[LabelledImage],
    estimates: Estimates,
    scores: Sequence[float] | None,
    options: argparse.Namespace,
) -> dict[str, object]:
    """All figures of one kind of boxes, printed on the way."""
    people = sum(person.has_pose for image in images for person in image.people)
    print(
        f"{people} people with keypoints in {len(images)} pictures, {len(estimates.found)} boxes", flush=True
    )
    masks = routings(estimates, scores, options.policy, options.p, options.theta)
    rows = list(measured_rows(images, estimates, masks))
    for line in table(rows):
        print(line, flush=True)
    routers = {"router": estimates.difficulty, **estimates.others}
    judged = {name: quality(estimates, scores) for name, scores in routers.items()}
    for name, figures in judged.items():
        print(
            f"  {name}: "
            + ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in figures.items())
        )
    gains = list(recovered_gains(images, estimates, options.p, options.theta)) if options.rules else []
    for line in gain_table(gains) if gains else ():
        print(line, flush=True)
    return {
        "people": people,
        "images": len(images),
        "boxes": len(estimates.found),
        "rows": [plain(row) for row in rows],
        "gains": [plain(gain) for gain in gains],
        "routers": {
            name: {key: none_if_nan(value) for key, value in figures.items()}
            for name, figures in judged.items()
        },
        "difficulty": [round(float(value), 6) for value in estimates.difficulty],
        "gain": [round(float(value), 4) for value in oks_gain(estimates)],
        "belongs": [
            "person" if person.label is not None else "nobody" if person.wrong else "crowd"
            for person in estimates.found
        ],
        "costs": asdict(estimates.costs),
    }


def plain(row: Row | Gain) -> dict[str, object]:
    """For JSON, which has neither NaN nor infinity."""
    return {name: none_if_nan(value) for name, value in asdict(row).items()}


def none_if_nan(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    options = parse()
    if not has_split(options.data, options.split):
        return missing_split(options.data, options.split)
    manifest = pair_from(options)
    try:
        device = resolve_device(options.device)
        dtype = resolve_dtype(device, options.precision)
        images = read_split(options.data, options.split)
        check_keypoints(manifest, images)
        files = box_files(options.boxes, images)
        int8 = resolve_int8(device, options.precision, options.runtime)
        pair = load_pair(manifest, device, dtype, options.runtime, int8=int8)
        others = other_routers(options, device, dtype)
        calibration = fitting_calibration(options.calibration, pair.manifest)
        in_int8 = int8 and pair.manifest.detector.int8 is not None
        file = None if calibration is None else options.calibration or pair.manifest.calibration_path
        ran = conditions(options, device, dtype, file, in_int8)
        macs = pair_macs(pair.manifest)
    except (OSError, ValueError, PairError) as error:
        print(error, file=sys.stderr)
        return 2
    scores = None if calibration is None else list(calibration.scores)
    if options.theta is None:
        options.theta = THETA if calibration is None else calibration.theta
    images, pictures = images[: options.limit], Pictures(options.data)
    names = pair.manifest.names()
    print(", ".join(f"{role} {name}" for role, name in names.items()))
    if scores is None:
        print("no stored scores of this router: no rows by stored thresholds (--calibration)")
    options.out.mkdir(parents=True, exist_ok=True)
    router = pair.manifest.router
    switches = router.config.model_dump() if router.architecture == "dynpose" else None
    result: dict[str, object] = {"names": names, "router": router.architecture, "router_config": switches}
    result |= {"conditions": ran}
    result |= {name: getattr(options, name) for name in ("split", "limit", "flip_test", "theta")}

    kinds: dict[str, object] = {}
    for source in options.boxes:
        chosen = images if source == "labelled" else [image for image in images if image.complete]
        found = boxes_of(source, files, pair, pictures, chosen, min(options.min_score))
        if not found:
            print(f"\n{source} boxes: none, or no picture with all its people labelled")
            continue
        estimates = estimate(
            pair,
            pictures,
            chosen,
            found,
            batch=options.batch,
            flip_test=options.flip_test,
            others=others,
            macs=macs,
        )
        labels = any(person.has_pose for image in chosen for person in image.people)
        if options.write_results or not labels:
            masks = routings(estimates, scores, options.policy, options.p, options.theta)
            write_results(options.out / "results", source, chosen, estimates, masks)
        for title, (part, of_part) in parts_of(source, chosen, estimates, options.min_score).items():
            if labels and of_part.found:
                print(f"\n{title}")
                kinds[title] = evaluate(part, of_part, scores, options)
                difficulty_strip(pictures, part, of_part).save(options.out / "people.png")
    if kinds:
        if options.memory:
            result |= peak_memory(options)
        (options.out / "evaluation.json").write_text(json.dumps(result | {"boxes": kinds}) + "\n")
    if options.contact_sheet is not None:
        contact_sheet(pair, pictures, images, scores).save(options.contact_sheet)
        print(f"contact sheet: {options.contact_sheet}")
    return 0


def other_routers(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Scorer]:
    """Those of --also-router, by name. Raises PairError."""
    routers: dict[str, Scorer] = {}
    for given in options.also_router:
        manifest = read_manifest(options.pair, router=given)
        name = f"router {Path(given).parent.name}/{Path(given).name}"
        routers[f"router {given}" if name in routers else name] = load_router(
            str(manifest.folder), manifest.router, device, dtype, options.runtime
        )
    return routers


def parts_of(
    source: str, images: Sequence[LabelledImage], estimates: Estimates, floors: Sequence[float]
) -> dict[str, tuple[Sequence[LabelledImage], Estimates]]:
    """What is measured of one kind of boxes, by title: detected boxes from every least score up; labelled ones of
    the pictures whose people are all labelled, and of all pictures where there are others."""
    if source != "labelled":
        scores = np.array([person.score for person in estimates.found])
        return {f"{source} boxes from {f:g}": (images, estimates.take(scores >= f)) for f in floors}
    complete = [image for image in images if image.complete]
    parts = {"labelled boxes": part_of(complete, estimates)}
    if len(complete) < len(images):
        parts["labelled boxes, and pictures whose people are not all labelled"] = (images, estimates)
    return parts


def peak_memory(options: argparse.Namespace) -> dict[str, object]:
    """Bytes by configuration under `memory`; nothing where they cannot be measured."""
    try:
        usage = measure(options, options.batch)
    except CalledProcessError as error:
        print(f"\npeak memory: not measured; {error.stderr.strip()}")
        return {}
    print("\npeak memory: " + ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in usage.items()))
    return {"memory": usage}


def part_of(
    images: Sequence[LabelledImage], estimates: Estimates
) -> tuple[Sequence[LabelledImage], Estimates]:
    """The boxes of some pictures."""
    ids = {image.id for image in images}
    return images, estimates.take(
        np.array([person.image_id in ids for person in estimates.found], dtype=bool)
    )


def write_results(
    folder: Path,
    source: str,
    images: Sequence[LabelledImage],
    estimates: Estimates,
    masks: Mapping[tuple[str, float | None], Mask],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for (name, p), mask in masks.items():
        file = folder / f"{Path(source).stem}-{name}{'' if p is None else f'-{p:g}'}.json"
        file.write_text(json.dumps(coco_results(images, estimates, mask)))
        print(f"results: {file}, {100 * mask.mean():.1f} % by the large net")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with annotations and pictures")
    parser.add_argument("--split", default="val")
    add_pair_arguments(parser)
    parser.add_argument(
        "--also-router",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="routers to compare with the pair's",
    )
    parser.add_argument(
        "--boxes",
        nargs="+",
        default=["labelled", "detector"],
        help="labelled, detector, or a COCO results file",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        nargs="+",
        default=[PAPER_MIN_SCORE, MIN_SCORE],
        help="least scores of boxes that are not labelled",
    )
    parser.add_argument("--p", type=fraction, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--policy", choices=("band", "top"), nargs="+", default=["band", "top"])
    parser.add_argument("--calibration", type=Path, help="stored scores of the router (the pair's own)")
    parser.add_argument("--theta", type=fraction, help="eq. 7 (as the stored scores' file has it)")
    parser.add_argument("--flip-test", action="store_true", help="average with the mirrored crop")
    parser.add_argument("--no-rules", dest="rules", action="store_false", help="leave the comparison out")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="pictures, from the start of the file")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--write-results", action="store_true", help="also COCO results files")
    parser.add_argument("--contact-sheet", type=Path, help="picture to write, with 24 random pictures' poses")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--runtime", default="auto", choices=get_args(Runtime))
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
