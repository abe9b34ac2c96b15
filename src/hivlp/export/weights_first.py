"""Linear layers as a CPU computes them fastest for one short text: weights on the left, tokens as columns.

ONNX Runtime multiplies a dozen rows at a time, so that the fourteen tokens of a caption take two passes over all
weights; as columns they take one. A text tower of twelve layers takes three quarters of the time for a caption, the
same for six tokens, up to a third more for a single one, and a twentieth more for hundreds of texts at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _WeightsFirst(torch.autograd.Function):
    """``x @ weight.T``, which becomes ``(weight @ x.T).T`` in a graph."""

    @staticmethod
    def forward(_: Any, x: Tensor, weight: Tensor) -> Tensor:
        """(..., in) float and (out, in) -> (..., out)."""
        return x @ weight.T

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any) -> Any:
        """ONNX operators; ONNX Runtime fuses the first transposition into the product."""
        out, width = weight.type().sizes()
        rows = g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([-1, width])))
        columns = g.op("MatMul", weight, g.op("Transpose", rows, perm_i=[1, 0]))
        shape = g.op("Concat", g.op("Shape", x, end_i=-1), g.op("Constant", value_t=torch.tensor([out])), axis_i=0)
        return g.op("Reshape", g.op("Transpose", columns, perm_i=[1, 0]), shape)


class _Linear(nn.Linear):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) float -> (..., out)."""
        product: Tensor = _WeightsFirst.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


def put_weights_first(tower: nn.Module) -> None:
    """Replace every linear layer of a text tower, in place, by one whose graph has its weights on the left.

    Not for graphs that are to be multiplied in int8, whose weights must be on the right.
    """
    for parent in list(tower.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, _Linear(child))
