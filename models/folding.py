"""TinyPose for a compiled runtime: the same function of the same weights, with less to move and to multiply.

Splits, shuffles, additions and enlargements of whole maps are cheap to write and dear to run. Here permutations and
factors go into kernels, and what has the same destination is added where the maps are small. Heatmaps stay the same but
for rounding. For running only: a folded network is not to be trained or saved.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.tinypose import Exchange, ShuffleUnit, Stem, TinyPose, depthwise, pointwise


def fold(module: nn.Module) -> nn.Module:
    """`module` with every TinyPose in it folded, a copy; `module` itself where there is none."""
    if not any(isinstance(child, TinyPose) for child in module.modules()):
        return module
    module = copy.deepcopy(module)
    for network in [child for child in module.modules() if isinstance(child, TinyPose)]:
        network.stem = FoldedStem(network.stem)  # type: ignore[assignment]
        for place in (0, 1):  # they take the stem's output
            network.transitions[place] = _unshuffling(network.transitions[place])  # type: ignore[arg-type]
        network.stages = nn.ModuleList(
            nn.ModuleList(map(FoldedExchange, stage))  # type: ignore[call-overload]
            for stage in network.stages
        )
    return module


class FoldedStem(nn.Module):
    """A Stem that does not split: convolutions of half of the channels have zeros for the others. Nor does it shuffle:
    one half comes behind the other, as `_unshuffling` convolutions take them."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.conv, self.reduce = stem.conv, stem.reduce
        (mix, mix_bias), (project, project_bias) = map(_terms, stem.short)
        half = len(mix)
        self.short = nn.Sequential(
            _depthwise(_padded(mix, behind=half, dim=0), _padded(mix_bias, behind=half, dim=0), 2),
            _pointwise(_padded(project, behind=half), project_bias),
        )
        expand, expand_bias = _terms(stem.expand)
        self.expand = _pointwise(_padded(expand, before=half), expand_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return torch.cat((self.short(x).relu(), self.reduce(self.expand(x).relu()).relu()), dim=1)


class UnitPair(nn.Module):
    """The two ShuffleUnits of a branch, times `factor`. Nothing is interleaved until the last convolution, which has
    the second unit's kernel, and ones for what passes. The input must not be negative, as behind a ReLU."""

    def __init__(self, first: ShuffleUnit, second: ShuffleUnit, factor: float = 1.0) -> None:
        super().__init__()
        half = first.expand.in_channels
        self.quarter = half // 2
        self.first = nn.Sequential(first.expand, nn.ReLU(), first.mix, nn.ReLU())
        columns = _unshuffled(half)
        expand, expand_bias = _terms(second.expand)
        self.expand = _pointwise(expand[:, columns], expand_bias)
        self.mix, last = second.mix
        kernel, bias = torch.zeros(2 * half, 2 * half, 1, 1), torch.zeros(2 * half)
        kernel[2 * columns, torch.arange(half)] = 1
        kernel[1::2, half:], bias[1::2] = _terms(last)
        self.join = _pointwise(factor * kernel, factor * bias)

    def forward(self, x: Tensor) -> Tensor:
        # Of the first half, the front passes both units; the rear passes the first and goes through the second.
        front, rear, others = torch.split(x, [self.quarter, self.quarter, 2 * self.quarter], dim=1)
        new_front, new_rear = self.first(others).split(self.quarter, dim=1)
        mixed = self.mix(self.expand(torch.cat((rear, new_rear), dim=1)).relu())
        return self.join(torch.cat((front, new_front, mixed), dim=1)).relu()  # type: ignore[no-any-return]


class FoldedExchange(nn.Module):
    """An Exchange in which the first branch counts twice by its kernels, and what comes from smaller maps is added on
    the way up, from each to the next."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            UnitPair(*branch, 1.0 if place else 2.0)  # type: ignore[misc, call-arg]
            for place, branch in enumerate(exchange.branches)
        )
        self.fuse = exchange.fuse
        with torch.no_grad():
            for row in list(self.fuse)[1:]:
                for parameter in row["0"].steps[-1][-1].parameters():  # type: ignore[index]
                    parameter *= 2

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        x = [branch(map_) for branch, map_ in zip(self.branches, x, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse):
            total = x[i]
            for j in range(i):
                total = total + row[str(j)](x[j])  # type: ignore[index]
            below: Tensor | None = None
            for j in reversed(range(i + 1, len(x))):
                part = row[str(j)].conv(x[j])  # type: ignore[index]
                below = functional.interpolate(
                    part if below is None else part + below, scale_factor=2, mode="nearest"
                )
            if below is not None:
                total = total + below
            if i == 0:
                x[0] = total
            fused.append(total.relu())
        return fused


def _unshuffled(channels: int) -> Tensor:
    """Which channel, after a shuffle, each one is that came before it: 0, 2, 4, ... of the first half, 1, 3, 5, ..."""
    return torch.cat((torch.arange(0, channels, 2), torch.arange(1, channels, 2)))


def _unshuffling(separable: nn.Sequential) -> nn.Sequential:
    """The same of channels that have not been shuffled."""
    (mix, mix_bias), (project, project_bias) = map(_terms, separable)
    order = _unshuffled(len(mix))
    stride: int = separable[0].stride[0]  # type: ignore[index, assignment]
    return nn.Sequential(
        _depthwise(mix[order], mix_bias[order], stride), _pointwise(project[:, order], project_bias)
    )


def _padded(tensor: Tensor, *, before: int = 0, behind: int = 0, dim: int = 1) -> Tensor:
    """Zeros for further channels."""
    front, back = (
        tensor.new_zeros(*tensor.shape[:dim], count, *tensor.shape[dim + 1 :]) for count in (before, behind)
    )
    return torch.cat((front, tensor, back), dim=dim)


def _terms(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    weight, bias = convolution.state_dict().values()
    return weight, bias


def _pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    return _filled(pointwise(weight.shape[1], weight.shape[0]), weight, bias)


def _depthwise(weight: Tensor, bias: Tensor, stride: int) -> nn.Conv2d:
    return _filled(depthwise(len(weight), stride), weight, bias)


def _filled(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution.requires_grad_(False)
