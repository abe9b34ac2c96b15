"""Exhaustive scan: the top-k rows of one level by their inner products with a query."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import native
from hivlp.ann.rows import Stored, floats
from hivlp.levels import Vectors
from hivlp.search.filters import Mask, Rows
from hivlp.store.codec import codec_of

BLOCK_FLOATS = 1 << 22  # 16 MB of vectors, or scores, at once: memory stays bounded, whatever the size of the index
WIDEN_FLOATS = 1 << 18  # float16 is widened in pieces that stay in the processor's cache
SCORED = 4096  # rows whose scores are looked at together: they stay in the processor's cache
SPARSE = 0.2  # of a block's rows: below this, copying them out costs less than scoring them all


def best_first(rows: Rows, scores: Vectors) -> tuple[Rows, Vectors]:
    """(n,) rows and their scores, best first; equal scores in row order."""
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


class ExhaustiveScanner:
    """Exhaustive scan of stored rows, memory-mapped or not.

    Attributes:
        codec: of the rows.
        dim: of their vectors.
    """

    def __init__(self, stored: Stored) -> None:
        """A scan of rows as a codec of :mod:`hivlp.store.codec` stores them."""
        self._vectors = np.asarray(stored)  # slices of a memmap that are memmaps themselves are slow to make
        self.codec = codec_of(stored)
        self.dim = self.codec.dim(self._vectors)

    def vectors(self, rows: Rows) -> Vectors:
        """(n, dim) float32 vectors of the given rows."""
        return self.codec.decode(self._vectors[rows])

    def search(self, queries: Vectors, count: int, allowed: Mask | None = None) -> list[tuple[Rows, Vectors]]:
        """Top rows of each of the (queries, dim) vectors; see :meth:`top`."""
        if len(queries) == 1:
            return [self.top(queries[0], count, allowed)]
        return self.top_many(queries, count, allowed)

    def top(self, query: Vectors, count: int, allowed: Mask | None = None) -> tuple[Rows, Vectors]:
        """Top ``count`` of the rows allowed.

        Args:
            query: (dim,) float32.
            count: how many, at least 1; fewer come back if there are not so many.
            allowed: (rows,) bool, or None for all.

        Returns:
            (n,) int64 rows and (n,) float32 scores, best first; equal scores in row order.
        """
        best = _Best(count)
        for block in self._blocks(allowed, min(BLOCK_FLOATS // self.dim, SCORED)):
            scores = _dot(block.vectors, query)
            places = best.candidates(scores, block.mask)
            best.add(block.rows(places), scores[places])
        return best.ordered()

    def top_many(self, queries: Vectors, count: int, allowed: Mask | None = None) -> list[tuple[Rows, Vectors]]:
        """What :meth:`top` gives for each query, to the last bit, in one pass over the vectors.

        One matrix product a block says which rows may be among the best; since BLAS rounds in its own way (see
        :func:`_dot`), these few are scored again.

        Args:
            queries: (queries, dim) float32.
            count: how many for each, at least 1.
            allowed: (rows,) bool, or None for all.
        """
        dim = self.dim
        bests = [_Best(count) for _ in queries]
        lengths = np.linalg.norm(queries, axis=1)
        for block in self._blocks(allowed, BLOCK_FLOATS // max(dim, len(queries), 1)):
            wide = _float32(block.vectors)
            longest = np.fmax.reduce(np.einsum("ij,ij->i", wide, wide), initial=0) ** 0.5
            # Two sums of `dim` products, however ordered and rounded, differ by no more than 2 * dim * 2^-24 of the
            # product of the lengths; a little more for the rounding of what is compared here.
            errors = (dim + 16) * 2.0**-23 * longest * lengths + np.finfo(np.float32).tiny
            for best, query, scores, error in zip(bests, queries, queries @ wide.T, errors, strict=True):
                places = best.candidates(scores, block.mask, float(error))
                if len(places):
                    best.add(block.rows(places), _dot(block.vectors[places], query))
        return [best.ordered() for best in bests]

    def rescore(self, query: Vectors, rows: Rows) -> Vectors:
        """(n,) float32 dot products of the query with the given rows."""
        scores = native.dot(self._vectors, query, rows)
        return _dot(self._vectors[rows], query) if scores is None else scores

    def _blocks(self, allowed: Mask | None, step: int) -> Iterator[_Block]:
        """The blocks that hold allowed rows."""
        step = max(1, step)
        for start in range(0, len(self._vectors), step):
            vectors = self._vectors[start : start + step]
            if allowed is None:
                yield _Block(start, vectors)
                continue
            mask = allowed[start : start + step]
            passing = np.count_nonzero(mask)
            if passing == len(mask):
                yield _Block(start, vectors)
            elif passing >= SPARSE * len(mask):
                yield _Block(start, vectors, mask=mask)
            elif passing:
                inside = np.flatnonzero(mask)
                yield _Block(start, vectors[inside], inside=inside)


class _Block:
    """Vectors from row ``start`` on, of which ``mask`` says which count, or only those of them at ``inside``."""

    def __init__(
        self, start: int, vectors: Stored, *, mask: Mask | None = None, inside: NDArray[np.int64] | None = None
    ) -> None:
        self.start, self.vectors, self.mask, self._inside = start, vectors, mask, inside

    def rows(self, places: Rows) -> Rows:
        """The rows of the index at these places of the block."""
        return self.start + (places if self._inside is None else self._inside[places])


class _Best:
    """The best rows so far; rows must come in ascending order."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows, self._scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        self._held = 0
        self._edge = -np.inf  # what a row must exceed; one that equals it comes too late

    def candidates(self, scores: Vectors, mask: Mask | None, error: float = 0.0) -> Rows:
        """Where the rows are that may be among the best, if each score is off by ``error`` at most."""
        chosen = scores > self._edge - error
        if mask is not None:
            chosen &= mask
        places = np.flatnonzero(chosen)
        if len(places) > self._count:
            left = scores[places]
            places = places[left >= _nth_best(left, self._count) - 2 * error]
        return places

    def add(self, rows: Rows, scores: Vectors) -> None:
        """Take in rows with their true scores."""
        self._rows.append(rows)
        self._scores.append(scores)
        self._held += len(rows)
        # Sorting out what is too much costs more than holding it for a while.
        if self._held >= (self._count if self._edge == -np.inf else 2 * self._count):
            self._settle()

    def ordered(self) -> tuple[Rows, Vectors]:
        """(n,) rows and scores, best first; equal scores in row order."""
        rows, scores = self._settle()
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]

    def _settle(self) -> tuple[Rows, Vectors]:
        rows, scores = np.concatenate(self._rows), np.concatenate(self._scores)
        if len(rows) >= self._count:
            self._edge = _nth_best(scores, self._count)
            above, level = np.flatnonzero(scores > self._edge), np.flatnonzero(scores == self._edge)
            # Rows of equal score ascend, so the first of those at the edge fill up.
            kept = np.concatenate([above, level[: self._count - len(above)]])
            rows, scores = rows[kept], scores[kept]
        self._rows, self._scores, self._held = [rows], [scores], len(rows)
        return rows, scores


