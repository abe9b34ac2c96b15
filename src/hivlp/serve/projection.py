"""Two-dimensional projection of vectors: neighbours stay neighbours, for the map of a collection.

A few thousand landmarks are laid out by a neighbour embedding in the manner of UMAP (McInnes, Healy, Melville, 2018):
every landmark is drawn to its nearest ones and pushed from random others, from their two principal axes on. Every other
vector then lies among the landmarks that are nearest to it. That takes time linear in the number of vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

Positions = NDArray[np.float32]
"""(n, 2) float32, most of them in [-1, 1]."""

LANDMARKS = 3000
AXES = 48
NEIGHBOURS = 12
EPOCHS = 240
PUSHES = 3
"""Random others that each neighbour's pull is weighed against."""
STEP = 0.35
FARTHEST = 3.0
"""Length of the largest step of one epoch."""
A, B = 1.577, 0.895
"""Of 1 / (1 + a d^2b), the likeness of two positions at the distance d: UMAP's for a least distance of 0.1."""
AMONG = 4
"""Landmarks that another vector lies among."""
CHUNK = 4096


def project(read: Callable[[NDArray[np.int64]], Vectors], count: int, seed: int = 0) -> Positions:
    """Positions of vectors in two dimensions; the same for the same vectors and seed.

    Args:
        read: gives the (n, dim) float32 vectors of some numbers, ascending, below ``count``.
        count: of the vectors.
        seed: of the landmarks and of what they are pushed from.
    """
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(count, min(count, LANDMARKS), replace=False)).astype(np.int64)
    if count < 3:
        return np.linspace(-0.5, 0.5, 2 * count, dtype=np.float32).reshape(count, 2)
    sample = read(chosen)
    mean, axes = principal_axes(sample)
    landmarks = _unit((sample - mean) @ axes)
    places = _laid_out(landmarks, random)
    positions = np.empty((count, 2), np.float32)
    if len(chosen) == count:
        positions[:] = places
    else:
        for first in range(0, count, CHUNK):
            numbers = np.arange(first, min(count, first + CHUNK))
            positions[numbers] = _among(_unit((read(numbers) - mean) @ axes), landmarks, places, random)
    return _fitted(positions)


def principal_axes(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """The mean, (dim,), and the axes of greatest variance, (dim, at most :data:`AXES`), of (n, dim) vectors."""
    mean: Vectors = vectors.mean(axis=0, dtype=np.float32)
    centred = (vectors - mean).astype(np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return mean, np.ascontiguousarray(axes[:, ::-1][:, :AXES], dtype=np.float32)


def _unit(vectors: NDArray[Any]) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _nearest(vectors: Vectors, landmarks: Vectors, most: int) -> tuple[NDArray[np.int64], Vectors]:
    """(n, most) numbers of the most similar landmarks, in no order, and their similarities."""
    similar = vectors @ landmarks.T
    nearest = np.argpartition(-similar, most - 1, axis=1)[:, :most]
    return nearest, np.take_along_axis(similar, nearest, axis=1)


def _laid_out(landmarks: Vectors, random: np.random.Generator) -> NDArray[np.float64]:
    """(m, 2) positions of the landmarks by their nearest ones."""
    count = len(landmarks)
    most = min(count, NEIGHBOURS + 1)
    nearest = np.concatenate([
        _nearest(landmarks[first : first + CHUNK], landmarks, most)[0] for first in range(0, count, CHUNK)
    ])  # fmt: skip
    start = np.repeat(np.arange(count), most)
    end = nearest.ravel()
    start, end = start[start != end], end[start != end]
    places: NDArray[np.float64] = landmarks[:, :2].astype(np.float64)
    if places.shape[1] < 2:
        places = np.column_stack([places, np.zeros(count)])
    # Those that lie on one point would never be pushed apart.
    places = 10 * places / max(1e-12, np.abs(places).max()) + random.normal(0, 1e-3, places.shape)
    pulls = np.bincount(start, minlength=count) + np.bincount(end, minlength=count)
    for epoch in range(EPOCHS):
        apart = places[start] - places[end]
        square = np.einsum("ij,ij->i", apart, apart) + 1e-9
        pull = (-2 * A * B * square ** (B - 1) / (1 + A * square**B))[:, None] * apart
        force = _summed(pull, start, count) - _summed(pull, end, count)
        one = np.repeat(start, PUSHES)
        other = random.integers(0, count, len(one))
        apart = places[one] - places[other]
        square = np.einsum("ij,ij->i", apart, apart)
        push = np.clip((2 * B / ((0.01 + square) * (1 + A * square**B)))[:, None] * apart, -4, 4)
        force += _summed(push, one, count)
        step = STEP * (1 - epoch / EPOCHS) * force * (4 / np.maximum(4, pulls / 4))[:, None]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        places += step * np.minimum(1, FARTHEST / np.maximum(length, 1e-12))
    return places


def _summed(forces: NDArray[np.float64], of: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    summed: NDArray[np.float64] = np.column_stack([np.bincount(of, forces[:, axis], count) for axis in (0, 1)])
    return summed


def _among(
    vectors: Vectors, landmarks: Vectors, places: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """(n, 2) positions of vectors among the landmarks nearest to them, the nearer the closer."""
    nearest, similar = _nearest(vectors, landmarks, min(AMONG, len(landmarks)))
    weights = np.exp(12 * (similar - similar.max(axis=1, keepdims=True))).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    # Landmarks on two sides of the map have nothing between them: there the nearest alone counts.
    first = places[np.take_along_axis(nearest, similar.argmax(axis=1)[:, None], axis=1)[:, 0]]
    around = places[nearest]
    close = np.linalg.norm(around - first[:, None], axis=2) < np.ptp(places, axis=0).max() / 12
    weights = weights * close
    weights /= weights.sum(axis=1, keepdims=True)
    spread = np.ptp(places, axis=0).max() / (2 * np.sqrt(len(places)))
    mixed: NDArray[np.float64] = np.einsum("nk,nkd->nd", weights, around) + random.normal(0, spread / 3, first.shape)
    return mixed


def _fitted(positions: Positions) -> Positions:
    """Positions in [-1, 1], those far out drawn in."""
    low, high = np.percentile(positions, [0.5, 99.5], axis=0)
    half = max(1e-12, float((high - low).max()) / 2)
    fitted: Positions = np.clip((positions - (low + high) / 2) / half * 0.97, -1, 1).astype(np.float32)
    return fitted
