"""Approximate index: inverted lists of sign codes and refinement codes over stored stored vectors."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import checks, interface, native, training
from hivlp.ann.arrays import ARRAYS, ENCODED, Arrays, file_checksum
from hivlp.ann.constants import LIST_LANES, MAX_DIMS
from hivlp.ann.kmeans import group_means
from hivlp.ann.lists import codes_of, encode, lay_out
from hivlp.ann.manifest import MANIFEST, Manifest, read_manifest
from hivlp.ann.router import Router, train_router
from hivlp.ann.rows import Stored, floats, int8_row, is_int8
from hivlp.ann.training import Progress
from hivlp.errors import IndexFolderError
from hivlp.files import npy
from hivlp.files.scratch import put, scratch_folder, standing
from hivlp.levels import Vectors

ROUTER_QUERIES = 60_000
"""Queries that the router is trained on, at most."""
MIN_ROUTER_QUERIES = 1000
MIN_ROUTER_LISTS = 8
MIN_ROUTER_ROWS = 5_000
"""Rows below which no router is trained: that takes a minute, and such lists are ranked by their centroids as fast."""
ROUTER_NEIGHBOURS = 50  # nearest neighbours of each query, whose lists the router learns to score
COPIES = (2, 1)  # assignments a row: up to training.SMALL rows, and beyond
MAX_NPROBE = 1536  # or nlist if that is more: operating points probe one in so many of these
# Operating points: slack, rerank and tolerance; from which margin to which they were on the Pareto front of some
# collection; one in how many of MAX_NPROBE lists is probed.
OPERATING_POINTS = (
    (0.5, 120, 4.0, 4, 8, 6), (1.0, 120, 3.0, 5, 9, 6), (1.0, 120, 4.0, 6, 11, 6), (1.25, 120, 4.0, 6, 11, 6),
    (1.5, 120, 4.0, 7, 10, 6), (1.5, 120, 5.0, 7, 10.5, 6), (1.75, 120, 5.0, 8, 10, 6),
    (1.5, 120, 5.0, 10, 14, 2), (2.0, 160, 6.0, 9, 14, 2), (2.0, 200, 8.0, 12, 18, 1), (2.0, 200, 10.0, 14, 20, 1),
)  # fmt: skip
MARGINS = (4.0, 5.0, 6.0, 7.0, 7.5, 8.0, 8.25, 8.5, 8.75, 9.0, 9.25, 9.5, 9.75, 10.0, 10.5, 11.0, 12.0, 14.0,
           16.0, 18.0, 20.0)  # fmt: skip
# Slack, rerank and tolerance by nprobe alone: without a trained router a margin means little.
FIXED_NPROBE = (1.0, 60, np.inf), (2.0, 200, np.inf)
NPROBES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
# Slack and rerank where recall matters more than time, up to what takes as long as to read everything.
THOROUGH = (2.0, 200), (2.5, 400), (3.0, 800), (3.5, 1200), (4.0, 1600), (np.inf, 3000)


@dataclass(frozen=True)
class SearchParams:
    """Search parameters: how much of the index one query reads.

    Attributes:
        nprobe: inverted lists probed at most.
        margin: natural-log probability below the best list's at which the router prunes a list. It also prunes codes
            inside a list: the best list keeps codes that reach the threshold if they lie up to ``margin`` standard
            deviations above their centroid, a list at the margin half as many.
        slack: standard deviations of the sign codes' error added to a sign score; the refinement code is read only if
            the sum reaches the threshold.
        rerank: codes re-ranked by their stored vectors at most, in the order of their refinement scores.
        tolerance: how far below the k-th refinement score a code may lie and still be re-ranked, in standard deviations
            of the refinement codes' error.
    """

    nprobe: int
    margin: float
    slack: float
    rerank: int
    tolerance: float = np.inf


class AnnIndex:
    """Approximate nearest-neighbour index of (n, d) vectors by inner product: IVF with RaBitQ-like codes.

    A router picks inverted lists, 1-bit sign codes prune, 4- and 2-bit refinement codes rank, stored vectors re-rank.

    Attributes:
        arrays: what was trained and encoded.
        vectors: (n, d) float16, or (n,) records of int8; the first :attr:`count` have codes.
        width: d.
        stats: what all searches so far have read.
    """

    def __init__(self, arrays: Arrays, vectors: Stored) -> None:
        """Search arrays, and the vectors that they were built over.

        Args:
            arrays: as built, or loaded.
            vectors: (n, d) float16, or (n,) records of int8, in C order, at least as many rows as have codes.

        Raises:
            ValueError: if the vectors are of another shape, dtype or order.
        """
        rows, width = max(len(vectors), arrays.count), len(arrays.mean)
        layout = ((rows,), int8_row(width)) if is_int8(vectors) else ((rows, width), np.dtype(np.float16))
        reason = checks.misfit(vectors, *layout)
        if reason:
            raise ValueError(f"the vectors do not fit the approximate index: {reason}")
        self.arrays, self.vectors, self.width = arrays, vectors, width
        self.stats = interface.SearchStats()
        self._struct = self._pointers()

    # Building.

    @classmethod
    def build(
        cls,
        items: Stored,
        *,
        queries: Vectors | None = None,
        dims: int | None = None,
        sign_dims: int | None = None,
        nlist: int | None = None,
        assignments: int | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> AnnIndex:
        """Train on the items and a sample of queries, and encode the items. Needs kernels.

        Args:
            items: (n, d) float16 or float32, d at least 16, or records of int8; float32 ones are kept as float16.
            queries: (m, d) sample of queries; without it the items themselves stand in for them.
            dims: of the codes, a multiple of 16, at most 2048 (default: what these vectors need, or what fits
                :data:`hivlp.ann.training.MEMORY`).
            sign_dims: dims with a sign bit, a multiple of 16 (default: :func:`hivlp.ann.training.choose_sign_dims`).
            nlist: inverted lists (default: about ``4 * sqrt(n)``).
            assignments: lists that each row is stored in (default: 2 up to 500,000 rows, 1 beyond).
            seed: of samples and rotations.
            on_progress: called with the step, how much of it is done, and of how much.

        Raises:
            ValueError: if ``dims`` is out of range.
            IndexFolderError: without kernels.
        """
        if dims is not None and not 16 <= dims <= MAX_DIMS:
            raise ValueError(f"dims must be from 16 to {MAX_DIMS}, not {dims}")
        rng = np.random.default_rng(seed)
        tell: Progress = on_progress or (lambda what, done, total: None)
        asked = None if queries is None else np.asarray(queries, np.float32)
        assignments = assignments or COPIES[len(items) > training.SMALL]
        quantizer = training.train(items, asked, dims, sign_dims, nlist, assignments, rng, tell)
        lists = lay_out([encode(items, quantizer, assignments, tell)], len(quantizer.centroids), len(items))
        vectors = np.ascontiguousarray(items, None if is_int8(items) else np.float16)
        index = cls(Arrays.of(quantizer, lists), vectors)
        if asked is None:
            asked = floats(items[rng.permutation(len(items))[:ROUTER_QUERIES]])
        if len(asked) >= MIN_ROUTER_QUERIES and index.nlist >= MIN_ROUTER_LISTS and len(items) >= MIN_ROUTER_ROWS:
            asked = asked[rng.permutation(len(asked))[:ROUTER_QUERIES]]
            index = cls(Arrays.of(quantizer, lists, index._train_router(asked, tell, seed)), vectors)
        native.release_memory()  # samples, answers, products: it may be a tenth of what is kept
        return index

    @classmethod
    def extend(
        cls,
        arrays: Arrays,
        items: Stored,
        kept: NDArray[np.int64] | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> AnnIndex:
        """Approximate index over other items with the training of another one, and with its codes of those that stay.

        Args:
            arrays: of the other approximate index.
            items: (n, d) float16, or records of int8: first those that stay, in their order, then new ones.
            kept: (m,) ascending rows that those had which stay; None if all do. With none at all, every item is
                encoded again.
            on_progress: as for :meth:`build`.
        """
        quantizer, tell = arrays.quantizer, on_progress or (lambda what, done, total: None)
        stay = arrays.count if kept is None else len(kept)
        old = [codes_of(arrays.inverted_lists, kept)] if stay else []
        new = encode(items[stay:], quantizer, arrays.assignments, tell, first=stay)
        lists = lay_out([*old, new], len(quantizer.centroids), len(items))
        return cls(replace(arrays, **{name: getattr(lists, name) for name in ENCODED}), items)

    def _train_router(self, queries: Vectors, tell: Progress, seed: int) -> Router | None:
        """Router trained on the lists of each query's nearest neighbours, as a thorough search finds them."""
        found = []
        params = SearchParams(max(8, self.nlist // 12), np.inf, 1.0, 120)
        for start in range(0, len(queries), 512):
            found.append(self.search(queries[start : start + 512], ROUTER_NEIGHBOURS, params)[0])
            tell("answers", min(start + 512, len(queries)), len(queries))
        rows = np.concatenate(found)
        complete = (rows >= 0).all(1)
        if not complete.any():
            return None
        centroids = self.arrays.quantizer.decoded_centroids
        projected = queries[complete] @ self.arrays.query_projection.astype(np.float32).T
        lists = self.arrays.lists_of(self.arrays.positions[rows[complete]]).astype(np.int32)
        tell("router", 0, 2)
        router = train_router(centroids, projected, lists, seed=seed)
        tell("router", 1, 2)
        groups = train_router(group_means(centroids), projected, lists // LIST_LANES, seed=seed)
        tell("router", 2, 2)
        return Router(*router, *groups)

    # Storing.

    def save(
        self, folder: Path, about: dict[str, Any] | None = None, extra: dict[str, NDArray[Any]] | None = None
    ) -> None:
        """Write the arrays into a new folder, atomically.

        Args:
            folder: replaced if it exists; processes that have it open keep the old files.
            about: JSON object for :attr:`hivlp.ann.manifest.Manifest.about`.
            extra: further arrays by file name.
        """
        with scratch_folder(folder) as scratch:
            checksums = {}
            arrays = {f"{name}.npy": getattr(self.arrays, name) for name in ARRAYS}
            for name, array in {**arrays, **(extra or {})}.items():
                with (scratch / name).open("wb") as file:
                    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                checksums[name] = npy.checksum(npy.map_file(scratch / name))
            with (scratch / MANIFEST).open("w") as text:
                text.write(Manifest(os.urandom(8).hex(), checksums, about or {}).text())
                text.flush()
                os.fsync(text.fileno())
            put(scratch, folder)

    @classmethod
    def load(cls, folder: Path, vectors: Stored) -> AnnIndex:
        """Open what :meth:`save` wrote; see :meth:`hivlp.ann.arrays.Arrays.load`.

        Args:
            folder: that was written.
            vectors: (n, d) float16, or records of int8, at least as many rows as it was built over.

        Raises:
            IndexFolderError: if it is missing, of another format, not as it was written, or of other vectors.
        """
        arrays = Arrays.load(folder)
        try:
            return cls(arrays, vectors)
        except ValueError as error:
            raise IndexFolderError(f"{folder} is of other vectors; `hivlp tune` builds it again") from error

    @staticmethod
    def damage(folder: Path, *, older: bool = False) -> list[str]:
        """Names of the files in ``folder`` that are not as :meth:`save` wrote them.

        Args:
            folder: of the approximate index.
            older: whether an earlier format will do.

        Raises:
            IndexFolderError: if the manifest itself is missing, unreadable or of another format.
        """
        folder = standing(folder)
        checksums = read_manifest(folder, older=older).checks
        return [name for name, checksum in checksums.items() if file_checksum(folder / name) != checksum]

    # Searching.

    @property
    def nlist(self) -> int:
        """Number of inverted lists."""
        return len(self.arrays.centroids)

    @property
    def count(self) -> int:
        """Number of rows that have codes: the first ones of the stored vectors."""
        return self.arrays.count

    @property
    def dims(self) -> int:
        """Number of dims of the codes."""
        return len(self.arrays.refine_step)

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of memory a row, beside the stored vectors."""
        total = sum(getattr(self.arrays, name).nbytes for name in ARRAYS)
        return float(total / max(1, len(self.vectors)))

    def min_rerank(self, params: SearchParams, k: int) -> int:
        """Number of codes re-ranked for ``k`` results: ``params.rerank``, raised so that they cover ``k`` rows."""
        return max(1, min(max(params.rerank, self.codes_for(k)), self.codes_for(self.count)))

    def codes_for(self, rows: int) -> int:
        """Number of codes that cover ``rows`` rows, each stored in several lists."""
        return rows * self.arrays.assignments

    def params_grid(self) -> list[SearchParams]:
        """Search parameters worth measuring as operating points, from little effort to much."""
        grid = [
            SearchParams(nprobe, np.inf, *numbers)
            for numbers in FIXED_NPROBE
            for nprobe in NPROBES
            if nprobe <= max(2, self.nlist)
        ]
        most = max(MAX_NPROBE, self.nlist)
        return grid + [
            SearchParams(most // share, margin, slack, rerank, tolerance)
            for slack, rerank, tolerance, first, last, share in OPERATING_POINTS
            for margin in MARGINS
            if first <= margin <= last
        ]

    def thorough_params(self) -> list[SearchParams]:
        """Search parameters that probe every list; each finds all that the one before does, in about twice its time."""
        return [SearchParams(self.nlist, np.inf, slack, rerank) for slack, rerank in THOROUGH]

    def search(
        self, queries: Vectors, k: int, params: SearchParams, *, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Top-k rows of each query; a batch search reads a list once for all queries that probe it.

        Args:
            queries: (b, d) float32.
            k: rows a query, at least 1.
            params: search parameters.
            allowed: filter mask, one bit a row (``numpy.packbits(..., bitorder="little")``); None for all.

        Returns:
            (b, k) int64 rows, best first, -1 where there are fewer; (b, k) float32 inner products, -inf there.

        Raises:
            ValueError: if ``k`` is less than 1, or an array is of another shape or dtype.
            MemoryError: without memory for it.
            IndexFolderError: without kernels.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        queries = np.ascontiguousarray(queries, np.float32)
        self._check(queries, 2, allowed)
        held = min(k, self.count)
        nprobe = max(1, min(params.nprobe, self.nlist))
        rerank = self.min_rerank(params, k)
        rows, scores = np.empty((len(queries), held), np.int64), np.empty((len(queries), held), np.float32)
        if native.kernels().hivlp_search(
            self._struct, native.view(queries), len(queries),
            interface.IvfParams(nprobe, rerank, params.margin, params.slack, params.tolerance), self.codes_for(held),
            held, None if allowed is None else native.view(allowed), native.view(rows), native.view(scores), self.stats,
        ):  # fmt: skip
            raise MemoryError("no memory for a search")
        if held < k:
            missing = ((0, 0), (0, k - held))
            return np.pad(rows, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
        return rows, scores

    def search_rows(
        self, query: Vectors, rows: NDArray[np.integer[Any]], k: int, rerank: int
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Top-k among the given rows: refinement codes choose ``rerank``, stored vectors re-rank them.

        Faster than :meth:`search` for a filter that few rows pass.

        Args:
            query: (d,) float32.
            rows: candidates, each once.
            k: rows wanted, at least 1.
            rerank: stored vectors to read, at least ``k``.

        Returns:
            (k,) int64 rows, best first, or fewer; their float32 inner products.

        Raises:
            ValueError: if ``k`` is less than 1, or the query is of another length.
            IndexError: if a row has no code.
            MemoryError: without memory for it.
            IndexFolderError: without kernels.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        query = np.ascontiguousarray(query, np.float32)
        self._check(query, 1)
        native.check_rows(rows, self.count)
        k = max(1, min(k, len(rows)))
        rerank = max(k, min(rerank, len(rows)))
        best, scores = np.empty(k, np.int64), np.empty(k, np.float32)
        which = np.ascontiguousarray(rows, np.uint32)
        positions = self.arrays.positions[which]
        lists = self.arrays.lists_of(positions)
        if native.kernels().hivlp_search_rows(
            self._struct, native.view(query), native.view(which), native.view(positions), native.view(lists),
            len(which), rerank, k, native.view(best), native.view(scores), self.stats,
        ):  # fmt: skip
            raise MemoryError("no memory for a search")
        found = int(np.count_nonzero(best >= 0))
        return best[:found], scores[:found]

    def _check(self, queries: Vectors, axes: int, allowed: NDArray[np.uint8] | None = None) -> None:
        if queries.ndim != axes or queries.shape[-1] != self.width:
            raise ValueError(f"a query of {self.width} dims is wanted, not {queries.shape}")
        native.check_mask(allowed, self.count)

    def _pointers(self) -> interface.IvfIndex:
        arrays = self.arrays
        named = {"vectors": self.vectors, "max_sign_scales": arrays.max_sign_scales, **vars(arrays)}
        fields = dict(interface.IvfIndex._fields_)
        return interface.IvfIndex(
            **{name: native.pointer(named[name]) for name, kind in fields.items() if kind is ctypes.c_void_p},
            **{name: float(arrays.scales[name][0]) for name in checks.SCALE_NAMES},
            count=self.count, nlist=self.nlist, dims=self.dims, sign_dims=len(arrays.sign_amplitude),
            vector_dims=self.width, vector_bytes=self.vectors.nbytes // max(1, len(self.vectors)),
            int8_vectors=is_int8(self.vectors),
        )  # fmt: skip
