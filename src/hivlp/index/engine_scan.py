"""The engine as a scanner of the finest level, over an index that goes on changing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hivlp.engine import Engine, Setting
from hivlp.index.scan import ExhaustiveScanner, Mask, Rows
from hivlp.index.vectors import Stored
from hivlp.levels import Vectors

# Ranks that come from the engine; what lies behind them is ranked by reading everything, so that pages fit together.
HEAD = 50
# Rows that pass a filter and are looked at one by one, instead of in the lists: what reading so many codes costs.
FEW = 5_000
# How much harder to look, at most, where a filter thins out what the lists hold.
MOST_EFFORT = 8.0


class EngineScanner:
    """Ranks the rows of the finest level: the first :data:`HEAD` by the engine, the rest exhaustively.

    Rows that were added after the engine was built are read one by one and take their places among the engine's.
    """

    def __init__(self, engine: Engine, built: int, vectors: Stored) -> None:
        """A scanner for one commit.

        Args:
            engine: over the first ``built`` rows.
            built: how many rows it knows.
            vectors: (rows, dim) all rows of the commit.
        """
        self._engine, self._built = engine, built
        self._all = ExhaustiveScanner(vectors)
        self._tail = ExhaustiveScanner(vectors[built:])
        self._rows = len(vectors)
        self._masks: list[tuple[Mask, Passing]] = []
        self.setting: Setting | None = None

    def top(self, query: Vectors, count: int, allowed: Mask | None) -> tuple[Rows, Vectors]:
        """As :class:`hivlp.index.scan.Scanner` says; not every row among the first :data:`HEAD` may be found."""
        return self.top_many(query[None], count, allowed)[0]

    def top_many(self, queries: Vectors, count: int, allowed: Mask | None) -> list[tuple[Rows, Vectors]]:
        """What :meth:`top` gives for each query; together they take less time."""
        assert self.setting is not None
        answers = []
        for query, near in zip(queries, self.nearest(queries, HEAD, self.setting, allowed), strict=True):
            head, scores = self._with_tail(query, *near, allowed)
            if count > HEAD or len(head) < count:
                rows, rest = self._all.top(query, count + len(head), allowed)
                left = ~np.isin(rows, head)
                head, scores = np.concatenate([head, rows[left]]), np.concatenate([scores, rest[left]])
            answers.append((head[:count], scores[:count]))
        return answers

    def rescore(self, query: Vectors, rows: Rows) -> Vectors:
        """(n,) scores of the given rows."""
        return self._all.rescore(query, rows)

    def nearest(
        self, queries: Vectors, count: int, setting: Setting, allowed: Mask | None
    ) -> list[tuple[Rows, Vectors]]:
        """The best of the rows that the engine knows for each query, as far as it finds them."""
        bits = None
        if allowed is not None:
            passing = self.passing(allowed)
            if passing.few is not None:
                return [self._engine.search_rows(query, passing.few, count, 2 * count) for query in queries]
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
        known = Passing(allowed[: self._built])
        self._masks = [*self._masks[-7:], (allowed, known)]
        return known

    def _with_tail(self, query: Vectors, rows: Rows, scores: Vectors, allowed: Mask | None) -> tuple[Rows, Vectors]:
        if self._rows == self._built:
            return rows, scores
        late, products = self._tail.top(query, HEAD, None if allowed is None else allowed[self._built :])
        rows, scores = np.concatenate([rows, late + self._built]), np.concatenate([scores, products])
        order = np.lexsort((rows, -scores))[:HEAD]
        return rows[order], scores[order]


class Passing:
    """What the engine needs of a mask, worked out once."""

    def __init__(self, allowed: Mask) -> None:
        passing = int(np.count_nonzero(allowed))
        self.share = max(passing, 1) / max(len(allowed), 1)
        self.few: NDArray[np.uint32] | None = None
        if passing <= FEW:
            self.few = np.flatnonzero(allowed).astype(np.uint32)
        self.bits = np.packbits(allowed, bitorder="little")
