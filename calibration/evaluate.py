"""Keypoint AP of the small net, the large net and the routed pair, and what choosing whom to send is worth.

    python -m calibration.evaluate DATA [--split val] [--pair embedded] [--boxes labelled detector FILE.json]
        [--min-score 0.05 0.35] [--p 0.25 0.5 0.75] [--policy band top] [--flip-test] [--out runs/evaluation]

DATA: see `calibration.data`. Boxes are the labelled ones, the detector's, or those of a COCO results file; the last two
from each of the least scores up: 0.05 is about what the paper measures with, the other the service's default.

Runs the stage objects that the service runs, by COCO's protocol: a pose is ranked by its box's score times the mean of
its keypoint scores above 0.2, OKS-NMS at 0.9, 20 poses a picture. The first table routes with the stored thresholds of
the pair's calibration file, not with the measured people, so that the share sent to the large net is a result; the
second compares the router with rules that need none, at equal cost, with thresholds from the measured boxes (as the
paper does). Intervals: bootstrap over pictures. Needs the development package pycocotools.

Writes OUT/evaluation.json, from which `calibration.report` draws figures, OUT/people.png (people of the last kind of
boxes from easy to hard, with both nets' poses) and, with --contact-sheet, two dozen pictures with the poses drawn in.
For a split without labels (test-dev) it writes only OUT/results/*.json, as COCO's server takes them; --write-results
does that for others too.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from subprocess import CalledProcessError

import numpy as np

from calibration.accuracy import CROWDING, accuracy, interval
from calibration.boxes import Array, FoundPerson, assign, detected_boxes, labelled_boxes, read_coco_results
from calibration.data import LabelledImage, Pictures, has_split, read_split
from calibration.estimates import Estimates, Mask, Matcher, estimate, oks_gain
from calibration.gain import Gain, recovered_gains
from calibration.memory import measure
from calibration.sheet import contact_sheet, difficulty_strip
from calibration.thresholds import floor_share, read_calibration, thresholds
from models.defaults import MIN_SCORE, THETA
from models.runtime import resolve_device, resolve_dtype
from models.zoo import Pair, load_pair, load_router, read_manifest
from models.zoo.options import add_pair_arguments, pair_from

SOURCES = ("labelled", "detector")
"""Of boxes, beside COCO results files."""

PAPER_MIN_SCORE = 0.05
JUNK = 0.1
"""The trivial rule: boxes scored lower are not answered at all, the others by the large net."""


@dataclass(frozen=True)
class Row:
    """One way of routing. p: asked, None where nothing is. ap_m, ap_l, easy, medium, hard: NaN where the data has no
    such people. macs: of a person. people_per_s: from the stages' own times."""

    name: str
    p: float | None
    share: float
    ap: float
    low: float
    high: float
    ap50: float
    ap75: float
    ap_m: float
    ap_l: float
    ar: float
    easy: float
    medium: float
    hard: float
    macs: float
    people_per_s: float


def limits(scores: Sequence[float], p: float, theta: float, policy: str) -> tuple[float, float]:
    """k1 and k2 from the calibration scores: `band` is eq. 7 and 8, `top` sends the share p of the highest
    scores.
    """
    if policy == "band":
        band = thresholds(scores, p, theta)
        return band.k1, band.k2
    below = len(scores) - floor_share(len(scores), p)
    return (sorted(scores)[below - 1] if below else -math.inf), math.inf


def routings(
    estimates: Estimates,
    scores: Sequence[float],
    policies: Sequence[str],
    shares: Sequence[float],
    theta: float,
) -> dict[tuple[str, float | None], Mask]:
    """Who goes to the large net, by (name, p): each net alone, and each policy by stored calibration scores."""
    count = len(estimates.found)
    masks: dict[tuple[str, float | None], Mask] = {
        ("small", None): np.zeros(count, dtype=bool),
        ("large", None): np.ones(count, dtype=bool),
    }
    for policy, p in product(policies, shares):
        k1, k2 = limits(scores, p, theta, policy)
        masks[policy, p] = (estimates.difficulty > k1) & (estimates.difficulty < k2)
    return masks


