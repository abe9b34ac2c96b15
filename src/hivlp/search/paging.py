"""Paging: one order of a collection for one query, by the finest score, made no further than it is looked at.

The looks of a plan rank it. Each looks at more of the collection than the one before and shows a part of what it finds:
the coarse level's best 200 show 50, its best 800 show up to rank 200, and so on; the last look is the exact ranking by
the finest level. What a look finds *above* the last row that is shown already was overlooked by the look before. It
would have to go in between rows of earlier pages, so it is left out until everything else has been shown.

Hence scores never rise from one hit to a later one, pages are parts of one list, and nothing comes twice.
Whoever pages through the whole collection meets last what was overlooked; whoever asks for all of it at once, or all
that a filter lets pass, gets the exact ranking.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hivlp.levels import Vectors
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter, Rows
from hivlp.search.grouping import Folding
from hivlp.search.plan import Plan
from hivlp.search.stages import Asked, Candidates, Query, Step
from hivlp.search.timing import Stopwatch


class Ranking:
    """The ranking of one query, as far as it is known.

    Attributes:
        rows: (n,) int64, best first.
        scores: (n,) float32 inner products by the finest level.
        steps: what was done to find them.
    """

    def __init__(
        self,
        plan: Plan,
        collection: Collection,
        query: Query,
        watch: Stopwatch,
        *,
        first: tuple[Candidates, int] | None = None,
        allowed: Filter | None = None,
        excluded: int | None = None,
        overlooked: bool = True,
    ) -> None:
        """A ranking of which nothing is known, but perhaps what the first look has found.

        Args:
            plan: whose looks make it.
            collection: that is searched.
            query: (dim,) a level.
            watch: that stages are charged to.
            first: what the first look found, and how many ranks it was asked for.
            allowed: filter mask; None for all rows.
            excluded: a row that is left out; cheaper than a filter of one's own.
            overlooked: whether what was overlooked comes last, out of order, or is left out.
        """
        self._looks, self._collection, self._query, self._watch = plan.looks, collection, query, watch
        self._allowed, self._excluded, self._overlooked = allowed, excluded, overlooked
        self._total = collection.rows
        passing = self._total if allowed is None else allowed.count
        self._passing = passing - (excluded is not None and (allowed is None or allowed.passes(excluded)))
        self.rows, self.scores = np.empty(0, np.int64), np.empty(0, np.float32)
        self.steps: list[Step] = []
        self._look = 0
        self._asked = 0  # ranks of the exact look
        self._complete = self._total == 0
        if first is not None:
            self._take(*first)

    def page(self, first: int, last: int) -> tuple[Rows, Vectors]:
        """Rows from place ``first`` up to ``last`` and their finest scores; fewer where the ranking ends."""
        self.reach(last)
        return self.rows[first:last], self.scores[first:last]

    def listed(self, count: int, threshold: float | None, folding: Folding | None, block: int) -> tuple[Rows, Vectors]:
        """The first ``count`` rows whose score reaches a threshold, and which are folded into none before them.

        Args:
            count: how many; fewer where the list ends.
            threshold: the list ends with the first row below it.
            folding: what to fold; it is told the ranking block by block.
            block: rows of it.
        """
        parts = [(self.rows[:0], self.scores[:0])]
        found = 0
        for rows, scores in self._blocks(block):
            # A float64 makes the comparison exact; a float would be rounded to the scores' float32.
            below = np.zeros(len(rows), bool) if threshold is None else scores < np.float64(threshold)
            ends = bool(below.any())
            if ends:
                rows, scores = rows[: below.argmax()], scores[: below.argmax()]
            if folding is not None:
                kept = np.isin(rows, folding.fold(rows))
                rows, scores = rows[kept], scores[kept]
            parts.append((rows, scores))
            found += len(rows)
            if ends or found >= count:
                break
        rows, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        return rows[:count], scores[:count]

    def _blocks(self, size: int) -> Iterator[tuple[Rows, Vectors]]:
        """The whole ranking."""
        start = 0
        while True:
            if start + size > len(self.rows):
                self.reach(max(start + size, 2 * len(self.rows)))  # so that few looks are needed
            part = self.rows[start : start + size], self.scores[start : start + size]
            if len(part[0]) == 0:
                return
            yield part
            start += size

    def reach(self, count: int) -> None:
        """Know the first ``count`` rows."""
        while len(self.rows) < count and not self._complete:
            asked = self._asks(count)
            wanted = Asked([self._query], asked, self._allowed, self._excluded)
            self._take(self._looks[self._look].run(self._collection, wanted, self._watch)[0], asked)
            # A filter may let fewer pass than are wanted: no need to look for others everywhere.
            self._complete = self._complete or (len(self.rows) < count and len(self.rows) >= self._passing)

    def _asks(self, count: int) -> int:
        """Ranks that the present look must find for ``count`` to be known, as far as can be told."""
        reach = self._looks[self._look].reach
        if reach is not None:
            return reach
        if self._asked:
            count = max(count, 2 * self._asked)
        elif self._look:
            count += max(32, count // 8)  # what was overlooked is found again before anything new is
        return min(count, self._total)

    def _take(self, found: Candidates, asked: int) -> None:
        """Take in what the present look found when it was asked for so many ranks."""
        rows, scores, steps = found
        if self.steps[-len(steps) :] != list(steps):  # the exact look may be asked for more ranks
            self.steps += steps
        reach = self._looks[self._look].reach
        if reach is None:
            self._complete = len(rows) < asked or asked >= self._total
            self._asked = asked
        else:
            self._look += 1
        if len(self.rows) == 0 and self._excluded is None:
            self.rows, self.scores = rows[:reach], scores[:reach]
            return
        known = np.isin(rows, self.rows)
        if self._excluded is not None:
            known |= rows == self._excluded
        rows, scores = rows[~known], scores[~known]
        above = np.zeros(len(rows), bool)
        if len(self.rows):
            edge = self.scores[-1]
            above = (scores > edge) | ((scores == edge) & (rows < self.rows[-1]))
        shown = [(rows[~above], scores[~above])]
        if reach is not None:
            left = reach - len(self.rows)
            shown = [(rows[~above][:left], scores[~above][:left])]
        elif self._complete and self._overlooked:
            shown.append((rows[above], scores[above]))
        self.rows = np.concatenate([self.rows, *(part for part, _ in shown)])
        self.scores = np.concatenate([self.scores, *(part for _, part in shown)])
