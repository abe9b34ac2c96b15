"""Levels and embeddings: the words that all else speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
DEFAULT_SHORTLIST = 200
"""Items that a coarser level hands on where nobody says how many: in a search as in an evaluation."""
ONLY_LEVEL = "fine"
"""What the level of a model from elsewhere is called."""
LARGEST = 1 << 20
"""Dims of a vector, and layers of a tower, at most: no file may ask for more."""


@dataclass(frozen=True)
class Level:
    """One resolution at which a model describes a picture or a text.

    Attributes:
        name: what results and files call it, such as ``coarse``.
        dim: length of its vectors.
        image_layer: layer of the image tower that feeds its head, counted from 1.
        text_layer: layer of the text tower that feeds its head, counted from 1.
    """

    name: str
    dim: int
    image_layer: int
    text_layer: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"a level's name must be an identifier, not {self.name!r:.40}")
        for what, value in (("dim", self.dim), ("image_layer", self.image_layer), ("text_layer", self.text_layer)):
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ValueError(
                    f"level {self.name}: {what} must be a whole number of at least 1, and at most {LARGEST}, "
                    f"not {value!r:.40}"
                )


def off_torch(given: Any) -> Any:
    """What NumPy can read of a tensor, perhaps with a gradient, on a GPU or in bfloat16; anything else as it is."""
    if not hasattr(given, "detach"):
        return given
    given = given.detach().cpu()
    return given.float() if given.is_floating_point() else given


def check_levels(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels as a tuple, if they form a hierarchy.

    Raises:
        ValueError: if there are none, a name occurs twice, or a level reads an earlier layer than the one before it.
    """
    if not levels:
        raise ValueError("a model needs at least one level")
    names = [level.name for level in levels]
    if len(set(names)) != len(names):
        raise ValueError(f"level names must differ: {', '.join(names)}")
    for coarse, fine in pairwise(levels):
        if coarse.image_layer > fine.image_layer or coarse.text_layer > fine.text_layer:
            raise ValueError(f"levels go from coarse to fine: {coarse.name} reads a later layer than {fine.name}")
    return tuple(levels)


class Embeddings(Mapping[str, Vectors]):
    """The vectors of N items, one (N, dim) float32 array a level, ordered coarse to fine, rows unit length."""

    def __init__(self, vectors: Mapping[str, Vectors]) -> None:
        sizes = {len(array) for array in vectors.values()}
        if len(sizes) > 1:
            raise ValueError(f"every level needs the same number of rows, not {sorted(sizes)}")
        self._vectors = dict(vectors)
        self.count = sizes.pop() if sizes else 0

    def __getitem__(self, level: str) -> Vectors:
        return self._vectors[level]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def coarse(self) -> Vectors:
        """(N, dim) vectors of the first level."""
        return next(iter(self._vectors.values()))

    @property
    def fine(self) -> Vectors:
        """(N, dim) vectors of the last level."""
        return next(reversed(self._vectors.values()))

    def rows(self, index: slice | Sequence[int] | NDArray[np.integer]) -> Embeddings:
        """The embeddings of some of the items."""
        return Embeddings({name: array[index] for name, array in self._vectors.items()})

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Join the rows of several embeddings with the same levels."""
        return Embeddings({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def __repr__(self) -> str:
        shape = ", ".join(f"{name}: {array.shape[1]}" for name, array in self._vectors.items())
        return f"Embeddings({self.count} items, {{{shape}}})"
