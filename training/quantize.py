"""Makes the int8 form of a pair's YOLO, which CPUs with AVX2 run in half to three quarters of the time.

    python -m training.quantize DATA --pair FOLDER

Writes `detector-int8.xml` and `.bin`, OpenVINO's, beside the pair's other files, and names them in its `pair.json`.
NNCF's post-training quantization looks at training pictures; then the float and the int8 network are measured on the
held-back tenth of them. Needs the extra `quantize`.

Left as they are: the first layer, whose errors go through all the others, the last of each branch of the head, and what
makes boxes of their output: in 8 bits a coordinate has 256 values, 2 pixels apart. All that is little arithmetic.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.accuracy import accuracy
from calibration.commands import run_command
from calibration.data import LabelledImage, Pictures, has_split, is_held_back, read_split
from calibration.detection import complete, find, match_boxes
from calibration.inputs import missing_split
from models.detector import YoloDetector, letterbox, load_yolo
from models.openvino import convert, package
from models.runtime import compile_network, resolve_dtype
from models.zoo import DetectorEntry, read_manifest, read_weights
from training.bundle import name_int8

NAME = "detector-int8.xml"
FIRST = ".network.model.0."
LAST = tuple(f".head.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in range(3))


def main() -> int:
    parser = argparse.ArgumentParser(description="Quantize a pair's YOLO to int8.")
    parser.add_argument("data", type=Path, help="folder with train.json and its pictures")
    parser.add_argument("--pair", type=Path, required=True, help="folder of the pair, which is changed")
    parser.add_argument("--pictures", type=int, default=300, help="that the ranges of values are taken from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not has_split(options.data, "train"):
        return missing_split(options.data, "train")
    pair = str(options.pair)
    entry = read_manifest(pair).detector
    images = complete(read_split(options.data, "train"))
    learning = [image for image in images if not is_held_back(image.id)]
    chosen = random.Random(options.seed).sample(learning, min(options.pictures, len(learning)))
    pictures = Pictures(options.data)
    model = convert(load_yolo(read_weights(pair, entry), entry.architecture), None)
    quantized = quantize(model, list(inputs(chosen, pictures, entry.input_size)))
    path = options.pair / NAME
    package().save_model(quantized, path, compress_to_fp16=False)
    name_int8(options.pair, path)
    held_back = [image for image in images if is_held_back(image.id)]
    print(f"{path}: {len(chosen)} pictures; person AP, AP50 and AR on {len(held_back)} held back")
    for line in compare(pair, entry, path, held_back, pictures):
        print(line)
    return 0


def inputs(images: Sequence[LabelledImage], pictures: Pictures, size: int) -> Iterator[NDArray[np.float32]]:
    """What the converted network takes of each picture: (1, h, w, 3) in 0..1."""
    for image in images:
        yield letterbox(pictures(image), size).permute(1, 2, 0)[None].float().div(255).contiguous().numpy()


def quantize(model: Any, examples: Sequence[NDArray[np.float32]]) -> Any:
    """`model`, from `models.openvino.convert`, with its convolutions in int8."""
    package()  # without telemetry, also NNCF's
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(examples),
        subset_size=len(examples),
        preset=nncf.QuantizationPreset.MIXED,  # SiLU's output begins just below 0
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=list(left_alone(model)), validate=False),
    )


def left_alone(model: Any) -> Iterator[str]:
    """Names of the operations that stay in floating point: those of no layer, and the first and last layer."""
    for operation in model.get_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        of_a_layer = name.startswith("__module.") and not name.startswith("__module.head/")
        delicate = "Convolution" in kind and any(part in name for part in (FIRST, *LAST))
        if kind not in ("Constant", "Parameter") and (delicate or not of_a_layer):
            yield name


def compare(
    pair: str, entry: DetectorEntry, quantized: Path, images: Sequence[LabelledImage], pictures: Pictures
) -> Iterator[str]:
    """A line for the network in float32 and one for it in int8, the rest of that in the CPU's own precision."""
    cpu = torch.device("cpu")
    weights = read_weights(pair, entry)
    for name, dtype, int8 in (
        ("float32", torch.float32, None),
        ("int8", resolve_dtype(cpu, "auto"), quantized),
    ):
        network = compile_network(
            lambda: load_yolo(weights, entry.architecture), cpu, dtype, "openvino", quantized=int8
        )
        detector = YoloDetector(network, input_size=entry.input_size)
        result = accuracy(match_boxes(images, find(detector, pictures, images)))
        yield f"{name:8} {result.ap:.4f} {result.ap50:.4f} {result.ar:.4f}"


if __name__ == "__main__":
    run_command(main)
