"""Upper bounds on inner products, from refinement codes: an exact search skips rows whose bound is below the threshold.

A row's refinement code and its centroid stand for a vector ``y``, so that ``q.x = q.y + q.e`` with the error
``e = x - y``. For any invertible ``B`` and ``A = B^-T``, ``q.e = (q B).(e A) <= |q B| |e A|``: one error norm a row.
B and A are the LeanVec projections of queries and errors (:func:`hivlp.linalg.lean_vec`), for which the product of the
norms is smallest on average. They only decide how tight the bound is, never whether it holds.

Rounding is paid for. An error norm is a float32 sum, to which is added what that can be off by, and it is rounded up;
the query's products with the codes are integers, and what rounding the query leaves out is added; so is what a float32
sum of ``d`` products can be off by, since such sums are what is ranked.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import checks, layout, native, training
from hivlp.ann.ann_index import AnnIndex
from hivlp.ann.arrays import Arrays, read_array
from hivlp.ann.codes import code_centers
from hivlp.ann.constants import CODE_LANES, MAX_BOUND_DIMS, NO_NORM
from hivlp.ann.manifest import InvalidAnnIndexError, Manifest
from hivlp.ann.rows import floats
from hivlp.ann.training import Progress
from hivlp.levels import Vectors
from hivlp.linalg import lean_vec

Doubles = NDArray[np.float64]
FILES = ("bound_projection.npy", "bound_norms.npy", "bound_scalars.npy")
SCALARS = np.dtype([(name, "<f8") for name in ("norm_step", "max_norm", "slack")])
"""Step of the error norms; largest norm of a row; what is added for each unit of a query's norm."""
SAMPLE = 20_000  # errors that the projection is trained on
CHUNK = 2048  # blocks of codes between two looks at how many rows are left
RIDGE = 1e-3  # of the mean variance, added to all: keeps the projection well conditioned where there is next to none
HIGHEST = 127 * 128  # of a query's 15-bit integers


@dataclass
class QueryBound:
    """Bound of one query on any code.

    ``offset + lists[its list] + scale * (unit * (code . (128 * high + low)) + slack) + reach * norm``, with the code's
    integer scale and error norm.
    """

    high: NDArray[np.int8]  # (dims + 64,)
    low: NDArray[np.int8]
    lists: Doubles  # (nlist,)
    offset: float
    unit: float
    slack: float
    reach: float

    @property
    def fits(self) -> bool:
        """Whether all of its numbers are finite."""
        return bool(
            np.isfinite([self.offset, self.unit, self.slack, self.reach]).all() and np.isfinite(self.lists).all()
        )


