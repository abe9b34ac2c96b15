"""The plain vision transformer (Dosovitskiy et al., 2021), with or without registers (Darcet et al., 2024)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.errors import ModelError
from hivlp.model.tower import Features, Tower
from hivlp.typed import Count, Number, Positive, ShareBelowOne, Weight


@dataclass(frozen=True)
class VitOptions:
    """Size of a vision transformer; the defaults are ViT-B/16 at 224 pixels.

    Attributes:
        image_size: pixels a side.
        patch: pixels a side of a patch.
        width: of a token's state.
        depth: blocks.
        heads: of attention; ``width`` is a multiple.
        feed_forward: width inside a block's feed-forward part, as a multiple of ``width``.
        registers: tokens without a meaning of their own, which take up what would otherwise spoil patches.
        pool: a layer's features: the state of the ``class`` token, or the ``mean`` of the patches'.
        layer_scale: initial gain of each branch, as in CaiT and DINOv2; 0 for none.
        drop_path: share of samples for which the last block's branches are left out; less in earlier ones.
    """

    image_size: Count = 224
    patch: Count = 16
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    feed_forward: Positive = 4.0
    registers: Number = 0
    pool: Literal["class", "mean"] = "class"
    layer_scale: Weight = 0.0
    drop_path: ShareBelowOne = 0.0


class VisionTransformer(Tower):
    """A ViT whose parameters have timm's names, so that timm's weights fit; layer ``i`` is the ``i``-th block's output.

    Features of the last layer are normalised by the network's own LayerNorm, those of earlier ones by one without
    parameters, since the states of a pre-norm network grow with depth.
    """

    numbered = re.compile(r"^blocks\.(\d+)\.")
    first = ("patch_embed.", "cls_token", "reg_token", "pos_embed")
    undecayed = re.compile(r"^(cls_token|reg_token|pos_embed)$")
    options = VitOptions

    def __init__(self, options: VitOptions) -> None:
        super().__init__()
        width, patch = options.width, options.patch
        if options.image_size % patch or width % options.heads:
            raise ModelError(
                f"a vit needs an image_size that is a multiple of patch ({options.image_size}, {patch}) and a width "
                f"that is one of heads ({width}, {options.heads})"
            )
        self._size, self._pool, self._prefix = options.image_size, options.pool, 1 + options.registers
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.reg_token = nn.Parameter(torch.zeros(1, options.registers, width)) if options.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (options.image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(options, number) for number in range(options.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.depth, self.widths = options.depth, [width] * options.depth
        for parameter in (self.cls_token, self.reg_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def check_size(self, size: int, layer: int) -> None:
        """See :meth:`Tower.check_size`: positions are learned for one size."""
        if size != self._size:
            raise ValueError(f"{self._size}, the image_size of image_tower.options")

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, 3, size, size) float -> layer -> (B, width) float."""
        states = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls_token.expand(states.shape[0], -1, -1), states], 1) + self.pos_embed
        if self.reg_token is not None:  # between the class token and the patches, without positions
            states = torch.cat([states[:, :1], self.reg_token.expand(states.shape[0], -1, -1), states[:, 1:]], 1)
        features: Features = {}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            states = block(states)
            if number in layers:
                last = number == self.depth
                normed = self.norm(states) if last else F.layer_norm(states, (self.widths[0],), eps=1e-6)
                features[number] = normed[:, 0] if self._pool == "class" else normed[:, self._prefix :].mean(1)
        return features


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self._heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        # (3, B, heads, N, width / heads)
        parts = self.qkv(states).reshape(batch, length, 3, self._heads, width // self._heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.proj(attended.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class _LayerScale(nn.Module):
    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), gain))

    def forward(self, states: Tensor) -> Tensor:
        return states * self.gamma


class _Block(nn.Module):
    """A pre-norm block: attention, then two linear maps with GELU."""

    def __init__(self, options: VitOptions, number: int) -> None:
        super().__init__()
        width, hidden = options.width, round(options.width * options.feed_forward)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, options.heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        scaled = options.layer_scale > 0
        self.ls1, self.ls2 = (_LayerScale(width, options.layer_scale) if scaled else nn.Identity() for _ in range(2))
        self._drop = options.drop_path * number / max(1, options.depth - 1)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        states = states + self._dropped(self.ls1(self.attn(self.norm1(states))))
        inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(states))))
        return states + self._dropped(self.ls2(inner))

    def _dropped(self, branch: Tensor) -> Tensor:
        """The branch, left out for a share of the samples while training (Huang et al., 2016)."""
        if not self.training or not self._drop:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self._drop
        return branch * kept / (1 - self._drop)
