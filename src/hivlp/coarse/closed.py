"""Coarse maps in closed form, from second moments alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.coarse.maps import CoarseMaps
from hivlp.levels import Vectors
from hivlp.linalg import Matrix, lean_vec

BLOCK = 8192


def second_moment(vectors: Vectors) -> Matrix:
    """(d, d) mean of the outer products of (N, d) vectors, uncentred: they are compared by angles to the origin."""
    total = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        total += block.T @ block  # float32 products of one block, summed in double: twice as fast, and exact enough
    return total / len(vectors)


def prefix(width: int, dims: int) -> CoarseMaps:
    """The first dims as they are: right for vectors trained to be cut short (Matryoshka), and hardly for others."""
    matrix = np.eye(dims, width, dtype=np.float32)
    return CoarseMaps(matrix, matrix)


def principal(items: Matrix, dims: int) -> CoarseMaps:
    """PCA: the directions in which items vary most, for items and queries alike.

    Args:
        items: (d, d) second moment of the items.
        dims: m.
    """
    matrix = np.ascontiguousarray(np.linalg.eigh(items)[1][:, ::-1][:, :dims].T, np.float32)
    return CoarseMaps(matrix, matrix)


def lean(items: Matrix, queries: Matrix, mean: NDArray[np.floating], dims: int) -> CoarseMaps:
    """The maps A (items) and B (queries) that minimise the mean of ``(q·x - (Bq)·(Ax))²`` over all pairs.

    This is the objective of LeanVec-OOD (Tepper et al., 2024), whose alternating steps approximate what has a closed
    form. Items are then brought to unit length, which it does not foresee; what is free in its solution is chosen so
    that this does good, not harm:

    - The first dim is the direction of the items' mean, in which the scores become exact; the others minimise the error
      of what remains. Pictures and texts of a dual encoder lie in two narrow cones, so most of an item's length is its
      mean, and a subspace without it would divide by little but noise.
    - Of all pairs (TA, T⁻ᵀB) with the same products the one is taken whose A has orthonormal rows: the length that is
      divided by is how much of an item lies in the subspace. That ranks better than the products themselves.

    Args:
        items: (d, d) second moment of the items.
        queries: (d, d) second moment of the queries.
        mean: (d,) of the items.
        dims: m.
    """
    direction = mean / max(float(np.linalg.norm(mean)), 1e-12)
    across = np.eye(len(direction)) - np.outer(direction, direction)
    item_map = query_map = direction[None]
    if dims > 1:
        rest = _factors(across @ items @ across, across @ queries @ across, dims - 1)
        item_map, query_map = (np.vstack([direction, matrix @ across]) for matrix in rest)
    return CoarseMaps(item_map.astype(np.float32), query_map.astype(np.float32))


def _factors(items: Matrix, queries: Matrix, dims: int) -> tuple[Matrix, Matrix]:
    """A and B of the least error, A with orthonormal rows: those of :func:`hivlp.linalg.lean_vec`, turned."""
    of_items, of_queries = lean_vec(items, queries)
    basis, triangle = np.linalg.qr(of_items[:, :dims])
    # The subspace may be turned freely; largest moment first, as PCA has it, so that a prefix means something too.
    turn = np.linalg.eigh(basis.T @ items @ basis)[1][:, ::-1]
    return turn.T @ basis.T, turn.T @ triangle @ of_queries[:, :dims].T
