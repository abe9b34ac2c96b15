"""Router: a learned linear classifier that says which inverted lists hold a query's nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivlp.adam import Adam
from hivlp.levels import Vectors


@dataclass(frozen=True)
class Router:
    """Two levels of keys whose scores are log-probabilities but for a constant.

    Attributes:
        keys: (nlist, dims) one a list.
        bias: (nlist,).
        group_keys: (groups, dims) one a group of 16 lists, to leave out most groups unread.
        group_bias: (groups,).
    """

    keys: Vectors
    bias: Vectors
    group_keys: Vectors
    group_bias: Vectors


def train_router(
    keys: Vectors,
    queries: Vectors,
    targets: NDArray[np.int32],
    *,
    steps: int = 1200,
    batch: int = 512,
    seed: int = 0,
) -> tuple[Vectors, Vectors]:
    """Keys and biases of a softmax over lists, trained by Adam on the lists of each query's nearest neighbours.

    Starts from the centroids (Vecchiato et al., "A learning-to-rank formulation of clustering-based approximate nearest
    neighbor search", 2024, with several neighbours a query instead of one).

    Args:
        keys: (lists, dims) to start from.
        queries: (queries, dims) projected.
        targets: (queries, n) list of each of the n nearest neighbours, nearest first.
        steps: of Adam.
        batch: queries a step.
        seed: of the batches.

    Returns:
        (lists, dims) keys and (lists,) biases; scores are log-probabilities but for a constant.
    """
    rng = np.random.default_rng(seed)
    scale = 4 / max(float((queries[:1000] @ keys.T).std()), 1e-12)
    adam = Adam([keys * np.float32(scale), np.zeros(len(keys), np.float32)])
    weights, bias = adam.parameters
    unit = float(np.abs(weights).mean())
    share = 1 / np.sqrt(1 + np.arange(targets.shape[1], dtype=np.float32))
    share /= share.sum()
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
        adam.step((logits.T @ part, logits.sum(0)), (rate * unit, rate))
    return weights, bias
