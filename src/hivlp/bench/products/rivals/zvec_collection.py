"""zvec: a collection on disk with fields, an HNSW graph over int8 codes and a field index."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric, pieces
from hivlp.bench.products.rivals.listed import PayloadList
from hivlp.levels import Vectors

FIELDS = ["path", "caption", "year", "camera"]


class Zvec:
    """Documents with their fields, as ``Collection.query`` returns them."""

    name: ClassVar[str] = "zvec"
    packages: ClassVar[tuple[str, ...]] = ("zvec",)
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "HNSW m 32, ef_construction 300, int8 codes refined, contiguous memory, index on year"
    read_only: ClassVar[bool] = False

    def load(self) -> None:
        self._zvec = importlib.import_module("zvec")
        self._zvec.init(log_level=self._zvec.LogLevel.ERROR)

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        zvec = self._zvec
        kinds = {"path": zvec.DataType.STRING, "caption": zvec.DataType.STRING, "camera": zvec.DataType.STRING}
        year = zvec.FieldSchema(
            "year", zvec.DataType.INT64, index_param=zvec.InvertIndexParam(enable_range_optimization=True)
        )
        vector = zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, items.shape[1], self._graph())
        fields = [zvec.FieldSchema(name, kind) for name, kind in kinds.items()]
        schema = zvec.CollectionSchema("photos", fields=[*fields, year], vectors=[vector])
        self._collection = zvec.create_and_open(str(folder / "collection"), schema)
        self._rows = 0
        self._append(items, payloads)
        self.close()

    def _graph(self) -> Any:
        zvec = self._zvec
        return zvec.HnswIndexParam(
            metric_type=zvec.MetricType.COSINE, m=16, ef_construction=300, quantize_type=zvec.QuantizeType.INT8,
            use_contiguous_memory=True, use_flat_contiguous_memory=True,
        )  # fmt: skip

    def open(self, folder: Path) -> None:
        self._path = str(folder / "collection")
        self._collection = self._zvec.open(self._path, self._zvec.CollectionOption(read_only=self.read_only))
        self._rows = self._collection.stats.doc_count

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking, of which some times k are refined."""
        every = geometric(12, 1500, 1.2)
        return [[{"ef": ef, "refined": refined} for ef in every] for refined in (1.5, 2.0, 3.0)]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        found = self._collection.query(self._query(query, effort), topk=k, filter=_filter(years), output_fields=FIELDS)
        hits = []
        for each in found:
            fields = each.fields
            hits.append((int(each.id), fields["path"], fields["caption"], fields["year"], fields["camera"]))
        return hits

    def _query(self, query: Vectors, effort: Effort) -> Any:
        asked = self._zvec.HnswQueryParam(ef=effort["ef"], is_using_refiner=True, scale_factor=effort["refined"])
        return self._zvec.Query("vector", vector=query, param=asked)

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        return [self.search(query, k, effort) for query in queries]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        self._append(items, payloads)

    def _append(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        for _, vectors, known in pieces(items, payloads):
            for start in range(0, len(vectors), 1000):
                self._insert(vectors[start : start + 1000], known[start : start + 1000])
        self._collection.optimize()

    def _insert(self, vectors: Vectors, payloads: Sequence[Payload]) -> None:
        docs = [
            self._zvec.Doc(str(self._rows + number), fields=payload._asdict(), vectors={"vector": vector})
            for number, (vector, payload) in enumerate(zip(vectors, payloads, strict=True))
        ]
        failed = [status for status in self._collection.insert(docs) if not status.ok()]
        if failed:
            raise RuntimeError(failed[0].message())
        self._rows += len(docs)

    def remove(self, rows: Sequence[int]) -> None:
        for start in range(0, len(rows), 1000):
            self._collection.delete([str(row) for row in rows[start : start + 1000]])

    def close(self) -> None:
        self._collection.close()


class ZvecListed(Zvec):
    """Its fast path, which returns internal numbers of a read-only collection, beside a list of payloads."""

    name: ClassVar[str] = "zvec, ids and a list"
    how: ClassVar[str] = f"query_internal_ids of a read-only collection, payloads in a list; {Zvec.how}"
    keeps_payloads: ClassVar[bool] = False
    read_only: ClassVar[bool] = True

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        super().build(folder, items, payloads, queries)
        PayloadList.write(folder, payloads)

    def open(self, folder: Path) -> None:
        super().open(folder)
        self._folder = folder
        self._list = PayloadList(folder)
        ids = self._collection.resolve_internal_ids(np.arange(self._rows))
        if ids != [str(row) for row in range(self._rows)]:
            raise RuntimeError("internal numbers are not in the order of insertion")

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        asked = self._query(query, effort)
        return self._list.hits(self._collection.query_internal_ids(asked, topk=k, filter=_filter(years)).tolist())

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        raise NotImplementedError

    def remove(self, rows: Sequence[int]) -> None:
        raise NotImplementedError


def _filter(years: Between | None) -> str | None:
    if years is None:
        return None
    first, last = years
    return f"year = {first}" if first == last else f"year >= {first} and year <= {last}"
