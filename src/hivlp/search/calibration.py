"""Calibration: what an approximate index's search parameters find and cost, measured on its own data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import AnnIndex, SearchParams
from hivlp.ann.rows import floats
from hivlp.levels import Vectors
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Rows
from hivlp.search.likeness import SAMPLED, K, Likeness, learn, make_probes
from hivlp.search.operating_points import Depth, OperatingPoint
from hivlp.search.truth import RANKS, Truth

DEPTHS = (K, 50, RANKS)
"""Ranks for which search parameters are measured: what most people look at, a page, and a long list."""
RERANKED = 2
"""Rows re-ranked for each rank wanted, at least, beyond the first depth."""
SPACED = 1.3
"""Times as much time that search parameters take as the ones before, to be measured at the deeper depths too."""
SPARSE = 3
"""One in so many of the queries of other kinds is asked at the deeper depths."""
CONFIDENCE = 1.645  # standard errors: one-sided 95%
TIMED = 200
"""Searches that a time is the median of."""
PROBES = 60
"""Queries of each other kind that search parameters are measured with, or half as many in a large index."""
MANY_ROWS = 2_000_000
Progress = Callable[[str, int, int], None]


def measure(
    index: AnnIndex, alive: NDArray[np.bool_] | None, asked: Vectors, truth: Truth, tell: Progress
) -> tuple[Depth, ...]:
    """Operating points of an approximate index on its own data, at each of :data:`DEPTHS`.

    Args:
        index: over the vectors of a commit, all of which it knows.
        alive: (rows,) bool, False for tombstones; None without any.
        asked: (m, dim) queries that nothing was learnt from.
        truth: their exact nearest neighbours.
        tell: called with what is done, how much of it, and of how much.
    """
    data = _Data(index, alive, asked, truth, tell)
    grid = list(dict.fromkeys([*index.params_grid(), *index.thorough_params()]))
    fronts: list[list[OperatingPoint]] = []
    for ranks in DEPTHS:
        fronts.append(_front(data, grid, ranks, f"operating points for {ranks}"))
        # Deeper down, the same lists are worth probing: only those search parameters are measured that differ in time.
        grid = [*_spaced(fronts[0]), *index.thorough_params()]
    ladders = [
        tuple(dict.fromkeys([*(point.params for point in front), *_thorough(index, ranks)]))
        for ranks, front in zip(DEPTHS, fronts, strict=True)
    ]
    likeness = _likeness(data, ladders)
    return tuple(
        Depth(ranks, tuple(front), ladder, alike)
        for ranks, front, ladder, alike in zip(DEPTHS, fronts, ladders, likeness, strict=True)
    )


def check(
    index: AnnIndex,
    alive: NDArray[np.bool_] | None,
    asked: Vectors,
    truth: Truth,
    depths: Sequence[Depth],
    recall: float,
) -> tuple[Depth, ...]:
    """Operating points of an approximate index that has changed, with the recall that they have now.

    Only those are measured that searches for ``recall`` would use: one that falls short gives way to the next fastest
    that was good enough, until one is that still is. All others are taken to have lost, or won, as much. Times stay
    those of :func:`measure`.

    Args:
        index: over the vectors of a commit, all of which it knows.
        alive: (rows,) bool, False for tombstones; None without any.
        asked: (m, dim) queries that :func:`measure` was called with.
        truth: their exact nearest neighbours now.
        depths: that it returned.
        recall: that is promised.
    """
    data = _Data(index, alive, asked, truth, lambda what, done, total: None)
    return tuple(_checked(data, depth, recall) for depth in depths)


def _checked(data: _Data, depth: Depth, recall: float) -> Depth:
    measured: set[SearchParams] = set()
    while (point := depth.point(recall)) is not None and point.params not in measured:
        measured.add(point.params)
        found, at_least = data.promise(point.params, depth.ranks)
        now, change = replace(point, recall=found, at_least=at_least), found - point.recall
        points = (
            now if each is point else each if each.params in measured else each.shifted(change)
            for each in depth.frontier
        )  # fmt: skip
        depth = replace(depth, frontier=tuple(points))
    return depth


class _Data:
    """What search parameters are measured with.

    Attributes:
        index: that is measured.
        alive: (rows,) bool, False for tombstones; None without any.
        asked: (m, dim) queries.
        truth: the exact best of each, as many as the deepest of :data:`DEPTHS`.
        bits: of ``alive``.
        tell: called with progress.
    """

    def __init__(
        self, index: AnnIndex, alive: NDArray[np.bool_] | None, asked: Vectors, truth: Truth, tell: Progress
    ) -> None:
        self.index, self.alive, self.asked, self.tell = index, alive, asked, tell
        self.truth = truth.best(DEPTHS[-1])
        self.bits = None if alive is None else np.packbits(alive, bitorder="little")

    def best(self, queries: Vectors) -> list[tuple[Rows, Vectors]]:
        """The exact best rows of each query, and their scores."""
        return ExhaustiveScanner(self.index.vectors).top_many(queries, DEPTHS[-1], self.alive)

    def recalls(
        self, queries: Vectors, truth: Sequence[tuple[Rows, Vectors]], params: SearchParams, ranks: int
    ) -> NDArray[np.float64]:
        """(queries,) recall at so many ranks of each query."""
        found = self.index.search(queries, ranks, params, allowed=self.bits)[0]
        return np.array(
            [
                len({*best[:ranks].tolist()} & {*rows}) / max(1, len(best[:ranks]))
                for (best, _), rows in zip(truth, found.tolist(), strict=True)
            ]
        )

    def promise(self, params: SearchParams, ranks: int) -> tuple[float, float]:
        """Mean recall of the sample, and the lower end of its confidence."""
        shares = self.recalls(self.asked, self.truth, params, ranks)
        spread = float(shares.std(ddof=1)) if len(shares) > 1 else 1.0
        # Where all are found the spread says nothing; the rule of three does.
        error = max(CONFIDENCE * spread / len(shares) ** 0.5, 0.3 / len(shares))
        recall = float(shares.mean())
        return recall, recall - error

    def times(self, params: SearchParams, ranks: int) -> tuple[float, float]:
        """Median and 99th percentile of the time of one search, in milliseconds."""
        times = []
        for number in range(TIMED):
            query = self.asked[number % len(self.asked)][None]
            start = time.perf_counter()
            self.index.search(query, ranks, params, allowed=self.bits)
            times.append((time.perf_counter() - start) * 1000)
        return float(np.median(times)), float(np.quantile(times, 0.99))


def _front(data: _Data, grid: Sequence[SearchParams], ranks: int, what: str) -> list[OperatingPoint]:
    """The operating points worth using at one depth, fastest first."""
    points: list[OperatingPoint] = []
    some = list(dict.fromkeys(_for(data.index, params, ranks) for params in grid))
    for number, params in enumerate(some):
        data.tell(what, number, len(some))
        if points and points[-1].recall == 1 and params in _thorough(data.index, ranks):
            continue  # more effort finds no more
        points.append(OperatingPoint(params, *data.promise(params, ranks), *data.times(params, ranks)))
    data.tell(what, len(some), len(some))
    return frontier(points)


def _for(index: AnnIndex, params: SearchParams, ranks: int) -> SearchParams:
    """Search parameters that re-rank enough for so many ranks."""
    if ranks > DEPTHS[0]:
        params = replace(params, rerank=max(params.rerank, index.codes_for(RERANKED * ranks)))
    return replace(params, rerank=index.min_rerank(params, ranks))


def _thorough(index: AnnIndex, ranks: int) -> list[SearchParams]:
    return [_for(index, params, ranks) for params in index.thorough_params()]


def _spaced(points: Sequence[OperatingPoint]) -> list[SearchParams]:
    """Search parameters of a front, each of which takes notably longer than the one before."""
    kept: list[OperatingPoint] = []
    for point in points:
        if not kept or point.p50_ms >= SPACED * kept[-1].p50_ms:
            kept.append(point)
    return [point.params for point in kept]


def _likeness(data: _Data, ladders: Sequence[Sequence[SearchParams]]) -> list[Likeness]:
    """What the ladder of each depth finds for queries of other kinds than the sample's."""
    index, alive, rng = data.index, data.alive, np.random.default_rng(0)
    rows = np.arange(len(index.vectors)) if alive is None else np.flatnonzero(alive)
    chosen = np.sort(rng.choice(rows, min(len(rows), SAMPLED), replace=False))
    items = floats(index.vectors[chosen])
    probes = make_probes(data.asked, items, PROBES if len(rows) <= MANY_ROWS else PROBES // 2)
    total = sum(map(len, ladders)) + 1
    data.tell("other queries", 0, total)
    truth, done, measured = data.best(probes.queries), 0, []
    for ranks, ladder in zip(DEPTHS, ladders, strict=True):
        step = 1 if ranks == DEPTHS[0] else SPARSE
        queries, best = probes.queries[::step], truth[::step]
        thorough = _thorough(index, ranks)
        found: list[NDArray[np.float64]] = []
        for params in ladder:
            done += 1
            data.tell("other queries", done, total)
            left = np.arange(len(queries))
            if params in thorough[1:] and found:  # finds all that less effort did
                left = np.flatnonzero(found[-1] < 1)
            shares = np.ones(len(queries))
            if len(left):
                shares[left] = data.recalls(queries[left], [best[place] for place in left], params, ranks)
            found.append(shares)
        measured.append((step, found))
    data.tell("other queries", total, total)
    best_of_sample, best_of_probes = (np.stack([_ten(scores) for _, scores in each]) for each in (data.truth, truth))
    return learn(data.asked, best_of_sample, probes, best_of_probes, measured, items, len(rows))


def _ten(scores: Vectors) -> Vectors:
    return np.pad(scores[:K], (0, max(0, K - len(scores))), constant_values=-np.inf)


def frontier(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Pareto front of operating points: none finds as much in less time; fastest first."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda each: (each.p50_ms, -each.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best
