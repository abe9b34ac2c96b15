"""Finding the best rows of one level by looking at all of them.

This is the engine that a faster one replaces: anything with the two functions of :class:`Scanner` will do.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.index.vectors import Stored
from hivlp.levels import Vectors

Rows = NDArray[np.int64]
BLOCK_FLOATS = 1 << 22  # 16 MB of vectors at once: memory stays bounded, whatever the size of the index
WIDEN_FLOATS = 1 << 18  # float16 is widened in pieces that stay in the processor's cache


class Scanner(Protocol):
    """An engine over the vectors of one level."""

    def top(self, query: Vectors, count: int, allowed: NDArray[np.bool_] | None) -> tuple[Rows, Vectors]:
        """The ``count`` best rows, best first, with their scores; equal scores in row order."""

    def rescore(self, query: Vectors, rows: Rows) -> Vectors:
        """(len(rows),) scores of the given rows."""


class ExhaustiveScanner:
    """Dot products with every row of a (rows, dim) array of float32 or float16, memory-mapped or not."""

    def __init__(self, vectors: Stored) -> None:
        self._vectors = vectors

    def top(self, query: Vectors, count: int, allowed: NDArray[np.bool_] | None = None) -> tuple[Rows, Vectors]:
        """The best rows among those allowed.

        Args:
            query: (dim,) float32.
            count: how many; fewer come back if there are not so many.
            allowed: (rows,) bool, or None for all.

        Returns:
            (n,) int64 rows and (n,) float32 scores, best first; equal scores in row order.
        """
        total, dim = self._vectors.shape
        step = max(1, BLOCK_FLOATS // dim)
        rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for start in range(0, total, step):
            block = self._vectors[start : start + step]
            if allowed is None:
                here, block_scores = np.arange(start, start + len(block)), _dot(block, query)
            else:
                inside = np.flatnonzero(allowed[start : start + step])
                if len(inside) == 0:
                    continue
                here = start + inside
                # Copying rows out costs more than scoring a few too many.
                sparse = 2 * len(inside) < len(block)
                block_scores = _dot(block[inside], query) if sparse else _dot(block, query)[inside]
            rows = np.concatenate([rows, here])
            scores = np.concatenate([scores, block_scores])
            if len(rows) > count:
                best = _best(rows, scores, count)
                rows, scores = rows[best], scores[best]
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    def rescore(self, query: Vectors, rows: Rows) -> Vectors:
        """(n,) float32 dot products of the query with the given rows."""
        return _dot(self._vectors[rows], query)


def _dot(vectors: Stored, query: Vectors) -> Vectors:
    """(n,) dot products, each depending on its own row alone.

    BLAS rounds a row by where it lies in the matrix: equal vectors would get unequal scores, and a page would not be
    sorted by the scores that it shows. ``einsum`` sums every row alike, and is no slower.
    """
    result: Vectors
    if vectors.dtype != np.float16:
        result = np.einsum("ij,j->i", vectors, query)
        return result
    result = np.empty(len(vectors), np.float32)
    step = max(1, WIDEN_FLOATS // vectors.shape[1])
    for start in range(0, len(vectors), step):
        np.einsum("ij,j->i", _widen(vectors[start : start + step]), query, out=result[start : start + step])
    return result


def _widen(half: Stored) -> Vectors:
    """Finite float16 to float32, exactly, five times as fast as ``astype``, which goes number by number.

    Sign, exponent and fraction move to where a float32 has them; then only the bias of the exponent is wrong, by 112.
    """
    bits = half.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x7000_2000)  # the sign was spread over the three bits below it
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    return wide


def _best(rows: Rows, scores: Vectors, count: int) -> Rows:
    """Positions of the ``count`` best; of equal scores at the edge, those of the lowest rows."""
    edge = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > edge)
    level = np.flatnonzero(scores == edge)
    level = level[np.argsort(rows[level], kind="stable")][: count - len(above)]
    return np.concatenate([above, level])
