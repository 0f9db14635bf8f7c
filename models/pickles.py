"""Files of `torch.save`, opened without running anything that is pickled in them."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

_KEPT = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""What the `state_dict` of a layer is made of."""


class _Inert(nn.Module):
    """Stands for an object of any class that is not torch's own tensors and plain containers: a layer, an array, a
    log. It does nothing with what it is given but keep a layer's weights, so that its `state_dict` is the layer's."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        super().__init__()
        if isinstance(state, dict):
            self.__dict__.update({name: state[name] for name in _KEPT if name in state})


def unpickle(path: Path) -> Any:
    """The content of `path`; modules of every kind are nn.Modules that know nothing but their weights.

    torch's own unpickler calls the constructors of the classes it is told to allow with whatever arguments the file
    has, and some of those evaluate them as code: ultralytics' do. Hence none is allowed. Raises OSError, and anything
    for a file that is damaged or none of `torch.save`.
    """
    zipped = zipfile.is_zipfile(path)  # what torch writes since 1.6
    others = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    with torch.serialization.safe_globals([(_Inert, name) for name in others]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
