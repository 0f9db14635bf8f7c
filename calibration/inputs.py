"""What an evaluation starts from: its boxes and stored scores, checked before anything is computed, and what it ran
on."""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from calibration.boxes import Array, FoundPerson, assign, detected_boxes, labelled_boxes, read_coco_results
from calibration.data import LabelledImage, Pictures, splits
from calibration.thresholds import Calibration, read_calibration
from models.runtime import resolve_runtime
from models.skeleton import SKELETONS
from models.zoo import Manifest, Pair

SOURCES = ("labelled", "detector")
"""Of boxes, beside COCO results files."""


def missing_split(data: Path, split: str) -> int:
    """Say that there is no such split; a command's exit status. A folder without any is no error: there are no data."""
    known = splits(data)
    if known:
        print(f"{data} has no split {split!r}, but {', '.join(known)}", file=sys.stderr)
        return 2
    print(f"skipped: needs pictures with people in {data}")
    return 0


def check_keypoints(manifest: Manifest, images: Sequence[LabelledImage]) -> None:
    """Raises ValueError where the nets, or nets and labels, have different keypoints."""
    small, large = (len(SKELETONS[net.keypoints].keypoints) for net in (manifest.small, manifest.large))
    if small != large:
        raise ValueError(f"the small net has {small} keypoints, the large one {large}")
    people = next((len(person.keypoints) for image in images for person in image.people), small)
    if people != small:
        raise ValueError(f"the nets have {small} keypoints, the people {people}")


def box_files(sources: Sequence[str], images: Sequence[LabelledImage]) -> dict[str, dict[int, Array]]:
    """The COCO results files among the sources. Raises OSError, or ValueError for one that is none or has no boxes of
    these pictures."""
    files = {name: read_coco_results(Path(name)) for name in sources if name not in SOURCES}
    for name, rows in files.items():
        if not any(image.id in rows for image in images):
            raise ValueError(f"{name} has no boxes of any of the {len(images)} pictures")
    return files


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


def fitting_calibration(given: Path | None, manifest: Manifest) -> Calibration | None:
    """The given file's, or the pair's own, None where another router made that. Raises OSError or ValueError, also for
    a given one that another router made."""
    calibration = read_calibration(given or manifest.calibration_path)
    if calibration.made_with.router_sha256 == manifest.router.sha256:
        return calibration
    if given is not None:
        raise ValueError(f"{given} was made with another router, its scores mean nothing here")
    return None


def conditions(
    options: argparse.Namespace,
    device: torch.device,
    dtype: torch.dtype,
    calibration: Path | None,
    int8: bool = False,
) -> dict[str, object]:
    """What makes the figures of one run differ from another's, for its file. calibration: whose thresholds were
    used. int8: whether the detector ran so."""
    return {
        "date": date.today().isoformat(),
        "device": device.type,
        "processor": processor(device),
        "precision": str(dtype).removeprefix("torch.") + (", detector int8" if int8 else ""),
        "runtime": resolve_runtime(device, options.runtime),
        "torch": torch.__version__,
        "batch": options.batch,
        "data": options.data.resolve().name,
        "min_score": options.min_score,
        "calibration": None if calibration is None else calibration.name,
    }


def processor(device: torch.device) -> str:
    """The name of the CPU or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not on Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