class Bounds:
    """Upper bounds on the inner products of any query with the rows of an approximate index."""

    def __init__(
        self, index: AnnIndex, projection: Vectors, norms: NDArray[np.uint16], scalars: NDArray[np.void]
    ) -> None:
        """What :meth:`build` made.

        Args:
            index: whose refinement codes these belong to.
            projection: (d, d) float32 B, of queries.
            norms: (blocks, 32) error norm of each code, in steps;
                :data:`~hivlp.ann.constants.NO_NORM` for all but one code of a row.
            scalars: (1,) record of :data:`SCALARS`.
        """
        self.index, self.projection, self.norms, self.scalars = index, projection, norms, scalars
        arrays = index.arrays
        self._query_projection: Doubles = arrays.query_projection.astype(np.float64)
        self._mean = arrays.mean.astype(np.float64)
        self._projection_norm = float(np.linalg.norm(projection.astype(np.float64)))
        self._centroids = arrays.quantizer.decoded_centroids
        squares = np.einsum("ld,ld->l", self._centroids, self._centroids, dtype=np.float64)
        self._max_centroid_norm = float(np.sqrt(squares.max()))

    @classmethod
    def build(cls, index: AnnIndex, queries: Vectors, on_progress: Progress | None = None) -> Bounds | None:
        """Measure the error norms of all rows.

        Args:
            index: as built.
            queries: (m, d) sample of queries.
            on_progress: called with the step, how much of it is done, and of how much.

        Returns:
            None where there is no bound: of vectors that are not finite, or of too many dims for a sum of int32.
        """
        count, width = index.count, index.width
        if count == 0 or index.dims > MAX_BOUND_DIMS:
            return None
        rng = np.random.default_rng(0)
        some = np.sort(rng.choice(count, min(count, SAMPLE), replace=False))
        errors = (_errors(index, some[start : start + 4096]) for start in range(0, len(some), 4096))
        moments = sum((part.T @ part for part in errors), np.zeros((width, width))) / len(some)
        asked = queries[:SAMPLE].astype(np.float64)
        query_moments = asked.T @ asked / max(1, len(asked))
        if not (np.isfinite(moments).all() and np.isfinite(query_moments).all()):
            return None
        projection = lean_vec(_ridged(moments), _ridged(query_moments))[1].astype(np.float32)
        measured = _measure(index, projection, 0, on_progress)
        return None if measured is None else cls._of(index, projection, np.zeros(0, np.uint16), *measured)

    def extend(
        self, index: AnnIndex, kept: NDArray[np.int64] | None = None, on_progress: Progress | None = None
    ) -> Bounds | None:
        """Bounds of another approximate index, by this one's projection and error norms of the rows that stay.

        Args:
            index: that :meth:`AnnIndex.extend` made of this one's arrays.
            kept: ascending rows that stay; None if all do.
            on_progress: as for :meth:`build`.

        Returns:
            None where there is no bound: of vectors that are not finite.
        """
        norms = self.norms.ravel()[self.index.arrays.positions]
        norms = norms if kept is None else norms[kept]
        measured = _measure(index, self.projection, len(norms), on_progress)
        return None if measured is None else self._of(index, self.projection, norms, *measured, self.scalars)

    @classmethod
    def _of(
        cls,
        index: AnnIndex,
        projection: Vectors,
        known: NDArray[np.uint16],
        exact: Doubles,
        slack: float,
        max_norm: float,
        scalars: NDArray[np.void] | None = None,
    ) -> Bounds:
        """Bounds of error norms in steps of ``scalars``, of the first rows, and of others that were just measured."""
        step, known_norm, known_slack = (0.0, 0.0, 0.0) if scalars is None else map(float, scalars[0])
        most = float(exact.max(initial=1e-30)) * (1 + 1e-5) / (NO_NORM - 1)
        steps = known.astype(np.float64)
        if most > step:
            steps, step = np.ceil(steps * (step / most) * (1 + 1e-6)), most
        steps = np.concatenate([steps, np.ceil(exact * (1 + 1e-6) / step)])
        norms = np.full(index.arrays.row_ids.shape, NO_NORM, np.uint16)
        norms.ravel()[index.arrays.positions] = steps
        max_norm = max(max_norm, known_norm)
        slack = max(slack, known_slack) + 1e-12 * max_norm
        return cls(index, projection, norms, np.array([(step, max_norm, slack)], SCALARS))

    def of(self, query: Vectors) -> QueryBound:
        """Bound of a (d,) query."""
        query, arrays = np.ascontiguousarray(query, np.float32), self.index.arrays
        exact, width = query.astype(np.float64), len(query)
        norm = float(np.linalg.norm(exact))
        step, max_norm, gap = (float(self.scalars[name][0]) for name in SCALARS.names or ())
        # Twice what sums of `width` float32 products, however ordered, can be off by, for vectors of length one.
        error = (width + 16) * 2.0**-23
        reach = (
            float(np.linalg.norm((query @ self.projection).astype(np.float64))) + error * norm * self._projection_norm
        )
        projected = self._query_projection @ exact
        products = projected * arrays.refine_step.astype(np.float64)
        unit = max(float(np.abs(products).max()), 1e-30) / HIGHEST
        whole = np.rint(products / unit).astype(np.int32)
        low = (whole + 64) % 128 - 64
        centers = code_centers(len(whole), len(arrays.sign_amplitude))
        left_out = float(centers @ np.abs(products - whole * unit))
        slack = norm * (error * max_norm + gap) + float(np.finfo(np.float32).tiny) * width
        halves = np.zeros((2, len(whole) + 64), np.int8)
        halves[0, : len(whole)], halves[1, : len(whole)] = (whole - low) // 128, low
        # Products with the centroids are float32 sums, too.
        slack += (len(whole) + 16) * 2.0**-23 * float(np.linalg.norm(projected)) * self._max_centroid_norm
        lists = (self._centroids @ projected.astype(np.float32)).astype(np.float64)
        # A code c stands for c less the center, so many steps.
        inner, scale = left_out - unit * float(centers @ whole), arrays.quantizer.refine_scale
        offset = float(self._mean @ exact) + slack
        return QueryBound(halves[0], halves[1], lists, offset, unit * scale, inner * scale, reach * step)

    def reaching(
        self, query: Vectors, threshold: float, most: int, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.int64], Doubles] | None:
        """Rows whose bounds reach a threshold, ascending, and these bounds; None if they are more than ``most``.

        Args:
            query: (d,) float32.
            threshold: smallest bound that counts.
            most: rows at which it is not worth going on.
            allowed: filter mask, one bit a row (``numpy.packbits(..., bitorder="little")``); None for all.

        Raises:
            IndexFolderError: without kernels.
        """
        native.check_mask(allowed, self.index.count)
        bound, arrays, blocks = self.of(query), self.index.arrays, len(self.norms)
        if not (np.isfinite(threshold) and bound.fits):
            return None
        library = native.kernels()
        chunk, sign_dims = min(CHUNK, blocks), len(arrays.sign_amplitude)
        rows, bounds = np.empty(chunk * CODE_LANES, np.int64), np.empty(chunk * CODE_LANES)
        kept: list[tuple[NDArray[np.int64], Doubles]] = []
        held = 0
        for start in range(0, blocks, CHUNK):
            found = library.hivlp_bounds(
                arrays.refine_codes.ctypes.data, arrays.row_ids.ctypes.data,
                self.norms.ctypes.data, arrays.block_lists.ctypes.data, start, min(start + CHUNK, blocks),
                sign_dims // 2, (self.index.dims - sign_dims) // 4, bound.high.ctypes.data, bound.low.ctypes.data,
                bound.lists.ctypes.data, self.index.count, bound.offset, bound.unit, bound.slack, bound.reach,
                threshold, None if allowed is None else allowed.ctypes.data, rows.ctypes.data, bounds.ctypes.data,
            )  # fmt: skip
            held += found
            if held > most:
                return None
            kept.append((rows[:found].copy(), bounds[:found].copy()))
        rows, bounds = np.concatenate([part[0] for part in kept]), np.concatenate([part[1] for part in kept])
        order = np.argsort(rows)
        return rows[order], bounds[order]

    @property
    def bytes_per_vector(self) -> float:
        """Bytes of memory a row, beside the approximate index."""
        held = (self.norms, self.projection, self._query_projection, self._centroids)
        return float(sum(array.nbytes for array in held) / max(1, self.index.count))

    def over(self, index: AnnIndex) -> Bounds:
        """Bounds of another approximate index with the same arrays."""
        other = copy.copy(self)  # what was worked out of the arrays stays, which takes milliseconds
        other.index = index
        return other

    def files(self) -> dict[str, NDArray[Any]]:
        """Extra files for :meth:`AnnIndex.save`, by name."""
        return dict(zip(FILES, (self.projection, self.norms, self.scalars), strict=True))


