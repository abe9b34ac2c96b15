"""hivlp's own index folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload
from hivlp.levels import Vectors


class Ours:
    """``Index`` with vectors from parquet, tuned with sample queries; the effort is the recall that is asked for."""

    name: ClassVar[str] = "hivlp"
    packages: ClassVar[tuple[str, ...]] = ("hivlp", "pyarrow")
    keeps_payloads: ClassVar[bool] = True
    how: ClassVar[str] = "no coarse level, tuned with sample queries, year declared as a field; effort: recall"

    def load(self) -> None:
        import hivlp.index  # noqa: F401

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        from hivlp.index.from_embeddings import index_embeddings

        source = _parquet(folder / "source.parquet", items, payloads)
        index_embeddings(folder / "index", source, method="none", fields={"year": "int"})
        (folder / "source.parquet").unlink()
        self.open(folder)
        self._index.tune(np.asarray(queries, np.float32))
        self.close()

    def open(self, folder: Path) -> None:
        from hivlp import Index

        self._folder = folder
        self._index = Index.open(folder / "index")
        self._fine = self._index.levels[-1].name

    def efforts(self) -> list[Ladder]:
        asked = [*np.arange(0.85, 0.99, 0.01), *np.arange(0.99, 0.9995, 0.001)]
        return [[{"recall": round(float(recall), 4)} for recall in asked]]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        where = None
        if years is not None:
            where = f"year = {years[0]}" if years[0] == years[1] else f"year BETWEEN {years[0]} AND {years[1]}"
        found = self._index.search(vector={self._fine: query}, k=k, where=where, **effort)
        return [
            (hit.id - 1, hit.path, hit.caption or "", hit.metadata["year"], hit.metadata["camera"]) for hit in found
        ]

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        return [
            [(hit.id - 1, hit.path, hit.caption or "", hit.metadata["year"], hit.metadata["camera"]) for hit in found]
            for found in self._index.search_many(vectors={self._fine: queries}, k=k, **effort)
        ]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        self._index.add_embeddings(_parquet(self._folder / "more.parquet", items, payloads))

    def remove(self, rows: Sequence[int]) -> None:
        self._index.remove([row + 1 for row in rows])

    def close(self) -> None:
        self._index.close()


def _parquet(file: Path, items: Vectors, payloads: Sequence[Payload]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([payload._asdict() for payload in payloads])
    flat = pa.array(np.asarray(items, np.float32).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, items.shape[1])
    parquet.write_table(table.append_column("embedding", vectors), file, row_group_size=20_000)
    return file
