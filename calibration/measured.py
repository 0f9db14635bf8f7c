"""The figures of one kind of boxes: AP of every way of routing, how good the router's scores are, tables of both."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from calibration.accuracy import CROWDING, accuracy, interval
from calibration.boxes import Array
from calibration.curve import below, rank_correlation
from calibration.data import LabelledImage
from calibration.estimates import Estimates, Mask, Matcher, oks_gain
from calibration.gain import Gain
from calibration.thresholds.split import Policy, split_for

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


def routings(
    estimates: Estimates,
    scores: Sequence[float] | None,
    policies: Sequence[Policy],
    shares: Sequence[float],
    theta: float,
) -> dict[tuple[str, float | None], Mask]:
    """Who goes to the large net, by (name, p): each net alone, and each policy by stored scores where there are any."""
    count = len(estimates.found)
    masks: dict[tuple[str, float | None], Mask] = {
        ("small", None): np.zeros(count, dtype=bool),
        ("large", None): np.ones(count, dtype=bool),
    }
    if scores is not None:
        window = np.sort(np.array(scores))
        for policy, p in product(policies, shares):
            split = split_for(window, p, theta, policy)
            masks[policy, p] = (estimates.difficulty > split.k1) & (estimates.difficulty < split.k2)
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
    judged = right.any() and wrong.any()
    return {
        "rank_correlation": rank_correlation(difficulty[right], gain),
        "auc_right_above_wrong": float(below(difficulty[right], difficulty[wrong]).mean() / wrong.sum())
        if judged
        else math.nan,
    }


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
    yield "  recovered gain, thresholds from these boxes themselves; rules that run the small net first at equal cost"
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
