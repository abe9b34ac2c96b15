"""Exact nearest neighbours of held-out queries, kept beside an approximate index: what its recall is measured against.

They are found once by a scan. Rows that are added are ranked among those that are known, and rows that are gone are
left out, so that a scan is needed again only for queries that have lost most of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.rows import Stored
from hivlp.levels import Vectors
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Mask, Rows

FILES = ("truth_rows.npy", "truth_scores.npy")
RANKS = 200
"""Neighbours of a query of which recall is measured, at most."""
DEPTH = 250
"""Neighbours that are known of it: some of them may be removed before too few are left."""


@dataclass(frozen=True)
class Truth:
    """Exact nearest neighbours of queries, best first, equal scores in row order.

    Attributes:
        rows: (queries, :data:`DEPTH`) int32, -1 where no more are known.
        scores: (queries, :data:`DEPTH`) float32, -inf there.
    """

    rows: NDArray[np.int32]
    scores: Vectors

    @classmethod
    def of(cls, vectors: Stored, queries: Vectors, alive: Mask | None) -> Truth:
        """Neighbours by a scan.

        Args:
            vectors: (rows, dim) as stored.
            queries: (queries, dim) float32.
            alive: (rows,) bool, False for tombstones; None without any.
        """
        rows, scores = np.full((len(queries), DEPTH), -1, np.int32), np.full((len(queries), DEPTH), -np.inf, np.float32)
        found = ExhaustiveScanner(vectors).top_many(queries, DEPTH, alive) if len(queries) else []
        for number, (best, products) in enumerate(found):
            rows[number, : len(best)], scores[number, : len(best)] = best, products
        return cls(rows, scores)

    def best(self, count: int) -> list[tuple[Rows, Vectors]]:
        """Rows and scores of the best ``count`` of each query, or of as many as there are."""
        held = np.minimum(np.count_nonzero(self.rows >= 0, axis=1), count).tolist()
        return [
            (rows[:some].astype(np.int64), scores[:some])
            for rows, scores, some in zip(self.rows, self.scores, held, strict=True)
        ]

    def renewed(
        self, vectors: Stored, queries: Vectors, alive: Mask | None, first: int, kept: NDArray[np.int64] | None = None
    ) -> Truth:
        """Neighbours among other rows: some of those of before, and new ones behind them.

        Args:
            vectors: (rows, dim) as stored, all of them.
            queries: (queries, dim) float32, the same.
            alive: (rows,) bool, False for tombstones; None without any.
            first: row of the first new one.
            kept: (first,) ascending rows of before, of which the first is row 0 now; None if they have kept their
                numbers.
        """
        rows, scores = self.rows.astype(np.int64), self.scores.copy()
        if kept is not None:
            numbers = np.full(max(int(rows.max(initial=0)), int(kept.max(initial=0))) + 1, -1)
            numbers[kept] = np.arange(len(kept))
            rows = np.where(rows < 0, -1, numbers[rows])
        gone = rows < 0
        if alive is not None:
            gone |= ~alive[rows]
        rows[gone], scores[gone] = -1, -np.inf
        # A row that is not better than the last that is known may be worse than some that are not.
        floor = np.where(gone, np.inf, scores).min(axis=1)
        late = Truth.of(vectors[first:], queries, None if alive is None else alive[first:])
        among = late.scores > floor[:, None]
        scores = np.concatenate([scores, np.where(among, late.scores, -np.inf)], 1)
        rows = np.concatenate([rows, np.where(among, late.rows + first, -1)], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]  # equal scores: new rows are behind
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        few = np.count_nonzero(rows >= 0, axis=1) < RANKS
        again = Truth.of(vectors, queries[few], alive) if few.any() else None
        if again is not None:
            rows[few], scores[few] = again.rows, again.scores
        return Truth(rows.astype(np.int32), scores)

    def files(self) -> dict[str, NDArray[Any]]:
        """Extra files for :meth:`hivlp.ann.AnnIndex.save`, by name."""
        return dict(zip(FILES, (self.rows, self.scores), strict=True))

    @classmethod
    def load(cls, read: Callable[[str], NDArray[Any]], queries: int, count: int) -> Truth | None:
        """What :meth:`files` gave; None if it is not of these queries and rows.

        Args:
            read: gives the array of a file.
            queries: how many there are.
            count: of rows.
        """
        rows, scores = map(read, FILES)
        fits = rows.shape == scores.shape == (queries, DEPTH)
        if not fits or rows.dtype != np.int32 or scores.dtype != np.float32:
            return None
        if not ((rows >= -1) & (rows < count)).all() or np.isnan(scores).any():
            return None
        return cls(rows, scores)
