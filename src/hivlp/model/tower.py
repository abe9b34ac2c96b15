"""The base class of image and text towers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from hivlp.typed import build

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
        classes: logits of an image classifier, at the end of the last layer's features.
        undecayed: pattern of the parameters with more than one dimension that have no weight decay all the same.
        vocabulary: tokens that a text tower knows.
        positions: tokens of a text tower's longest text.
        options: the dataclass that the tower is built from; None for one that takes the plain mapping.
    """

    depth: int
    widths: list[int]
    owned: tuple[str, ...] = ("",)
    numbered: re.Pattern[str]
    first: tuple[str, ...]
    sees_padding: bool = False
    classes: int = 0
    undecayed: re.Pattern[str] = re.compile(r"(?!)")
    vocabulary: int = 0
    positions: int = 0
    options: ClassVar[type | None] = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """A tower with random weights.

        Raises:
            RecipeError: naming the option that is wrong.
        """
        return cls(options if cls.options is None else build(cls.options, options))

    def check_size(self, size: int, layer: int) -> None:
        """Check that a picture of ``size`` × ``size`` pixels has features at a layer.

        Raises:
            ValueError: if it has not.
        """

    def parameters_by_layer(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Each of the tower's parameters with its layer: 0 before the first one, ``depth`` beyond the last."""
        for name, parameter in self.named_parameters():
            if not name.startswith(self.owned):
                continue
            if number := self.numbered.search(name):
                yield int(number[1]) + 1, parameter
            else:
                yield 0 if name.startswith(self.first) else self.depth, parameter
