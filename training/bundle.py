"""Writes `pair.json` of a pair like the bundled one: names its files with their hashes.

python -m training.bundle models/weights
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from models.defaults import DETECTOR_SIZE
from models.detector import LIGHT

NETWORKS: dict[str, dict[str, object]] = {
    "detector": {"architecture": LIGHT, "input_size": DETECTOR_SIZE},
    "router": {"architecture": "pose"},
    "small": {"architecture": "tinypose", "input_size": [96, 128], "codec": "dark"},
    "large": {"architecture": "tinypose-two-scale", "input_size": [288, 384], "codec": "dark"},
}


def bundle(folder: Path) -> None:
    """Write `folder/pair.json`. The pair keeps its name; a new one has that of its folder. A file that is not there yet
    gets a hash of zeros, which nothing matches. A detector's int8 form, which `training.quantize` names, stays for as
    long as the detector is the same."""
    path = folder / "pair.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    manifest: dict[str, Any] = {"pair": before.get("pair", folder.resolve().name)}
    for name, entry in NETWORKS.items():
        weights = folder / f"{name}.safetensors"
        digest = sha256(weights) if weights.exists() else "0" * 64
        manifest[name] = {"file": weights.name, "sha256": digest, **entry}
        if name == "detector" and weights.exists() and not is_light(weights):
            manifest[name]["architecture"] = "yolov8s"
    detector = before.get("detector", {})
    if "int8" in detector and detector["sha256"] == manifest["detector"]["sha256"]:
        manifest["detector"]["int8"] = detector["int8"]
    manifest["calibration"] = "calibration.json"
    write(path, manifest)


def is_light(detector: Path) -> bool:
    """Whether a detector's weights are of `training.light_head`, not of `training.detector`."""
    with safe_open(detector, "pt") as weights:
        return any(key.endswith(".cv3.0.1.0.conv.weight") for key in weights.keys())  # noqa: SIM118


def name_int8(folder: Path, network: Path) -> None:
    """Write the detector's int8 form, `network` and the .bin beside it, into `folder/pair.json`."""
    path = folder / "pair.json"
    manifest = json.loads(path.read_text())
    weights = network.with_suffix(".bin")
    manifest["detector"]["int8"] = {
        "file": network.name,
        "sha256": sha256(network),
        "weights_file": weights.name,
        "weights_sha256": sha256(weights),
    }
    write(path, manifest)


def write(path: Path, manifest: dict[str, Any]) -> None:
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pair.json for a folder of weights.")
    parser.add_argument("folder", type=Path)
    bundle(parser.parse_args().folder)


if __name__ == "__main__":
    main()
