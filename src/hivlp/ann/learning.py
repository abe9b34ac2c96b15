"""What the engine learns from items and queries: a projection, a partition, and a router over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout, native
from hivlp.levels import Vectors

LEAST_GROUPS = 32  # of lists, which are looked at to find an item's nearest lists, or a part of them if they are many
PART_OF_GROUPS = 8


def rotation(dims: int, rng: np.random.Generator) -> Vectors:
    """A random (dims, dims) rotation: it spreads what there is to say evenly over the dimensions."""
    return np.linalg.qr(rng.normal(size=(dims, dims)))[0].astype(np.float32)


def projections(items: Vectors, queries: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """The pair of maps whose products come closest to the true ones, for these queries.

    Minimises ``E (q.x - (q B).(x A))^2`` over maps of any number of columns: the first of what is returned. This is
    LeanVec-OOD (Tepper et al., 2023), solved exactly by the singular values of ``Sq^1/2 Sx^1/2``. Items are taken from
    their mean, which adds the same to all scores of a query.

    Returns:
        the items' mean (d,), A (d, d) for items, B (d, d) for queries.
    """
    mean = items.mean(0)
    centred = (items - mean).astype(np.float64)
    queries64 = queries.astype(np.float64)
    half_x, inverse_x = _roots(centred.T @ centred / len(items))
    half_q, inverse_q = _roots(queries64.T @ queries64 / len(queries))
    left, values, right = np.linalg.svd(half_q @ half_x)
    root = np.sqrt(values)
    of_items, of_queries = inverse_x @ right.T * root, inverse_q @ left * root
    return mean, of_items.astype(np.float32), of_queries.astype(np.float32)


def _roots(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, max(values.max() * 1e-7, 1e-30))
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def to_int8(values: Vectors) -> tuple[NDArray[np.int8], float]:
    """Values in steps of one scale for all, and that scale."""
    scale = max(float(np.abs(values).max(initial=0)), 1e-20) / 127
    return np.rint(values / scale).astype(np.int8), scale


def length_bias(centres: Vectors) -> Vectors:
    """(lists,) what makes the highest product with a centre the nearest centre."""
    bias: Vectors = -0.5 * np.einsum("ld,ld->l", centres, centres)
    return bias


def of_groups(centres: Vectors) -> Vectors:
    """The means of every :data:`layout.LANES` of (lists, dims) centres."""
    starts = np.arange(0, len(centres), layout.LANES)
    return np.stack([part.mean(0) for part in np.split(centres, starts[1:])]).astype(np.float32)


def near_groups(lists: int) -> int:
    """Of how many groups the lists are looked at for an item: they hold the nearest list of 98 or 99 in 100 items."""
    groups = -(-lists // layout.LANES)
    return max(LEAST_GROUPS, groups // PART_OF_GROUPS)


def assign(centres: Vectors, items: Vectors, copies: int) -> NDArray[np.int32]:
    """For each item its ``copies`` nearest centres, nearest first; with kernels, of those in the groups that are near.

    Args:
        centres: (lists, dims), in an order like that of :func:`neighbours_together`.
        items: (n, dims).
        copies: how many.
    """
    copies, bias = min(copies, len(centres)), length_bias(centres)
    best, library = np.empty((len(items), copies), np.int32), native.load()
    if library is None:
        for start in range(0, len(items), 1024):
            products = items[start : start + 1024] @ centres.T + bias
            top = np.argpartition(-products, copies - 1, 1)[:, :copies]
            order = np.argsort(-np.take_along_axis(products, top, 1), 1, kind="stable")
            best[start : start + 1024] = np.take_along_axis(top, order, 1)
        return best
    means = of_groups(centres)
    (codes, scale), (of_means, mean_scale), mean_bias = to_int8(centres), to_int8(means), length_bias(means)
    packed, packed_means = layout.pack_keys(codes), layout.pack_keys(of_means)
    items = np.ascontiguousarray(items, np.float32)
    if library.hivlp_assign(
        packed.ctypes.data, bias.ctypes.data, scale, len(centres), packed_means.ctypes.data, mean_bias.ctypes.data,
        mean_scale, near_groups(len(centres)), centres.shape[1], items.ctypes.data, len(items), copies,
        best.ctypes.data,
    ):  # fmt: skip
        raise MemoryError("no memory to build an engine")
    return best


def partition(sample: Vectors, lists: int, rng: np.random.Generator, rounds: int = 8) -> Vectors:
    """(lists, dims) centres of a k-means over a sample, neighbours together."""
    centres = sample[rng.choice(len(sample), lists, replace=False)].copy()
    centres = centres[neighbours_together(centres, layout.LANES)]
    for _ in range(rounds):
        nearest = assign(centres, sample, 1)[:, 0]
        sizes = np.bincount(nearest, minlength=lists)
        order = np.argsort(nearest, kind="stable")
        filled = np.flatnonzero(sizes)
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[filled]
        centres[filled] = np.add.reduceat(sample[order], firsts, 0) / sizes[filled, None]
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            # An empty list takes half of the items of a full one.
            full = np.argsort(-sizes, kind="stable")[: len(empty)]
            centres[empty] = centres[full] + rng.normal(size=centres[full].shape).astype(np.float32) * 1e-3
    return centres[neighbours_together(centres, layout.LANES)]


def neighbours_together(points: Vectors, size: int) -> NDArray[np.int64]:
    """An order of (n, dims) points in which every ``size`` from the first on lie close to each other.

    Halves the points across the direction in which they spread most, and each half again.
    """

    def halve(chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if len(chosen) <= size:
            return [chosen]
        centred = points[chosen] - points[chosen].mean(0)
        direction = centred[np.argmax(np.einsum("nd,nd->n", centred, centred))]
        for _ in range(8):  # of the power method: any direction of wide spread will do
            direction = (centred @ direction) @ centred
            direction /= max(float(np.linalg.norm(direction)), 1e-20)
        ordered = chosen[np.argsort(centred @ direction, kind="stable")]
        middle = -(-len(chosen) // (2 * size)) * size
        return halve(ordered[:middle]) + halve(ordered[middle:])

    return np.concatenate(halve(np.arange(len(points))))


def learn_router(
    keys: Vectors,
    queries: Vectors,
    targets: NDArray[np.int32],
    *,
    steps: int = 1200,
    batch: int = 512,
    seed: int = 0,
) -> tuple[Vectors, Vectors]:
    """Keys and biases by which a query finds the lists that hold its best items.

    Maximises the likelihood of the lists of each training query's best items under a softmax over all lists, starting
    from the lists' centres (Vecchiato et al., "A learning-to-rank formulation of clustering-based approximate nearest
    neighbor search", 2024, with several neighbours a query instead of one).

    Args:
        keys: (lists, dims) to start from.
        queries: (queries, dims).
        targets: (queries, n) list of each of the n best items, best first.
        steps: of Adam.
        batch: queries a step.
        seed: of their order.

    Returns:
        (lists, dims) keys and (lists,) biases; scores are log-probabilities but for a constant.
    """
    rng = np.random.default_rng(seed)
    scale = 4 / max(float((queries[:1000] @ keys.T).std()), 1e-12)
    weights, bias = keys * np.float32(scale), np.zeros(len(keys), np.float32)
    unit = float(np.abs(weights).mean())
    share = 1 / np.sqrt(1 + np.arange(targets.shape[1], dtype=np.float32))
    share /= share.sum()
    moments = [np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(bias), np.zeros_like(bias)]
    for step in range(steps):
        chosen = rng.integers(len(queries), size=min(batch, len(queries)))
        part = queries[chosen]
        logits = part @ weights.T
        logits += bias
        logits -= logits.max(1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        for column, weight in enumerate(share):
            logits[np.arange(len(part)), targets[chosen, column]] -= weight
        logits /= len(part)
        rate = 0.02 * (1 - step / steps)
        gradients = (logits.T @ part, logits.sum(0))
        for number, (values, gradient, speed) in enumerate(
            ((weights, gradients[0], rate * unit), (bias, gradients[1], rate))
        ):
            first, second = moments[2 * number], moments[2 * number + 1]
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient * gradient - second)
            correct = np.sqrt(1 - 0.99 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            values -= speed * correct * first / (np.sqrt(second) + 1e-12)
    return weights, bias
