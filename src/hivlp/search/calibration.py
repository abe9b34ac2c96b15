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
from hivlp.search.approximate import HEAD
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Rows
from hivlp.search.likeness import SAMPLED, K, Likeness, learn, make_probes
from hivlp.search.operating_points import OperatingPoint
from hivlp.search.truth import Truth

CONFIDENCE = 1.645  # standard errors: one-sided 95%
TIMED = 200
"""Searches that a time is the median of."""
PROBES = 60
"""Queries of each other kind that search parameters are measured with, or half as many in a large index."""
MANY_ROWS = 2_000_000
Progress = Callable[[str, int, int], None]


def measure(
    index: AnnIndex, alive: NDArray[np.bool_] | None, asked: Vectors, truth: Truth, tell: Progress
) -> tuple[tuple[OperatingPoint, ...], tuple[SearchParams, ...], Likeness]:
    """Operating points of an approximate index on its own data.

    Args:
        index: over the vectors of a commit, all of which it knows.
        alive: (rows,) bool, False for tombstones; None without any.
        asked: (m, dim) queries that nothing was learnt from.
        truth: their exact nearest neighbours.
        tell: called with what is done, how much of it, and of how much.

    Returns:
        The operating points worth using, fastest first; the ladder of search parameters for queries of other kinds;
        and what the scores of these queries look like.
    """
    answers, bits = truth.best(K), _bits(alive)
    points: list[OperatingPoint] = []
    grid = list(dict.fromkeys(replace(each, rerank=index.min_rerank(each, HEAD)) for each in index.params_grid()))
    for number, params in enumerate(grid):
        recall, at_least = _promise(_recalls(index, asked, answers, params, bits))
        points.append(OperatingPoint(params, recall, at_least, *_times(index, asked, params, bits)))
        tell("operating points", number + 1, len(grid))
    front = tuple(frontier(points))
    ladder = tuple(dict.fromkeys([*(point.params for point in front), index.thorough_params(HEAD)]))
    likeness = _likeness(index, alive, asked, answers, ladder, bits, tell)
    return front, ladder, likeness


def measure_again(
    index: AnnIndex, alive: NDArray[np.bool_] | None, asked: Vectors, truth: Truth, points: Sequence[OperatingPoint]
) -> tuple[OperatingPoint, ...]:
    """The same operating points with the recall that they have now, and the times that they had.

    Args:
        index: with other rows than the points were measured on.
        alive: (rows,) bool, False for tombstones; None without any.
        asked: (m, dim) queries that nothing was learnt from.
        truth: their exact nearest neighbours now.
        points: some of those that were measured.
    """
    answers, bits, again = truth.best(K), _bits(alive), []
    for point in points:
        recall, at_least = _promise(_recalls(index, asked, answers, point.params, bits))
        again.append(replace(point, recall=recall, at_least=at_least))
    return tuple(again)


def _promise(shares: NDArray[np.float64]) -> tuple[float, float]:
    """Mean recall of (queries,) shares that were found, and the lower end of its confidence."""
    spread = float(shares.std(ddof=1)) if len(shares) > 1 else 1.0
    # Where all are found the spread says nothing; the rule of three does.
    error = max(CONFIDENCE * spread / len(shares) ** 0.5, 0.3 / len(shares))
    return float(shares.mean()), float(shares.mean()) - error


def _bits(alive: NDArray[np.bool_] | None) -> NDArray[np.uint8] | None:
    return None if alive is None else np.packbits(alive, bitorder="little")


def _likeness(
    index: AnnIndex,
    alive: NDArray[np.bool_] | None,
    asked: Vectors,
    answers: Sequence[tuple[Rows, Vectors]],
    ladder: Sequence[SearchParams],
    bits: NDArray[np.uint8] | None,
    tell: Progress,
) -> Likeness:
    """What search parameters find for queries of other kinds than the sample's."""
    rng = np.random.default_rng(0)
    rows = np.arange(len(index.vectors)) if alive is None else np.flatnonzero(alive)
    some = np.sort(rng.choice(rows, min(len(rows), SAMPLED), replace=False))
    items = floats(index.vectors[some])
    probes = make_probes(asked, items, PROBES if len(rows) <= MANY_ROWS else PROBES // 2)
    tell("other queries", 0, len(ladder) + 1)
    truth = ExhaustiveScanner(index.vectors).top_many(probes.queries, K, alive)
    found = []
    for number, params in enumerate(ladder):
        tell("other queries", number + 1, len(ladder) + 1)
        found.append(_recalls(index, probes.queries, truth, params, bits))
    tell("other queries", len(ladder) + 1, len(ladder) + 1)
    best, best_of_probes = (np.stack([_ten(scores) for _, scores in each]) for each in (answers, truth))
    return learn(asked, best, probes, best_of_probes, found, items, len(rows))


def _ten(scores: Vectors) -> Vectors:
    return np.pad(scores, (0, K - len(scores)), constant_values=-np.inf)


def _recalls(
    index: AnnIndex,
    asked: Vectors,
    truth: Sequence[tuple[Rows, Vectors]],
    params: SearchParams,
    bits: NDArray[np.uint8] | None,
) -> NDArray[np.float64]:
    """(queries,) recall@10 of each query with these search parameters."""
    rows = index.search(asked, HEAD, params, allowed=bits)[0][:, :K]
    return np.array(
        [
            len({*best.tolist()} & {*found}) / max(1, len(best))
            for (best, _), found in zip(truth, rows.tolist(), strict=True)
        ]
    )


def _times(
    index: AnnIndex, asked: Vectors, params: SearchParams, bits: NDArray[np.uint8] | None
) -> tuple[float, float]:
    times = []
    for number in range(TIMED):
        query = asked[number % len(asked)][None]
        start = time.perf_counter()
        index.search(query, HEAD, params, allowed=bits)
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def frontier(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Pareto front of operating points: none finds as much in less time; fastest first."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda each: (each.p50_ms, -each.recall)):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best
