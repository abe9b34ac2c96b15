"""The cascade: the coarse level scans everything, each finer level decides among the few that remain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hivlp.index.grouping import Folding
from hivlp.index.scan import BatchScanner, Mask, Rows, Scanner
from hivlp.index.search import Stopwatch
from hivlp.levels import Vectors


class Ranking:
    """One query's ranking of a collection, made no further than it is looked at.

    The coarsest level ranks everything; its best ``shortlists[0]`` rows, a block, go to the next level, whose best
    ``shortlists[1]`` go to the next, until the finest level orders what is left. What a level drops keeps its place
    behind what it kept, and the next block of the coarse ranking follows in the same manner: the ranking has no end but
    the collection's, and pages of it fit together.
    """

    def __init__(
        self,
        scanners: Sequence[Scanner],
        query: Sequence[Vectors],
        allowed: Mask | None,
        *,
        block: int,
        shortlists: Sequence[int],
        total: int,
        without: int | None = None,
        stage: str = "coarse",
        watch: Stopwatch,
    ) -> None:
        """A ranking of which nothing is known yet.

        Args:
            scanners: one a level, coarse to fine.
            query: (dim,) a level.
            allowed: (rows,) bool, or None for all.
            block: rows of the coarse ranking that are ordered together.
            shortlists: what each level between the coarsest and the finest hands on.
            total: rows of the index.
            without: a row that is left out; cheaper than a mask of one's own.
            stage: what the scan is charged to; what the finer levels do is charged to ``fine``.
            watch: which is charged.
        """
        self.scanners, self.query, self.allowed, self._block = scanners, query, allowed, block
        self._shortlists, self._total, self._without = shortlists, total, without
        self._stage, self._watch = stage, watch
        self._coarse = np.empty(0, np.int64)
        self._reached = 0

    def rows(self, first: int, last: int) -> Rows:
        """(n,) rows from place ``first`` of the ranking up to ``last``; fewer where it ends."""
        if len(self.scanners) == 1:
            self.reach(last)
            return self._coarse[first:last]
        start, end = first // self._block, -(-last // self._block)
        self.reach(end * self._block)
        parts = [self._ordered(number) for number in range(start, end)]
        skipped = first - start * self._block
        return np.concatenate([np.empty(0, np.int64), *parts])[skipped : skipped + last - first]

    def listed(self, count: int, threshold: float | None, folding: Folding | None) -> Rows:
        """The first ``count`` rows whose finest score reaches a threshold, and which are folded into none before them.

        The list ends with the first block in which no row reaches it.
        """
        parts = [np.empty(0, np.int64)]
        found = 0
        for rows in self.blocks():
            if threshold is not None:
                # A float64 makes the comparison exact; a float would be rounded to the scores' float32.
                rows = rows[self.scanners[-1].rescore(self.query[-1], rows) >= np.float64(threshold)]
            if len(rows) == 0:
                break
            parts.append(rows if folding is None else folding.fold(rows))
            found += len(parts[-1])
            if found >= count:
                break
        return np.concatenate(parts)[:count]

    def blocks(self) -> Iterator[Rows]:
        """The whole ranking, block by block."""
        number = 0
        while True:
            end = (number + 1) * self._block
            if end > self._reached:
                self.reach(max(end, 2 * self._reached))  # twice as far each time, so that few scans are needed
            rows = self._ordered(number)
            if len(rows) == 0:
                return
            yield rows
            number += 1

    def reach(self, count: int) -> None:
        """Know the first ``count`` rows of the coarse ranking."""
        count = min(count, self._total)
        if count > self._reached:
            self.take(self.scanners[0].top(self.query[0], self.asks(count), self.allowed)[0], count)
            self._watch.lap(self._stage)

    def asks(self, count: int) -> int:
        """How many rows the scan must find for ``count`` to be known."""
        return count + (self._without is not None)

    def take(self, rows: Rows, count: int) -> None:
        """Be told the first ``asks(count)`` rows of the coarse ranking."""
        self._reached = count if len(rows) == self.asks(count) else self._total
        if self._without is not None:
            rows = rows[rows != self._without]
        self._coarse = rows[:count]

    def _ordered(self, number: int) -> Rows:
        rows = self._coarse[number * self._block : (number + 1) * self._block]
        if len(self.scanners) > 1:
            rows = funnel(self.scanners[1:], self.query[1:], self._shortlists, rows)
            self._watch.lap("fine")
        return rows


def scan_together(rankings: Sequence[Ranking], count: int, stage: str, watch: Stopwatch) -> None:
    """Let rankings that differ in their query alone know their first ``count``, from one pass if the engine can."""
    scanner = rankings[0].scanners[0]
    if len(rankings) == 1 or count == 0 or not isinstance(scanner, BatchScanner):
        for ranking in rankings:
            ranking.reach(count)
        return
    queries = np.stack([ranking.query[0] for ranking in rankings])
    found = scanner.top_many(queries, rankings[0].asks(count), rankings[0].allowed)
    for ranking, (rows, _) in zip(rankings, found, strict=True):
        ranking.take(rows, count)
    watch.lap(stage)


def funnel(scanners: Sequence[Scanner], query: Sequence[Vectors], shortlists: Sequence[int], rows: Rows) -> Rows:
    """Order one block by ever finer levels, each looking at no more rows than the one before."""
    dropped: list[Rows] = []
    for position, (scanner, vector) in enumerate(zip(scanners, query, strict=True)):
        finest = position == len(scanners) - 1
        if not finest and len(rows) <= shortlists[position]:
            continue  # nothing to drop: the finest level will order them anyway
        scores = scanner.rescore(vector, rows)
        rows = rows[np.lexsort((rows, -scores))]
        if not finest:
            dropped.insert(0, rows[shortlists[position] :])
            rows = rows[: shortlists[position]]
    return np.concatenate([rows, *dropped])
