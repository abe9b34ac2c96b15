"""Partitions with codes: ScaNN, and RaBitQ by its inventors."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import SAMPLE, UNIT, Ladder, Rows, blocks, cores, load_faiss, rows_of, sample_of
from hivlp.levels import Vectors


class Scann:
    """A tree with spilling (SOAR), anisotropic 4-bit codes, and reordering."""

    name: ClassVar[str] = "scann"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        library = importlib.import_module("scann")
        leaves = int(2 * np.sqrt(len(items)))
        builder = library.scann_ops_pybind.builder(items.astype(np.float32), 10, "dot_product")
        builder = builder.set_n_training_threads(cores()).tree(
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
        library = importlib.import_module("rabitqlib")
        faiss = load_faiss()
        lists = 2 ** round(float(np.log2(4 * np.sqrt(len(items)))))
        faiss.omp_set_num_threads(cores())
        clusters = faiss.Kmeans(items.shape[1], lists, niter=10, spherical=True, max_points_per_centroid=64)
        clusters.train(sample_of(items, 64 * lists))
        near = np.concatenate([clusters.index.search(block, 1)[1][:, 0] for block in blocks(items)])
        faiss.omp_set_num_threads(1)
        self._lists = lists
        self._index = library.IvfIndex(items.shape[1], len(items), lists, self.bits, metric=UNIT)
        self._index.build(
            items.astype(np.float32), clusters.centroids, near.astype(np.uint32), num_threads=cores(),
            fast_quantization=True,
        )  # fmt: skip

    def settings(self) -> list[Ladder]:
        """Lists."""
        return [[{"lists": each} for each in (16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048) if each <= self._lists]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        return rows_of(self._index.search(queries, k, setting["lists"], num_threads=1), len(queries))
