"""Graphs: HNSW of four libraries, and its younger relatives."""

from __future__ import annotations

import importlib
import json
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import UNIT, Ladder, Rows, add_all, blocks, cores, load_faiss, rows_of, sample_of
from hivlp.levels import Vectors


class Graph:
    """A graph, whose effort is the number of candidates kept while walking it."""

    most: ClassVar[int] = 3000

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        every = (32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1000, 1200, 1500, 2000, 3000)
        return [[{"ef": ef} for ef in every if ef <= self.most]]


class FaissHnsw(Graph):
    """A graph over float32 vectors."""

    name: ClassVar[str] = "faiss HNSW32"
    codes: ClassVar[str | None] = None
    effort: ClassVar[int] = 200

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        faiss = self._faiss = load_faiss()
        dim, metric = items.shape[1], faiss.METRIC_INNER_PRODUCT
        if self.codes is None:
            self._index = faiss.IndexHNSWFlat(dim, 32, metric)
        else:
            self._index = faiss.IndexHNSWSQ(dim, getattr(faiss.ScalarQuantizer, self.codes), 32, metric)
            self._index.train(sample_of(items))
        self._index.hnsw.efConstruction = self.effort
        add_all(faiss, self._index, items)

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        self._index.hnsw.efSearch = setting["ef"]
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class FaissHnswQuick(FaissHnsw):
    """HNSW built with half the effort."""

    name: ClassVar[str] = "faiss HNSW32, quick"
    effort: ClassVar[int] = 100


class FaissHnswHalf(FaissHnsw):
    """A graph over float16 vectors."""

    name: ClassVar[str] = "faiss HNSW32 fp16"
    codes: ClassVar[str | None] = "QT_fp16"


class FaissHnswByte(FaissHnsw):
    """A graph over 8-bit vectors."""

    name: ClassVar[str] = "faiss HNSW32 SQ8"
    codes: ClassVar[str | None] = "QT_8bit"


class Hnswlib(Graph):
    """The graph of its inventors."""

    name: ClassVar[str] = "hnswlib"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        self._index = importlib.import_module("hnswlib").Index(space="ip", dim=items.shape[1])
        self._index.init_index(max_elements=len(items), ef_construction=200, M=32)
        for block in blocks(items):
            self._index.add_items(block, num_threads=cores())
        self._index.set_num_threads(1)

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        self._index.set_ef(setting["ef"])
        return np.asarray(self._index.knn_query(queries, k=k, num_threads=1)[0], np.int64)


class Usearch(Graph):
    """A graph over float16 vectors."""

    name: ClassVar[str] = "usearch f16"
    dtype: ClassVar[str] = "f16"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        index = importlib.import_module("usearch.index").Index
        self._index = index(
            ndim=items.shape[1], metric="ip", dtype=self.dtype, connectivity=32, expansion_add=200
        )  # fmt: skip
        done = 0
        for block in blocks(items):
            self._index.add(np.arange(done, done + len(block)), block, threads=cores())
            done += len(block)

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        self._index.expansion_search = setting["ef"]
        asked = queries[0] if len(queries) == 1 else queries
        return np.asarray(self._index.search(asked, k, threads=1).keys, np.int64).reshape(len(queries), -1)


class UsearchByte(Usearch):
    """A graph over 8-bit vectors."""

    name: ClassVar[str] = "usearch i8"
    dtype: ClassVar[str] = "i8"


class Symqg(Graph):
    """SymphonyQG of the same library: a graph that scans its neighbours' one-bit codes."""

    name: ClassVar[str] = "rabitqlib SymphonyQG"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        self._index = importlib.import_module("rabitqlib").SymqgIndex(items.shape[1], 64, metric=UNIT)
        self._index.build(items.astype(np.float32), 400, num_threads=cores())

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        return rows_of(self._index.search_batch(queries, k, setting["ef"], num_threads=1), len(queries))


class Vsag(Graph):
    """HGraph: a graph over 8-bit vectors, decided by float16 ones."""

    name: ClassVar[str] = "vsag hgraph"
    most: ClassVar[int] = 1000  # candidates: with more it answers nonsense

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        library = importlib.import_module("pyvsag")
        dim = items.shape[1]
        detail = {
            "base_quantization_type": "sq8_uniform", "use_reorder": True, "precise_quantization_type": "fp16",
            "max_degree": 32, "ef_construction": 200, "build_thread_count": cores(),
        }  # fmt: skip
        asked = {"dtype": "float32", "metric_type": UNIT, "dim": dim, "index_param": detail}
        self._index = library.Index("hgraph", json.dumps(asked))
        self._index.build(items.astype(np.float32).ravel(), np.arange(len(items)), len(items), dim)

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search, one at a time: there is no other way."""
        hard = json.dumps({"hgraph": {"ef_search": setting["ef"]}})
        found = np.full((len(queries), k), -1, np.int64)
        for row, query in zip(found, queries, strict=True):
            rows, _ = self._index.knn_search(query, k, hard)
            row[: len(rows)] = rows
        return found
