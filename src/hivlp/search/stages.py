"""Stages of a search: each hands fewer candidates to the next.

A stage is an immutable description, shown as it is by ``--explain``, and the function that carries it out. Everything
that it needs is passed to it, so that one plan serves any number of queries and threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from hivlp.ann import SearchParams
from hivlp.levels import Vectors
from hivlp.search.collection import Collection
from hivlp.search.exhaustive import best_first
from hivlp.search.filters import Filter, Rows, mask_of
from hivlp.search.likeness import FURTHEST, LIKE, MANY, NEAR, K
from hivlp.search.operating_points import Depth, params_to_json

Query = Sequence[Vectors]
"""A (dim,) float32 unit vector a level, coarse to fine."""
Step = Mapping[str, Any]
"""What a stage did, for :attr:`hivlp.search.results.SearchResult.plan`."""

WHY = {NEAR: "nearer to one item", MANY: "nearer to many items"}


class Candidates(NamedTuple):
    """Candidates of one query: what a stage hands to the next.

    Attributes:
        rows: (n,) int64, best first; equal scores in row order.
        scores: (n,) float32 inner products by the stage's level.
        steps: what was done to find them.
    """

    rows: Rows
    scores: Vectors
    steps: tuple[Step, ...]


class Asked(NamedTuple):
    """What the stages of one look at the collection are asked.

    Attributes:
        queries: that share the look.
        ranks: wanted of each.
        allowed: filter that candidates must pass; None for all.
        excluded: row that is not wanted, though it passes; it may still be handed on.
    """

    queries: Sequence[Query]
    ranks: int
    allowed: Filter | None = None
    excluded: int | None = None


class Stage(Protocol):
    """One stage of a plan: a source of candidates, or a re-ranking of those that came before."""

    @property
    def clock(self) -> str:
        """Key of ``timings_ms`` that its time is added to."""

    def run(self, collection: Collection, asked: Asked, before: Sequence[Candidates]) -> list[Candidates]:
        """Candidates of each query.

        Args:
            collection: that is searched.
            asked: queries, count, filter.
            before: candidates of each query by the stage before; empty for a plan's first stage.
        """

    def to_json(self) -> dict[str, Any]:
        """The stage and its numbers."""


@dataclass(frozen=True)
class Scan:
    """Exhaustive scan of a level, which keeps a shortlist.

    Attributes:
        level: name of the level.
        keep: candidates handed on.
        clock: see :class:`Stage`.
    """

    level: str
    keep: int
    clock: str = "coarse"

    def run(self, collection: Collection, asked: Asked, before: Sequence[Candidates]) -> list[Candidates]:
        """See :class:`Stage`."""
        place, step = collection.place(self.level), (self.to_json(),)
        queries = _stacked(asked.queries, place)
        keep = self.keep + (asked.excluded is not None)
        found = collection.scanners[place].search(queries, keep, mask_of(asked.allowed))
        if asked.excluded is None:
            return [Candidates(rows, scores, step) for rows, scores in found]
        kept = [(rows != asked.excluded, rows, scores) for rows, scores in found]
        return [Candidates(rows[some][: self.keep], scores[some][: self.keep], step) for some, rows, scores in kept]

    def to_json(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"stage": "scan", "level": self.level, "keep": self.keep}


@dataclass(frozen=True)
class Rerank:
    """Re-ranking of the candidates by a finer level.

    Attributes:
        level: name of the level.
        keep: candidates handed on; None for all.
        clock: see :class:`Stage`.
    """

    level: str
    keep: int | None = None
    clock: str = "fine"

    def run(self, collection: Collection, asked: Asked, before: Sequence[Candidates]) -> list[Candidates]:
        """See :class:`Stage`."""
        place, step = collection.place(self.level), self.to_json()
        scanner, found = collection.scanners[place], []
        for query, (rows, scores, steps) in zip(asked.queries, before, strict=True):
            if self.keep is None or len(rows) > self.keep:
                rows, scores = best_first(rows, scanner.rescore(query[place], rows))
            found.append(Candidates(rows[: self.keep], scores[: self.keep], (*steps, step)))
        return found

    def to_json(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        kept = {} if self.keep is None else {"keep": self.keep}
        return {"stage": "rerank", "level": self.level, **kept}


@dataclass(frozen=True)
class Exact:
    """Exact ranking by the finest level: by bounds where an approximate index has them, else by scanning all rows.

    Attributes:
        level: name of the finest level.
        clock: see :class:`Stage`.
    """

    level: str
    clock: str = "fine"

    def run(self, collection: Collection, asked: Asked, before: Sequence[Candidates]) -> list[Candidates]:
        """See :class:`Stage`."""
        queries = _stacked(asked.queries, -1)
        found = self._top(collection, queries, asked.ranks + (asked.excluded is not None), asked.allowed)
        return [Candidates(rows, scores, (self.to_json(),)) for rows, scores in found]

    def _top(
        self, collection: Collection, queries: Vectors, count: int, allowed: Filter | None
    ) -> list[tuple[Rows, Vectors]]:
        bounded = None if collection.ann is None else collection.ann.bounded()
        found: list[tuple[Rows, Vectors] | None] = [None] * len(queries)
        if bounded is not None:
            found = [bounded.top(query, count, allowed) for query in queries]
        left = np.array([best is None for best in found], bool)
        if left.any():  # those share one pass over the vectors
            rest = iter(collection.scanners[-1].search(queries[left], count, mask_of(allowed)))
            found = [next(rest) if best is None else best for best in found]
        return [best for best in found if best is not None]

    def to_json(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return {"stage": "exact", "level": self.level}


@dataclass(frozen=True)
class Ann:
    """Approximate search of the finest level, as many ranks deep as its search parameters were measured for.

    A query that is unlike those that the index was tuned with (:mod:`hivlp.search.likeness`) is searched again, with
    search parameters that are known to reach the recall for such queries, or exactly.

    Attributes:
        level: name of the finest level.
        recall: at that depth, that is asked for.
        params: search parameters that reach it for queries like those of the tuning.
        depth: what was measured, also of other queries.
        clock: see :class:`Stage`.
    """

    level: str
    recall: float
    params: SearchParams
    depth: Depth
    clock: str = "coarse"

    def run(self, collection: Collection, asked: Asked, before: Sequence[Candidates]) -> list[Candidates]:
        """See :class:`Stage`."""
        assert collection.ann is not None
        ann, allowed = collection.ann, asked.allowed
        queries, count = _stacked(asked.queries, -1), self._count(asked)
        near = ann.search(queries, count, self.params, allowed)
        regions = self._regions(collection, near, allowed)
        step = self._usual
        found = [Candidates(rows, scores, step) for rows, scores in ann.with_tail(queries, near, count, allowed)]
        for region in sorted({*regions} - {LIKE}):
            params = self.depth.widened(region, self.recall, self.params)
            if params == self.params:
                continue
            why = WHY.get(region, "further from all items") + " than the queries that were measured"
            group = [number for number, each in enumerate(regions) if each == region]
            for number, better in zip(group, self._again(collection, asked, group, params), strict=True):
                found[number] = better._replace(steps=({**better.steps[0], "widened": why},))
        return found

    def _again(
        self, collection: Collection, asked: Asked, group: Sequence[int], params: SearchParams | None
    ) -> list[Candidates]:
        """Candidates of some of the queries with other search parameters; exact ones where there are none."""
        queries, count = [asked.queries[number] for number in group], self._count(asked)
        if params is None:
            return Exact(self.level).run(collection, Asked(queries, count, asked.allowed), ())
        assert collection.ann is not None
        step, fine = (self._step(params),), _stacked(queries, -1)
        near = collection.ann.search(fine, count, params, asked.allowed)
        near = collection.ann.with_tail(fine, near, count, asked.allowed)
        return [Candidates(rows, scores, step) for rows, scores in near]

    def _regions(
        self, collection: Collection, near: Sequence[tuple[Rows, Vectors]], allowed: Filter | None
    ) -> list[int]:
        ann = collection.ann
        assert ann is not None
        passing = None if allowed is None else allowed.head(ann.count)
        if passing is not None and ann.scores_all(passing, self.depth.ranks):
            return [LIKE] * len(near)
        usual = self.depth.likeness.at(ann.count, 1.0 if passing is None else passing.share)
        return [
            usual.region(float(scores[0]), float(scores[K - 1])) if len(scores) >= K else FURTHEST for _, scores in near
        ]

    def to_json(self) -> dict[str, Any]:
        """See :class:`Stage`."""
        return dict(self._usual[0])

    def _count(self, asked: Asked) -> int:
        return self.depth.ranks + (asked.excluded is not None)

    @cached_property
    def _usual(self) -> tuple[Step]:
        return (self._step(self.params),)

    def _step(self, params: SearchParams) -> Step:
        return step_of(self.level, self.recall, self.depth.ranks, params)


def _stacked(queries: Sequence[Query], place: int) -> Vectors:
    """(queries, dim) vectors of one level; of a single query without a copy."""
    return queries[0][place][None] if len(queries) == 1 else np.stack([query[place] for query in queries])


@lru_cache(maxsize=256)
def step_of(level: str, recall: float, ranks: int, params: SearchParams) -> Step:
    """What a result says of an approximate search with these parameters."""
    return {"stage": "ann", "level": level, "recall": recall, "keep": ranks, **params_to_json(params)}
