"""Qdrant's engine in the process (Qdrant Edge): a shard on disk with payloads, an HNSW graph and int8 codes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric, pieces
from hivlp.levels import Vectors


class QdrantEdge:
    """A shard of one segment, scalar quantization kept in memory and rescored by the vectors."""

    name: ClassVar[str] = "Qdrant Edge"
    packages: ClassVar[tuple[str, ...]] = ("qdrant-edge-py",)
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "HNSW m 16, ef_construct 200, int8 codes in memory, rescored, index on year, one segment"

    def load(self) -> None:
        self._qdrant = importlib.import_module("qdrant_edge")

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        q = self._qdrant
        (folder / "shard").mkdir()
        config = q.EdgeConfig(
            vectors=q.EdgeVectorParams(items.shape[1], q.Distance.Dot),
            hnsw_config=q.HnswIndexConfig(m=16, ef_construct=200, full_scan_threshold=1000, memory=q.Memory.Pinned),
            quantization_config=self._codes(),
            optimizers=q.EdgeOptimizersConfig(default_segment_number=1, max_segment_size=10**8),
            max_search_threads=1,
        )
        self._shard = q.EdgeShard.create(str(folder / "shard"), config)
        index = q.IntegerIndexParams(lookup=True, range=True)
        self._shard.update(q.UpdateOperation.create_field_index("year", index))
        self._rows = 0
        self.add(items, payloads)
        self.close()

    def _codes(self) -> Any:
        q = self._qdrant
        return q.ScalarQuantizationConfig(q.ScalarType.Int8, quantile=0.99, memory=q.Memory.Pinned)

    def open(self, folder: Path) -> None:
        self._shard = self._qdrant.EdgeShard.load(str(folder / "shard"))
        self._rows = self._shard.info().points_count

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking, of which some times k are rescored."""
        every = geometric(12, 1500, 1.2)
        return [[{"ef": ef, "oversampling": times} for ef in every] for times in (1.0, 1.5, 2.0, 3.0)]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        return _hits(self._shard.query(self._request(query, k, effort, years)))

    def _request(self, query: Vectors, k: int, effort: Effort, years: Between | None) -> Any:
        q = self._qdrant
        codes = q.QuantizationSearchParams(rescore=True, oversampling=effort["oversampling"])
        passing = None
        if years is not None:
            first, last = years
            one = q.FieldCondition("year", match=q.MatchValue(first))
            some = q.FieldCondition("year", range=q.RangeFloat(gte=first, lte=last))
            passing = q.Filter(must=[one if first == last else some])
        return q.QueryRequest(
            limit=k, query=q.Query.Nearest(query.tolist()), filter=passing, with_payload=True,
            params=q.SearchParams(hnsw_ef=effort["ef"], quantization=codes),
        )  # fmt: skip

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        q, result = self._qdrant, []
        for start in range(0, len(queries), 100):
            asked = [self._request(query, k, effort, None) for query in queries[start : start + 100]]
            result += [_hits(found) for found in self._shard.query_batch(q.QueryBatchRequest(asked))]
        return result

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        q = self._qdrant
        for first, vectors, known in pieces(items, payloads):
            points = [
                q.Point(self._rows + first + number, vector, payload._asdict())
                for number, (vector, payload) in enumerate(zip(vectors.tolist(), known, strict=True))
            ]
            self._shard.update(q.UpdateOperation.upsert_points(points))
        self._rows += len(items)
        self._maintain()

    def remove(self, rows: Sequence[int]) -> None:
        self._shard.update(self._qdrant.UpdateOperation.delete_points([int(row) for row in rows]))
        self._maintain()

    def _maintain(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        self._shard.close()


def _hits(found: Any) -> list[Hit]:
    hits = []
    for point in found:
        payload = point.payload
        hits.append((point.id, payload["path"], payload["caption"], payload["year"], payload["camera"]))
    return hits
