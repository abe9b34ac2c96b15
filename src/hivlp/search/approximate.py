"""Approximate index of an index folder, over a collection that goes on changing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hivlp.ann import AnnIndex, SearchParams
from hivlp.ann.bounds import Bounds
from hivlp.levels import Vectors
from hivlp.search.bounded import BoundedScanner
from hivlp.search.exhaustive import ExhaustiveScanner, best_first
from hivlp.search.filters import Filter, IndexedFilter, Rows
from hivlp.search.operating_points import Tuned

FEW = 5_000
"""Rows passing a filter up to which their codes are read one by one: what reading as many lists costs."""
RERANKED, LEAST_RERANKED = 2, 100
"""Of rows read one by one, how many are re-ranked by their stored vectors for each wanted one, and at least."""
MOST_EFFORT = 16.0
"""Times as many lists that are probed, at most, where a filter thins out what the lists hold."""


class Approximate:
    """Approximate index over the finest level of one commit, and the tail of rows that came after it was built.

    Immutable but for what is worked out once; shared by searches in any thread.

    Attributes:
        index: over all (rows, dim) vectors of the commit, of which it knows the first.
        bounds: on the inner products with the rows that it knows; None where there are none.
        tuned: its operating points.
        count: rows that the index knows, the first ones of the level.
    """

    def __init__(
        self,
        index: AnnIndex,
        tuned: Tuned,
        bounds: Bounds | None = None,
        is_sound: Callable[[], bool] = lambda: True,
        few: int | None = None,
    ) -> None:
        """An approximate index for one commit.

        Args:
            index: over all (rows, dim) vectors of the commit, of which it knows the first.
            tuned: its operating points.
            bounds: on the inner products with the rows that it knows; None where there are none.
            is_sound: tells, and says why not, whether all that exact answers depend on is as it was written.
            few: rows passing a filter up to which their codes are read one by one; default :data:`FEW`.
        """
        self.tuned, self.count = tuned, index.count
        self.index, self.bounds = index, bounds
        self._is_sound, self._rows, self._few = is_sound, len(index.vectors), FEW if few is None else few
        self._tail = ExhaustiveScanner(index.vectors[self.count :])
        self._bounded = (
            None if bounds is None else BoundedScanner(index, bounds, self.search, self._tail, few=self._few)
        )

    def search(
        self, queries: Vectors, k: int, params: SearchParams, allowed: Filter | None
    ) -> list[tuple[Rows, Vectors]]:
        """Top-k of the rows that the index knows, for each query of a batch.

        Args:
            queries: (b, dim) float32.
            k: rows wanted.
            params: search parameters.
            allowed: filter mask; None for all rows.

        Returns:
            Rows and inner products, best first; fewer than ``k`` where no more were found.
        """
        bits = None
        if allowed is not None:
            passing = allowed.head(self.count)
            if passing.count <= self._few:
                return [self.index.search_rows(query, passing.rows, k, _reranked(k)) for query in queries]
            bits = passing.bits
            effort = min(1 / passing.share, MOST_EFFORT)
            # The router's scores are logarithms: so many times as many lists are worth probing.
            params = replace(params, nprobe=int(params.nprobe * effort), margin=params.margin + math.log(effort))
        found, products = self.index.search(queries, k, params, allowed=bits)
        if -1 not in found[:, -1].tolist():
            return list(zip(found, products, strict=True))
        held = found >= 0
        return [(rows[some], scores[some]) for rows, scores, some in zip(found, products, held, strict=True)]

    def with_tail(
        self, queries: Vectors, found: list[tuple[Rows, Vectors]], k: int, allowed: Filter | None
    ) -> list[tuple[Rows, Vectors]]:
        """Top-k of what was found for each query, and of the rows that were added after the index was built."""
        if self._rows == self.count:
            return found
        mask = None if allowed is None else allowed.mask[self.count :]
        merged = []
        for (rows, scores), (late, products) in zip(found, self._tail.search(queries, k, mask), strict=True):
            rows, scores = best_first(np.concatenate([rows, late + self.count]), np.concatenate([scores, products]))
            merged.append((rows[:k], scores[:k]))
        return merged

    def scores_all(self, passing: IndexedFilter, k: int) -> bool:
        """Whether so few rows pass that a search for ``k`` of them re-ranks every one."""
        return passing.count <= min(self._few, _reranked(k))

    def bounded(self) -> BoundedScanner | None:
        """Exact ranking by bounds; None without bounds, or if what they depend on is damaged."""
        return self._bounded if self._bounded is not None and self._is_sound() else None


def _reranked(k: int) -> int:
    return max(LEAST_RERANKED, RERANKED * k)
