"""Metrics of queries with several positives: recall@K, R-precision and mAP@R (Musgrave et al., 2020).

R-precision is the share of positives among the R best, R being how many positives the query has. mAP@R is the mean,
over the ranks up to R, of the precision at each rank that holds a positive. A tie counts against a positive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.data.benchmarks.positives import Ids, Positives, Rating
from hivlp.evaluate.recall import BLOCK_FLOATS, searches
from hivlp.evaluate.results import CUTOFFS, DIRECTIONS
from hivlp.levels import Embeddings, Vectors

Flags = NDArray[np.bool_]
"""(n,) whether the item at each rank is a positive, best first."""
Own = Sequence[NDArray[np.int64]]
"""Of each query, the rows of its positives."""


class PositiveSet:
    """Positives of one collection as rows of its vectors.

    Attributes:
        captions: rows of the captions that are asked, and of each its pictures.
        images: rows of the pictures that are asked, and of each its captions.
    """

    def __init__(self, positives: Positives, image_ids: Sequence[int], caption_ids: Sequence[int]) -> None:
        """Look the ids up.

        Args:
            positives: by COCO's ids; queries and items that are not in the collection are left out.
            image_ids: (N,) id of each picture.
            caption_ids: (M,) id of each caption.
        """
        image_row = {each: row for row, each in enumerate(image_ids)}
        caption_row = {each: row for row, each in enumerate(caption_ids)}
        self.captions = _rows(positives.images, caption_row, image_row)
        self.images = _rows(positives.captions, image_row, caption_row)

    def metrics(self, images: Embeddings, texts: Embeddings, shortlist: int) -> dict[str, Any]:
        """``queries`` by direction, and metrics of each level and of the cascade by direction, in percent.

        Args:
            images: (N, dim) a level.
            texts: (M, dim) a level.
            shortlist: candidates that each coarser level hands on.
        """
        names = list(images)
        sides = ((texts, images, *self.captions), (images, texts, *self.images))
        found: dict[str, Any] = {
            "queries": {direction: len(rows) for direction, (_, _, rows, _) in zip(DIRECTIONS, sides, strict=True)},
            "levels": {name: {} for name in names},
            "cascade": {"shortlist": shortlist},
        }
        for direction, (asked, items, rows, own) in zip(DIRECTIONS, sides, strict=True):
            queries = asked.rows(rows)
            for name in names:
                found["levels"][name][direction] = summary(level_flags(queries[name], items[name], own), own)
            cascade = found["levels"][names[-1]][direction]
            if len(names) > 1:
                asked_levels, item_levels = [queries[name] for name in names], [items[name] for name in names]
                cascade = summary(cascade_flags(asked_levels, item_levels, own, shortlist), own)
            found["cascade"][direction] = cascade
        return found


def level_flags(queries: Vectors, items: Vectors, own: Own) -> Iterator[Flags]:
    """Flags of the best ranks of each query by one level alone.

    Args:
        queries: (Q, dim).
        items: (N, dim).
        own: of each query, the rows of its positives.
    """
    step = max(1, BLOCK_FLOATS // max(1, len(items)))
    everything = np.arange(len(items))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ items.T
        for row, positives in zip(scores, own[start : start + step], strict=True):
            yield _flags(everything, row, positives)


def cascade_flags(queries: Sequence[Vectors], items: Sequence[Vectors], own: Own, shortlist: int) -> Iterator[Flags]:
    """Flags of the best ranks of each query in a search; see :func:`hivlp.evaluate.recall.searches`."""
    table = np.full((len(own), max(map(len, own), default=0)), -1, np.int64)
    for number, rows in enumerate(own):
        table[number, : len(rows)] = rows
    for (rows, scores), positives in zip(searches(queries, items, table, shortlist), own, strict=True):
        yield _flags(rows, scores, positives)


def summary(flags: Iterator[Flags], own: Own) -> dict[str, float]:
    """``R@1``, ``R@5``, ``R@10``, ``R-precision`` and ``mAP@R``: means over queries, in percent."""
    sums = dict.fromkeys([*(f"R@{cutoff}" for cutoff in CUTOFFS), "R-precision", "mAP@R"], 0.0)
    for found, positives in zip(flags, own, strict=True):
        count = len(positives)
        for cutoff in CUTOFFS:
            sums[f"R@{cutoff}"] += bool(found[:cutoff].any())
        hits = found[:count]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        sums["R-precision"] += hits.sum() / count
        sums["mAP@R"] += precision[hits].sum() / count
    return {name: round(100 * float(value) / max(1, len(own)), 2) for name, value in sums.items()}


def agreement(ratings: Sequence[Rating], image_ids: Sequence[int], caption_ids: Sequence[int], images: Embeddings,
              texts: Embeddings) -> dict[str, Any]:  # fmt: skip
    """Spearman's rank correlation of each level's cosine with people's scores, over all rated pairs that are there.

    CxC's paper gives the mean over samples of the pairs instead.
    """
    image_row = {each: row for row, each in enumerate(image_ids)}
    caption_row = {each: row for row, each in enumerate(caption_ids)}
    there = [each for each in ratings if each.caption in caption_row and each.image in image_row]
    text = np.array([caption_row[each.caption] for each in there], np.int64)
    image = np.array([image_row[each.image] for each in there], np.int64)
    people = np.array([each.score for each in there])
    cosine = {name: np.einsum("ij,ij->i", texts[name][text], images[name][image]) for name in images}
    return {"pairs": len(there), **{name: spearman(scores, people) for name, scores in cosine.items()}}


def spearman(left: NDArray[Any], right: NDArray[Any]) -> float | None:
    """Spearman's rank correlation, equal values sharing the mean of their ranks; None where it is not defined."""
    if len(left) < 2:
        return None
    first, second = (_mean_ranks(values) for values in (left, right))
    scale = np.sqrt(first @ first) * np.sqrt(second @ second)
    return round(float(first @ second / scale), 4) if scale else None


def _mean_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks with mean zero."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    return np.asarray(ranks - ranks.mean(), np.float64)


def _flags(rows: NDArray[np.int64], scores: Vectors, positives: NDArray[np.int64]) -> Flags:
    """Flags of as many ranks as there are positives, at least ten."""
    positive = np.isin(rows, positives)
    depth = max(CUTOFFS[-1], len(positives))
    if len(scores) > depth:  # whatever ties with the last of them may come before it
        near = np.flatnonzero(scores >= -np.partition(-scores, depth - 1)[depth - 1])
        positive, scores = positive[near], scores[near]
    order = np.lexsort((positive, -scores))[:depth]
    return np.asarray(positive[order], np.bool_)


def _rows(ids: Ids, query_row: dict[int, int], item_row: dict[int, int]) -> tuple[list[int], Own]:
    queries, own = [], []
    for query, items in ids.items():
        there = [item_row[item] for item in items if item in item_row]
        if query in query_row and there:
            queries.append(query_row[query])
            own.append(np.array(sorted(there), np.int64))
    return queries, own
