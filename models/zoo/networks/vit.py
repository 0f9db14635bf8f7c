"""The plain vision transformer of ViTPose (Xu et al., NeurIPS 2022), without class token."""

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 16
GRID = (16, 12)  # patches of a 256 x 192 crop, rows first


def mlp(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(N, tokens, 3 channels) -> query, key and value, each (N, heads, tokens, channels / heads)."""
    n, tokens, width = qkv.shape
    return qkv.view(n, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)


class Attention(nn.Module):
    """(N, tokens, channels) -> the same shape."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(self.qkv(x), self.heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(channels, eps=1e-6), Attention(channels, heads)
        self.ln2, self.ffn = nn.LayerNorm(channels, eps=1e-6), mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Crops (N, 3, 256, 192) -> (N, channels, 16, 12). The position embeddings allow no other size."""

    def __init__(self, channels: int, depth: int, heads: int) -> None:
        super().__init__()
        # ViTPose's patches lie two pixels outside the crop on the left and above.
        self.patch_embed = nn.Conv2d(3, channels, PATCH, PATCH, 2)
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID[0] * GRID[1], channels))
        self.layers = nn.Sequential(*(Block(channels, heads) for _ in range(depth)))
        self.ln1 = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, crops: Tensor) -> Tensor:
        tokens = self.patch_embed(crops).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = self.ln1(self.layers(tokens))
        return tokens.transpose(1, 2).unflatten(2, GRID)  # type: ignore[no-any-return]
