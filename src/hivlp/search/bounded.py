"""Exact ranking by bounds: rows whose upper bound stays below a threshold are never scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hivlp.ann import AnnIndex, SearchParams
from hivlp.ann.bounds import Bounds
from hivlp.levels import Vectors
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Filter, Rows, mask_of

# How good rows are found, whose scores are hard to beat; it decides the time an answer takes, not the answer.
PARAMS = SearchParams(nprobe=64, margin=8.0, slack=1.0, rerank=60)
MOST_WANTED = 0.01
"""Share of the rows wanted from which on everything is scanned: the threshold is too low to leave much out."""
MOST_REACHING = 0.25
"""Share of the rows reaching the threshold from which on everything is scanned: one by one they take as long as all."""

NearSearch = Callable[[Vectors, int, SearchParams, Filter | None], list[tuple[Rows, Vectors]]]


class BoundedScanner:
    """Exact ranking of the finest level, equal to :class:`ExhaustiveScanner`'s to the last bit.

    The approximate index finds good rows, and the worst true score among the best k of them is a threshold that no row
    of the answer is below. Then the refinement codes of all rows are read, one after the other; only rows whose upper
    bound reaches the threshold are scored.
    """

    def __init__(
        self,
        index: AnnIndex,
        bounds: Bounds,
        near: NearSearch,
        tail: ExhaustiveScanner,
        *,
        few: int,
        most_reaching: float = MOST_REACHING,
    ) -> None:
        """A scanner for one commit.

        Args:
            index: over all (rows, dim) vectors of the commit, of which it knows the first.
            bounds: on the inner products with the rows that it knows.
            near: finds good rows, as :meth:`hivlp.search.approximate.Approximate.search` does.
            tail: scans the rows that the index does not know.
            few: rows passing a filter up to which they are scanned: there are too few to bound.
            most_reaching: share of the rows reaching the threshold from which on everything is scanned.
        """
        self._few, self._most_reaching = few, most_reaching
        self._bounds, self._near, self._count, self._rows = bounds, near, index.count, len(index.vectors)
        self._all, self._tail = ExhaustiveScanner(index.vectors), tail

    def top(self, query: Vectors, k: int, allowed: Filter | None) -> tuple[Rows, Vectors] | None:
        """Top-k rows and scores, best first, equal scores in row order; None where scanning all rows is as fast."""
        best = self._known(query, k, allowed)
        if best is None or self._rows == self._count:
            return best
        mask = mask_of(allowed)
        late, scores = self._tail.top(query, k, None if mask is None else mask[self._count :])
        return _best(np.concatenate([best[0], late + self._count]), np.concatenate([best[1], scores]), k)

    def _known(self, query: Vectors, k: int, allowed: Filter | None) -> tuple[Rows, Vectors] | None:
        """Top-k of the rows that the index knows; None where scanning all rows is as fast."""
        if k > MOST_WANTED * self._count:
            return None
        passing = None if allowed is None else allowed.head(self._count)
        if passing is not None and passing.count <= self._few:
            return None
        good = np.unique(self._near(query[None], k, PARAMS, allowed)[0][0])
        if len(good) < k:
            return None
        threshold = self._all.rescore(query, good).min()
        bits = None if passing is None else passing.bits
        reaching = self._bounds.reaching(query, float(threshold), int(self._most_reaching * self._count), bits)
        if reaching is None:
            return None
        rows, bounds = reaching
        # Good rows reach the threshold themselves: a bound that leaves one of them out is none.
        if not np.isin(good, rows).all():
            return None
        if len(rows) > 8 * k:
            # The most promising ones raise the threshold, should the approximate search have missed some.
            first = np.argpartition(-bounds, 4 * k)[: 4 * k]
            threshold = max(threshold, np.partition(self._all.rescore(query, rows[first]), -k)[-k])
            rows, bounds = rows[bounds >= threshold], bounds[bounds >= threshold]
        scores = self._all.rescore(query, rows)
        return None if (scores > bounds).any() else _best(rows, scores, k)


def _best(rows: Rows, scores: Vectors, k: int) -> tuple[Rows, Vectors]:
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
