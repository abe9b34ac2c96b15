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
        ctx.gradients = gradients  # not saved for backward, which would keep them beside the copies that leaves get
        ctx.mark_non_differentiable(*values[1:])
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that were computed, times the first value's own: handed over, so once and without a copy.

        Raises:
            RuntimeError: the second time.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss have been handed over: it goes backward once")
        if bool(outer[0] == 1):
            return None, None, *gradients
        return None, None, *(outer[0] * gradient for gradient in gradients)