def measured_rows(
    images: Sequence[LabelledImage],
    estimates: Estimates,
    masks: Mapping[tuple[str, float | None], Mask],
) -> Iterator[Row]:
    """The figures of every routing, and of dropping junk boxes."""
    matchers = {
        "all": Matcher(images, estimates),
        "medium": Matcher(images, estimates, "medium"),
        "large": Matcher(images, estimates, "large"),
    }
    score = np.array([person.score for person in estimates.found])
    junk = score < JUNK
    cases: list[tuple[str, float | None, Mask, Mask | None]] = [
        (*key, mask, None) for key, mask in masks.items()
    ]
    if junk.any() and not junk.all():
        cases.append((f"large, boxes from {JUNK}", None, ~junk, junk))
    crowdpose = any(image.crowd_index is not None for image in images)  # whose protocol has no sizes
    costs = estimates.costs
    alone = {"small": 0.0, "large": 1.0}
    for name, p, to_large, dropped in cases:
        matches = matchers["all"](to_large, dropped)
        figures = accuracy(matches)
        low, high = interval(matches)
        crowding = {
            level: accuracy(
                m
                for m, image in zip(matches, images, strict=True)
                if image.crowd_index is not None and least <= image.crowd_index < below
            ).ap
            for level, (least, below) in CROWDING.items()
        }
        sizes = {
            size: math.nan if crowdpose else accuracy(matchers[size](to_large, dropped)).ap
            for size in ("medium", "large")
        }
        share = float(to_large.mean())
        macs, seconds = costs.macs_at(share), 1 / costs.people_per_second(share)
        if name in alone or dropped is not None:  # no router
            net = name if name in alone else "large"
            part = 1.0 if dropped is None else share
            macs, seconds = part * costs.macs[net], part * costs.seconds[net]
        yield Row(
            name=name,
            p=p,
            share=share,
            ap=figures.ap,
            low=float(low),
            high=float(high),
            ap50=figures.ap50,
            ap75=figures.ap75,
            ap_m=sizes["medium"],
            ap_l=sizes["large"],
            ar=figures.ar,
            **crowding,
            macs=macs,
            people_per_s=1 / seconds,
        )


def quality(estimates: Estimates, difficulty: Array) -> dict[str, float]:
    """Of a router's score (N,): rank correlation with the true OKS gain among labelled people (NaN where either is the
    same for all), and how often a right box scores above a wrong one (0.5 is chance)."""
    right = np.array([person.label is not None and person.label.has_pose for person in estimates.found])
    wrong = np.array([person.wrong for person in estimates.found])
    gain = oks_gain(estimates)[right]
    ranks = [below(values, values) for values in (difficulty[right], gain)]
    ranked = right.any() and all(len(np.unique(values)) > 1 for values in ranks)
    judged = right.any() and wrong.any()
    return {
        "rank_correlation": float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if ranked else math.nan,
        "auc_right_above_wrong": float(below(difficulty[right], difficulty[wrong]).mean() / wrong.sum())
        if judged
        else math.nan,
    }


def below(values: Array, others: Array) -> Array:
    """(N,) how many of the others lie below each value; equal ones count half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Line by line. Columns that the data has nothing for are left out."""
    columns = {"ap_m": "AP_M", "ap_l": "AP_L", "easy": "easy", "medium": "medium", "hard": "hard"}
    shown = [key for key in columns if any(not math.isnan(getattr(row, key)) for row in rows)]
    head = " ".join(f"{columns[key]:>6}" for key in shown)
    yield (
        f"  {'':22} {'share':>6} {'AP':>6} {'95 %':>13} {'AP50':>6} {'AP75':>6} {head} {'AR':>6}"
        f" {'GMACs':>7} {'people/s':>8}"
    )
    for row in rows:
        name = row.name if row.p is None else f"{row.name}, p = {row.p:g}"
        values = " ".join(f"{getattr(row, key):6.3f}" for key in shown)
        yield (
            f"  {name:22} {row.share:6.3f} {row.ap:6.3f} {row.low:6.3f}-{row.high:.3f} {row.ap50:6.3f}"
            f" {row.ap75:6.3f} {values} {row.ar:6.3f} {row.macs / 1e9:7.3f} {row.people_per_s:8.1f}"
        )


def gain_table(gains: Sequence[Gain]) -> Iterator[str]:
    yield "  recovered gain at equal cost, thresholds from these boxes themselves"
    yield f"  {'':48} {'p':>5} {'share':>6} {'AP':>6} {'gain':>6} {'95 %':>14}"
    for row in gains:
        yield (
            f"  {row.rule:48} {row.p:5.2f} {row.share:6.3f} {row.ap:6.3f} {row.gain:6.2f}"
            f" {row.low:7.2f}-{row.high:.2f}"
        )


