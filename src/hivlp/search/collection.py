"""Searchable collection: the vectors of one commit, and what speeds their search up."""

from __future__ import annotations

from dataclasses import dataclass, field

from hivlp.ann.rows import Stored
from hivlp.levels import Level
from hivlp.search.approximate import Approximate
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Filter


@dataclass(frozen=True)
class Collection:
    """Searchable collection of one commit; immutable, shared by searches in any thread.

    Attributes:
        levels: coarse to fine.
        scanners: exhaustive scanner of each level.
        rows: of each level, those of tombstones included.
        alive: filter that leaves tombstones out; None if there are none.
        ann: approximate index over the finest level, if there is one.
    """

    levels: tuple[Level, ...]
    scanners: tuple[ExhaustiveScanner, ...]
    rows: int
    alive: Filter | None = None
    ann: Approximate | None = None
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        levels: tuple[Level, ...],
        vectors: tuple[Stored, ...],
        alive: Filter | None = None,
        ann: Approximate | None = None,
    ) -> Collection:
        """A collection of (rows, dim) stored vectors, one array a level, coarse to fine."""
        return cls(levels, tuple(map(ExhaustiveScanner, vectors)), len(vectors[-1]), alive, ann)

    def __post_init__(self) -> None:
        self._places.update({level.name: place for place, level in enumerate(self.levels)})

    def place(self, level: str) -> int:
        """Number of a level, counted from the coarsest, 0."""
        return self._places[level]
