"""Weights that others have trained, into our networks: MMPose's, Hugging Face's ViTPose and the authors' router.

Whoever wrote the file, every tensor of it must find its place and every tensor of the network must be in it.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.pickles import unpickle
from models.router import Router
from models.zoo.networks.convnets import MobileNetV2, ShuffleNetV2
from models.zoo.networks.swin import SwinL
from models.zoo.networks.vit import ViT

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Regular expressions and what replaces them, applied to a key one after the other."""

IGNORED = {"data_preprocessor.mean", "data_preprocessor.std"}
"""What MMPose may store beside the network: the normalisation of crops, which is the same for all."""


class CheckpointError(Exception):
    """The weights cannot be used; the message is one line that says why."""


def _inverted_residual(match: re.Match[str]) -> str:
    first = (1, 2, 4, 7, 11, 14, 17)[int(match[1]) - 1]  # torchvision numbers MobileNetV2's blocks through
    return f"backbone.features.{first + int(match[2])}."


def _shuffle_branch(match: re.Match[str]) -> str:
    # torchvision counts the ReLUs: branch1 is conv, norm, conv, norm, ReLU; branch2 has a ReLU after its first norm.
    first = (0, 2)[int(match[2])] if match[1] == "branch1" else (0, 3, 5)[int(match[2])]
    return f".{match[1]}.{first + (match[3] == 'bn')}."


FROM_MMPOSE: dict[type[nn.Module], Rules] = {
    MobileNetV2: (
        (r"^backbone\.conv1\.", "backbone.features.0."),
        (r"^backbone\.conv2\.", "backbone.features.18."),
        (r"^backbone\.layer(\d)\.(\d)\.", _inverted_residual),
        (r"\.features\.1\.conv\.1\.conv\.", ".features.1.conv.1."),
        (r"\.features\.1\.conv\.1\.bn\.", ".features.1.conv.2."),
        (r"\.conv\.2\.conv\.", ".conv.2."),
        (r"\.conv\.2\.bn\.", ".conv.3."),
        (r"\.conv\.weight$", ".0.weight"),
        (r"\.bn\.", ".1."),
    ),
    ShuffleNetV2: (
        (r"\.(branch\d)\.(\d)\.(conv|bn)\.", _shuffle_branch),
        (r"^backbone\.layers\.3\.", "backbone.conv5."),
        (r"^backbone\.layers\.(\d)\.", lambda match: f"backbone.stage{int(match[1]) + 2}."),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    ),
    SwinL: (
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".ffn.0."),
        (r"\.ffn\.layers\.1\.", ".ffn.2."),
    ),
    ViT: (
        (r"\.patch_embed\.projection\.", ".patch_embed."),
        (r"\.ffn\.layers\.0\.0\.", ".ffn.0."),
        (r"\.ffn\.layers\.1\.", ".ffn.2."),
    ),
}
"""By trunk; the other trunks have MMPose's names. Files from before MMPose 1.0 call the head `keypoint_head`."""

FROM_HUGGING_FACE: Rules = (
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed."),
    (r"^backbone\.embeddings\.position_embeddings$", "backbone.pos_embed"),
    (r"^backbone\.encoder\.layer\.", "backbone.layers."),
    (r"^backbone\.layernorm\.", "backbone.ln1."),
    (r"\.attention\.attention\.query\.", ".attn.qkv."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".ln1."),
    (r"\.layernorm_after\.", ".ln2."),
    (r"\.mlp\.fc1\.", ".ffn.0."),
    (r"\.mlp\.fc2\.", ".ffn.2."),
    (r"^head\.deconv1\.", "head.deconv_layers.0."),
    (r"^head\.batchnorm1\.", "head.deconv_layers.1."),
    (r"^head\.deconv2\.", "head.deconv_layers.3."),
    (r"^head\.batchnorm2\.", "head.deconv_layers.4."),
    (r"^head\.conv\.", "head.final_layer."),
)
"""transformers' VitPoseForPoseEstimation."""


