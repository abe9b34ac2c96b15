"""The true best rows of the finest level without reading all of it: a bound says which rows cannot be among them."""

from __future__ import annotations

import numpy as np

from hivlp.ann import Setting
from hivlp.ann.bounds import Bounds
from hivlp.levels import Vectors
from hivlp.search.ann_scan import EngineScanner
from hivlp.search.scan import ExhaustiveScanner, Mask, Rows
from hivlp.store.codec import Stored

# How the engine finds rows whose scores are hard to beat; it decides the time an answer takes, not the answer.
SETTING = Setting(64, 8.0, 1.0, 60)
# Rows wanted, of those that there are, from which on everything is read: the bar is too low to leave much out.
MOST_WANTED = 0.01
# Rows that reach the bar, of those that there are, likewise: read one by one they take as long as all.
MOST_REACHING = 0.25


class ExactScanner:
    """Ranks the rows of the finest level as :class:`ExhaustiveScanner` does, to the last bit.

    The engine finds good rows, and the worst true score among the best ``count`` of them is a bar that no row of the
    answer is below. Then the nibbles of all rows are read, one after the other; only rows whose bound reaches the bar
    are scored. Where that would not be faster, everything is read instead.
    """

    def __init__(self, near: EngineScanner, bounds: Bounds, vectors: Stored) -> None:
        """A scanner for one commit.

        Args:
            near: finds good rows.
            bounds: of the rows that the engine knows, the first ones.
            vectors: (rows, dim) float16, all rows of the commit.
        """
        self._near, self._bounds, self._built = near, bounds, bounds.engine.arrays.count
        self._all = ExhaustiveScanner(vectors)
        self._tail = ExhaustiveScanner(vectors[self._built :])
        self._rows = len(vectors)

    def top(self, query: Vectors, count: int, allowed: Mask | None) -> tuple[Rows, Vectors]:
        """As :class:`hivlp.search.scan.Scanner` says."""
        best = self._bounded(query, count, allowed)
        return self._all.top(query, count, allowed) if best is None else best

    def top_many(self, queries: Vectors, count: int, allowed: Mask | None) -> list[tuple[Rows, Vectors]]:
        """What :meth:`top` gives for each query; those that need everything share one pass over it."""
        found = [self._bounded(query, count, allowed) for query in queries]
        left = np.array([best is None for best in found], bool)
        rest = iter(self._all.top_many(queries[left], count, allowed) if left.any() else [])
        return [next(rest) if best is None else best for best in found]

    def rescore(self, query: Vectors, rows: Rows) -> Vectors:
        """(n,) scores of the given rows."""
        return self._all.rescore(query, rows)

    def _bounded(self, query: Vectors, count: int, allowed: Mask | None) -> tuple[Rows, Vectors] | None:
        """The best rows; None where reading all is as fast."""
        best = self._known(query, count, allowed)
        if best is None or self._rows == self._built:
            return best
        late, scores = self._tail.top(query, count, None if allowed is None else allowed[self._built :])
        return _best(np.concatenate([best[0], late + self._built]), np.concatenate([best[1], scores]), count)

    def _known(self, query: Vectors, count: int, allowed: Mask | None) -> tuple[Rows, Vectors] | None:
        """The best of the rows that the engine knows; None likewise."""
        if count > MOST_WANTED * self._built:
            return None
        passing = None if allowed is None else self._near.passing(allowed)
        if passing is not None and passing.few is not None:
            return None
        good = np.unique(self._near.nearest(query[None], count, SETTING, allowed)[0][0])
        if len(good) < count:
            return None
        bar = self._all.rescore(query, good).min()
        bits = None if passing is None else passing.bits
        reaching = self._bounds.reaching(query, float(bar), int(MOST_REACHING * self._built), bits)
        if reaching is None:
            return None
        rows, bounds = reaching
        # Good rows reach the bar themselves: a bound that leaves one of them out is none.
        if not np.isin(good, rows).all():
            return None
        if len(rows) > 8 * count:
            # The most promising ones raise the bar, should the engine have missed some.
            first = np.argpartition(-bounds, 4 * count)[: 4 * count]
            bar = max(bar, np.partition(self._all.rescore(query, rows[first]), -count)[-count])
            rows, bounds = rows[bounds >= bar], bounds[bounds >= bar]
        scores = self._all.rescore(query, rows)
        return None if (scores > bounds).any() else _best(rows, scores, count)


def _best(rows: Rows, scores: Vectors, count: int) -> tuple[Rows, Vectors]:
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
