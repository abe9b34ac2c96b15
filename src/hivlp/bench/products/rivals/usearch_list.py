"""USearch: a graph in a file, beside a list of payloads."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder, blocks, cores
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric
from hivlp.bench.products.rivals.listed import PayloadList
from hivlp.levels import Vectors

FEW = 0.1
"""The share of passing rows from which on filtering what the graph finds is faster than comparing all of them."""


class Usearch:
    """A graph over float16 vectors."""

    name: ClassVar[str] = "USearch and a list"
    packages: ClassVar[tuple[str, ...]] = ("usearch",)
    keeps_payloads: ClassVar[bool] = False
    how: ClassVar[str] = (
        "f16, connectivity 32, expansion_add 200; it has no filters in Python: few passing rows are compared exactly, "
        "otherwise more are asked for"
    )
    dtype: ClassVar[str] = "f16"

    def load(self) -> None:
        self._usearch = importlib.import_module("usearch.index")

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        self._index = self._usearch.Index(
            ndim=items.shape[1], metric="ip", dtype=self.dtype, connectivity=32, expansion_add=200
        )
        self._fill(0, items, cores())
        self._index.save(str(folder / "index.usearch"))
        PayloadList.write(folder, payloads)

    def _fill(self, first: int, items: Vectors, threads: int) -> None:
        for block in blocks(items):
            self._index.add(np.arange(first, first + len(block)), block, threads=threads)
            first += len(block)

    def open(self, folder: Path) -> None:
        self._index = self._usearch.Index.restore(str(folder / "index.usearch"))
        self._list = PayloadList(folder)
        self._passing: tuple[Between, Any, Any] | None = None

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return [[{"ef": ef} for ef in geometric(12, 3000, 1.15)]]

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        if years is not None:
            return self._filtered(query, k, effort, years)
        self._index.expansion_search = effort["ef"]
        return self._list.hits(self._index.search(query, k, threads=1).keys.tolist())

    def _filtered(self, query: Vectors, k: int, effort: Effort, years: Between) -> list[Hit]:
        """Filter by comparing all passing rows, whose vectors are kept for the next time, or what a search found."""
        if self._passing is None or self._passing[0] != years:
            mask = self._list.passing(years)
            rows = np.flatnonzero(mask) if mask.mean() < FEW else None
            self._passing = years, mask, rows if rows is None else (rows, np.vstack(self._index.get(rows, np.float32)))
        _, mask, few = self._passing
        if few is not None:
            rows, vectors = few
            scores = vectors @ query
            best = np.argpartition(-scores, min(k, len(rows) - 1))[:k]
            return self._list.hits(rows[best[np.argsort(-scores[best])]].tolist())
        more = round(2 * k / mask.mean())
        self._index.expansion_search = max(effort["ef"], more)
        found = self._index.search(query, more, threads=1).keys
        return self._list.hits(found[mask[found]][:k].tolist())

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        self._index.expansion_search = effort["ef"]
        return [self._list.hits(keys) for keys in self._index.search(queries, k, threads=1).keys.tolist()]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        self._fill(len(self._list), items, 1)
        self._list.add(payloads)

    def remove(self, rows: Sequence[int]) -> None:
        self._index.remove(np.asarray(rows))
        self._list.remove(rows)

    def close(self) -> None:
        self._index.reset()
