import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from ultralytics.utils import ASSETS

from models.router import DifficultyScorer, Router, RouterConfig
from models.zoo import (
    EstimatorEntry,
    PairError,
    load_detector,
    load_estimator,
    load_pair,
    load_router,
    named_entry,
    read_manifest,
    read_weights,
)
from models.zoo.manifest import EMBEDDED
from models.zoo.options import add_pair_arguments, pair_from

CPU = torch.device("cpu")


@pytest.fixture
def pair_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, tmp_path / "pair"))


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "pair.json").read_text())
    (folder / "pair.json").write_text(json.dumps(manifest | changes))


def test_the_bundled_pair_loads_and_names_its_networks():
    pair = load_pair("embedded", CPU, torch.float32)
    assert pair.manifest.calibration_path.is_file()
    assert set(pair.manifest.names()) == {"pair", "detector", "router", "small", "large"}


def test_the_bundled_router_has_the_small_net_in_it() -> None:
    picture = torch.from_numpy(cv2.imread(str(ASSETS / "bus.jpg"))).flip(2)
    pair = load_pair("embedded", CPU, torch.float32, "eager")
    alone = load_estimator("embedded", pair.manifest.small, CPU, torch.float32, "eager")
    boxes = pair.detector([picture], [0.35])[0]
    known = pair.router.with_keypoints([picture] * len(boxes), boxes[:, :4], boxes[:, 4])[1]
    assert known is not None
    assert len(known) == 4
    assert torch.allclose(known, alone([picture] * len(boxes), boxes[:, :4]), atol=1e-2)


@pytest.mark.parametrize("change", ["a weight", "the padding", "the codec"])
def test_a_router_with_another_small_net_in_it_leaves_the_pairs_own_to_run(
    pair_copy: Path, change: str
) -> None:
    manifest = json.loads((pair_copy / "pair.json").read_text())
    if change == "a weight":
        weights = load_file(pair_copy / "small.safetensors")
        weights["head.final.bias"][3] += 0.25
        save_file(weights, pair_copy / "small.safetensors")
        data = (pair_copy / "small.safetensors").read_bytes()
        manifest["small"]["sha256"] = hashlib.sha256(data).hexdigest()
    else:
        manifest["small"] |= {"padding": 1.3} if change == "the padding" else {"codec": "dark_udp"}
    (pair_copy / "pair.json").write_text(json.dumps(manifest))
    pair = load_pair(str(pair_copy), CPU, torch.float32, "eager")
    picture, boxes = torch.zeros(100, 100, 3, dtype=torch.uint8), torch.tensor([[10.0, 10, 50, 80]])
    assert pair.router.with_keypoints([picture], boxes, torch.ones(1))[1] is None
    assert pair.small([picture], boxes).shape == (1, 17, 3)


def test_a_pair_in_a_folder_of_ones_own_is_used(pair_copy: Path):
    assert load_pair(str(pair_copy), CPU, torch.float32).manifest.folder == pair_copy


@pytest.mark.parametrize("name", ["detector", "router", "small", "large"])
def test_a_changed_weight_file_is_refused_before_it_is_opened(pair_copy: Path, name: str):
    path = pair_copy / read_manifest(str(pair_copy)).model_dump()[name]["file"]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(PairError, match=f"{path.name}.*sha256"):
        load_pair(str(pair_copy), CPU, torch.float32)


