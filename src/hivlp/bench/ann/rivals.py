"""Engines that are measured: ours and those of other libraries, behind one interface.

A library may use every core to build; every search runs on one thread. A library that is not installed raises
ModuleNotFoundError from ``build``.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.engine.engine import Engine
from hivlp.levels import Vectors

Rows = NDArray[np.int64]
Ladder = list[dict[str, Any]]
BLOCK = 50_000
SAMPLE = 100_000
REDUCED = 128
EXHAUSTIVE_BELOW = 10_000


class Rival(Protocol):
    """What is measured."""

    name: ClassVar[str]

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index (n, d) items; (m, d) queries like those to come may be learnt from."""

    def settings(self) -> list[Ladder]:
        """Ladders of settings, each from little effort to much; a ladder is left once its recall is high enough."""

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """(b, d) queries: the (b, k) best rows."""


class Ours:
    """Our engine; small collections are scanned whole."""

    name: ClassVar[str] = "hivlp"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        self._exact = items.astype(np.float32) if len(items) < EXHAUSTIVE_BELOW else None
        self._engine = None if self._exact is not None else Engine.build(items, queries=train_queries)

    def settings(self) -> list[Ladder]:
        """Lists for some lengths of the shortlists."""
        if self._engine is None:
            return [[{}]]
        ladders: dict[tuple[int, bool], Ladder] = {}
        for each in self._engine.settings():
            if each.lists >= 24 and each.shortlist in (100, 160, 400, 800):
                ladders.setdefault((each.shortlist, np.isinf(each.margin)), []).append({"setting": each})
        return list(ladders.values())

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        if self._engine is not None:
            return self._engine.search(queries, k, setting["setting"])[0]
        assert self._exact is not None
        found = np.empty((len(queries), k), np.int64)
        for row, query in zip(found, queries, strict=True):
            scores = self._exact @ query
            best = np.argpartition(scores, -k)[-k:]
            row[:] = best[np.argsort(-scores[best])]
        return found


