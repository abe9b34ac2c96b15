"""K-means partition of projected vectors, and the assignment of vectors to inverted lists."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout, native
from hivlp.ann.codes import to_int8
from hivlp.ann.constants import LIST_LANES
from hivlp.levels import Vectors

MIN_GROUPS = 32  # groups of lists searched for a vector's nearest lists, or a part of all groups if they are many
GROUP_SHARE = 8  # one in so many


def length_bias(centroids: Vectors) -> Vectors:
    """(nlist,) ``-|c|^2 / 2``: added to inner products, it makes the highest score that of the nearest centroid."""
    bias: Vectors = -0.5 * np.einsum("ld,ld->l", centroids, centroids)
    return bias


def group_means(centroids: Vectors) -> Vectors:
    """(groups, dims) mean of every 16 of (nlist, dims) centroids: the coarse quantiser above the lists."""
    starts = np.arange(0, len(centroids), LIST_LANES)
    return np.stack([part.mean(0) for part in np.split(centroids, starts[1:])]).astype(np.float32)


def probed_groups(nlist: int) -> int:
    """Number of groups whose lists are searched for a vector: they hold the nearest list of 98 or 99 in 100."""
    return max(MIN_GROUPS, -(-nlist // LIST_LANES) // GROUP_SHARE)


def assign(centroids: Vectors, vectors: Vectors, assignments: int) -> NDArray[np.int32]:
    """(n, assignments) nearest centroids of each vector, nearest first, among those of the nearest groups.

    Args:
        centroids: (nlist, dims), in the order of :func:`order_by_proximity`.
        vectors: (n, dims) float32.
        assignments: lists a vector, at most ``nlist``.

    Raises:
        MemoryError: without memory for it.
    """
    assignments, bias, means = min(assignments, len(centroids)), length_bias(centroids), group_means(centroids)
    (codes, scale), (mean_codes, mean_scale), mean_bias = to_int8(centroids), to_int8(means), length_bias(means)
    packed, packed_means = layout.pack_int8_keys(codes), layout.pack_int8_keys(mean_codes)
    vectors = np.ascontiguousarray(vectors, np.float32)
    best = np.empty((len(vectors), assignments), np.int32)
    if native.kernels().hivlp_assign(
        packed.ctypes.data, bias.ctypes.data, scale, len(centroids), packed_means.ctypes.data, mean_bias.ctypes.data,
        mean_scale, probed_groups(len(centroids)), centroids.shape[1], vectors.ctypes.data, len(vectors), assignments,
        best.ctypes.data,
    ):  # fmt: skip
        raise MemoryError("no memory to assign vectors to lists")
    return best


def k_means(sample: Vectors, nlist: int, rng: np.random.Generator, iterations: int = 8) -> Vectors:
    """(nlist, dims) centroids of a sample of (n, dims) vectors, in the order of :func:`order_by_proximity`."""
    centroids = sample[rng.choice(len(sample), nlist, replace=False)].copy()
    centroids = centroids[order_by_proximity(centroids, LIST_LANES)]
    for _ in range(iterations):
        nearest = assign(centroids, sample, 1)[:, 0]
        sizes = np.bincount(nearest, minlength=nlist)
        order = np.argsort(nearest, kind="stable")
        filled = np.flatnonzero(sizes)
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[filled]
        centroids[filled] = np.add.reduceat(sample[order], firsts, 0) / sizes[filled, None]
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            # An empty list takes half of the vectors of a full one.
            full = np.argsort(-sizes, kind="stable")[: len(empty)]
            centroids[empty] = centroids[full] + rng.normal(size=centroids[full].shape).astype(np.float32) * 1e-3
    return centroids[order_by_proximity(centroids, LIST_LANES)]


def order_by_proximity(points: Vectors, size: int) -> NDArray[np.int64]:
    """Permutation of (n, dims) points in which every ``size`` from the first on are close to each other.

    Recursive bisection across the direction in which the points spread most.
    """

    def bisect(chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if len(chosen) <= size:
            return [chosen]
        centred = points[chosen] - points[chosen].mean(0)
        direction = centred[np.argmax(np.einsum("nd,nd->n", centred, centred))]
        for _ in range(8):  # of the power method: any direction of wide spread will do
            direction = (centred @ direction) @ centred
            direction /= max(float(np.linalg.norm(direction)), 1e-20)
        ordered = chosen[np.argsort(centred @ direction, kind="stable")]
        middle = -(-len(chosen) // (2 * size)) * size
        return bisect(ordered[:middle]) + bisect(ordered[middle:])

    return np.concatenate(bisect(np.arange(len(points))))
