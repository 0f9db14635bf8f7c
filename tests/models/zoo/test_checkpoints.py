import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from models.router import Router, RouterConfig
from models.zoo.checkpoints import CheckpointError, keep_weights, load_checkpoint
from models.zoo.networks import NETWORKS, build_network
from models.zoo.networks.heads import DeconvHead, PoseNetwork, SimpleHead
from models.zoo.networks.vit import ViT

DATA = Path(__file__).parents[2] / "data" / "networks"


def network_of(head: str = "classic", keypoints: int = 17) -> nn.Module:
    """A ViTPose of two layers and 32 channels, which has every kind of name that the large ones have."""
    heads = {"classic": DeconvHead(32, keypoints, 2), "simple": SimpleHead(32, keypoints)}
    return PoseNetwork(ViT(32, 2, 2), heads[head]).eval()


def random_weights(network: nn.Module) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=rng) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }


def to_mmpose(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a ViTPose -> MMPose's."""
    names = {
        ".ffn.0.": ".ffn.layers.0.0.",
        ".ffn.2.": ".ffn.layers.1.",
        ".patch_embed.": ".patch_embed.projection.",
    }
    return {replaced(key, names): value for key, value in weights.items()}


def to_hugging_face(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of a ViTPose -> those of transformers' VitPoseForPoseEstimation 5.24."""
    names = {
        "backbone.layers.": "backbone.encoder.layer.",
        "backbone.ln1.": "backbone.layernorm.",
        ".patch_embed.": ".embeddings.patch_embeddings.projection.",
        ".attn.proj.": ".attention.output.dense.",
        ".ln1.": ".layernorm_before.",
        ".ln2.": ".layernorm_after.",
        ".ffn.0.": ".mlp.fc1.",
        ".ffn.2.": ".mlp.fc2.",
        "deconv_layers.0.": "deconv1.",
        "deconv_layers.1.": "batchnorm1.",
        "deconv_layers.3.": "deconv2.",
        "deconv_layers.4.": "batchnorm2.",
        "head.final_layer.": "head.conv.",
    }
    theirs = {}
    for key, value in weights.items():
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                name = replaced(key, {".attn.qkv.": f".attention.attention.{part}."} | names)
                theirs[name] = rows.clone()
        elif key == "backbone.pos_embed":
            token = torch.full_like(value[:, :1], 0.25)
            theirs["backbone.embeddings.position_embeddings"] = torch.cat([token, value - token], dim=1)
        else:
            theirs[replaced(key, names)] = value
    return theirs


def replaced(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def assert_loaded(network: nn.Module, weights: dict[str, Tensor]) -> None:
    found = network.state_dict()
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.allclose(found[key], value, atol=1e-6), key


@pytest.fixture
def pth(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file as MMPose 1.x leaves it, and its weights under our names."""
    weights = random_weights(network_of())
    content = {"state_dict": to_mmpose(weights), "meta": {"epoch": 210, "cfg": "model = dict()"}}
    torch.save(content, tmp_path / "vitpose-00000000.pth")
    return tmp_path / "vitpose-00000000.pth", weights


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_saves_it_loads(name: str):
    with torch.device("meta"):
        network, other = build_network(name), build_network(name)
    load_checkpoint(network, other.state_dict())


@pytest.mark.parametrize("head", ["classic", "simple"])
def test_hugging_face_names_are_known(head: str):
    weights = random_weights(network_of(head))
    network = network_of(head)
    load_checkpoint(network, to_hugging_face(weights))
    assert_loaded(network, weights)


def test_names_from_before_mmpose_1_are_known():
    weights = random_weights(network_of())
    network = network_of()
    old = {key.replace("head.", "keypoint_head."): value for key, value in to_mmpose(weights).items()}
    load_checkpoint(network, old)
    assert_loaded(network, weights)


def test_the_authors_router_is_known():
    shapes = {key: shape for key, shape, _ in json.loads((DATA / "router_keys.json").read_text())}
    router = Router(RouterConfig(outputs=3, score_index=1))
    weights = random_weights(router)
    assert {f"backbone.{key}": list(value.shape) for key, value in weights.items()} == shapes
    load_checkpoint(router, {f"backbone.{key}": value for key, value in weights.items()})
    assert_loaded(router, weights)
    with pytest.raises(CheckpointError, match=r"layer2.weight \(3, 256, 1, 1\) for \(1, 256, 1, 1\)"):
        load_checkpoint(Router(RouterConfig()), {f"backbone.{key}": value for key, value in weights.items()})


def test_of_a_pickle_nothing_beside_it_is_read_and_nothing_kept(pth):
    path, weights = pth
    beside = path.with_suffix(".safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_file({key: value + 1 for key, value in weights.items()}, beside, {"sha256": digest})
    content = beside.read_bytes()
    network = network_of()
    load_checkpoint(network, path)
    assert_loaded(network, weights)
    assert beside.read_bytes() == content
    beside.unlink()
    load_checkpoint(network, path)
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_whole_leaves_nothing(pth, monkeypatch: pytest.MonkeyPatch):
    path, weights = pth

    def full(_: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("models.zoo.checkpoints.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*\.safetensors: No space left"):
        keep_weights(weights, path, path.with_suffix(".safetensors"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_logs_that_training_leaves_in_a_file_are_passed_over(pth, monkeypatch: pytest.MonkeyPatch):
    """MMEngine's buffers are pickled with arrays and with methods of their own class."""
    path, weights = pth
    source = types.ModuleType("trainer")
    exec("class Buffer:\n    def mean(self): pass\n", source.__dict__)
    source.Buffer.__module__ = "trainer"
    monkeypatch.setitem(sys.modules, "trainer", source)
    buffer = source.Buffer()
    buffer.values, buffer.methods = np.arange(3.0), {"mean": source.Buffer.mean}
    content = torch.load(path, weights_only=True) | {"message_hub": {"loss": buffer, "last": np.float64(0.5)}}
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "trainer")
    network = network_of()
    load_checkpoint(network, path)
    assert_loaded(network, weights)


def test_nothing_that_is_pickled_runs(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    weights = to_mmpose(random_weights(network_of()))
    torch.save({"state_dict": weights, "meta": Trap()}, tmp_path / "a.pth")
    load_checkpoint(network_of(), tmp_path / "a.pth")
    torch.save({"state_dict": weights | {"backbone.ln1.weight": Trap()}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth holds no state dict"):
        load_checkpoint(network_of(), tmp_path / "b.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_half_precision_fills_a_network_of_single_precision(tmp_path: Path):
    weights = {key: value.half() for key, value in random_weights(network_of()).items()}
    save_file(weights, tmp_path / "a.safetensors")
    with torch.device("meta"):
        on_meta = network_of()
    for network in (network_of(), on_meta):
        load_checkpoint(network, tmp_path / "a.safetensors")
        assert network.state_dict()["backbone.ln1.weight"].dtype == torch.float32
        assert_loaded(
            network, {key: value.to(network.state_dict()[key].dtype) for key, value in weights.items()}
        )


def test_what_is_missing_unexpected_or_misshapen_is_named_and_nothing_is_changed():
    network = network_of()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weights = to_mmpose(random_weights(network))
    del weights["backbone.ln1.bias"]
    weights["backbone.cls_token"] = torch.zeros(1, 1, 32)
    weights["backbone.pos_embed"] = torch.zeros(1, 193, 32)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(network, weights)
    assert str(caught.value) == (
        "state dict does not fit the network: 1 missing (backbone.ln1.bias); 1 unexpected (backbone.cls_token); "
        "1 of another shape (backbone.pos_embed (1, 193, 32) for (1, 192, 32))"
    )
    assert_loaded(network, before)


def test_weights_for_other_keypoints_are_refused_by_that_name(pth):
    with pytest.raises(
        CheckpointError, match=r"vitpose-00000000\.pth is for 17 keypoints, the network for 14"
    ):
        load_checkpoint(network_of(keypoints=14), pth[0])


def test_weights_of_another_network_are_refused():
    with torch.device("meta"):
        resnet, mobilenet = build_network("resnet50"), build_network("mobilenetv2")
    with pytest.raises(
        CheckpointError, match=r"318 missing \(backbone\.conv1\.weight, backbone\.bn1\.weight, "
    ):
        load_checkpoint(resnet, mobilenet.state_dict())
    with pytest.raises(CheckpointError, match="unexpected"):
        load_checkpoint(network_of("simple"), random_weights(network_of("classic")))


def test_only_the_listed_buffers_are_passed_over():
    weights = to_mmpose(random_weights(network_of()))
    load_checkpoint(network_of(), weights | {"data_preprocessor.mean": torch.zeros(3, 1, 1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected \(data_preprocessor\.other\)"):
        load_checkpoint(network_of(), weights | {"data_preprocessor.other": torch.zeros(1)})


def test_two_tensors_for_one_place_are_refused():
    weights = random_weights(network_of())
    with pytest.raises(CheckpointError, match="two tensors for backbone"):
        load_checkpoint(network_of(), to_mmpose(weights) | weights)


def test_a_key_without_its_query_is_missing():
    weights = to_hugging_face(random_weights(network_of()))
    del weights["backbone.encoder.layer.1.attention.attention.value.bias"]
    with pytest.raises(CheckpointError, match=r"layer\.1\.attention\.attention\.value\.bias is missing"):
        load_checkpoint(network_of(), weights)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError, match=r"cannot read .*a\."):
        load_checkpoint(network_of(), tmp_path / name)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"a\..* is damaged"):
        load_checkpoint(network_of(), tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
