"""Searcher: carries a plan out for a batch of queries, and cuts a page of each ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hivlp.levels import DEFAULT_SHORTLIST, Vectors
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter, Rows
from hivlp.search.grouping import Contents, Folding, NearDuplicates, SameContent
from hivlp.search.options import Options
from hivlp.search.paging import Ranking
from hivlp.search.plan import Plan
from hivlp.search.stages import Asked, Query, Step
from hivlp.search.timing import Stopwatch


class Page(NamedTuple):
    """A page of one query's ranking.

    Attributes:
        rows: (n,) int64, best first.
        scores: (n,) float32 inner products by the finest level.
        duplicates: rows folded into each; None unless the search was asked to group.
        steps: what was done to find them.
    """

    rows: Rows
    scores: Vectors
    duplicates: list[Sequence[int]] | None
    steps: Sequence[Step]


def search(
    collection: Collection,
    plan: Plan,
    queries: Sequence[Query],
    options: Options,
    watch: Stopwatch,
    *,
    contents: Contents | None,
    allowed: Filter | None,
    excluded: int | None = None,
) -> list[Page]:
    """A page of each query's ranking. The queries share the first look, which is all that most of them need.

    Args:
        collection: of one commit.
        plan: that is carried out.
        queries: (dim,) float32 unit vectors, one a level.
        options: what is asked.
        watch: that stages are charged to.
        contents: content hashes of that commit's rows, for grouping by content.
        allowed: filter mask, which leaves tombstones out; None for all rows.
        excluded: a row that is left out.
    """
    first, last = options.offset, options.offset + min(options.k, collection.rows)
    if not collection.rows or not queries:
        return [Page(np.empty(0, np.int64), np.empty(0, np.float32), None, ())] * len(queries)
    look = plan.looks[0]
    asked = min(last, collection.rows) if look.reach is None else look.reach
    block = max([*(options.shortlists or [DEFAULT_SHORTLIST])[:1], options.k])
    found = look.run(collection, Asked(queries, asked, allowed, excluded), watch)
    pages = []
    for query, candidates in zip(queries, found, strict=True):
        rows, scores, steps = candidates
        if options.plain and excluded is None and last <= min(len(rows), asked):
            if first or last < len(rows):
                rows, scores = rows[first:last], scores[first:last]
            pages.append(Page(rows, scores, None, steps))
            continue
        ranking = Ranking(
            plan, collection, query, watch, first=(candidates, asked), allowed=allowed, excluded=excluded,
            overlooked=options.plain,
        )  # fmt: skip
        duplicates: list[Sequence[int]] | None = None
        if options.plain:
            rows, scores = ranking.page(first, last)
        else:
            folding = _folding(collection, options.group, contents, allowed, excluded)
            rows, scores = ranking.listed(last, options.threshold, folding, block)
            rows, scores = rows[first:], scores[first:]
            if folding is not None:
                duplicates = [folding.duplicates(row) for row in rows.tolist()]
        pages.append(Page(rows, scores, duplicates, ranking.steps))
    return pages


def _folding(
    collection: Collection,
    group: bool | float,
    contents: Contents | None,
    allowed: Filter | None,
    excluded: int | None,
) -> Folding | None:
    if group is False:
        return None
    if group is True:
        assert contents is not None
        return SameContent(contents, allowed, excluded)
    return NearDuplicates(collection.scanners[-1].vectors, group)
