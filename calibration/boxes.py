"""Boxes to estimate poses in, and the labelled people they belong to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.data import LabelledImage, LabelledPerson, Pictures
from models.detector import Detector

Array = NDArray[np.float64]
Bbox = tuple[float, float, float, float]

MIN_IOU = 0.5
CROWD_SHARE = 0.5


@dataclass(frozen=True)
class FoundPerson:
    """A box, x, y, w, h in picture pixels, and what the labels say of it.

    label: the person that the box belongs to, if any. wrong: it belongs to nobody and lies in no crowd area; a box
    that doubles a better one of the same person is wrong.
    """

    image_id: int
    bbox: Bbox
    score: float
    label: LabelledPerson | None
    wrong: bool = False


def clipped(bbox: Bbox, image: LabelledImage) -> Bbox | None:
    """A labelled box with its corners in [0, W - 1] x [0, H - 1], as the authors train and measure; None where nothing
    is left."""
    x, y, w, h = bbox
    left, top = min(max(x, 0), image.width - 1), min(max(y, 0), image.height - 1)
    right, bottom = min(max(x + w, 0), image.width - 1), min(max(y + h, 0), image.height - 1)
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def labelled_boxes(images: Sequence[LabelledImage]) -> list[FoundPerson]:
    """The people with keypoints, as if a detector had drawn their own boxes, clipped to the picture."""
    return [
        FoundPerson(image.id, box, 1.0, person)
        for image in images
        for person in image.people
        if person.has_pose and (box := clipped(person.bbox, image))
    ]


def detected_boxes(
    detector: Detector, pictures: Pictures, images: Sequence[LabelledImage], min_score: float
) -> list[FoundPerson]:
    """Every box of the detector from `min_score` up, the best first in each picture."""
    found = []
    for image in images:
        rows = detector([pictures(image)], [min_score])[0].double().numpy()
        found += assign(rows, image)
    return found


def read_coco_results(path: Path) -> dict[int, Array]:
    """The people of a COCO results file of boxes, by image id: (M, 5) x, y, w, h, score.

    The file is a list of objects with `image_id`, `bbox` (x, y, w, h), `score` and, unless all are people,
    `category_id` (1 is a person). Raises OSError, or ValueError with what is wrong.
    """
    try:
        entries = json.loads(path.read_bytes())
        people = [entry for entry in entries if entry.get("category_id", 1) == 1]
        rows: dict[int, list[list[float]]] = {}
        for entry in people:
            x, y, w, h = map(float, entry["bbox"])
            row = [x, y, w, h, float(entry["score"])]
            if isinstance(entry["bbox"], str) or not np.isfinite(row).all() or min(w, h) < 0:
                raise ValueError(f"bbox {entry['bbox']}, score {entry['score']}")
            rows.setdefault(int(entry["image_id"]), []).append(row)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is not a COCO results file of boxes: {error!r}") from error
    return {key: np.array(boxes, dtype=np.float64) for key, boxes in rows.items()}


def assign(rows: Array, image: LabelledImage) -> list[FoundPerson]:
    """Give boxes to people, the best score first: each the person it overlaps most, by an IoU of at least 0.5, and
    each person one box (COCO's matching at 0.5).

    rows: (M, 5) x, y, w, h, score, in any order; the result keeps it.
    """
    people = [person for person in image.people if not person.crowd]
    boxes = np.array([person.bbox for person in people], dtype=np.float64).reshape(-1, 4)
    crowds = np.array([p.bbox for p in image.people if p.crowd], dtype=np.float64).reshape(-1, 4)
    overlap = overlaps(rows[:, :4], boxes)
    iou = overlap / (area(rows[:, :4])[:, None] + area(boxes) - overlap)
    in_crowd = overlaps(rows[:, :4], crowds) >= CROWD_SHARE * area(rows[:, :4])[:, None]
    result: list[FoundPerson | None] = [None] * len(rows)
    free = np.ones(len(people), dtype=bool)
    for row in np.argsort(-rows[:, 4], kind="stable"):
        x, y, w, h, score = rows[row].tolist()
        best = int(np.argmax(iou[row] * free)) if len(people) else -1
        label = people[best] if best >= 0 and free[best] and iou[row, best] >= MIN_IOU else None
        if label is not None:
            free[best] = False
        wrong = label is None and not in_crowd[row].any()
        result[row] = FoundPerson(image.id, (x, y, w, h), score, label, wrong)
    return [person for person in result if person is not None]


def overlaps(first: Array, second: Array) -> Array:
    """(N, M) square pixels that boxes (N, 4) and (M, 4), x, y, w, h, have in common."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, :2] + first[:, None, 2:4], second[None, :, :2] + second[None, :, 2:4])
    return np.asarray((high - low).clip(0).prod(axis=2))


def area(boxes: Array) -> Array:
    """(N,) square pixels of boxes (N, 4)."""
    return np.asarray(boxes[:, 2] * boxes[:, 3])