def _nth_best(scores: Vectors, count: int) -> float:
    """The score of rank ``count``; there are at least so many."""
    # What the first few say is a floor, above which little is left to partition: several times faster.
    some = scores[: max(4 * count, len(scores) // 16)]
    if 2 * len(some) < len(scores):
        scores = scores[scores >= np.partition(some, len(some) - count)[len(some) - count]]
    return float(np.partition(scores, len(scores) - count)[len(scores) - count])


def _float32(vectors: Stored) -> Vectors:
    """(n, dim) float32 vectors of stored rows; of finite float16 exactly, and several times as fast as by ``astype``.

    Sign, exponent and fraction move to where a float32 has them; then only the bias of the exponent is wrong, by 112.
    """
    if vectors.dtype != np.float16:
        return floats(vectors)
    wide = np.empty(vectors.shape, np.float32)
    half, bits = vectors.view(np.int16), wide.view(np.int32)
    step = max(1, WIDEN_FLOATS // vectors.shape[1])
    for start in range(0, len(vectors), step):
        piece = bits[start : start + step]
        piece[...] = half[start : start + step]
        piece <<= 13
        piece &= -0x7000_2000  # the sign was spread over the three bits below it
        wide[start : start + step] *= np.float32(2.0**112)
    return wide


def _dot(vectors: Stored, query: Vectors) -> Vectors:
    """(n,) dot products, each depending on its own row alone.

    BLAS rounds a row by where it lies in the matrix: equal vectors would get unequal scores, and a page would not be
    sorted by the scores that it shows. ``einsum`` sums every row alike, and is no slower.
    """
    scores = native.dot(vectors, query)
    if scores is None:
        scores = np.einsum("ij,j->i", _float32(vectors), query)
    return scores
