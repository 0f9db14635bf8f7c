import hashlib
import json
from pathlib import Path

from models.zoo import read_manifest
from models.zoo.manifest import EMBEDDED
from training.bundle import bundle


def test_the_bundled_pair_is_what_the_command_writes(tmp_path: Path) -> None:
    for path in EMBEDDED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pair.json").unlink()
    bundle(tmp_path)
    assert (tmp_path / "pair.json").read_text() == (EMBEDDED / "pair.json").read_text()
    assert read_manifest(str(tmp_path)).detector.int8 is not None


def test_without_a_detector_in_int8_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "small.safetensors").write_bytes(b"weights")
    bundle(tmp_path)
    manifest = json.loads((tmp_path / "pair.json").read_text())
    assert "int8" not in manifest["detector"]
    assert manifest["small"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert manifest["large"]["sha256"] == "0" * 64