def load(folder: Path, manifest: Manifest, index: AnnIndex) -> Bounds | None:
    """Bounds stored beside an approximate index; None if there are none.

    Raises:
        InvalidAnnIndexError: naming the file, if one is missing, not as it was written, or not valid.
    """
    if not any(name in manifest.checks for name in FILES):
        return None
    projection, norms, scalars = (read_array(folder, name, manifest, mapped=name == FILES[1])[1] for name in FILES)
    found = fault(index.arrays, projection, norms, scalars)
    if found is not None:
        raise InvalidAnnIndexError(folder, *found)
    return Bounds(index, projection, norms, scalars)


def fault(arrays: Arrays, projection: NDArray[Any], norms: NDArray[Any], scalars: NDArray[Any]) -> checks.Fault | None:
    """File and reason of the first fault of the arrays of bounds; None if they are sound."""
    width = len(arrays.mean)
    layouts: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = (
        ((width, width), np.dtype(np.float32)), (arrays.row_ids.shape, np.dtype(np.uint16)), ((1,), SCALARS),
    )  # fmt: skip
    for name, array, (shape, dtype) in zip(FILES, (projection, norms, scalars), layouts, strict=True):
        reason = checks.misfit(array, shape, dtype)
        if reason:
            return name, reason
    if not checks.within(projection, -checks.LARGEST):
        return FILES[0], "it holds what is no number"
    if not checks.positive(scalars, 0):
        return FILES[2], "a norm is negative or no number"
    bounded = arrays.row_ids[norms != NO_NORM]
    if len(bounded) != arrays.count or not (np.bincount(bounded[bounded < arrays.count]) == 1).all():
        return FILES[1], "it has no norm for each row"
    return None