def coco_results(
    images: Sequence[LabelledImage], estimates: Estimates, to_large: Mask
) -> list[dict[str, object]]:
    """Poses as COCO's evaluation server takes them, after OKS-NMS."""
    matcher = Matcher(images, estimates)
    return [
        {
            "image_id": image.id,
            "category_id": 1,
            "keypoints": [round(float(value), 3) for value in pose.keypoints.flatten()],
            "score": round(pose.score, 6),
        }
        for image in images
        for pose in matcher.poses(image.id, to_large.astype(np.int8))
    ]


def boxes_of(
    source: str,
    files: Mapping[str, Mapping[int, Array]],
    pair: Pair,
    pictures: Pictures,
    images: Sequence[LabelledImage],
    least: float,
) -> list[FoundPerson]:
    """Of SOURCES, or those that stand in `files` under the name, (M, 5) by image id as `read_coco_results` has them."""
    if source == "labelled":
        return labelled_boxes(images)
    if source == "detector":
        return detected_boxes(pair.detector, pictures, images, least)
    rows = files[source]
    return [
        person
        for image in images
        if image.id in rows
        for person in assign(rows[image.id][rows[image.id][:, 4] >= least], image)
    ]


def evaluate(
    images: Sequence[LabelledImage],
    estimates: Estimates,
    scores: Sequence[float],
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
        print(f"skipped: needs pictures with people in {options.data}")
        return 0
    try:
        files = {name: read_coco_results(Path(name)) for name in options.boxes if name not in SOURCES}
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    everything = read_split(options.data, options.split)[: options.limit]
    pictures = Pictures(options.data)
    device = resolve_device(options.device)
    dtype = resolve_dtype(device, options.precision)
    pair = load_pair(pair_from(options), device, dtype)
    others = {}
    for given in options.also_router:
        manifest = read_manifest(options.pair, router=given)
        others[f"router {Path(given).parent.name}/{Path(given).name}"] = load_router(
            str(manifest.folder), manifest.router, device, dtype
        )
    scores = read_calibration(pair.calibration).scores
    names = pair.manifest.names()
    print(", ".join(f"{role} {name}" for role, name in names.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"names": names, "router": pair.manifest.router.architecture}
    result |= {name: getattr(options, name) for name in ("split", "limit", "flip_test", "theta")}
    labels = any(person.has_pose for image in everything for person in image.people)
    kinds: dict[str, object] = {}

    for source in options.boxes:
        images = everything if source == "labelled" else [image for image in everything if image.complete]
        least = 0.0 if source == "labelled" else min(options.min_score)
        found = boxes_of(source, files, pair, pictures, images, least)
        if not found:
            print(f"\n{source} boxes: none, or no picture with all its people labelled")
            continue
        estimates = estimate(
            pair, pictures, images, found, batch=options.batch, flip_test=options.flip_test, others=others
        )
        if not labels or options.write_results:
            masks = routings(estimates, scores, options.policy, options.p, options.theta)
            write_results(options.out / "results", source, images, estimates, masks)
        if not labels:
            continue
        parts: dict[str, tuple[Sequence[LabelledImage], Estimates]] = {}
        if source == "labelled":
            parts = {"labelled boxes": part_of([image for image in images if image.complete], estimates)}
            if len(parts["labelled boxes"][0]) < len(images):
                parts["labelled boxes, and pictures whose people are not all labelled"] = (images, estimates)
        else:
            box_scores = np.array([person.score for person in found])
            parts = {
                f"{source} boxes from {floor:g}": (images, estimates.take(box_scores >= floor))
                for floor in options.min_score
            }
        for title, (chosen, part) in parts.items():
            if part.found:
                print(f"\n{title}")
                kinds[title] = evaluate(chosen, part, scores, options)
                difficulty_strip(pictures, chosen, part).save(options.out / "people.png")
    if kinds and options.memory:
        try:
            usage = measure(options, options.batch)
        except CalledProcessError as error:
            print(f"\npeak memory: not measured; {error.stderr.strip()}")
        else:
            result["memory"] = usage
            print("\npeak memory: " + ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in usage.items()))
    if kinds:
        (options.out / "evaluation.json").write_text(json.dumps(result | {"boxes": kinds}) + "\n")
    if options.contact_sheet is not None:
        contact_sheet(pair, pictures, everything, scores).save(options.contact_sheet)
        print(f"contact sheet: {options.contact_sheet}")
    return 0


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
        print(f"results: {file}")


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
    parser.add_argument("--p", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--policy", choices=("band", "top"), nargs="+", default=["band", "top"])
    parser.add_argument("--theta", type=float, default=THETA)
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
