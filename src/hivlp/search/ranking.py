"""One order of a collection for one query, by the finest score, made no further than it is looked at.

A ladder of tiers ranks it. Each tier looks at more of the collection than the one before and shows a part of what it
finds: the coarse level's best 200 show 50, its best 800 show up to rank 200, and so on; the last tier is the exact
ranking of the finest level. What a tier finds *above* the last row that is shown already was overlooked by the tier
before. It would have to go in between rows of earlier pages, so it is left out until everything else has been shown.

Hence scores never rise from one hit to a later one, pages are parts of one list, and nothing comes twice.
Whoever pages through the whole collection meets last what was overlooked; whoever asks for all of it at once, or all
that a filter lets pass, gets the exact ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hivlp.levels import Vectors
from hivlp.search.grouping import Folding
from hivlp.search.results import Stopwatch
from hivlp.search.scan import Mask, Rows, Scanner, best_first, top_many


class Found(NamedTuple):
    """What a look at the collection gave for one query."""

    rows: Rows
    """(n,) best first; equal scores in row order."""
    scores: Vectors
    """(n,) by the finest level."""
    step: dict[str, Any]
    """How it was looked, in words and numbers."""


class Tier(Protocol):
    """One way to look for a query's best rows."""

    @property
    def reach(self) -> int | None:
        """Up to which rank it shows what it finds; None for the exact ranking of everything."""

    def find(
        self, queries: Sequence[Sequence[Vectors]], count: int, allowed: Mask | None, without: int | None
    ) -> list[Found]:
        """The best rows of each query.

        Args:
            queries: (dim,) a level.
            count: how many are wanted; a tier with a ``reach`` may find more or fewer.
            allowed: (rows,) bool, or None for all.
            without: a row that is not wanted; it may be among those that are found.
        """


class Exact:
    """Everything, ranked by the finest level."""

    reach: int | None = None

    def __init__(self, scanner: Callable[[], Scanner], stage: str, watch: Stopwatch) -> None:
        """What ranks the rows is asked for when it is needed: an engine is summed up before its first exact answer."""
        self._scanner, self._stage, self._watch = scanner, stage, watch

    def find(
        self, queries: Sequence[Sequence[Vectors]], count: int, allowed: Mask | None, without: int | None
    ) -> list[Found]:
        """See :class:`Tier`."""
        asked = np.stack([query[-1] for query in queries])
        found = top_many(self._scanner(), asked, count + (without is not None), allowed)
        self._watch.lap(self._stage)
        return [Found(*each, {"stage": "exact"}) for each in found]


class Cascade:
    """A shortlist by the coarsest level, thinned out by each level between, ordered by the finest."""

    def __init__(self, scanners: Sequence[Scanner], shortlists: Sequence[int], reach: int, watch: Stopwatch) -> None:
        """One shortlist for each of the scanners, coarse to fine, but the last."""
        self._scanners, self._shortlists, self._watch = scanners, shortlists, watch
        self.reach: int = reach

    def find(
        self, queries: Sequence[Sequence[Vectors]], count: int, allowed: Mask | None, without: int | None
    ) -> list[Found]:
        """See :class:`Tier`."""
        coarse, size = np.stack([query[0] for query in queries]), self._shortlists[0]
        lists = top_many(self._scanners[0], coarse, size + (without is not None), allowed)
        self._watch.lap("coarse")
        found = []
        for query, (rows, _) in zip(queries, lists, strict=True):
            rows = rows[rows != without][:size]
            best = funnel(self._scanners[1:], query[1:], self._shortlists[1:], rows)
            found.append(Found(*best, {"stage": "cascade", "shortlist": self._shortlists[0]}))
        self._watch.lap("fine")
        return found


