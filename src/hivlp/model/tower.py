"""What the model asks of a tower."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

Features = dict[int, Tensor]
"""Layer -> (B, width)."""


class Tower(nn.Module):
    """What every tower has.

    Attributes:
        depth: how many layers a level can name.
        widths: feature size of each layer.
        owned: prefixes of the parameters that are this tower's; a dual encoder's two towers share one network.
        numbered: pattern of the parameters of a numbered layer, counted from 0.
        first: prefixes of what comes before the first layer.
        sees_padding: whether a text's vector depends on the padding beside it.
    """

    depth: int
    widths: list[int]
    owned: tuple[str, ...] = ("",)
    numbered: re.Pattern[str]
    first: tuple[str, ...]
    sees_padding: bool = False

    def parameters_by_layer(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Each of the tower's parameters with its layer: 0 before the first one, ``depth`` beyond the last."""
        for name, parameter in self.named_parameters():
            if not name.startswith(self.owned):
                continue
            if number := self.numbered.search(name):
                yield int(number[1]) + 1, parameter
            else:
                yield 0 if name.startswith(self.first) else self.depth, parameter
