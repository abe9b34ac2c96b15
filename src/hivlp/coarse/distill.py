"""Coarse maps by ranking distillation: the coarse scores of a query learn to be distributed as its fine ones are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivlp.adam import Adam
from hivlp.coarse.maps import CoarseMaps
from hivlp.levels import Vectors

Progress = Callable[[int, int], None]

MAX_QUERIES = 4000  # more cost time in finding their neighbours and gain nothing that can be measured
NEIGHBOURS = 64  # of each query, of which a step draws DRAWN
DRAWN = 8
SCAN = 64  # queries that look at all items at once
BATCH = 256
POOL = 2048
STEPS = 300
RATE = 0.14  # relative to the size of a number in a map with orthonormal rows
# The hits that must not be missed: together they weigh as much as everything else in the distribution to learn.
HITS = 10


@dataclass(frozen=True)
class Gradient:
    """Of the loss with respect to the item map, the query map (both (m, d)) and the logarithm of the scale."""

    item: NDArray[np.floating]
    query: NDArray[np.floating]
    log_scale: float


def ranking_loss(
    item_map: NDArray[np.floating],
    query_map: NDArray[np.floating],
    log_scale: float,
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    temperature: float,
) -> tuple[float, Gradient]:
    """Cross-entropy between the fine and the coarse distribution over items, mean over queries, and its gradient.

    Fine: ``softmax(q·x / temperature)``. Coarse: ``softmax(exp(log_scale) · cos(Bq, Ax))``. Distilling a ranking
    through in-batch similarities is Fang et al., 2021 (SEED), equation 4.

    Args:
        item_map: (m, d) A.
        query_map: (m, d) B.
        log_scale: logarithm of the coarse inverse temperature.
        queries: (B, d) unit vectors.
        items: (N, d) unit vectors.
        temperature: of the fine scores.
    """
    target = _softmax(queries @ items.T / temperature)
    a, a_norms = _unit(items @ item_map.T)
    b, b_norms = _unit(queries @ query_map.T)
    scale = math.exp(log_scale)
    logits = scale * (b @ a.T)
    shifted = logits - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(1, keepdims=True)
    loss = float((np.log(sums[:, 0]) - np.einsum("ij,ij->i", target, shifted)).mean())
    by_logits = (exponentials / sums - target) / len(queries)
    by_a, by_b = scale * (by_logits.T @ b), scale * (by_logits @ a)
    # Through the division by its length, a vector feels only what is across it.
    by_a = (by_a - a * np.einsum("ij,ij->i", by_a, a)[:, None]) / a_norms
    by_b = (by_b - b * np.einsum("ij,ij->i", by_b, b)[:, None]) / b_norms
    return loss, Gradient(by_a.T @ items, by_b.T @ queries, float(np.einsum("ij,ij->", by_logits, logits)))


def distill(
    start: CoarseMaps,
    queries: Vectors,
    items: Vectors,
    *,
    steps: int = STEPS,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> CoarseMaps:
    """Improve maps by Adam (Kingma & Ba, 2015) on :func:`ranking_loss`.

    Each step takes a batch of queries and a pool of items: some at random, and some of each query's nearest ones by the
    fine scores, since a shortlist is won or lost among those.

    Args:
        start: where to begin, usually the closed form.
        queries: (M, d) unit vectors; the first ones are used.
        items: (N, d) unit vectors.
        steps: of Adam, with a rate that falls along a cosine.
        seed: of what is drawn.
        on_progress: called with how much is done, and of how much.
    """
    rng = np.random.default_rng(seed)
    queries = queries[:MAX_QUERIES]
    blocks = -(-len(queries) // SCAN)
    total = blocks + steps

    def done(count: int) -> None:
        if on_progress is not None:
            on_progress(count, total)

    near, temperature = _neighbours(queries, items, done)
    # The length of Bq means nothing, but Adam's steps are as long for a short matrix as for a long one.
    query_map = start.query / np.linalg.norm(queries @ start.query.T, axis=1).mean()
    adam = Adam([start.item, query_map, np.float32(-math.log(temperature))])
    for step in range(steps):
        batch = rng.choice(len(queries), min(BATCH, len(queries)), replace=False)
        drawn = rng.choice(near.shape[1], min(DRAWN, near.shape[1]), replace=False)
        random = rng.choice(len(items), min(POOL, len(items)), replace=False)
        pool = np.unique(np.concatenate([near[batch][:, drawn].ravel(), random]))
        item_map, query_map, log_scale = adam.parameters
        _, gradient = ranking_loss(item_map, query_map, float(log_scale), queries[batch], items[pool], temperature)
        rate = RATE / math.sqrt(items.shape[1]) * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.step([gradient.item, gradient.query, np.float32(gradient.log_scale)], [rate] * 3)
        done(blocks + step + 1)
    item_map, query_map, _ = adam.parameters
    return CoarseMaps(item_map, query_map)


def _neighbours(queries: Vectors, items: Vectors, done: Callable[[int], None]) -> tuple[NDArray[np.int64], float]:
    """(M, NEIGHBOURS) items of the highest fine scores, in no order, and the temperature to learn at.

    At the temperature an item with the score of a query's HITS-th best weighs as much as N / HITS items of the mean
    score, so that the best HITS and all the others have about equal parts in the distribution: colder, and the loss
    sees the first hit alone; hotter, and it sees the crowd.
    """
    count = min(NEIGHBOURS, len(items) - 1)
    hits = min(HITS, count)
    near = np.empty((len(queries), count), np.int64)
    gap = 0.0
    for start in range(0, len(queries), SCAN):
        scores = queries[start : start + SCAN] @ items.T
        best = np.argpartition(scores, -count, axis=1)[:, -count:]
        near[start : start + SCAN] = best
        of_best = np.sort(np.take_along_axis(scores, best, 1), axis=1)
        gap += float((of_best[:, -hits] - scores.mean(1)).sum())
        done(start // SCAN + 1)
    return near, max(gap / len(queries), 1e-3) / max(math.log(len(items) / HITS), 1.0)


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    result: NDArray[np.floating] = exponentials / exponentials.sum(1, keepdims=True)
    return result


def _unit(vectors: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors / norms, norms
