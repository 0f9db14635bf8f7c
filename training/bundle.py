"""Writes `pair.json` of the bundled pair: names its files with their hashes.

python -m training.bundle models/weights
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from models.defaults import DETECTOR_SIZE

QUANTIZED = "detector-int8.xml"
"""Its weights are in the .bin beside it."""

NETWORKS: dict[str, dict[str, object]] = {
    "detector": {"architecture": "yolov8s", "input_size": DETECTOR_SIZE},
    "router": {"architecture": "pose"},
    "small": {"architecture": "tinypose", "input_size": [96, 128], "codec": "dark"},
    "large": {"architecture": "tinypose-two-scale", "input_size": [288, 384], "codec": "dark"},
}


def bundle(folder: Path) -> None:
    """Write `folder/pair.json`. A file that is not there yet gets a hash of zeros, which nothing matches."""
    manifest: dict[str, Any] = {"pair": "embedded"}
    for name, entry in NETWORKS.items():
        path = folder / f"{name}.safetensors"
        digest = sha256(path) if path.exists() else "0" * 64
        manifest[name] = {"file": path.name, "sha256": digest, **entry}
    int8, weights = folder / QUANTIZED, (folder / QUANTIZED).with_suffix(".bin")
    if int8.exists():
        manifest["detector"] |= {
            "int8": {
                "file": int8.name,
                "sha256": sha256(int8),
                "weights_file": weights.name,
                "weights_sha256": sha256(weights),
            }
        }
    manifest["calibration"] = "calibration.json"
    (folder / "pair.json").write_text(json.dumps(manifest, indent=1) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pair.json for a folder of weights.")
    parser.add_argument("folder", type=Path)
    bundle(parser.parse_args().folder)


if __name__ == "__main__":
    main()
