import json
import shutil
from pathlib import Path

import pytest
import torch

from models.zoo import PairError, load_pair, read_manifest
from models.zoo.pairs import EMBEDDED

CPU = torch.device("cpu")


@pytest.fixture
def pair_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "pair.json").read_text())
    (folder / "pair.json").write_text(json.dumps(manifest | changes))


def test_the_bundled_pair_loads_and_names_its_networks():
    pair = load_pair("embedded", CPU, torch.float32)
    assert pair.calibration.is_file()
    assert set(pair.manifest.names()) == {"pair", "detector", "router", "small", "large"}


def test_a_pair_in_a_folder_of_ones_own_is_used(pair_copy: Path):
    assert load_pair(str(pair_copy), CPU, torch.float32).calibration.parent == pair_copy


@pytest.mark.parametrize("name", ["detector", "router", "small", "large"])
def test_a_changed_weight_file_is_refused_before_it_is_opened(pair_copy: Path, name: str):
    path = pair_copy / read_manifest(str(pair_copy)).model_dump()[name]["file"]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PairError, match=f"{path.name}.*sha256"):
        load_pair(str(pair_copy), CPU, torch.float32)


def test_a_missing_weight_file_is_named(pair_copy: Path):
    (pair_copy / read_manifest(str(pair_copy)).large.file).unlink()
    with pytest.raises(PairError, match="cannot read"):
        load_pair(str(pair_copy), CPU, torch.float32)


def test_weights_of_another_architecture_are_refused(pair_copy: Path):
    manifest = read_manifest(str(pair_copy)).model_dump(mode="json")
    edit(
        pair_copy,
        large=manifest["large"]
        | {"file": manifest["router"]["file"], "sha256": manifest["router"]["sha256"]},
    )
    with pytest.raises(PairError, match="does not fit"):
        load_pair(str(pair_copy), CPU, torch.float32)


def test_a_file_outside_the_folder_cannot_be_named(pair_copy: Path):
    manifest = read_manifest(str(pair_copy)).model_dump(mode="json")
    edit(pair_copy, small=manifest["small"] | {"file": "../small.safetensors"})
    with pytest.raises(PairError, match=r"small\.file"):
        read_manifest(str(pair_copy))


def test_a_missing_folder_is_one_clear_line():
    with pytest.raises(PairError, match="nowhere"):
        read_manifest("/nowhere")