def funnel(
    scanners: Sequence[Scanner], query: Sequence[Vectors], shortlists: Sequence[int], rows: Rows
) -> tuple[Rows, Vectors]:
    """A shortlist, thinned out by each level but the finest, which orders what is left.

    Args:
        scanners: one for each level beyond the coarsest, coarse to fine.
        query: (dim,) for each of them.
        shortlists: what each of them but the last hands on.
        rows: (n,) of the coarsest level's shortlist.

    Returns:
        (m,) rows and their finest scores, best first; equal scores in row order.
    """
    for scanner, vector, kept in zip(scanners[:-1], query[:-1], shortlists, strict=True):
        if len(rows) > kept:
            rows = best_first(rows, scanner.rescore(vector, rows))[0][:kept]
    return best_first(rows, scanners[-1].rescore(query[-1], rows))


def cascades(
    scanners: Sequence[Scanner], shortlists: Sequence[int], reach: int, total: int, watch: Stopwatch
) -> list[Tier]:
    """Tiers that look ever further, each at four times as many rows as it shows, until that would be all.

    Args:
        scanners: one a level, coarse to fine.
        shortlists: of the first tier.
        reach: what the first tier shows.
        total: rows of the index.
        watch: which is charged.
    """
    tiers: list[Tier] = [Cascade(scanners, shortlists, reach, watch)]
    while 16 * reach < total:
        reach *= 4
        tiers.append(Cascade(scanners, [max(4 * reach, size) for size in shortlists], reach, watch))
    return tiers


class Ranking:
    """What one query's tiers have shown so far."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        query: Sequence[Vectors],
        allowed: Mask | None,
        *,
        total: int,
        passing: int,
        without: int | None = None,
        overlooked: bool = True,
    ) -> None:
        """A ranking of which nothing is known yet.

        Args:
            tiers: the last one has no ``reach``, all others have one, which grows.
            query: (dim,) a level.
            allowed: (rows,) bool, or None for all.
            total: rows of the index, allowed or not.
            passing: of them, those that are allowed.
            without: a row that is left out; cheaper than a mask of one's own.
            overlooked: whether what was overlooked comes last, out of order, or is left out.
        """
        self.tiers, self.query, self.allowed = tiers, query, allowed
        self._total, self.without, self._overlooked = total, without, overlooked
        self._passing = passing - (without is not None and (allowed is None or bool(allowed[without])))
        self.rows, self.scores = np.empty(0, np.int64), np.empty(0, np.float32)
        self._tier = 0
        self.steps: list[dict[str, Any]] = []
        self._asked = 0  # of the exact tier
        self._complete = total == 0

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
            asked = self.asks(count)
            self.take(self.tiers[self._tier].find([self.query], asked, self.allowed, self.without)[0], asked)
            # A filter may let fewer pass than are wanted: no need to look for others everywhere.
            self._complete = self._complete or (len(self.rows) < count and len(self.rows) >= self._passing)

    def asks(self, count: int) -> int:
        """How many rows the present tier must find for ``count`` to be known, as far as can be told."""
        reach = self.tiers[self._tier].reach
        if reach is not None:
            return reach
        if self._asked:
            count = max(count, 2 * self._asked)
        elif self._tier:
            count += max(32, count // 8)  # what was overlooked is found again before anything new is
        return min(count, self._total)

    def take(self, found: Found, asked: int) -> None:
        """Be told what the present tier found for so many."""
        rows, scores, step = found
        if step not in self.steps:
            self.steps.append(step)
        reach = self.tiers[self._tier].reach
        if reach is None:
            self._complete = len(rows) < asked or asked >= self._total
            self._asked = asked
        else:
            self._tier += 1
        if len(self.rows) == 0 and self.without is None:
            self.rows, self.scores = rows[:reach], scores[:reach]
            return
        known = np.isin(rows, self.rows)
        if self.without is not None:
            known |= rows == self.without
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


def reach_together(rankings: Sequence[Ranking], count: int) -> None:
    """Let rankings that differ in their query alone know their first ``count``, sharing the first tier's look."""
    first = rankings[0]
    asked = first.asks(count)
    if len(rankings) > 1 and count > 0 and asked > 0:
        found = first.tiers[0].find([ranking.query for ranking in rankings], asked, first.allowed, first.without)
        for ranking, each in zip(rankings, found, strict=True):
            ranking.take(each, asked)
    for ranking in rankings:
        ranking.reach(count)
