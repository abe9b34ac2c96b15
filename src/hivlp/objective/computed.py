"""An autograd function whose gradients are computed in its forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def exact(vectors: Tensor) -> torch.dtype:
    """The precision in which losses and gradients are added up, whatever the towers compute in."""
    return torch.float64 if vectors.dtype == torch.float64 else torch.float32


class Computed(torch.autograd.Function):
    """Values whose gradients are computed together with them."""

    @staticmethod
    def forward(ctx: Any, compute: Any, vectors: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values, of which the first has a gradient.

        Args:
            ctx: autograd's.
            compute: (vectors, parameters) -> values, and the first value's gradient for each vector and parameter.
            vectors: how many of the inputs are vectors; parameters follow.
            inputs: all that has a gradient.
        """
        values, gradients = compute(inputs[:vectors], inputs[vectors:])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*values[1:])
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that were computed, times the first value's own; without a copy where that is 1."""
        if bool(outer[0] == 1):
            return None, None, *ctx.saved_tensors
        return None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors)
