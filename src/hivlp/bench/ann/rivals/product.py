"""Our index as people call it, with payloads: what it costs beyond the engine inside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import BLOCK, Ladder, Rows
from hivlp.coarse.maps import FINE, NoCoarseLevel
from hivlp.index import Index
from hivlp.index.tuning.jobs import LEAST_ROWS
from hivlp.levels import Embeddings, Vectors
from hivlp.store.records import NewItem, Stamp

RECALLS = (0.8, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
OVERHEAD_AT = (0.95, 0.99)
ROUNDS = 3


class OurIndex:
    """``Index.search`` of a tuned index whose items have a path, a caption and metadata; ids are what it is asked for.

    That is what the other engines answer. What it takes to look at whole hits is among its :meth:`overheads`.
    """

    name: ClassVar[str] = "hivlp Index"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        self._scratch = TemporaryDirectory()
        self._index = Index.create_from_embeddings(Path(self._scratch.name) / "index", NoCoarseLevel(items.shape[1]))
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK].astype(np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            known = [_item(row) for row in range(start, start + len(block))]
            self._index.store.append(known, Embeddings({FINE: block}), new=True)
        if len(items) >= LEAST_ROWS:
            self._index.tune(train_queries)

    def settings(self) -> list[Ladder]:
        """Recalls asked for."""
        return [[{"recall": recall} for recall in RECALLS]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        recall = setting["recall"]
        if len(queries) == 1:
            results = [self._index.search(vector={FINE: queries[0]}, k=k, recall=recall)]
        else:
            results = self._index.search_many(vectors={FINE: queries}, k=k, recall=recall)
        return np.array([result.ids for result in results], np.int64) - 1

    def overheads(self, queries: Vectors, k: int) -> list[dict[str, Any]]:
        """What a search takes beyond the engine inside the index, asked in turn with the same search parameters.

        Args:
            queries: (b, d) float32, each asked alone and then all together.
            k: hits wanted.

        Returns:
            For each recall: medians in µs a query of ``engine_us``, ``search_us``, ``hits_us`` (with every hit looked
            at), ``overhead_us`` (of the difference between the first two), ``batch_engine_us``, ``batch_search_us``,
            ``batch_hits_us``, and ``batch_overhead``, the share that many at once take more.
        """
        return [self._overhead(queries, k, recall) for recall in OVERHEAD_AT]

    def _overhead(self, queries: Vectors, k: int, recall: float) -> dict[str, Any]:
        inside = self._engine(k, recall)
        alone = [np.ascontiguousarray(query[None]) for query in queries]
        engine, search, hits = (np.empty((ROUNDS, len(queries))) for _ in range(3))
        for number in range(ROUNDS):
            for place, query in enumerate(alone):
                started = time.perf_counter()
                inside(query)
                engine[number, place] = time.perf_counter() - started
                given = {FINE: query[0]}
                started = time.perf_counter()
                found = self._index.search(vector=given, k=k, recall=recall)
                search[number, place] = time.perf_counter() - started
                found.hits  # noqa: B018  (made by being looked at)
                hits[number, place] = time.perf_counter() - started
        engine, search, hits = engine.min(0), search.min(0), hits.min(0)

        def many(hits: bool = False) -> None:
            for found in self._index.search_many(vectors={FINE: queries}, k=k, recall=recall):
                if hits:
                    found.hits  # noqa: B018

        together = [_seconds(lambda: inside(queries)) for _ in range(ROUNDS)]
        apart = [_seconds(many) for _ in range(ROUNDS)]
        looked_at = [_seconds(lambda: many(hits=True)) for _ in range(ROUNDS)]
        return {
            "recall": recall,
            "engine_us": _us(engine),
            "search_us": _us(search),
            "hits_us": _us(hits),
            "overhead_us": _us(search - engine),
            "batch_engine_us": round(min(together) / len(queries) * 1e6, 1),
            "batch_search_us": round(min(apart) / len(queries) * 1e6, 1),
            "batch_hits_us": round(min(looked_at) / len(queries) * 1e6, 1),
            "batch_overhead": round(min(apart) / min(together) - 1, 3),
        }

    def _engine(self, k: int, recall: float) -> Callable[[Vectors], object]:
        """The approximate index inside, with the search parameters that a search of this recall takes."""
        collection = self._index.snapshot().collection
        if collection.ann is not None:
            depth = next(depth for depth in collection.ann.tuned.depths if depth.ranks >= k)
            params, index = depth.params(recall), collection.ann.index
            if params is not None:
                return lambda queries: index.search(queries, depth.ranks, params)
        return lambda queries: collection.scanners[-1].search(queries, k)  # such searches are exact


def _item(row: int) -> NewItem:
    path, known = f"/pictures/{row}.jpg", {"year": 1990 + row % 35, "camera": f"camera {row % 50}", "stars": row % 6}
    return NewItem(path, row.to_bytes(32, "big"), f"the caption of item {row}", known, Stamp(0, 0, 0, 0))


def _seconds(what: Callable[[], object]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def _us(seconds: NDArray[np.float64]) -> float:
    return round(float(np.median(seconds)) * 1e6, 1)
