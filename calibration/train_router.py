"""Trains the paper's router for a pair of pose nets (section 3.3, eq. 5 and 6).

    python -m calibration.train_router DATA --pair FOLDER --out FOLDER/router.safetensors
    python -m calibration.train_router DATA --split train2017 --validate val2017 --batch 1 --released   # as the authors

DATA holds people with keypoints in a layout of `calibration.data`. Both nets are asked once about every person; the
answers are kept beside OUT in a folder `samples-...`, which every later run on the same nets, pictures and boxes uses,
whatever its reading of the loss (`calibration.okd.Reading`; the options below are its switches).

`--batch 1` is the paper's recipe: one epoch of the labelled boxes that count in the loss (with `--released` of all, as
the authors' code has it), Adam at 1e-4 with weight decay 0.005 in the gradient, 5 linear warm-up steps from a hundredth
of that, constant after, normalisation over single crops, float32, no augmentation. Larger batches are another recipe,
for little data: 8 epochs of a one-cycle rate up to 1e-3, mirrored and brightened crops, and besides the labelled boxes
sloppy ones and, at a lower weight and with target 1, wrong ones, so that these come to lie above k2 (fig. 5).

A fixed tenth of the pictures is held back (or all of the split --validate, and then nothing). After every epoch the
recovered gain on those people against p goes to OUT with suffix `.log` as a line of JSON, at the end also to `.png`.
The weights of the last epoch are kept: choosing among epochs by so few people would be choosing noise. An interrupted
run goes on from `.checkpoint`. Which network it is goes to `.json`, so that `--router OUT` and the setting ROUTER=OUT
are enough; the entry for `pair.json` is printed. Other scores need another calibration:

    python -m calibration.thresholds PICTURES --pair FOLDER --router OUT
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from calibration import curve
from calibration.data import LabelledImage, Pictures, annotations_sha256, is_held_back, read_split
from calibration.learning import BATCHED, PAPER, Recipe, train
from calibration.okd import JOINT_WEIGHTS, RECOMMENDED, RELEASED, Reading
from calibration.samples import Boxes, Samples, SamplesError, collect, folder_name
from models.runtime import resolve_device, resolve_dtype, resolve_runtime
from models.skeleton import SKELETONS
from models.zoo import Manifest, PairError, load_estimator, save_weights
from models.zoo.options import add_pair_arguments, pair_from
from models.zoo.sidecar import sidecar_path


def with_people(data: Path, split: str) -> list[LabelledImage]:
    """The pictures of a split that have somebody with keypoints. Raises FileNotFoundError, DataError."""
    return [image for image in read_split(data, split) if any(person.has_pose for person in image.people)]


def check_joints(manifest: Manifest) -> None:
    """Raises SamplesError where the released code has no weights for the joints."""
    for entry in (manifest.small, manifest.large):
        joints = len(SKELETONS[entry.keypoints].keypoints)
        if joints != len(JOINT_WEIGHTS):
            raise SamplesError(
                f"{entry.name} has {joints} keypoints, the released code's joint weights are of {len(JOINT_WEIGHTS)}"
            )


def ask(
    options: argparse.Namespace, manifest: Manifest, boxes: Boxes, device: torch.device
) -> tuple[Samples, str]:
    """The samples of these nets, boxes and pictures, and the name of their folder. Raises PairError, SamplesError."""
    images = [
        (image, is_held_back(image.id) and not options.validate)
        for image in with_people(options.data, options.split)
    ]
    if options.limit:
        chosen = np.random.default_rng(0).permutation(len(images))[: options.limit]
        images = [images[index] for index in chosen]
    if options.validate:
        images += [(image, True) for image in with_people(options.data, options.validate)]
    pair = str(manifest.folder)
    dtype = resolve_dtype(device, options.precision)
    question: dict[str, object] = {
        "nets": [entry.model_dump(mode="json") for entry in (manifest.small, manifest.large)],
        "data": str(options.data.resolve()),
        "splits": [
            (split, annotations_sha256(options.data, split))
            for split in (options.split, options.validate)
            if split
        ],
        "limit": options.limit,
        "boxes": boxes,
        "arithmetic": [str(dtype), resolve_runtime(device, "auto")],
    }
    folder = (options.samples or options.out.parent) / folder_name(question)
    small, large = (load_estimator(pair, entry, device, dtype) for entry in (manifest.small, manifest.large))
    return collect(folder, images, Pictures(options.data), small, large, boxes), folder.name


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Reading, Recipe]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with people in COCO's keypoint format")
    parser.add_argument("--split", default="train", help="train; COCO's is train2017")
    parser.add_argument("--validate", metavar="SPLIT", help="people to validate on (a tenth of --split)")
    add_pair_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/router.safetensors"))
    parser.add_argument("--samples", type=Path, help="where to keep what the nets answer (beside OUT)")
    parser.add_argument("--limit", type=int, help="pictures to use, drawn at random (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="of the nets"
    )
    recipe = parser.add_argument_group(
        "recipe", "defaults are the paper's for --batch 1, else those for little data"
    )
    recipe.add_argument("--batch", type=int, default=BATCHED.batch)
    recipe.add_argument("--epochs", type=int)
    recipe.add_argument("--rate", type=float)
    recipe.add_argument("--decay", type=float, help="weight decay")
    recipe.add_argument("--augment", action=argparse.BooleanOptionalAction, help="mirror and brighten crops")
    recipe.add_argument("--boxes", choices=["labelled", "all"], help="all: sloppy and wrong ones as well")
    recipe.add_argument("--pooling", choices=["avg", "max", "none"], help="of the router, table 5 (avg)")
    recipe.add_argument("--pconv", action=argparse.BooleanOptionalAction, help="partial convolutions (yes)")
    recipe.add_argument("--sge", action=argparse.BooleanOptionalAction, help="spatial attention (yes)")
    loss = parser.add_argument_group("reading of eq. 5 and 6")
    loss.add_argument(
        "--released", action="store_true", help="the authors' loss as it is, with its three terms"
    )
    loss.add_argument(
        "--filter", type=float, nargs=2, metavar=("LOW", "HIGH"), help="differences in OKS that count"
    )
    loss.add_argument("--no-filter", action="store_true", help="everybody counts, as in the paper's text")
    loss.add_argument("--filter-area", choices=["crop", "person"], help="area in the filter's OKS (crop)")
    loss.add_argument("--clamp", action=argparse.BooleanOptionalAction, help="keep targets within 0..1 (no)")
    loss.add_argument(
        "--axes", choices=["pixels", "size", "swapped"], help="divide x, y by width, height (pixels)"
    )
    loss.add_argument("--cells", action=argparse.BooleanOptionalAction, help="round to heatmap cells (no)")
    loss.add_argument(
        "--joint-weights", action=argparse.BooleanOptionalAction, help="the released code's (no)"
    )
    options = parser.parse_args(arguments)

    switches = ("filter_area", "clamp", "axes", "cells", "joint_weights")
    given = {name: value for name in switches if (value := getattr(options, name)) is not None}
    if options.filter or options.no_filter:
        given["oks_filter"] = None if options.no_filter else tuple(options.filter)
    if options.released and given:
        parser.error("--released fixes the reading, the other switches of the reading do not go with it")
    base = PAPER if options.batch == 1 else BATCHED
    changes = {
        name: value
        for name in (
            *("batch", "epochs", "rate", "decay", "augment", "boxes", "seed"),
            *("pooling", "pconv", "sge"),
        )
        if (value := getattr(options, name)) is not None
    }
    if options.released:
        if changes.setdefault("boxes", "labelled") != "labelled":
            parser.error("--released knows labelled boxes only")
        changes["released"] = True
    if min(options.batch, changes.get("epochs", 1), options.limit or 1) < 1:
        parser.error("--batch, --epochs and --limit are 1 or more")
    return options, RELEASED if options.released else replace(RECOMMENDED, **given), replace(base, **changes)


def main(arguments: list[str] | None = None) -> int:
    options, reading, recipe = parse(arguments)
    manifest = pair_from(options)
    try:
        device = resolve_device(options.device)
        if resolve_dtype(device, "auto") is not torch.bfloat16:
            recipe = replace(recipe, autocast=False)
        if reading.joint_weights:
            check_joints(manifest)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        samples, asked = ask(options, manifest, recipe.boxes, device)
        run = json.dumps([asked, asdict(reading), asdict(recipe)])
        router, lines = train(samples, reading, recipe, device, options.out, run)
    except (PairError, SamplesError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    save_weights(router, options.out)
    options.out.with_suffix(".checkpoint").unlink(missing_ok=True)
    if "p" in lines[-1]:
        curve.plot(lines, options.out.with_suffix(".png"))
    network = {"architecture": "dynpose", "config": router.config.model_dump()}
    sidecar_path(options.out).write_text(json.dumps(network) + "\n")
    file = {
        "file": options.out.name,
        "sha256": hashlib.sha256(options.out.read_bytes()).hexdigest(),
    }
    print(f'pair.json: "router": {json.dumps(file | network)}')
    return 0


if __name__ == "__main__":
    sys.exit(main())
