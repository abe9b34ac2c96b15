"""Searcher: carries a plan out for a batch of queries, and cuts a page of each ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hivlp.levels import DEFAULT_SHORTLIST, Vectors
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter, Rows
from hivlp.search.grouping import Contents, Folding, NearDuplicates, SameContent
from hivlp.search.options import Options
from hivlp.search.paging import Ranking
from hivlp.search.plan import Plan
from hivlp.search.stages import Query, Step
from hivlp.search.timing import Stopwatch


class Page(NamedTuple):
    """A page of one query's ranking.

    Attributes:
        rows: (n,) int64, best first.
        scores: by level, coarse to fine, (n,) float32 inner products.
        duplicates: rows folded into each; None unless the search was asked to group.
        steps: what was done to find them.
    """

    rows: Rows
    scores: tuple[Vectors, ...]
    duplicates: list[Sequence[int]] | None
    steps: list[Step]


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
    """A page of each query's ranking.

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
    total = collection.rows
    rankings = [
        Ranking(plan, collection, query, watch, allowed=allowed, excluded=excluded, overlooked=options.plain)
        for query in queries
    ]
    first, last = options.offset, options.offset + min(options.k, total)
    block = max([*(options.shortlists or [DEFAULT_SHORTLIST])[:1], options.k])
    Ranking.reach_together(rankings, last)
    pages = []
    for ranking, query in zip(rankings, queries, strict=True):
        duplicates: list[Sequence[int]] | None = None
        if options.plain:
            rows, finest = ranking.page(first, last)
        else:
            folding = _folding(collection, options.group, contents, allowed, excluded)
            rows, finest = ranking.listed(last, options.threshold, folding, block)
            rows, finest = rows[first:], finest[first:]
            if folding is not None:
                duplicates = [folding.duplicates(row) for row in rows.tolist()]
        coarser = zip(collection.scanners[:-1], query[:-1], strict=True)
        scores = *(scanner.rescore(vector, rows) for scanner, vector in coarser), finest
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
