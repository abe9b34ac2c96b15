"""What the model asks of a tower."""

from __future__ import annotations

from torch import Tensor, nn

Features = dict[int, Tensor]
"""Layer -> (B, width)."""


class Tower(nn.Module):
    """What every tower has.

    Attributes:
        depth: how many layers a level can name.
        widths: feature size of each layer.
    """

    depth: int
    widths: list[int]
