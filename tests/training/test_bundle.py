import hashlib
import json
import shutil
from pathlib import Path

import pytest

from models.detector import build_network
from models.zoo import read_manifest, save_weights
from models.zoo.manifest import EMBEDDED
from training.bundle import bundle, name_int8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))


def test_the_bundled_pair_is_what_the_command_writes(folder: Path) -> None:
    before = (folder / "pair.json").read_text()
    bundle(folder)
    assert (folder / "pair.json").read_text() == before
    assert read_manifest(str(folder)).detector.int8 is not None


@pytest.mark.parametrize("architecture", ["yolov8s", "yolov8s-light"])
def test_a_new_detector_has_no_int8_form_until_that_is_made_too(folder: Path, architecture: str) -> None:
    save_weights(build_network(architecture), folder / "detector.safetensors")
    bundle(folder)
    detector = read_manifest(str(folder)).detector
    assert (detector.architecture, detector.int8) == (architecture, None)
    (folder / "new.xml").write_bytes(b"layers")
    (folder / "new.bin").write_bytes(b"weights")
    name_int8(folder, folder / "new.xml")
    int8 = read_manifest(str(folder)).detector.int8
    assert int8 is not None
    assert int8.sha256 == hashlib.sha256(b"layers").hexdigest()
    assert int8.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (int8.file, int8.weights_file) == ("new.xml", "new.bin")


def test_files_that_are_not_there_yet_have_a_hash_that_nothing_matches(tmp_path: Path) -> None:
    (tmp_path / "small.safetensors").write_bytes(b"weights")
    bundle(tmp_path)
    manifest = json.loads((tmp_path / "pair.json").read_text())
    assert manifest["pair"] == tmp_path.name
    assert manifest["small"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert manifest["large"]["sha256"] == "0" * 64
