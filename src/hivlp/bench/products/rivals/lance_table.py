"""LanceDB: a table of the Lance format with an inverted-file index of HNSW graphs over 8-bit codes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric, pieces
from hivlp.levels import Vectors

COLUMNS = ["row", "path", "caption", "year", "camera"]
ASKED = [*COLUMNS, "_distance"]  # which comes with a warning unless it is asked for


class LanceDB:
    """One graph over 8-bit codes, refined by the vectors."""

    name: ClassVar[str] = "LanceDB"
    packages: ClassVar[tuple[str, ...]] = ("lancedb",)
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "IVF_HNSW_SQ of one partition, m 32, ef_construction 300, refined, BTREE index on year"

    def load(self) -> None:
        self._lancedb = importlib.import_module("lancedb")
        self._arrow = importlib.import_module("pyarrow")

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        table = self._lancedb.connect(folder).create_table(
            "photos", data=self._batches(0, items, payloads), schema=self._schema(items.shape[1])
        )
        table.create_index("vector", config=self._codes(len(items)))
        table.create_index("year", config=importlib.import_module("lancedb.index").BTree())
        table.optimize(cleanup_older_than=timedelta(0))

    def _codes(self, count: int) -> Any:
        index = importlib.import_module("lancedb.index")
        return index.HnswSq(distance_type="dot", num_partitions=1, m=32, ef_construction=300)

    def _schema(self, dim: int) -> Any:
        pa = self._arrow
        texts = [pa.field(name, pa.string()) for name in ("path", "caption", "camera")]
        vector = pa.field("vector", pa.list_(pa.float32(), dim))
        return pa.schema([pa.field("row", pa.int64()), vector, pa.field("year", pa.int64()), *texts])

    def _batches(self, first: int, items: Vectors, payloads: Sequence[Payload]) -> Iterator[Any]:
        pa, schema = self._arrow, self._schema(items.shape[1])
        for start, vectors, known in pieces(items, payloads):
            columns = dict(zip(Payload._fields, zip(*known, strict=True), strict=True))
            flat = pa.array(np.asarray(vectors, np.float32).ravel())
            arrays = {
                "row": np.arange(first + start, first + start + len(vectors)),
                "vector": pa.FixedSizeListArray.from_arrays(flat, items.shape[1]),
                **{name: list(values) for name, values in columns.items()},
            }
            yield pa.RecordBatch.from_pydict(arrays, schema=schema)

    def open(self, folder: Path) -> None:
        self._table = self._lancedb.connect(folder).open_table("photos")

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking, for some numbers refined."""
        every = geometric(30, 1500)
        return [[{"ef": ef, "refined": refined} for ef in every] for refined in (1, 2, 3)]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        asked = self._effort(self._table.search(query), effort).limit(k).select(ASKED)
        if years is not None:
            first, last = years
            where = f"year = {first}" if first == last else f"year >= {first} AND year <= {last}"
            asked = asked.where(where, prefilter=True)
        return list(zip(*self._read(asked.to_arrow(), COLUMNS), strict=True))

    def _effort(self, asked: Any, effort: Effort) -> Any:
        return asked.distance_type("dot").ef(effort["ef"]).refine_factor(effort["refined"])

    def _read(self, table: Any, columns: Sequence[str]) -> Iterator[list[Any]]:
        return (table.column(name).to_pylist() for name in columns)

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        result: list[list[Hit]] = [[] for _ in queries]
        for start in range(0, len(queries), 100):
            asked = self._table.search(list(queries[start : start + 100]), vector_column_name="vector")
            found = self._effort(asked, effort).limit(k).select(ASKED).to_arrow()
            for place, *hit in zip(*self._read(found, ["query_index", *COLUMNS]), strict=True):
                result[start + place].append(tuple(hit))
        return result

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        self._table.add(self._batches(self._table.count_rows(), items, payloads))
        self._table.optimize()

    def remove(self, rows: Sequence[int]) -> None:
        self._table.delete(f"row IN ({', '.join(map(str, rows))})")
        self._table.optimize()

    def close(self) -> None:
        del self._table
