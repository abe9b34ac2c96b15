"""Attention in plain matrix products, which the exporter traces for texts of any length and ONNX Runtime can fuse."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """An ``nn.MultiheadAttention`` with the same weights and results, without its fast paths and checks of shapes."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("attention with keys of its own is not exported")
        self.attention = attention

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """(B, T, D) and (B, S, D), or length first as the original has it -> the same, and no weights."""
        own = self.attention
        if not own.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        weights = (
            own.in_proj_weight.chunk(3)
            if own.in_proj_weight is not None
            else (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight)
        )
        biases = (None, None, None) if own.in_proj_bias is None else own.in_proj_bias.chunk(3)
        # (B, heads, T or S, D / heads)
        q, k, v = (
            F.linear(each, weight, bias).unflatten(-1, (own.num_heads, own.head_dim)).transpose(1, 2)  # type: ignore[no-untyped-call]
            for each, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        scores = (q * own.head_dim**-0.5) @ k.transpose(2, 3)
        if attn_mask is not None:
            if attn_mask.ndim == 3:  # (B * heads, T, S)
                attn_mask = attn_mask.unflatten(0, (-1, own.num_heads))  # type: ignore[no-untyped-call]
            is_flag = not attn_mask.is_floating_point()
            scores = scores.masked_fill(attn_mask, float("-inf")) if is_flag else scores + attn_mask
        merged = own.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return (merged if own.batch_first else merged.transpose(0, 1)), None


def make_plain(module: nn.Module) -> None:
    """Replace every ``nn.MultiheadAttention`` of a module, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MultiheadAttention) and not isinstance(parent, PlainAttention):
                setattr(parent, name, PlainAttention(child))
