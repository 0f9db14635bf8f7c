"""Swin-L (Liu et al., ICCV 2021) as MMPose builds it: 7 x 7 windows on maps that are padded to whole windows behind
the norm, shifted in every second block even where the map is smaller than a window.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.zoo.networks.vit import mlp, split_heads

WINDOW = 7
SHIFT = WINDOW // 2
CHANNELS = 192
DEPTHS = (2, 2, 18, 2)
HEADS = (6, 12, 24, 48)


def windows(x: Tensor) -> Tensor:
    """(N, H, W, C), H and W multiples of 7 -> (N * windows, 49, C)."""
    n, height, width, channels = x.shape
    x = x.view(n, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)


def unwindows(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    x = x.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, x.shape[2])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[5])


def shift_mask(height: int, width: int, device: torch.device) -> Tensor:
    """(windows, 1, 49, 49) bool: which pairs in a window of the shifted map were neighbours before the shift."""

    def parts(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - WINDOW).int() + (place >= length - SHIFT).int()

    part = windows((3 * parts(height)[:, None] + parts(width)).view(1, height, width, 1))
    return (part == part.transpose(1, 2)).unsqueeze(1)


def relative_index() -> Tensor:
    """(49, 49) int64: the row of the bias table for the offset between query and key."""
    place = torch.cartesian_prod(torch.arange(WINDOW), torch.arange(WINDOW))
    offset = place[:, None] - place[None] + WINDOW - 1
    return offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]


class WindowAttention(nn.Module):
    """(N * windows, 49, channels) -> the same shape."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_index())
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (windows, 1, 49, 49) bool, which keys a query may look at; all if None."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            bias = bias.where(mask, bias - 100).repeat(len(x) // len(mask), 1, 1, 1)
        query, key, value = split_heads(self.qkv(x), self.heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """(N, H, W, channels) -> the same shape."""

    def __init__(self, channels: int, heads: int, *, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1, self.attn = nn.LayerNorm(channels), WindowAttention(channels, heads)
        self.norm2, self.ffn = nn.LayerNorm(channels), mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]

    def attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = functional.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        _, padded_height, padded_width, _ = x.shape
        mask = None
        if self.shifted:
            x = x.roll((-SHIFT, -SHIFT), (1, 2))
            mask = shift_mask(padded_height, padded_width, x.device)
        x = unwindows(self.attn(windows(x), mask), padded_height, padded_width)
        if self.shifted:
            x = x.roll((SHIFT, SHIFT), (1, 2))
        return x[:, :height, :width]


class Merge(nn.Module):
    """(N, H, W, channels), H and W even -> (N, H/2, W/2, 2 channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """(N, 3, h, w) -> (N, h/4, w/4, CHANNELS)."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, CHANNELS, 4, 4)
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, crops: Tensor) -> Tensor:
        return self.norm(self.projection(crops).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Stage(nn.Module):
    def __init__(self, channels: int, depth: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(channels, heads, shifted=i % 2 == 1) for i in range(depth)))
        self.downsample = nn.Identity() if last else Merge(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))  # type: ignore[no-any-return]


class SwinL(nn.Module):
    """Crops (N, 3, h, w), h and w multiples of 32 -> (N, 1536, h/32, w/32)."""

    CHANNELS = CHANNELS * 8

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.stages = nn.Sequential(
            *(
                Stage(CHANNELS * 2**i, depth, heads, last=i == len(DEPTHS) - 1)
                for i, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True))
            )
        )
        self.norm3 = nn.LayerNorm(self.CHANNELS)

    def forward(self, crops: Tensor) -> Tensor:
        return self.norm3(self.stages(self.patch_embed(crops))).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
