"""Closed forms from second moments: square roots of a matrix, and the LeanVec-OOD projections of items and queries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
FLOOR = 1e-9
"""Share of the largest eigenvalue that every other one is raised to: bounds how much an inverse magnifies noise."""


def square_roots(moment: Matrix, floor: float = FLOOR) -> tuple[Matrix, Matrix]:
    """Symmetric square root of a second moment, and the root's inverse.

    Args:
        moment: (d, d) symmetric, positive semidefinite but for rounding.
        floor: share of the largest eigenvalue that smaller ones are raised to.

    Returns:
        (d, d) root, (d, d) inverse root.
    """
    values, vectors = np.linalg.eigh(moment)
    roots = np.sqrt(np.maximum(values, max(float(values[-1]) * floor, 1e-30)))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def lean_vec(items: Matrix, queries: Matrix, floor: float = FLOOR) -> tuple[Matrix, Matrix]:
    """Linear projections A of items and B of queries whose inner products keep the scores best, in any prefix of dims.

    The first m columns of both minimise ``E (q.x - (q B).(x A))^2`` over all projections to m dims. LeanVec-OOD (Tepper
    et al., 2023) approximates this by alternating steps; here it is exact. With ``Rq Rx = U S V'``, Rq and Rx being the
    square roots of the second moments, ``A = Rx^-1 V S^1/2`` and ``B = Rx V S^-1/2``, which is ``Rq^-1 U S^1/2`` and
    needs no inverse of Rq.

    With all d columns ``A B' = I``, and of all such pairs this one minimises ``E|q B|^2 E|x A|^2``: the product is at
    least the square of the nuclear norm of ``Rq Rx``, and here it is equal to that.

    Args:
        items: (d, d) second moment of the items.
        queries: (d, d) second moment of the queries.
        floor: see :func:`square_roots`.

    Returns:
        (d, d) A, (d, d) B, columns in descending order of what they contribute to the scores.
    """
    root, inverse = square_roots(items, floor)
    _, values, right = np.linalg.svd(square_roots(queries, floor)[0] @ root)
    scale = np.sqrt(values)
    return inverse @ right.T * scale, root @ right.T / scale