class FaissFlat:
    """Exhaustive, float32: what everything is compared with."""

    name: ClassVar[str] = "faiss flat"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        faiss = _faiss()
        self._index = faiss.IndexFlatIP(items.shape[1])
        _add(faiss, self._index, items)

    def settings(self) -> list[Ladder]:
        """Nothing to choose."""
        return [[{}]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class FaissHnsw:
    """A graph over float32 vectors."""

    name: ClassVar[str] = "faiss HNSW32"
    codes: ClassVar[str | None] = None
    effort: ClassVar[int] = 200

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        faiss = self._faiss = _faiss()
        dim, metric = items.shape[1], faiss.METRIC_INNER_PRODUCT
        if self.codes is None:
            self._index = faiss.IndexHNSWFlat(dim, 32, metric)
        else:
            self._index = faiss.IndexHNSWSQ(dim, getattr(faiss.ScalarQuantizer, self.codes), 32, metric)
            self._index.train(_sample(items))
        self._index.hnsw.efConstruction = self.effort
        _add(faiss, self._index, items)

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return [[{"ef": ef} for ef in (32, 64, 128, 256, 512, 768, 1000, 1500, 2000, 3000)]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        self._index.hnsw.efSearch = setting["ef"]
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class FaissHnswQuick(FaissHnsw):
    """The same, built with half the effort."""

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


class _FaissRefined:
    """FAISS codes, refined by float16 vectors: what these have in common."""

    reduced: ClassVar[int | None] = REDUCED

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        faiss = self._faiss = _faiss()
        dim = items.shape[1]
        sample = _sample(items)
        self._keep: list[Any] = []
        base, width = None, dim
        if self.reduced is not None and self.reduced < dim:
            width = self.reduced
            turn = faiss.LinearTransform(dim, width, False)
            faiss.copy_array_to_vector(_principal(sample, width).ravel(), turn.A)
            turn.is_trained = True
            self._keep.append(turn)
        self._lists = 2 ** round(float(np.log2(4 * np.sqrt(len(items)))))
        codes = self._codes(faiss, width)
        base = codes if width == dim else faiss.IndexPreTransform(turn, codes)
        fine = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._keep += [codes, base, fine]
        base.train(sample)
        fine.train(sample[:1000])
        self._index = faiss.IndexRefine(base, fine)
        _add(faiss, self._index, items)

    def _codes(self, faiss: Any, width: int) -> Any:
        raise NotImplementedError

    def _within(self, setting: dict[str, Any]) -> Any:
        """Search parameters of the codes."""
        return None

    def settings(self) -> list[Ladder]:
        """How many times k are refined, and lists."""
        return [[{"refine": refine} for refine in (4, 8, 16, 32, 64, 128, 256)]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        faiss = self._faiss
        within = self._within(setting)
        if within is not None and self.reduced is not None:
            within = faiss.SearchParametersPreTransform(index_params=within)
        asked = faiss.IndexRefineSearchParameters(k_factor=setting["refine"], base_index_params=within)
        rows: Rows = self._index.search(queries, k, params=asked)[1]
        return rows


class FaissFastScan(_FaissRefined):
    """4-bit product quantization of every item, scanned whole."""

    name: ClassVar[str] = "faiss PQ fast-scan"

    def _codes(self, faiss: Any, width: int) -> Any:
        return faiss.IndexPQFastScan(width, width // 2, 4, faiss.METRIC_INNER_PRODUCT)


class FaissIvfFastScan(_FaissRefined):
    """The same in inverted lists."""

    name: ClassVar[str] = "faiss IVF-PQ fast-scan"

    def _codes(self, faiss: Any, width: int) -> Any:
        coarse = faiss.IndexFlatIP(width)
        self._keep.append(coarse)
        metric = faiss.METRIC_INNER_PRODUCT
        codes = faiss.IndexIVFPQFastScan(coarse, width, self._lists, width // 2, 4, metric)
        codes.cp.spherical = True
        return codes

    def _within(self, setting: dict[str, Any]) -> Any:
        return self._faiss.SearchParametersIVF(nprobe=setting["lists"])

    def settings(self) -> list[Ladder]:
        """Lists, for some numbers refined."""
        lists = [lists for lists in (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024) if lists <= self._lists]
        return [[{"refine": refine, "lists": each} for each in lists] for refine in (8, 16, 32, 64)]


class FaissFastScanWide(FaissFastScan):
    """The same over twice the dimensions, which a flat spectrum needs."""

    name: ClassVar[str] = "faiss PQ fast-scan, wide"
    reduced: ClassVar[int | None] = 2 * REDUCED


class FaissIvfFastScanWide(FaissIvfFastScan):
    """The same over twice the dimensions."""

    name: ClassVar[str] = "faiss IVF-PQ fast-scan, wide"
    reduced: ClassVar[int | None] = 2 * REDUCED


class FaissRabitq(FaissIvfFastScan):
    """One bit a dimension (RaBitQ) in inverted lists, fast-scan."""

    name: ClassVar[str] = "faiss IVF RaBitQ"

    def _codes(self, faiss: Any, width: int) -> Any:
        coarse = faiss.IndexFlatIP(width)
        self._keep.append(coarse)
        codes = faiss.IndexIVFRaBitQFastScan(coarse, width, self._lists, faiss.METRIC_INNER_PRODUCT)
        codes.cp.spherical = True
        return codes

    def _within(self, setting: dict[str, Any]) -> Any:
        return self._faiss.IVFRaBitQSearchParameters(nprobe=setting["lists"], qb=8)


class FaissRabitqWhole(FaissRabitq):
    """The same over all dimensions, randomly rotated."""

    name: ClassVar[str] = "faiss IVF RaBitQ, all dims"
    reduced: ClassVar[int | None] = None


class Hnswlib:
    """The graph of its inventors."""

    name: ClassVar[str] = "hnswlib"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        self._index = importlib.import_module("hnswlib").Index(space="ip", dim=items.shape[1])
        self._index.init_index(max_elements=len(items), ef_construction=200, M=32)
        for block in _blocks(items):
            self._index.add_items(block, num_threads=_cores())
        self._index.set_num_threads(1)

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return FaissHnsw().settings()

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        self._index.set_ef(setting["ef"])
        return np.asarray(self._index.knn_query(queries, k=k, num_threads=1)[0], np.int64)


class Usearch:
    """A graph over float16 vectors."""

    name: ClassVar[str] = "usearch f16"
    dtype: ClassVar[str] = "f16"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        index = importlib.import_module("usearch.index").Index
        self._index = index(
            ndim=items.shape[1], metric="ip", dtype=self.dtype, connectivity=32, expansion_add=200
        )  # fmt: skip
        done = 0
        for block in _blocks(items):
            self._index.add(np.arange(done, done + len(block)), block, threads=_cores())
            done += len(block)

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return FaissHnsw().settings()

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        self._index.expansion_search = setting["ef"]
        asked = queries[0] if len(queries) == 1 else queries
        return np.asarray(self._index.search(asked, k, threads=1).keys, np.int64).reshape(len(queries), -1)


class UsearchByte(Usearch):
    """A graph over 8-bit vectors."""

    name: ClassVar[str] = "usearch i8"
    dtype: ClassVar[str] = "i8"


class Scann:
    """A tree with spilling (SOAR), anisotropic 4-bit codes, and reordering."""

    name: ClassVar[str] = "scann"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        library = importlib.import_module("scann")
        leaves = int(2 * np.sqrt(len(items)))
        builder = library.scann_ops_pybind.builder(items.astype(np.float32), 10, "dot_product")
        builder = builder.set_n_training_threads(_cores()).tree(
            num_leaves=leaves, num_leaves_to_search=leaves // 20, training_sample_size=min(len(items), SAMPLE),
            spherical=True, soar_lambda=1.5, overretrieve_factor=2.0,
        )  # fmt: skip
        self._leaves = leaves
        self._index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()

    def settings(self) -> list[Ladder]:
        """Leaves, for some numbers reordered."""
        leaves = [each for each in (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512) if each <= self._leaves]
        return [[{"reorder": reorder, "leaves": each} for each in leaves] for reorder in (50, 100, 200)]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        hard = {"pre_reorder_num_neighbors": setting["reorder"], "leaves_to_search": setting["leaves"]}
        if len(queries) == 1:
            found = self._index.search(queries[0], final_num_neighbors=k, **hard)[0]
            return np.pad(np.asarray(found, np.int64), (0, k - len(found)), constant_values=-1)[None]
        return np.asarray(self._index.search_batched(queries, final_num_neighbors=k, **hard)[0], np.int64)


class Rabitqlib:
    """The library of RaBitQ's inventors: inverted lists, one bit first and more for those that may win."""

    name: ClassVar[str] = "rabitqlib IVF"
    bits: ClassVar[int] = 7

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        library = importlib.import_module("rabitqlib")
        faiss = _faiss()
        lists = 2 ** round(float(np.log2(4 * np.sqrt(len(items)))))
        faiss.omp_set_num_threads(_cores())
        clusters = faiss.Kmeans(items.shape[1], lists, niter=10, spherical=True, max_points_per_centroid=64)
        clusters.train(_sample(items, 64 * lists))
        near = np.concatenate([clusters.index.search(block, 1)[1][:, 0] for block in _blocks(items)])
        faiss.omp_set_num_threads(1)
        self._lists = lists
        self._index = library.IvfIndex(items.shape[1], len(items), lists, self.bits, metric="ip")
        self._index.build(
            items.astype(np.float32), clusters.centroids, near.astype(np.uint32), num_threads=_cores(),
            fast_quantization=True,
        )  # fmt: skip

    def settings(self) -> list[Ladder]:
        """Lists."""
        return [[{"lists": each} for each in (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024) if each <= self._lists]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        return _rows(self._index.search(queries, k, setting["lists"], num_threads=1), len(queries))


class Symqg:
    """SymphonyQG of the same library: a graph that scans its neighbours' one-bit codes."""

    name: ClassVar[str] = "rabitqlib SymphonyQG"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        self._index = importlib.import_module("rabitqlib").SymqgIndex(items.shape[1], 32, metric="ip")
        self._index.build(items.astype(np.float32), 200, num_threads=_cores())

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return FaissHnsw().settings()

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search."""
        return _rows(self._index.search_batch(queries, k, setting["ef"], num_threads=1), len(queries))


class Vsag:
    """HGraph: a graph over 8-bit vectors, decided by float16 ones."""

    name: ClassVar[str] = "vsag hgraph"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index."""
        library = importlib.import_module("pyvsag")
        dim = items.shape[1]
        detail = {
            "base_quantization_type": "sq8_uniform", "use_reorder": True, "precise_quantization_type": "fp16",
            "max_degree": 32, "ef_construction": 200, "build_thread_count": _cores(),
        }  # fmt: skip
        asked = {"dtype": "float32", "metric_type": "ip", "dim": dim, "index_param": detail}
        self._index = library.Index("hgraph", json.dumps(asked))
        self._index.build(items.astype(np.float32).ravel(), np.arange(len(items)), len(items), dim)

    def settings(self) -> list[Ladder]:
        """Candidates kept while walking."""
        return FaissHnsw().settings()

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search, one at a time: there is no other way."""
        hard = json.dumps({"hgraph": {"ef_search": setting["ef"]}})
        found = np.full((len(queries), k), -1, np.int64)
        for row, query in zip(found, queries, strict=True):
            rows, _ = self._index.knn_search(query, k, hard)
            row[: len(rows)] = rows
        return found


SMALL = (Ours, FaissFlat, FaissFastScan, FaissIvfFastScan, FaissHnswQuick, Scann, Usearch)
FULL = (
    Ours, FaissFlat, FaissFastScan, FaissFastScanWide, FaissIvfFastScan, FaissIvfFastScanWide, FaissRabitq,
    FaissRabitqWhole, FaissHnsw, FaissHnswHalf, FaissHnswByte, Hnswlib, Usearch, UsearchByte, Scann, Rabitqlib, Symqg,
    Vsag,
)  # fmt: skip


def _rows(found: Any, queries: int) -> Rows:
    """The rows of a pair of rows and scores in whichever order."""
    which = next(part for part in found if np.issubdtype(np.asarray(part).dtype, np.integer))
    return np.asarray(which).astype(np.int64).reshape(queries, -1)


def _faiss() -> Any:
    return importlib.import_module("faiss")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blocks(items: NDArray[np.float16]) -> Iterator[Vectors]:
    for start in range(0, len(items), BLOCK):
        yield items[start : start + BLOCK].astype(np.float32)


def _sample(items: NDArray[np.float16], count: int = SAMPLE) -> Vectors:
    rows = np.random.default_rng(0).permutation(len(items))[:count]
    return items[np.sort(rows)].astype(np.float32)


def _add(faiss: Any, index: Any, items: NDArray[np.float16]) -> None:
    faiss.omp_set_num_threads(_cores())
    for block in _blocks(items):
        index.add(block)
    faiss.omp_set_num_threads(1)


def _principal(sample: Vectors, width: int) -> Vectors:
    """(width, d) principal directions in a random order's rotation, so that every pair of them carries as much."""
    _, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))
    return np.ascontiguousarray((directions[:, ::-1][:, :width] @ turned).T, np.float32)
