"""FAISS: exhaustive, and its quantizers, whole and in inverted lists."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import Ladder, Rows, add_all, load_faiss, sample_of
from hivlp.levels import Vectors

REDUCED = 128


class FaissFlat:
    """Exhaustive, float32: what everything is compared with."""

    name: ClassVar[str] = "faiss flat"

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        faiss = load_faiss()
        self.index = faiss.IndexFlatIP(items.shape[1])
        add_all(faiss, self.index, items)

    def settings(self) -> list[Ladder]:
        """Nothing to choose."""
        return [[{}]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        rows: Rows = self.index.search(queries, k)[1]
        return rows


class _FaissRefined:
    """FAISS codes, refined by float16 vectors: what these have in common."""

    reduced: ClassVar[int | None] = REDUCED

    def build(self, items: NDArray[np.floating[Any]], train_queries: Vectors) -> None:
        faiss = self._faiss = load_faiss()
        dim = items.shape[1]
        sample = sample_of(items)
        self._keep: list[Any] = []
        base, width = None, dim
        if self.reduced is not None and self.reduced < dim:
            width = self.reduced
            turn = faiss.LinearTransform(dim, width, False)
            faiss.copy_array_to_vector(principal(sample, width).ravel(), turn.A)
            turn.is_trained = True
            self._keep.append(turn)
        self._lists = 2 ** round(float(np.log2(4 * np.sqrt(len(items)))))
        codes = self._codes(faiss, width)
        base = codes if width == dim else faiss.IndexPreTransform(turn, codes)
        fine = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._keep += [codes, base, fine]
        base.train(sample)
        fine.train(sample[:1000])
        self.index = faiss.IndexRefine(base, fine)
        add_all(faiss, self.index, items)

    def _codes(self, faiss: Any, width: int) -> Any:
        raise NotImplementedError

    def _within(self, setting: dict[str, Any]) -> Any:
        """Search parameters of the codes."""
        return None

    def settings(self) -> list[Ladder]:
        """How many times k are refined, and lists."""
        return [[{"refine": refine} for refine in (4, 8, 16, 32, 64, 128, 256)]]

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        faiss = self._faiss
        within = self._within(setting)
        if within is not None and self.reduced is not None:
            within = faiss.SearchParametersPreTransform(index_params=within)
        asked = faiss.IndexRefineSearchParameters(k_factor=setting["refine"], base_index_params=within)
        rows: Rows = self.index.search(queries, k, params=asked)[1]
        return rows


class FaissFastScan(_FaissRefined):
    """4-bit product quantization of every item, scanned whole."""

    name: ClassVar[str] = "faiss PQ fast-scan"

    def _codes(self, faiss: Any, width: int) -> Any:
        return faiss.IndexPQFastScan(width, width // 2, 4, faiss.METRIC_INNER_PRODUCT)


class FaissIvfFastScan(_FaissRefined):
    """Fast-scan codes in inverted lists."""

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
    """Fast-scan codes of twice as many dimensions, which a flat spectrum needs."""

    name: ClassVar[str] = "faiss PQ fast-scan, wide"
    reduced: ClassVar[int | None] = 2 * REDUCED


class FaissIvfFastScanWide(FaissIvfFastScan):
    """Fast-scan codes of twice as many dimensions, in inverted lists."""

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
    """RaBitQ codes of all dimensions, randomly rotated."""

    name: ClassVar[str] = "faiss IVF RaBitQ, all dims"
    reduced: ClassVar[int | None] = None
    at_once: ClassVar[int] = 128

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """Search, some at a time: FAISS crashes where tables of many queries for many lists exceed 32 bits."""
        search, pieces = super().search, range(0, len(queries), self.at_once)
        return np.concatenate([search(queries[at : at + self.at_once], k, setting) for at in pieces])


def principal(sample: Vectors, width: int) -> Vectors:
    """(width, d) principal directions in a random order's rotation, so that every pair of them carries as much."""
    _, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))
    return np.ascontiguousarray((directions[:, ::-1][:, :width] @ turned).T, np.float32)
