"""The engine itself: built once from vectors, kept in plain arrays, searched by kernels or by numpy."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import building, checks, layout, native, reference, whole
from hivlp.ann import learning as fit
from hivlp.ann.arrays import PACKED, Arrays, Router, file_check
from hivlp.ann.building import Half, Progress
from hivlp.ann.manifest import MANIFEST, Manifest, read_manifest
from hivlp.errors import IndexFolderError
from hivlp.files import npy
from hivlp.files.scratch import put, scratch_folder, standing
from hivlp.levels import Vectors

ROUTER_QUERIES = 60_000
MIN_ROUTER_QUERIES = 1000
MOST_LISTS = 1536  # or as many as there are: a part of them is what is read for a query that the router cannot place
# Slack, how many the nibbles hand on and how near these must be; from which to which margin that was on the front of
# some collection, and with which part of the lists.
HANDED_ON = (
    (0.5, 120, 4.0, 4, 8, 6), (1.0, 120, 3.0, 5, 9, 6), (1.0, 120, 4.0, 6, 11, 6), (1.25, 120, 4.0, 6, 11, 6),
    (1.5, 120, 4.0, 7, 10, 6), (1.5, 120, 5.0, 7, 10.5, 6), (1.75, 120, 5.0, 8, 10, 6),
    (1.5, 120, 5.0, 10, 14, 2), (2.0, 160, 6.0, 9, 14, 2),
)  # fmt: skip
MARGINS = (4.0, 5.0, 6.0, 7.0, 7.5, 8.0, 8.25, 8.5, 8.75, 9.0, 9.25, 9.5, 9.75, 10.0, 10.5, 11.0, 12.0, 14.0)
# Where no router was learnt, a margin says little: so many lists are read.
WITHOUT_MARGIN = (1.0, 60, np.inf), (2.0, 200, np.inf)

THOROUGH = 200  # rows that are scored in full where it does not matter how long it takes


@dataclass(frozen=True)
class SearchParams:
    """Search parameters: how much of the index one query reads.

    Attributes:
        nprobe: inverted lists probed at most; 0 scans an int8 code of every row instead, for small collections.
        margin: natural-log probability below the best list's at which the router prunes a list. It also prunes codes
            inside a list: the best list keeps codes that reach the threshold if they lie up to ``margin`` standard
            deviations above their centroid, a list at the margin half as many.
        slack: standard deviations of the sign codes' error added to a sign score; the refinement code is read only if
            the sum reaches the threshold.
        rerank: codes re-ranked by their float16 vectors at most, in the order of their refinement scores.
        tolerance: how far below the k-th refinement score a code may lie and still be re-ranked, in standard deviations
            of the refinement codes' error.
    """

    nprobe: int
    margin: float
    slack: float
    rerank: int
    tolerance: float = np.inf


class AnnIndex:
    """Approximate search of (n, d) float16 vectors by inner product."""

    def __init__(self, arrays: Arrays, fine: Half) -> None:
        """Search these arrays, and vectors that they were built over.

        Args:
            arrays: as built, or loaded.
            fine: (n, d) float16, at least as many rows as there are codes of.

        Raises:
            ValueError: if the vectors are not such, or not one after the other in memory.
        """
        reason = checks.misfit(fine, (max(len(fine), arrays.count), len(arrays.mean)), np.dtype(np.float16))
        if reason:
            raise ValueError(f"the vectors do not fit the engine: {reason}")
        self.arrays, self.fine = arrays, fine
        self.work = native.WorkStruct()  # of all searches so far
        self._struct = self._pointers()

    # Building.

    @classmethod
    def build(
        cls,
        items: NDArray[Any],
        *,
        queries: Vectors | None = None,
        dims: int | None = None,
        sign_dims: int | None = None,
        nlist: int | None = None,
        assignments: int | None = None,
        seed: int = 0,
        on_progress: Progress | None = None,
    ) -> AnnIndex:
        """Learn from the items and from queries like those to come, and pack the codes.

        Args:
            items: (n, d) float16 or float32 vectors, d at least 16; kept as float16, and as they are if they are such.
            queries: (m, d) a sample of queries; without it the items themselves stand in for them.
            dims: of the codes, a multiple of 16, at most 2048 (default: what these vectors need, or what a gigabyte has
                room for).
            sign_dims: dimensions with a sign bit, a multiple of 16 (default: see :func:`building.choose_signed`).
            nlist: inverted lists (default: about ``4 * sqrt(n)``).
            assignments: lists that each row is stored in (default: 2 up to 500,000 rows, 1 beyond).
            seed: of samples and rotations.
            on_progress: called with what is done, how much of it, and of how much.
        """
        if dims is not None and not 16 <= dims <= checks.MOST_DIMS:
            raise ValueError(f"dims must be from 16 to {checks.MOST_DIMS}, not {dims}")
        rng = np.random.default_rng(seed)
        tell: Progress = on_progress or (lambda what, done, total: None)
        asked = None if queries is None else np.asarray(queries, np.float32)
        assignments = assignments or building.COPIES[len(items) > building.SMALL]
        learnt = building.learn(items, asked, dims, sign_dims, nlist, assignments, rng, tell)
        packed = building.pack(items, learnt, assignments, tell)
        fine = np.ascontiguousarray(items, np.float16)
        engine = cls(Arrays.of(learnt, packed), fine)
        if asked is None:
            asked = np.asarray(items[rng.permutation(len(items))[:ROUTER_QUERIES]], np.float32)
        if len(asked) >= MIN_ROUTER_QUERIES and engine.nlist >= 8:
            asked = asked[rng.permutation(len(asked))[:ROUTER_QUERIES]]
            engine = cls(Arrays.of(learnt, packed, engine._learn_router(asked, tell, seed)), fine)
        native.give_back()  # samples, answers, products: it may be a tenth of what is kept
        return engine

    @classmethod
    def extend(cls, arrays: Arrays, items: NDArray[Any], *, on_progress: Progress | None = None) -> AnnIndex:
        """An engine over more items, or other ones, with all that was learnt for these arrays.

        Args:
            arrays: of another engine.
            items: (n, d) float16, all of them.
            on_progress: as for :meth:`build`.
        """
        copies = int(arrays.held[1])
        packed = building.pack(items, arrays.learnt, copies, on_progress or (lambda what, done, total: None))
        return cls(replace(arrays, **{name: getattr(packed, name) for name in PACKED}), items)

    def _learn_router(self, queries: Vectors, tell: Progress, seed: int) -> Router | None:
        """Learn which lists answer a query, and which groups, from what a thorough search finds for these."""
        found = []
        thorough = SearchParams(max(8, self.nlist // 12), np.inf, 1.0, 120)
        for start in range(0, len(queries), 512):
            found.append(self.search(queries[start : start + 512], 50, thorough)[0])
            tell("answers", min(start + 512, len(queries)), len(queries))
        rows = np.concatenate(found)
        whole = (rows >= 0).all(1)
        if not whole.any():
            return None
        centres = self.arrays.learnt.exact_centres
        mapped = queries[whole] @ self.arrays.map.astype(np.float32).T
        homes = self.arrays.homes[self.arrays.places[rows[whole]] // layout.SIGN_LANES].astype(np.int32)
        tell("router", 0, 2)
        router = fit.learn_router(centres, mapped, homes, seed=seed)
        tell("router", 1, 2)
        groups = fit.learn_router(fit.of_groups(centres), mapped, homes // layout.LANES, seed=seed)
        tell("router", 2, 2)
        return Router(*router, *groups)

    # Storing.

    def save(
        self, folder: Path, about: dict[str, Any] | None = None, extra: dict[str, NDArray[Any]] | None = None
    ) -> None:
        """Write the arrays into a new folder, whole or not at all.

        Args:
            folder: is replaced if it is there, at once; whoever has it open goes on with what it was.
            about: whatever the caller wants to find again in :func:`read_manifest`.
            extra: further arrays by file name.
        """
        with scratch_folder(folder) as scratch:
            sums = {}
            arrays = {f"{each.name}.npy": getattr(self.arrays, each.name) for each in fields(Arrays)}
            for name, array in {**arrays, **(extra or {})}.items():
                with (scratch / name).open("wb") as file:
                    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                sums[name] = npy.checksum(npy.map_file(scratch / name))
            with (scratch / MANIFEST).open("w") as text:
                text.write(Manifest(os.urandom(8).hex(), sums, about or {}).text())
                text.flush()
                os.fsync(text.fileno())
            put(scratch, folder)

    @classmethod
    def load(cls, folder: Path, fine: Half) -> AnnIndex:
        """Open what :meth:`save` wrote; see :meth:`hivlp.ann.arrays.Arrays.load`.

        Args:
            folder: that was written.
            fine: (n, d) float16, at least as many rows as it was built over.

        Raises:
            IndexFolderError: if it is missing, of another format, not as it was written, or of other vectors.
        """
        arrays = Arrays.load(folder)
        try:
            return cls(arrays, fine)
        except ValueError as error:
            raise IndexFolderError(f"{folder} is of other vectors; `hivlp tune` builds the engine again") from error

    @staticmethod
    def damage(folder: Path) -> list[str]:
        """Names of the files in ``folder`` that are not as :meth:`save` wrote them.

        Raises:
            IndexFolderError: if the manifest itself is missing, unreadable or of another format.
        """
        folder = standing(folder)
        return [name for name, check in read_manifest(folder).checks.items() if file_check(folder / name) != check]

    # Searching.

    @property
    def nlist(self) -> int:
        """Number of inverted lists."""
        return len(self.arrays.key_bias)

    @property
    def count(self) -> int:
        """Number of rows that have codes: the first ones of the float16 vectors."""
        return self.arrays.count

    @property
    def dims(self) -> int:
        """Of the codes."""
        return len(self.arrays.step)

    @property
    def bytes_per_vector(self) -> float:
        """Of what is held in memory, beside the float16 vectors."""
        total = sum(getattr(self.arrays, each.name).nbytes for each in fields(Arrays))
        if self.arrays.count <= whole.MOST:
            total += self.arrays.count * self.dims
        return float(total / max(1, len(self.fine)))

    def min_rerank(self, params: SearchParams, k: int) -> int:
        """Number of codes re-ranked for ``k`` results: ``params.rerank``, raised so that they cover ``k`` rows."""
        if params.nprobe == 0:
            return max(1, min(max(params.rerank, k), self.count))
        return max(1, min(max(params.rerank, self.codes_for(k)), self.codes_for(self.count)))

    def codes_for(self, rows: int) -> int:
        """Number of codes that cover ``rows`` rows, each stored in several lists."""
        return rows * int(self.arrays.held[1])

    def params_grid(self) -> list[SearchParams]:
        """Search parameters worth measuring as operating points, from little effort to much."""
        steps = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
        by_number = [nprobe for nprobe in steps if nprobe <= max(2, self.nlist)]
        grid = [SearchParams(nprobe, np.inf, *numbers) for numbers in WITHOUT_MARGIN for nprobe in by_number]
        most = max(MOST_LISTS, self.nlist)
        grid += [
            SearchParams(most // part, margin, slack, rerank, tolerance)
            for slack, rerank, tolerance, first, final, part in HANDED_ON
            for margin in MARGINS
            if first <= margin <= final
        ]
        if self.arrays.count <= whole.MOST:
            grid += [SearchParams(0, np.inf, 0.0, rerank) for rerank in whole.LAST]
        return grid

    def thorough_params(self, k: int) -> SearchParams:
        """Search parameters that probe every list, for queries that the router cannot place."""
        return SearchParams(self.nlist, np.inf, 2.0, max(THOROUGH, self.codes_for(k)))

    def search(
        self, queries: Vectors, k: int, params: SearchParams, *, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.int64], Vectors]:
        """The best rows of each query.

        Args:
            queries: (b, d) float32.
            k: how many.
            params: search parameters.
            allowed: a bit for each row (``numpy.packbits(..., bitorder="little")``); None for all.

        Returns:
            (b, k) int64 rows, best first, -1 where there are fewer; (b, k) float32 inner products, -inf there.

        Raises:
            ValueError: if ``k`` is less than 1, or the arrays are of other shapes or dtypes.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        queries = np.ascontiguousarray(queries, np.float32)
        self._check_asked(queries, 2, allowed)
        rerank, held = self.min_rerank(params, k), min(k, self.count)
        library = native.load()
        if library is None:
            return reference.search(self.arrays, self.fine, queries, k, replace(params, rerank=rerank), allowed)
        rows, scores = np.empty((len(queries), held), np.int64), np.empty((len(queries), held), np.float32)
        given = (native.view(queries), len(queries))
        rest = (
            held, None if allowed is None else native.view(allowed), native.view(rows), native.view(scores), self.work,
        )  # fmt: skip
        if params.nprobe == 0:
            failed = library.hivlp_search_whole(self._struct, native.pointer(self._whole), *given, rerank, *rest)
        else:
            nprobe = max(1, min(params.nprobe, self.nlist))
            effort = native.EffortStruct(nprobe, rerank, params.margin, params.slack, params.tolerance)
            failed = library.hivlp_search(self._struct, *given, effort, self.codes_for(held), *rest)
        if failed:
            raise MemoryError("no memory for a search")
        if held < k:
            missing = ((0, 0), (0, k - held))
            return np.pad(rows, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
        return rows, scores

    def search_rows(
        self, query: Vectors, rows: NDArray[np.integer[Any]], k: int, rerank: int
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Top-k among the given rows: refinement codes choose ``rerank``, float16 vectors rank them.

        Faster than :meth:`search` for a filter that few rows pass.

        Args:
            query: (d,) float32.
            rows: candidates, each once.
            k: how many.
            rerank: float16 vectors to read, at least ``k``.

        Raises:
            ValueError: if ``k`` is less than 1, or the query is of another length.
            IndexError: if there are no codes of a row.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        query = np.ascontiguousarray(query, np.float32)
        self._check_asked(query, 1)
        native.check_rows(rows, self.count)
        k = max(1, min(k, len(rows)))
        rerank = max(k, min(rerank, len(rows)))
        library = native.load()
        if library is None:
            asked = np.sort(rows.astype(np.int64))
            return reference.search_rows(self.arrays, self.fine, query, asked, k, rerank)
        best, scores = np.empty(k, np.int64), np.empty(k, np.float32)
        which = np.ascontiguousarray(rows, np.uint32)
        places = self.arrays.places[which]
        homes = self.arrays.homes[places // layout.SIGN_LANES]
        if library.hivlp_search_rows(
            self._struct, native.view(query), native.view(which), native.view(places), native.view(homes),
            len(which), rerank, k, native.view(best), native.view(scores), self.work,
        ):  # fmt: skip
            raise MemoryError("no memory for a search")
        found = int(np.count_nonzero(best >= 0))
        return best[:found], scores[:found]

    def _check_asked(self, queries: Vectors, axes: int, allowed: NDArray[np.uint8] | None = None) -> None:
        if queries.ndim != axes or queries.shape[-1] != self.fine.shape[1]:
            raise ValueError(f"a query of {self.fine.shape[1]} dims is wanted, not {queries.shape}")
        native.check_bits(allowed, self.count)

    @cached_property
    def _whole(self) -> layout.Bytes:
        return whole.pack(self.arrays.learnt, self.fine[: self.arrays.count])

    def _pointers(self) -> native.EngineStruct:
        a, pointer = self.arrays, native.pointer
        return native.EngineStruct(
            pointer(a.map), pointer(a.amplitude), pointer(a.step), pointer(a.keys), pointer(a.key_bias),
            pointer(a.key_steps), pointer(a.group_keys), pointer(a.group_bias),
            pointer(a.centres), pointer(a.starts), pointer(a.signs), pointer(a.factors), pointer(a.heads),
            pointer(a.rows), pointer(a.nibbles), pointer(self.fine), a.count, len(a.key_bias), len(a.step),
            len(a.amplitude), self.fine.shape[1], *a.scales.tolist(),
        )  # fmt: skip