def _measure(
    index: AnnIndex, projection: Vectors, first: int, on_progress: Progress | None
) -> tuple[Doubles, float, float] | None:
    """(n,) error norms of the rows from ``first`` on, the slack that all need, and the largest norm of one.

    None if they are not finite.
    """
    items, count, width = index.vectors, index.count, index.width
    of_errors = np.linalg.inv(projection.astype(np.float64)).T
    # What a float32 sum of `width` products can be off by, twice over, of vectors of length one.
    error, projection_norm = (width + 16) * 2.0**-23, float(np.linalg.norm(of_errors))
    single = of_errors.astype(np.float32)
    exact, max_error, max_norm = np.empty(count - first), 0.0, 0.0
    for start in range(first, count, training.CHUNK):
        rows = np.arange(start, min(start + training.CHUNK, count))
        errors = _errors(index, rows)
        error_norms = np.linalg.norm(errors, axis=1)
        norms = np.linalg.norm(errors.astype(np.float32) @ single, axis=1).astype(np.float64) * (1 + error)
        exact[rows - first] = norms + error * projection_norm * error_norms
        max_error = max(max_error, float(error_norms.max()))
        max_norm = max(max_norm, float(np.linalg.norm(floats(items[rows]), axis=1).max()) * (1 + error))
        if on_progress is not None:
            on_progress("bounds", int(rows[-1]) + 1, count)
    if not np.isfinite(exact).all():
        return None
    # How far the two projections are from being inverse: next to nothing, but not nothing.
    gap = float(np.linalg.norm(np.eye(width) - of_errors @ projection.T.astype(np.float64))) + 1e-12
    return exact, gap * max_error, max_norm


def _ridged(moment: Doubles) -> Doubles:
    variance = float(np.trace(moment)) / len(moment)
    ridged: Doubles = moment + max(RIDGE * variance, 1e-30) * np.eye(len(moment))
    return ridged


def _errors(index: AnnIndex, rows: NDArray[np.int64]) -> Doubles:
    """(n, d) what the refinement codes of these rows leave out of their vectors."""
    arrays, quantizer = index.arrays, index.arrays.quantizer
    positions = arrays.positions[rows]
    codes = np.asarray(arrays.refine_codes.ravel()[positions])
    said = layout.unpack_refine_codes(codes["codes"], quantizer.sign_dims) - code_centers(
        index.dims, quantizer.sign_dims
    )
    said *= arrays.refine_step.astype(np.float64)
    said *= codes["scale"].astype(np.float64)[:, None] * quantizer.refine_scale
    said += quantizer.decoded_centroids[arrays.lists_of(positions)]
    errors: Doubles = floats(index.vectors[rows]).astype(np.float64) - arrays.mean.astype(np.float64)
    return errors - said @ arrays.query_projection.astype(np.float64)