def load_checkpoint(network: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Fill `network`, from `build_network` or a Router, with a file's weights or with a state dict.

    Nothing that is pickled in a file of `torch.save` runs. A network on the meta device takes the tensors over without
    a copy, which saves a large one its initialisation. Raises CheckpointError, before anything of the network was
    changed.
    """
    tensors = read_checkpoint(source) if isinstance(source, Path) else source
    weights = _renamed(network, tensors)
    expected = network.state_dict()
    _compare(source.name if isinstance(source, Path) else "state dict", expected, weights)
    weights = {key: value.to(expected[key].dtype) for key, value in weights.items()}
    on_meta = any(value.is_meta for value in expected.values())
    network.load_state_dict(weights, strict=True, assign=on_meta)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under the names they have there. Raises CheckpointError."""
    if path.suffix != ".safetensors":
        return read_pickle(path)
    try:
        return load_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged: {error}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict of a file of `torch.save`. Raises CheckpointError."""
    try:
        content = unpickle(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # pickles break in many ways
        raise CheckpointError(
            f"{path.name} is damaged, or not a file of weights: {type(error).__name__}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path.name} holds no state dict")
    return {key: value.contiguous().clone() for key, value in state.items()}


def keep_weights(weights: dict[str, Tensor], path: Path, kept: Path) -> None:
    """Write the weights of `path` as safetensors, with its permissions, whole or not at all. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{kept.name}.", suffix=".new", dir=kept.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(weights, temporary)
        shutil.copymode(path, temporary)
        temporary.replace(kept)
    except SafetensorError as error:
        raise OSError(f"cannot write {kept}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _renamed(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's names, as far as the tables know them."""
    if isinstance(network, Router):
        return _rename(tensors, ((r"^backbone\.", ""),))
    backbone = getattr(network, "backbone", None)
    if isinstance(backbone, ViT) and "backbone.embeddings.position_embeddings" in tensors:
        return _rename(_joined(tensors), FROM_HUGGING_FACE)
    rules = ((r"^keypoint_head\.", "head."), *FROM_MMPOSE.get(type(backbone), ()))  # type: ignore[arg-type]
    return _rename({key: value for key, value in tensors.items() if key not in IGNORED}, rules)


def _rename(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for old, value in tensors.items():
        key = old
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key in renamed:
            raise CheckpointError(f"two tensors for {key}, the second is {old}")
        renamed[key] = value
    return renamed


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each layer as one tensor under the query's name; and the position embedding of the
    class token, which there is none of but which ViTPose adds to every patch, added."""
    joined = {}
    for key, value in tensors.items():
        if ".attention.attention.query." in key:
            keys = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if missing := [part for part in keys if part not in tensors]:
                raise CheckpointError(f"{missing[0]} is missing")
            joined[key] = torch.cat([tensors[part] for part in keys])
        elif key == "backbone.embeddings.position_embeddings":
            joined[key] = value[:, 1:] + value[:, :1]
        elif not re.search(r"\.attention\.attention\.(key|value)\.", key):
            joined[key] = value
    return joined


def _compare(name: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless both have the same keys and shapes."""
    final = "head.final_layer.weight"
    if final in expected and final in weights:
        found, wanted = weights[final].shape, expected[final].shape
        if found[0] != wanted[0] and found[1:] == wanted[1:]:
            raise CheckpointError(f"{name} is for {found[0]} keypoints, the network for {wanted[0]}")
    faults = [
        _listed("missing", (key for key in expected if key not in weights)),
        _listed("unexpected", (key for key in weights if key not in expected)),
        _listed(
            "of another shape",
            (
                f"{key} {tuple(weights[key].shape)} for {tuple(value.shape)}"
                for key, value in expected.items()
                if key in weights and weights[key].shape != value.shape
            ),
        ),
    ]
    if any(faults):
        raise CheckpointError(f"{name} does not fit the network: {'; '.join(filter(None, faults))}")


def _listed(fault: str, keys: Iterable[str]) -> str:
    found = list(keys)
    if not found:
        return ""
    return f"{len(found)} {fault} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
