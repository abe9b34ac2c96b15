"""The engine as a scanner of the finest level, over an index that goes on changing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import Engine, Setting
from hivlp.levels import Vectors
from hivlp.search.scan import ExhaustiveScanner, Mask, Rows, best_first
from hivlp.store.codec import Stored

# Ranks that come from the engine; what lies behind them is ranked by reading everything.
HEAD = 50
# Rows that pass a filter and are looked at one by one, instead of in the lists: what reading so many codes costs.
FEW = 5_000
CANDIDATES = 2  # of them, how many for each row that is wanted are scored in full
# How much harder to look, at most, where a filter thins out what the lists hold.
MOST_EFFORT = 8.0


class EngineScanner:
    """What the engine finds among the rows of a commit, those included that were added after it was built."""

    def __init__(self, engine: Engine, built: int, vectors: Stored) -> None:
        """A scanner for one commit.

        Args:
            engine: over the first ``built`` rows.
            built: how many rows it knows.
            vectors: (rows, dim) all rows of the commit.
        """
        self._engine, self.built = engine, built
        self._tail = ExhaustiveScanner(vectors[built:])
        self._rows = len(vectors)
        self._masks: list[tuple[Mask, Passing]] = []

    def with_later(self, query: Vectors, rows: Rows, scores: Vectors, allowed: Mask | None) -> tuple[Rows, Vectors]:
        """The best :data:`HEAD` of what was found, and of the rows that were added after the engine was built."""
        if self._rows == self.built:
            return rows, scores
        late, products = self._tail.top(query, HEAD, None if allowed is None else allowed[self.built :])
        rows, scores = best_first(np.concatenate([rows, late + self.built]), np.concatenate([scores, products]))
        return rows[:HEAD], scores[:HEAD]

    def nearest(
        self, queries: Vectors, count: int, setting: Setting, allowed: Mask | None
    ) -> list[tuple[Rows, Vectors]]:
        """The best of the rows that the engine knows for each query, as far as it finds them."""
        bits = None
        if allowed is not None:
            passing = self.passing(allowed)
            if passing.few is not None:
                return [self._engine.search_rows(query, passing.few, count, CANDIDATES * count) for query in queries]
            bits = passing.bits
            effort = min(1 / passing.share, MOST_EFFORT)
            # The router's scores are logarithms: so many times as many lists are worth reading.
            margin = setting.margin + math.log(effort)
            setting = replace(setting, lists=int(setting.lists * effort), margin=margin)
        found, products = self._engine.search(queries, count, setting, allowed=bits)
        held = found >= 0
        return [(rows[some], scores[some]) for rows, scores, some in zip(found, products, held, strict=True)]

    def passing(self, allowed: Mask) -> Passing:
        """What the engine needs of a mask."""
        for mask, known in self._masks:
            if mask is allowed:
                return known
        known = Passing(allowed[: self.built])
        self._masks = [*self._masks[-7:], (allowed, known)]
        return known


class Passing:
    """What the engine needs of a mask, worked out once."""

    def __init__(self, allowed: Mask) -> None:
        passing = int(np.count_nonzero(allowed))
        self.share = max(passing, 1) / max(len(allowed), 1)
        self.few: NDArray[np.uint32] | None = None
        if passing <= FEW:
            self.few = np.flatnonzero(allowed).astype(np.uint32)
        self.bits = np.packbits(allowed, bitorder="little")

    def all_scored(self, count: int) -> bool:
        """Whether so few rows pass that a search for ``count`` of them scores every one in full."""
        return self.few is not None and len(self.few) <= CANDIDATES * count
