"""A coarse level for given vectors: fitted in several ways, and judged on queries that no way has seen."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hivlp.coarse.closed import lean, prefix, principal, second_moment
from hivlp.coarse.distill import HITS, Progress, distill
from hivlp.coarse.maps import CoarseMaps, unit_or_flat
from hivlp.errors import ArgumentError, DataError
from hivlp.levels import Vectors

log = logging.getLogger(__name__)

Method = Literal["distill", "pca", "lean", "prefix"]
METHODS: tuple[Method, ...] = get_args(Method)

SAMPLE_ITEMS = 100_000
SAMPLE_QUERIES = 20_000
HELD_OUT = 1000
SHORTLIST = 200
# With fewer, there is nothing to hold out, and second moments are all noise.
LEAST_ITEMS = 500
LEAST_QUERIES = 100
BLOCK = 64
ENOUGH = 0.9995
"""Recall in the shortlist from which on a closed form leaves nothing for learning to win: 5 of 10,000 hits."""


@dataclass(frozen=True)
class Fitted:
    """Maps, and how they came about.

    Attributes:
        maps: for the index.
        method: what made them; not always what was asked for.
        recall: of each way that was tried: the share of held-out queries' ten best items by the fine vectors that are
            in a shortlist by the coarse ones. Empty if there was too little to hold anything out.
        shortlist: how long it was: 200, or a twentieth of the items if those are fewer than 4,000.
        items: that were fitted to.
        queries: that were fitted to.
        held_out: queries that were kept for the recall.
        seconds: it took.
    """

    maps: CoarseMaps
    method: Method
    recall: dict[Method, float]
    shortlist: int
    items: int
    queries: int
    held_out: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp index --embeddings --json`` prints under ``fit``."""
        return {
            "method": self.method,
            "dims": self.maps.item.shape[0],
            "recall@10": {name: round(value, 4) for name, value in self.recall.items()},
            "shortlist": self.shortlist,
            "items": self.items,
            "queries": self.queries,
            "held_out": self.held_out,
            "seconds": round(self.seconds, 1),
        }


def check_method(name: str) -> None:
    """Whether there is a method of this name.

    Raises:
        ArgumentError: if not.
    """
    if name not in METHODS:
        raise ArgumentError(f"a coarse level is made by {', '.join(METHODS)}, not {name!r:.40}")


def fit_coarse(
    items: Vectors,
    queries: Vectors | None = None,
    *,
    dims: int = 64,
    method: Method = "distill",
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Fitted:
    """Fit a coarse level to a sample of vectors.

    Args:
        items: (N, d) unit vectors; 100,000 are plenty.
        queries: (M, d) unit vectors, if they are spread otherwise than the items (texts that look for pictures); by
            default some of the items look for the others.
        dims: of the coarse level.
        method: ``distill`` learns from where the better closed form ends; it is skipped if that finds all already
            (:data:`ENOUGH`), and dropped if that does better on held-out queries. ``lean`` minimises the error of
            scores; ``pca`` looks at the items alone; ``prefix`` keeps the first dims.
        seed: of what is drawn.
        on_progress: called with how much of the learning is done, and of how much.

    Raises:
        ArgumentError: if there is no such method.
        DataError: if there are too few vectors, they differ in length, or ``dims`` does not fit.
    """
    check_method(method)
    started = time.perf_counter()
    width = items.shape[1]
    if not 0 < dims < width:
        raise DataError(f"a coarse level of {dims} dims for vectors of {width}: choose fewer than {width}")
    if len(items) == 0:
        raise DataError("there is no vector to fit a coarse level to")
    if queries is not None and queries.shape[1] != width:
        raise DataError(f"queries of {queries.shape[1]} dims for items of {width}: they must come from the same model")
    if queries is not None and len(queries) < LEAST_QUERIES:
        raise DataError(f"{len(queries)} queries are too few to fit to: give {LEAST_QUERIES} or more, or none")
    rng = np.random.default_rng(seed)
    if len(items) < LEAST_ITEMS:
        maps = prefix(width, dims) if method == "prefix" else principal(second_moment(items), dims)
        used: Method = "prefix" if method == "prefix" else "pca"
        return Fitted(maps, used, {}, 0, len(items), 0, 0, time.perf_counter() - started)
    if queries is None:
        asking = rng.choice(len(items), min(SAMPLE_QUERIES, len(items) // 5), replace=False)
        queries, items = items[asking], np.delete(items, asking, axis=0)
    queries = queries[rng.permutation(len(queries))]
    kept = min(HELD_OUT, len(queries) // 5)
    held, seen = queries[:kept], queries[kept:]
    judge = _Judge(held, items)
    moment = second_moment(items)
    mean = items.mean(axis=0, dtype=np.float64)
    ways: dict[Method, CoarseMaps] = {
        "pca": principal(moment, dims),
        "lean": lean(moment, second_moment(seen), mean, dims),
    }
    if method == "prefix":
        ways["prefix"] = prefix(width, dims)
    recall = {name: judge.recall(maps) for name, maps in ways.items()}
    chosen = method
    if method == "distill":
        closed: Method = "lean" if recall["lean"] >= recall["pca"] else "pca"
        if recall[closed] >= ENOUGH:
            chosen = closed
            log.warning(
                "learning was skipped, as it cannot help: %s finds %.2f%% of the ten best", closed, 100 * recall[closed]
            )
        else:
            ways["distill"] = distill(ways[closed], seen, items, seed=seed, on_progress=on_progress)
            recall["distill"] = judge.recall(ways["distill"])
            if recall["distill"] <= recall[closed]:
                chosen = closed
                log.warning("learning did not beat the closed form on held-out queries: %s is used", closed)
    seconds = time.perf_counter() - started
    return Fitted(ways[chosen], chosen, recall, judge.shortlist, len(items), len(seen), kept, seconds)


class _Judge:
    """Knows the best items of held-out queries."""

    def __init__(self, queries: Vectors, items: Vectors) -> None:
        self._queries, self._items = queries, items
        self.shortlist = min(SHORTLIST, len(items) // 20)
        self._best = np.concatenate(
            [_top(queries[start : start + BLOCK] @ items.T, HITS) for start in range(0, len(queries), BLOCK)]
        )

    def recall(self, maps: CoarseMaps) -> float:
        """Share of the best items that are in the shortlists."""
        coarse = unit_or_flat(self._items @ maps.item.T)
        asked = self._queries @ maps.query.T
        found = 0
        for start in range(0, len(asked), BLOCK):
            listed = _top(asked[start : start + BLOCK] @ coarse.T, self.shortlist)
            best = self._best[start : start + BLOCK]
            found += sum(len(np.intersect1d(*pair, assume_unique=True)) for pair in zip(listed, best, strict=True))
        return found / self._best.size


def _top(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """(n, count) columns of the highest scores, in no order."""
    result: NDArray[np.int64] = np.argpartition(scores, -count, axis=1)[:, -count:]
    return result.copy()  # a view would keep all columns
