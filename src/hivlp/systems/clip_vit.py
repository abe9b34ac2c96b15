"""CLIP's ViT with the names of OpenAI's own code, as METER's checkpoints have them."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
"""Width of an attention head."""


class QuickGelu(nn.Module):
    """x · sigmoid(1.702 x)."""

    def forward(self, values: Tensor) -> Tensor:
        """Element by element."""
        return values * torch.sigmoid(1.702 * values)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(1, width // HEAD), batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        parts = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGelu()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](parts))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.ln_1(states)
        states = states + self.attn(normed, normed, normed, need_weights=False)[0]
        output: Tensor = states + self.mlp(self.ln_2(states))
        return output


class _Blocks(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width) for _ in range(layers))


class ClipVisual(nn.Module):
    """CLIP's vision transformer: the normalised states of all its tokens, without a projection."""

    def __init__(self, size: int, patch: int = 16, width: int = 768, layers: int = 11) -> None:
        """Random weights.

        Args:
            size: of a picture's side in pixels, a multiple of ``patch``.
            patch: pixels a side.
            width: of a token's state.
            layers: residual blocks; METER leaves CLIP's twelfth out.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + (size // patch) ** 2, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Blocks(width, layers)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, 1 + patches, width)."""
        states = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(states), 1, -1)
        states = self.ln_pre(torch.cat([first, states], 1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            states = block(states)
        output: Tensor = self.ln_post(states)
        return output


def resize_positions(rows: Tensor, count: int) -> Tensor:
    """Position rows of a square grid, bicubically resized to another; the class token's row stays first.

    Args:
        rows: (1 + g², width).
        count: rows wanted, 1 + another square.
    """
    if len(rows) == count:
        return rows
    old, new = math.isqrt(len(rows) - 1), math.isqrt(count - 1)
    grid = rows[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([rows[:1].float(), grid.permute(0, 2, 3, 1).reshape(new * new, -1)])
