"""How high a row's inner product can be at most, as its nibbles say: an exact search need not look at the others.

The nibbles of a row, with its list's centre, stand for a vector ``y``, so that ``q.x = q.y + q.e`` with the error
``e = x - y``. For any invertible ``W`` and its inverse transpose ``V``, ``q.e = (q W).(e V)``, and that is no more than
``|q W| |e V|``: one number an item. ``W`` is the one for which these products of lengths are smallest on average, over
a sample of queries and of errors (see :func:`balance`); it only decides how tight the bound is, never whether it holds.

What is rounded is paid for. An item's length is a float32 sum, to which is added what that can be off by, and it is
rounded up; the query's products with the nibbles are integers, and what rounding the query leaves out is added; so is
what a float32 sum of ``d`` products can be off by, since it is such sums that are ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import building, checks, layout, native
from hivlp.ann.ann_index import AnnIndex
from hivlp.ann.arrays import Arrays, read_array
from hivlp.ann.building import Progress
from hivlp.ann.manifest import Manifest, RefusedEngineError
from hivlp.levels import Vectors

Doubles = NDArray[np.float64]
NAMES = ("bound_map.npy", "bound_lengths.npy", "bound_numbers.npy")
SAMPLE = 20_000  # errors that the map is learnt from
CHUNK = 2048  # blocks of codes between two looks at how many are left
OTHER = 65_535  # instead of the length of a code's error: another code of the same row is looked at
SHRINK = 1e-3  # of the mean variance: keeps the map well conditioned where there is next to none
HIGHEST = 127 * 128  # of a query's numbers
MOST_DIMS = 8192  # times a nibble and such a number, an int32 still


@dataclass
class Bound:
    """One query's bound on a row.

    ``offset + lists[home] + stretch * (unit * (codes . (128 * high + low)) + slack) + reach * length``; stretches and
    lengths in steps.
    """

    high: NDArray[np.int8]  # (dims + 64,)
    low: NDArray[np.int8]
    lists: Doubles  # (lists,)
    offset: float
    unit: float
    slack: float
    reach: float

    @property
    def fits(self) -> bool:
        """Whether no list is beyond all numbers."""
        return bool(np.isfinite(self.lists).all())


class Bounds:
    """Bounds on the inner products with all the rows of an engine."""

    def __init__(self, engine: AnnIndex, of_queries: Vectors, lengths: NDArray[np.uint16], numbers: Doubles) -> None:
        """What :meth:`build` made.

        Args:
            engine: whose nibbles these belong to.
            of_queries: (d, d) the map W.
            lengths: (blocks, 32) of the codes' errors, in steps; :data:`OTHER` for all but one code of a row.
            numbers: (3,) the step; the greatest length of an item; what is added for each unit of a query's length.
        """
        self.engine, self.of_queries, self.lengths, self.numbers = engine, of_queries, lengths, numbers
        arrays = engine.arrays
        self._map: Doubles = arrays.map.astype(np.float64)
        self._mean = arrays.mean.astype(np.float64)
        self._map_length = float(np.linalg.norm(of_queries.astype(np.float64)))
        self._centres = arrays.learnt.exact_centres
        self._furthest = float(np.sqrt(np.einsum("ld,ld->l", self._centres, self._centres, dtype=np.float64).max()))

    @classmethod
    def build(cls, engine: AnnIndex, queries: Vectors, on_progress: Progress | None = None) -> Bounds | None:
        """Measure the errors of all rows of an engine.

        Args:
            engine: as built.
            queries: (m, d) a sample of queries like those to come.
            on_progress: called with what is done, how much of it, and of how much.

        Returns:
            None where there is no bound: of vectors that are not finite, or of too many dimensions for a sum of int32.
        """
        items, count, width = engine.fine, engine.arrays.count, engine.fine.shape[1]
        if count == 0 or len(engine.arrays.step) > MOST_DIMS:
            return None
        rng = np.random.default_rng(0)
        some = np.sort(rng.choice(count, min(count, SAMPLE), replace=False))
        errors = (_errors(engine, some[start : start + 4096]) for start in range(0, len(some), 4096))
        moments = sum((part.T @ part for part in errors), np.zeros((width, width))) / len(some)
        asked = queries[:SAMPLE].astype(np.float64)
        asked_moments = asked.T @ asked / max(1, len(asked))
        if not (np.isfinite(moments).all() and np.isfinite(asked_moments).all()):
            return None
        of_queries = balance(moments, asked_moments)
        of_errors = np.linalg.inv(of_queries.astype(np.float64)).T
        # What a float32 sum of `width` products can be off by, twice over, of vectors of length one.
        error, of_length = (width + 16) * 2.0**-23, float(np.linalg.norm(of_errors))
        half = of_errors.astype(np.float32)
        exact, longest_error, longest = np.empty(count), 0.0, 0.0
        for start in range(0, count, building.CHUNK):
            rows = np.arange(start, min(start + building.CHUNK, count))
            left_out = _errors(engine, rows)
            left_lengths = np.linalg.norm(left_out, axis=1)
            exact[rows] = np.linalg.norm(left_out.astype(np.float32) @ half, axis=1).astype(np.float64) * (1 + error)
            exact[rows] += error * of_length * left_lengths
            longest_error = max(longest_error, float(left_lengths.max()))
            longest = max(longest, float(np.linalg.norm(items[rows].astype(np.float32), axis=1).max()) * (1 + error))
            if on_progress is not None:
                on_progress("bounds", int(rows[-1]) + 1, count)
        if not np.isfinite(exact).all():
            return None
        step = max(float(exact.max()), 1e-30) * (1 + 1e-5) / (OTHER - 1)
        lengths = np.full(engine.arrays.rows.shape, OTHER, np.uint16)
        lengths.ravel()[engine.arrays.places] = np.ceil(exact * (1 + 1e-6) / step)
        # How far W and V are from being inverse: next to nothing, but not nothing.
        gap = float(np.linalg.norm(np.eye(width) - of_errors @ of_queries.T.astype(np.float64))) + 1e-12
        return cls(engine, of_queries, lengths, np.array([step, longest, gap * longest_error + 1e-12 * longest]))

    def of(self, query: Vectors) -> Bound:
        """The bound for a (d,) query."""
        query, arrays = np.ascontiguousarray(query, np.float32), self.engine.arrays
        exact, width = query.astype(np.float64), len(query)
        length = float(np.linalg.norm(exact))
        step, longest, gap = self.numbers.tolist()
        # Twice what sums of `width` float32 products, however ordered, can be off by, for vectors of length one.
        error = (width + 16) * 2.0**-23
        reach = float(np.linalg.norm((query @ self.of_queries).astype(np.float64))) + error * length * self._map_length
        turned = self._map @ exact
        products = turned * arrays.step.astype(np.float64)
        unit = max(float(np.abs(products).max()), 1e-30) / HIGHEST
        whole = np.rint(products / unit).astype(np.int32)
        low = (whole + 64) % 128 - 64
        middles = layout.middles(len(whole), len(arrays.amplitude))
        left_out = float(middles @ np.abs(products - whole * unit))
        slack = length * (error * longest + gap) + float(np.finfo(np.float32).tiny) * width
        halves = np.zeros((2, len(whole) + 64), np.int8)
        halves[0, : len(whole)], halves[1, : len(whole)] = (whole - low) // 128, low
        # Products with the centres are float32 sums, too.
        slack += (len(whole) + 16) * 2.0**-23 * float(np.linalg.norm(turned)) * self._furthest
        lists = (self._centres @ turned.astype(np.float32)).astype(np.float64)
        # A code c stands for c less the middle, so many steps.
        inner, stretch = left_out - unit * float(middles @ whole), arrays.learnt.stretch_scale
        offset = float(self._mean @ exact) + slack
        return Bound(halves[0], halves[1], lists, offset, unit * stretch, inner * stretch, reach * step)

    def reaching(
        self, query: Vectors, bar: float, most: int, allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.int64], Doubles] | None:
        """The rows whose bounds are ``bar`` or more, and these; None if they are more than ``most``. Needs kernels.

        Args:
            query: (d,) float32.
            bar: what counts.
            most: rows at which it is not worth going on.
            allowed: a bit for each row (``numpy.packbits(..., bitorder="little")``); None for all.
        """
        library = native.load()
        assert library is not None
        native.check_bits(allowed, self.engine.arrays.count)
        bound, arrays, blocks = self.of(query), self.engine.arrays, len(self.lengths)
        if not (np.isfinite([bound.offset, bound.unit, bound.slack, bound.reach, bar]).all() and bound.fits):
            return None
        chunk, signed = min(CHUNK, blocks), len(arrays.amplitude)
        rows, bounds = np.empty(chunk * layout.SIGN_LANES, np.int64), np.empty(chunk * layout.SIGN_LANES)
        kept: list[tuple[NDArray[np.int64], Doubles]] = []
        held = 0
        for start in range(0, blocks, CHUNK):
            found = library.hivlp_bounds(
                arrays.nibbles.ctypes.data, arrays.rows.ctypes.data,
                self.lengths.ctypes.data, arrays.homes.ctypes.data, start, min(start + CHUNK, blocks),
                signed // 2, (self.engine.dims - signed) // 4, bound.high.ctypes.data, bound.low.ctypes.data,
                bound.lists.ctypes.data, arrays.count, bound.offset, bound.unit, bound.slack, bound.reach, bar,
                None if allowed is None else allowed.ctypes.data, rows.ctypes.data, bounds.ctypes.data,
            )  # fmt: skip
            held += found
            if held > most:
                return None
            kept.append((rows[:found].copy(), bounds[:found].copy()))
        rows, bounds = np.concatenate([part[0] for part in kept]), np.concatenate([part[1] for part in kept])
        order = np.argsort(rows)
        return rows[order], bounds[order]

    def all(self, query: Vectors) -> Doubles:
        """(n,) every row's bound, by numpy: what the kernel is held against."""
        bound, arrays = self.of(query), self.engine.arrays
        whole = (128 * bound.high.astype(np.int64) + bound.low)[: self.engine.dims]
        places = arrays.places
        nibbles = np.asarray(arrays.nibbles.ravel()[places])
        sums = layout.unpack_codes(nibbles["codes"], len(arrays.amplitude)).astype(np.int64) @ whole
        inner = nibbles["stretch"].astype(np.float64) * (bound.unit * sums + bound.slack)
        lists = bound.lists[arrays.homes[places // layout.SIGN_LANES]]
        bounds: Doubles = bound.offset + lists + inner + bound.reach * self.lengths.ravel()[places].astype(np.float64)
        return bounds

    @property
    def bytes_per_vector(self) -> float:
        """Of what is held in memory, beside the engine."""
        return float(
            sum(held.nbytes for held in (self.lengths, self.of_queries, self._map, self._centres))
            / max(1, self.engine.arrays.count)
        )

    def over(self, engine: AnnIndex) -> Bounds:
        """The same for another engine with the same arrays."""
        return Bounds(engine, self.of_queries, self.lengths, self.numbers)

    def files(self) -> dict[str, NDArray[Any]]:
        """What :meth:`AnnIndex.save` shall write beside the engine."""
        return dict(zip(NAMES, (self.of_queries, self.lengths, self.numbers), strict=True))


def load(folder: Path, manifest: Manifest, engine: AnnIndex) -> Bounds | None:
    """The bounds that lie beside an engine; None if there are none.

    Raises:
        RefusedEngineError: naming the file, if one is missing or not as it was written, or of no such bounds.
    """
    if not any(name in manifest.checks for name in NAMES):
        return None
    of_queries, lengths, numbers = (
        read_array(folder, name, manifest, mapped=name == "bound_lengths.npy")[1] for name in NAMES
    )
    reason = fault(engine.arrays, of_queries, lengths, numbers)
    if reason:
        raise RefusedEngineError(folder, *reason)
    return Bounds(engine, of_queries, lengths, numbers)


def fault(
    arrays: Arrays, of_queries: NDArray[Any], lengths: NDArray[Any], numbers: NDArray[Any]
) -> tuple[str, str] | None:
    """What is wrong with the arrays of bounds, if something is: the file, and the reason."""
    width = len(arrays.mean)
    layouts: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = (
        ((width, width), np.dtype(np.float32)), (arrays.rows.shape, np.dtype(np.uint16)), ((3,), np.dtype(float)),
    )  # fmt: skip
    for name, array, (shape, dtype) in zip(NAMES, (of_queries, lengths, numbers), layouts, strict=True):
        reason = checks.misfit(array, shape, dtype)
        if reason:
            return name, reason
    if not checks.within(of_queries, -checks.LARGEST):
        return NAMES[0], "it holds what is no number"
    if not checks.within(numbers, 0):
        return NAMES[2], "a length is negative or no number"
    bounded = arrays.rows[lengths != OTHER]
    if len(bounded) != arrays.count or not (np.bincount(bounded[bounded < arrays.count]) == 1).all():
        return NAMES[1], "it has no length for each row"
    return None


def balance(of_errors: Doubles, of_queries: Doubles) -> Vectors:
    """The (d, d) float32 map W of queries for which ``E|q W|^2 E|e V|^2`` is smallest, V being its inverse transpose.

    Whatever W, the product of the two is at least the square of the nuclear norm of ``Sq^1/2 Se^1/2``; with the
    singular vectors of that matrix it is no more.

    Args:
        of_errors: (d, d) second moments of errors, Se.
        of_queries: (d, d) of queries, Sq.
    """
    half_e, half_q = _root(of_errors), _root(of_queries)
    left, values, _ = np.linalg.svd(half_q @ half_e)
    return np.ascontiguousarray(np.linalg.solve(half_q, left) * np.sqrt(values), np.float32)


def _root(moments: Doubles) -> Doubles:
    values, vectors = np.linalg.eigh(moments)
    values = np.maximum(values, 0) + max(SHRINK * float(values.mean()), 1e-30)
    root: Doubles = (vectors * np.sqrt(values)) @ vectors.T
    return root


def _errors(engine: AnnIndex, rows: NDArray[np.int64]) -> Doubles:
    """(n, d) what the nibbles of these rows leave out."""
    arrays = engine.arrays
    places = arrays.places[rows]
    nibbles = np.asarray(arrays.nibbles.ravel()[places])
    dims, signed = len(arrays.step), len(arrays.amplitude)
    said = layout.unpack_codes(nibbles["codes"], signed) - layout.middles(dims, signed)
    said *= arrays.step.astype(np.float64)
    said *= nibbles["stretch"].astype(np.float64)[:, None] * float(arrays.scales[3])
    said += arrays.learnt.exact_centres[arrays.homes[places // layout.SIGN_LANES]]
    errors: Doubles = engine.fine[rows].astype(np.float64) - arrays.mean.astype(np.float64)
    return errors - said @ arrays.map.astype(np.float64)
