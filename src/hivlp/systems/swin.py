"""Swin Transformer (Liu et al., 2021) with the names of timm, as METER's checkpoints have them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hivlp.systems.blocks import Mlp

HEAD = 32
"""Width of an attention head."""


def windows_of(states: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B · windows, window², C)."""
    batch, height, width, channels = states.shape
    parts = states.reshape(batch, height // window, window, width // window, window, channels)
    return parts.transpose(2, 3).reshape(-1, window * window, channels)


def whole_of(parts: Tensor, window: int, side: int) -> Tensor:
    """(B · windows, window², C) -> (B, side, side, C)."""
    across = side // window
    states = parts.reshape(-1, across, across, window, window, parts.shape[-1])
    return states.transpose(2, 3).reshape(-1, side, side, parts.shape[-1])


class _Attention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, self.heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None, :]) + window - 1
        self.register_buffer("relative_position_index", offset[0] * (2 * window - 1) + offset[1], persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, width = states.shape
        query, key, value = self.qkv(states).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:  # (windows, tokens, tokens), the same for each picture
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))
        return output


class _Block(nn.Module):
    attn_mask: Tensor | None

    def __init__(self, width: int, side: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.side, self.window = side, min(window, side)
        self.shift = self.window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, self.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.register_buffer("attn_mask", self._mask(), persistent=False)

    def _mask(self) -> Tensor | None:
        """What is added to attention logits between parts that only the shift has brought together."""
        if not self.shift:
            return None
        rows = torch.zeros(self.side, dtype=torch.long)
        rows[-self.window : -self.shift], rows[-self.shift :] = 1, 2
        part = windows_of((3 * rows[:, None] + rows)[None, :, :, None], self.window)[..., 0]
        return (part[:, None] != part[:, :, None]).float() * -100.0

    def forward(self, states: Tensor) -> Tensor:
        batch, tokens, width = states.shape
        whole = self.norm1(states).reshape(batch, self.side, self.side, width)
        if self.shift:
            whole = whole.roll((-self.shift, -self.shift), (1, 2))
        whole = whole_of(self.attn(windows_of(whole, self.window), self.attn_mask), self.window, self.side)
        if self.shift:
            whole = whole.roll((self.shift, self.shift), (1, 2))
        states = states + whole.reshape(batch, tokens, width)
        output: Tensor = states + self.mlp(self.norm2(states))
        return output


class _Merging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, states: Tensor) -> Tensor:
        batch, tokens, width = states.shape
        side = math.isqrt(tokens)
        whole = states.reshape(batch, side // 2, 2, side // 2, 2, width)
        # Down before right: (0, 0), (1, 0), (0, 1), (1, 1).
        joined = whole.permute(0, 1, 3, 4, 2, 5).reshape(batch, tokens // 4, 4 * width)
        output: Tensor = self.reduction(self.norm(joined))
        return output


class _Stage(nn.Module):
    def __init__(self, width: int, side: int, depth: int, window: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, side, window, bool(number % 2)) for number in range(depth))
        self.downsample = None if last else _Merging(width)

    def forward(self, states: Tensor) -> Tensor:
        for block in self.blocks:
            states = block(states)
        return states if self.downsample is None else self.downsample(states)


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)


class Swin(nn.Module):
    """Swin Transformer: the normalised states of the last stage's tokens, without pooling."""

    def __init__(
        self, size: int = 384, width: int = 128, depths: Sequence[int] = (2, 2, 18, 2), window: int = 12, patch: int = 4
    ) -> None:
        """Random weights; the defaults are Swin-B/384.

        Args:
            size: of a picture's side in pixels.
            width: of a token's state in the first stage; each stage doubles it.
            depths: blocks of each stage.
            window: tokens a side that attend to each other.
            patch: pixels a side.
        """
        super().__init__()
        self.patch_embed = _PatchEmbed(patch, width)
        side, last = size // patch, len(depths) - 1
        self.layers = nn.ModuleList(
            _Stage(width << stage, side >> stage, depth, window, stage == last) for stage, depth in enumerate(depths)
        )
        self.norm = nn.LayerNorm(width << last)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, (size / 32)², 8 width)."""
        states = self.patch_embed.norm(self.patch_embed.proj(pixels).flatten(2).transpose(1, 2))
        for stage in self.layers:
            states = stage(states)
        output: Tensor = self.norm(states)
        return output


def resize_bias(table: Tensor, rows: int) -> Tensor:
    """A table of relative position biases, bicubically resized to another window.

    Args:
        table: ((2w − 1)², heads).
        rows: wanted, the square of another odd number.
    """
    if len(table) == rows:
        return table
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    grid = table.float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid[0].reshape(-1, new * new).T
