"""Re-ranking of an index's hits by a fusion model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hivlp.encode.base import as_texts
from hivlp.errors import ArgumentError, QueryError
from hivlp.search.fusion import Fuse, Reranker, Shown, fused_order
from hivlp.search.options import whole_number
from hivlp.search.plan import Plan
from hivlp.search.results import Hit, SearchResult
from hivlp.search.timing import Stopwatch

FUSION = "fusion"
"""Key of a fusion score among a hit's scores, and of its time."""


Searched = Callable[..., list[SearchResult]]
"""What finds the hits of many texts: :meth:`hivlp.index.Index.search_many`."""


def search_reranked(
    search: Searched,
    queries: str | Iterable[str] | None,
    reranker: Reranker,
    depth: int | None,
    *,
    k: int,
    offset: int,
    **options: Any,
) -> list[SearchResult]:
    """Hits of each text, the first ranks ordered by a fusion model.

    A picture that cannot be read comes after those that can, without a fusion score.

    Args:
        search: finds the candidates.
        queries: texts.
        reranker: the fusion model.
        depth: ranks that it reorders; None for as many as it is made for.
        k: hits wanted.
        offset: hits to skip.
        options: of the search.

    Raises:
        QueryError: if something else than texts is asked for, or the depth is out of range.
    """
    if not all(hasattr(reranker, name) for name in ("name", "depth", "rule", "score")):
        raise ArgumentError(f"rerank must be a loaded fusion model, not {type(reranker).__name__}")
    if queries is None:
        raise QueryError("a fusion model compares texts with pictures: give a text to re-rank for")
    texts, k, offset = as_texts(queries), whole_number("k", k), whole_number("offset", offset)
    fuse = Fuse.of(reranker, None if depth is None else whole_number("rerank_depth", depth))
    if k < 1 or offset < 0:
        search(texts, k=k, offset=offset, **options)  # which says what is wrong
    found = search(texts, k=max(fuse.keep, offset + k), offset=0, **options)
    return [_fused(text, result, reranker, fuse, offset, offset + k) for text, result in zip(texts, found, strict=True)]


def _fused(text: str, result: SearchResult, reranker: Reranker, fuse: Fuse, first: int, last: int) -> SearchResult:
    """One result's hits from place ``first`` up to ``last``, by the fusion model's order."""
    watch = Stopwatch()
    head, rest = result.hits[: fuse.keep], result.hits[fuse.keep :]
    scores = reranker.score([text] * len(head), [Shown.file(Path(hit.path)) for hit in head])
    order = fused_order(scores)
    best = [head[place]._replace(scores=_with_fusion(head[place], float(scores[place]))) for place in order.tolist()]
    hits = [hit._replace(rank=rank) for rank, hit in enumerate([*best, *rest], start=1)]
    watch.lap(FUSION)
    times = dict(result.timings_ms)
    total = times.pop("total", 0.0)
    times |= {FUSION: (spent := watch.finish())[FUSION], "total": round(total + spent["total"], 3)}
    chosen = replace(result.chosen, fusion=fuse) if isinstance(result.chosen, Plan) else None
    return SearchResult(hits[first:last], times, [*result.plan, fuse.to_json()], chosen)


def _with_fusion(hit: Hit, score: float) -> dict[str, float]:
    return hit.scores if score != score else {**hit.scores, FUSION: score}
