"""The engine as the first tier of a ranking: it keeps its promise for queries of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hivlp.ann import SearchParams
from hivlp.levels import Vectors
from hivlp.search.ann_scan import HEAD, EngineScanner
from hivlp.search.likeness import FURTHEST, LIKE, MANY, NEAR, K
from hivlp.search.operating_points import Tuned, setting_to_json
from hivlp.search.ranking import Found
from hivlp.search.results import Stopwatch
from hivlp.search.scan import Mask, Rows, Scanner, top_many

WHY = {NEAR: "nearer to one item", MANY: "nearer to many items"}


class EngineTier:
    """The first ranks, as :class:`hivlp.search.ranking.Tier` says, by what the engine finds.

    A query that is unlike those that the engine was measured with is asked again, with a setting that finds enough for
    such queries, or everything is read for it (see :mod:`hivlp.search.likeness`).
    """

    reach: int | None = HEAD

    def __init__(
        self,
        scanner: EngineScanner,
        tuned: Tuned,
        recall: float,
        setting: SearchParams,
        exact: Callable[[], Scanner],
        watch: Stopwatch,
    ) -> None:
        """A tier for one kind of search.

        Args:
            scanner: of this commit.
            tuned: what the engine is known to do.
            recall: what is asked for.
            setting: that finds so much for queries like those that were measured.
            exact: gives what ranks all rows of the commit.
            watch: which is charged.
        """
        self._scanner, self._tuned, self._recall, self._setting = scanner, tuned, recall, setting
        self._exact, self._watch = exact, watch

    def find(
        self, queries: Sequence[Sequence[Vectors]], count: int, allowed: Mask | None, without: int | None
    ) -> list[Found]:
        """See :class:`hivlp.search.ranking.Tier`."""
        asked = np.stack([query[-1] for query in queries])
        near = self._scanner.nearest(asked, HEAD, self._setting, allowed)
        regions = self._regions(near, allowed)
        answers = [self._found(query, each, self._setting, allowed) for query, each in zip(asked, near, strict=True)]
        for region in sorted({*regions} - {LIKE}):
            setting = self._tuned.widened(region, self._recall, self._setting)
            if setting == self._setting:
                continue
            which = np.flatnonzero(np.array(regions) == region)
            for place, found in zip(which.tolist(), self._again(asked[which], setting, allowed), strict=True):
                why = WHY.get(region, "further from all items") + " than the queries that were measured"
                answers[place] = Found(found.rows, found.scores, {**found.step, "widened": why})
        self._watch.lap("coarse")
        return answers

    def _regions(self, near: Sequence[tuple[Rows, Vectors]], allowed: Mask | None) -> list[int]:
        passing = None if allowed is None else self._scanner.passing(allowed)
        if passing is not None and passing.all_scored(HEAD):
            return [LIKE] * len(near)
        known = self._tuned.likeness.at(self._scanner.built, 1.0 if passing is None else passing.share)
        return [
            known.region(float(scores[0]), float(scores[K - 1])) if len(scores) >= K else FURTHEST for _, scores in near
        ]

    def _again(self, queries: Vectors, setting: SearchParams | None, allowed: Mask | None) -> list[Found]:
        if setting is None:
            return [Found(*each, {"stage": "exact"}) for each in top_many(self._exact(), queries, HEAD, allowed)]
        near = self._scanner.nearest(queries, HEAD, setting, allowed)
        return [self._found(query, each, setting, allowed) for query, each in zip(queries, near, strict=True)]

    def _found(self, query: Vectors, near: tuple[Rows, Vectors], setting: SearchParams, allowed: Mask | None) -> Found:
        return Found(*self._scanner.with_later(query, *near, allowed), dict(_step(setting, self._recall)))


@lru_cache(maxsize=256)
def _step(setting: SearchParams, recall: float) -> Mapping[str, Any]:
    """What a result says of a search with this setting."""
    return {"stage": "engine", "recall": recall, **setting_to_json(setting)}