@pytest.mark.parametrize("name", ["detector-int8.xml", "detector-int8.bin"])
def test_a_changed_detector_in_int8_is_refused_where_it_would_be_used(pair_copy: Path, name: str):
    path = pair_copy / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    load_pair(str(pair_copy), CPU, torch.float32)
    with pytest.raises(PairError, match=f"{name}.*sha256"):
        load_pair(str(pair_copy), CPU, torch.float32, int8=True)


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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Spot(nn.Module):
    """Stands for one of the paper's networks."""

    def __init__(self, keypoints: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(3, keypoints, 4, 4)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.final_layer(crops)  # type: ignore[no-any-return]


@pytest.fixture
def spot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of weights that `resnet50` and `vitpose-b` take here."""
    monkeypatch.setattr("models.zoo.pairs.build_network", lambda _, keypoints: Spot(keypoints))
    save_file(Spot(17).state_dict(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.mark.parametrize(
    ("name", "codec", "udp"), [("resnet50", "quarter", False), ("vitpose-b", "dark_udp", True)]
)
def test_a_network_of_the_paper_comes_by_name_and_file(spot: Path, name: str, codec: str, udp: bool):
    manifest = read_manifest("embedded", small=f"{name}={spot}")
    assert manifest.small.codec == codec
    assert manifest.names()["small"] == f"{name}-192x256-{sha256(spot)[:8]}"
    assert manifest.names()["pair"] == "embedded with another small"
    assert manifest.large == read_manifest("embedded").large
    pair = load_pair(manifest, CPU, torch.float32)
    assert pair.small.udp is udp
    assert pair.small.network(torch.zeros(2, 3, 256, 192)).shape == (2, 17, 64, 48)
    assert pair.manifest.calibration_path == EMBEDDED / "calibration.json"


def test_a_file_named_like_its_network_needs_no_name(spot: Path):
    path = spot.rename(spot.with_name("vitpose-b-simple_mine.safetensors"))
    assert read_manifest("embedded", large=str(path)).large.architecture == "vitpose-b-simple"


def test_a_path_with_an_equals_sign_is_a_path(spot: Path):
    path = spot.rename(spot.with_name("resnet50=best.safetensors"))
    assert read_manifest("embedded", large=str(path)).large.architecture == "resnet50"
    assert read_manifest("embedded", large=f"hrnet-w32={path}").large.architecture == "hrnet-w32"


def test_the_file_beside_weights_says_what_they_are(tmp_path: Path):
    path = Path(shutil.copy(EMBEDDED / "small.safetensors", tmp_path / "mine.safetensors"))
    described = {"architecture": "tinypose", "input": {"shape": [1, 3, 160, 128]}, "codec": "quarter"}
    path.with_suffix(".json").write_text(json.dumps(described))
    entry = named_entry(EstimatorEntry, "small", str(path))
    assert (entry.architecture, entry.input_size, entry.codec) == ("tinypose", (128, 160), "quarter")
    estimator = load_estimator("embedded", entry, CPU, torch.float32, "eager")
    assert estimator.network(torch.zeros(1, 3, 160, 128)).shape == (1, 17, 40, 32)


def test_a_net_of_crowdpose_has_its_keypoints(spot: Path):
    save_file(Spot(14).state_dict(), spot)
    spot.with_suffix(".json").write_text(json.dumps({"architecture": "resnet50", "keypoints": "crowdpose"}))
    entry = named_entry(EstimatorEntry, "small", str(spot))
    estimator = load_estimator("embedded", entry, CPU, torch.float32)
    picture = torch.zeros(64, 48, 3, dtype=torch.uint8)
    assert estimator([picture], torch.tensor([[0.0, 0, 48, 64]]), flip_test=True).shape == (1, 14, 3)


def test_weights_for_other_keypoints_are_refused(spot: Path):
    save_file(Spot(14).state_dict(), spot)
    with pytest.raises(PairError, match=r"mine\.safetensors"):
        load_pair(read_manifest("embedded", small=f"resnet50={spot}"), CPU, torch.float32)


def test_the_file_that_is_loaded_is_the_one_whose_hash_is_right(spot: Path):
    """And not a newer one of its name beside it, whatever that says it was made of."""
    pickled = spot.with_suffix(".pth")
    weights = {key: torch.zeros_like(value) for key, value in Spot(17).state_dict().items()}
    torch.save(weights, pickled)
    os.utime(pickled, (0, 0))
    save_file(Spot(17).state_dict(), spot, {"sha256": sha256(pickled)})
    entry = named_entry(EstimatorEntry, "small", f"resnet50={pickled}")
    assert not read_weights("embedded", entry)["final_layer.weight"].any()


def test_a_file_changed_after_it_was_named_is_refused(spot: Path):
    manifest = read_manifest("embedded", small=f"resnet50={spot}")
    save_file({key: value + 1 for key, value in Spot(17).state_dict().items()}, spot)
    with pytest.raises(PairError, match="sha256"):
        load_pair(manifest, CPU, torch.float32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/nowhere/net.onnx", "SMALL: cannot read /nowhere/net.onnx: No such file"),
        ("resnet50=/nowhere.pth", "SMALL: cannot read /nowhere.pth: No such file"),
        ("resnet50", "give FILE or NAME=FILE, NAME one of tinypose"),
        ("{folder}", "Is a directory"),
        ("{mine}", "mine.safetensors does not say which network it holds; give NAME=FILE"),
        ("resnet51={mine}", "'resnet51' is none of tinypose"),
        ("tinypose={mine}", "input_size: Field required; mine.json can say"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(spot: Path, given: str, said: str):
    with pytest.raises(PairError) as refused:
        read_manifest("embedded", small=given.format(folder=spot.parent, mine=spot))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_yolo_by_name_and_file_becomes_the_detector(tmp_path: Path):
    path = Path(shutil.copy(EMBEDDED / "detector.safetensors", tmp_path / "yolov8s-light-mine.safetensors"))
    manifest = read_manifest("embedded", detector=str(path))
    assert manifest.names()["detector"] == f"yolov8s-light-512-{sha256(path)[:8]}"
    load_detector("embedded", manifest.detector, CPU, torch.float32, "eager")


def test_a_yolo_by_the_name_of_another_is_refused(tmp_path: Path):
    path = Path(shutil.copy(EMBEDDED / "detector.safetensors", tmp_path / "yolov8s-mine.safetensors"))
    manifest = read_manifest("embedded", detector=str(path))
    with pytest.raises(PairError, match="does not fit its architecture, yolov8s"):
        load_detector("embedded", manifest.detector, CPU, torch.float32, "eager")


def test_weights_that_are_no_safetensors_are_one_line(tmp_path: Path):
    (tmp_path / "yolov8n.safetensors").write_bytes(b"nothing")
    with pytest.raises(PairError, match=r"yolov8n\.safetensors"):
        load_pair(
            read_manifest("embedded", detector=str(tmp_path / "yolov8n.safetensors")), CPU, torch.float32
        )


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_authors_router_comes_by_name_and_file(tmp_path: Path, prefix: str):
    """Their file has three outputs."""
    router = Router(RouterConfig(outputs=3, score_index=1))
    path = tmp_path / "router.safetensors"
    save_file({prefix + key: value for key, value in router.state_dict().items()}, path)
    manifest = read_manifest("embedded", router=f"dynpose={path}")
    assert manifest.replaced == ("router",)
    assert manifest.names()["router"] == f"router-{sha256(path)[:8]}"
    loaded = load_router("embedded", manifest.router, CPU, torch.float32)
    assert isinstance(loaded, DifficultyScorer)
    crops = torch.randn(2, 3, 256, 192)
    with torch.inference_mode():
        expected = router.eval()(crops)
    assert torch.allclose(loaded.network(crops), expected, atol=1e-6)


def test_a_routers_switches_are_in_the_file_beside_it(tmp_path: Path):
    config = RouterConfig(pooling="none", pconv=False)
    save_file(Router(config).state_dict(), tmp_path / "mine.safetensors")
    described = {"architecture": "dynpose", "config": {"pooling": "none", "pconv": False}}
    (tmp_path / "mine.json").write_text(json.dumps(described))
    manifest = read_manifest("embedded", router=str(tmp_path / "mine.safetensors"))
    assert manifest.router.config == config
    load_router("embedded", manifest.router, CPU, torch.float32)


def test_a_pair_json_may_name_an_onnx_net_by_its_file_and_hash(pair_copy: Path):
    pytest.importorskip("onnxruntime")
    from tests.models.zoo.onnx_nets import LISTED, constant_net, heatmap_net

    net = heatmap_net(pair_copy / "mine.onnx", batch="batch", codec="quarter")
    finder = constant_net(pair_copy / "finder.onnx", LISTED, [[[8.0, 4, 24, 20, 0.9]]], [[0]])
    edit(
        pair_copy,
        large={"architecture": "onnx", "file": net.name, "sha256": sha256(net)},
        detector={"architecture": "onnx", "file": finder.name, "sha256": sha256(finder)},
    )
    pair = load_pair(str(pair_copy), CPU, torch.float32)
    assert pair.manifest.names()["large"] == f"mine-48x64-{sha256(net)[:8]}"
    assert pair.manifest.replaced == ()
    assert pair.large.codec == "quarter"
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8)
    assert pair.detector([picture], [0.5])[0].tolist() == [pytest.approx([8, 4, 16, 16, 0.9])]
    with net.open("ab") as file:
        file.write(b" ")
    with pytest.raises(PairError, match=r"mine\.onnx.*sha256"):
        load_pair(str(pair_copy), CPU, torch.float32)


def test_an_unknown_network_in_pair_json_is_said_with_the_known_ones(pair_copy: Path):
    manifest = read_manifest(str(pair_copy)).model_dump(mode="json")
    edit(pair_copy, small=manifest["small"] | {"architecture": "bignet"})
    with pytest.raises(PairError, match=r"small\.architecture: 'bignet' is none of tinypose"):
        read_manifest(str(pair_copy))


@pytest.mark.parametrize("content", ["", "[]", '{"pair": 1'])
def test_a_pair_json_that_is_no_object_is_one_line(pair_copy: Path, content: str):
    (pair_copy / "pair.json").write_text(content)
    with pytest.raises(PairError, match=r"pair\.json"):
        read_manifest(str(pair_copy))


def test_every_command_line_chooses_a_pair_alike(spot: Path):
    parser = argparse.ArgumentParser()
    add_pair_arguments(parser)
    assert pair_from(parser.parse_args([])) == read_manifest("embedded")
    options = parser.parse_args(["--pair", str(EMBEDDED), "--large", f"resnet50={spot}"])
    assert pair_from(options).large.architecture == "resnet50"
    with pytest.raises(SystemExit, match=r"ROUTER: cannot read /nowhere"):
        pair_from(parser.parse_args(["--router", "pose=/nowhere"]))
