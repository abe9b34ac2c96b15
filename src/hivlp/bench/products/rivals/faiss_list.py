"""FAISS beside a list of payloads: fast-scan codes in inverted lists refined by float16 vectors, and HNSW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hivlp.bench.ann.rivals.base import Ladder, blocks, cores, load_faiss, sample_of
from hivlp.bench.ann.rivals.faiss_codes import FaissIvfFastScanWide
from hivlp.bench.products.rivals.base import Between, Effort, Hit, Payload, geometric
from hivlp.bench.products.rivals.listed import PayloadList
from hivlp.levels import Vectors

FEW = 0.1
"""The share of passing rows up to which the refining vectors alone are compared with the query."""


class _Listed:
    """What both have in common. A filter, and removal from an index that cannot, are selectors of rows."""

    packages: ClassVar[tuple[str, ...]] = ("faiss-cpu",)
    keeps_payloads: ClassVar[bool] = False
    _index: Any

    def load(self) -> None:
        self._faiss = load_faiss()
        self._faiss.omp_set_num_threads(1)

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        self._faiss.omp_set_num_threads(cores())
        self._faiss.write_index(self._made(items), str(folder / "index.faiss"))
        PayloadList.write(folder, payloads)

    def _made(self, items: Vectors) -> Any:
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        self._index = self._faiss.read_index(str(folder / "index.faiss"))
        self._fine = self._faiss.downcast_index(self._index.refine_index)
        self._list = PayloadList(folder)
        self._chosen: dict[Between | None, tuple[Any, float]] = {None: (None, 1.0)}

    def _selector(self, years: Between | None) -> tuple[Any, float]:
        """The rows of these years that were not removed, which are kept for the next time, and their share."""
        if years not in self._chosen:
            mask = self._list.passing(years or (-(2**15), 2**15 - 1))
            self._chosen[years] = self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")), mask.mean()
        return self._chosen[years]

    def _base(self, effort: Effort, selector: Any) -> Any:
        """Search parameters of the codes."""
        raise NotImplementedError

    def _params(self, effort: Effort, selector: Any) -> Any:
        base = self._base(effort, selector)
        return self._faiss.IndexRefineSearchParameters(k_factor=effort["refined"], base_index_params=base)

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        selector, share = self._selector(years)
        if share < FEW:
            found = self._fine.search(query[None], k, params=self._faiss.SearchParameters(sel=selector))[1]
        else:
            found = self._index.search(query[None], k, params=self._params(effort, selector))[1]
        return self._list.hits(found[0].tolist())

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        found = self._index.search(queries, k, params=self._params(effort, self._selector(None)[0]))[1]
        return [self._list.hits(rows) for rows in found.tolist()]

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        for block in blocks(items):
            self._index.add(block)
        self._list.add(payloads)
        self._chosen = {None: (None, 1.0)}

    def remove(self, rows: Sequence[int]) -> None:
        self._list.remove(rows)
        self._chosen = {}

    def close(self) -> None:
        del self._index, self._fine


class FaissIvf(_Listed):
    """4-bit codes of 256 principal directions in inverted lists, as ``hivlp bench ann`` builds them."""

    name: ClassVar[str] = "FAISS IVF and a list"
    how: ClassVar[str] = "PCA 256, IVF PQ128x4 fast-scan, float16 refined; filters and removals by selectors"

    def _made(self, items: Vectors) -> Any:
        self._engine = FaissIvfFastScanWide()  # which holds what the index points to
        self._engine.build(items, items[:0])
        return self._engine.index

    def open(self, folder: Path) -> None:
        super().open(folder)
        base = self._faiss.downcast_index(self._index.base_index)
        self._projected = isinstance(base, self._faiss.IndexPreTransform)
        self._lists = self._faiss.extract_index_ivf(base).nlist

    def efforts(self) -> list[Ladder]:
        """Lists that are scanned, for some times k refined."""
        every = [lists for lists in geometric(6, 1000) if lists <= self._lists]
        return [[{"refined": refined, "lists": lists} for lists in every] for refined in (3, 5, 8, 12, 20, 32)]

    def _base(self, effort: Effort, selector: Any) -> Any:
        lists = self._faiss.SearchParametersIVF(nprobe=effort["lists"], sel=selector)
        return self._faiss.SearchParametersPreTransform(index_params=lists) if self._projected else lists


class FaissHnsw(_Listed):
    """A graph over 8-bit codes, refined by float16 vectors."""

    name: ClassVar[str] = "FAISS HNSW and a list"
    how: ClassVar[str] = "HNSW32 over 8-bit codes, efConstruction 200, float16 refined; filters, removals by selectors"

    def _made(self, items: Vectors) -> Any:
        faiss = self._faiss
        dim, metric, kinds = items.shape[1], faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer
        self._kept = (
            faiss.IndexHNSWSQ(dim, kinds.QT_8bit, 32, metric),
            faiss.IndexScalarQuantizer(dim, kinds.QT_fp16, metric),
        )
        graph, fine = self._kept
        graph.hnsw.efConstruction = 200
        graph.train(sample_of(items))
        fine.train(sample_of(items, 1000))
        index = faiss.IndexRefine(graph, fine)
        for block in blocks(items):
            index.add(block)
        return index

    def efforts(self) -> list[Ladder]:
        """Candidates kept while walking, for some times k refined."""
        return [[{"refined": times, "ef": ef} for ef in geometric(12, 3000, 1.15)] for times in (1, 2, 4)]

    def _base(self, effort: Effort, selector: Any) -> Any:
        return self._faiss.SearchParametersHNSW(efSearch=effort["ef"], sel=selector)
