"""The exact answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

BLOCK = 20_000


def exact(items: NDArray[np.floating], queries: Vectors, k: int = 10, *, block: int = BLOCK) -> NDArray[np.int64]:  # type: ignore[type-arg]
    """The best rows by float32 inner product, block by block.

    Args:
        items: (n, d) float16 or float32.
        queries: (b, d) float32.
        k: how many.
        block: rows at once.

    Returns:
        (b, k), best first.
    """
    rows, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(items), block):
        products = queries @ items[start : start + block].astype(np.float32).T
        best = np.argpartition(products, -min(k, products.shape[1]), axis=1)[:, -k:]
        rows = np.concatenate([rows, best + start], axis=1)
        scores = np.concatenate([scores, np.take_along_axis(products, best, 1)], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return rows


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """The share of (b, k) true rows that are among the (b, m) found."""
    return float((found[:, :, None] == truth[:, None, :]).any(1).mean())
