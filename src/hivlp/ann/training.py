"""Training of an approximate index from samples: projections, centroids, and the scales of the codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import layout
from hivlp.ann.codes import code_centers, refine, relative_steps, sign_scales, to_int8
from hivlp.ann.kmeans import assign, k_means
from hivlp.ann.rows import Stored, floats
from hivlp.levels import Vectors
from hivlp.linalg import lean_vec

Float16 = NDArray[np.float16]
Progress = Callable[[str, int, int], None]

SAMPLE = 100_000  # vectors that projections and scales are trained on
PARTITION_SAMPLE = 500_000  # vectors that centroids are trained on, at most
ERROR_SAMPLE = 4000  # vectors
VECTORS_A_LIST = 50  # in the sample that centroids are trained on, if there are so many
CHUNK = 16_384  # vectors projected at once
FLOOR = 1e-7  # of the square roots; see linalg.square_roots
KEPT_RECALL = 0.995  # of the ten nearest, that the projection's dims must keep
CANDIDATE_DIMS = (64, 96, 128, 160, 176, 192, 224, 256, 320, 384)
SMALL = 500_000  # rows up to which a good part of the codes stays in the processor's cache
MAX_SIGN_DIMS = 128  # of more than SMALL rows
MEMORY = 1.15e9  # bytes of codes from which on they get fewer dims than they need
MEMORY_A_ROW = 115  # bytes of codes that a row may always take


@dataclass
class Quantizer:
    """All that the codes of a vector depend on beside the vector: projections, centroids, and scales.

    Attributes:
        mean: (d,) of the items.
        item_projection: (d, dims).
        query_projection: (dims, d) float16.
        refine_step: (dims,) step of a refinement code, times the code's own scale.
        sign_amplitude: (sign_dims,) value of a sign in the first dims, times the code's own scale.
        centroids: (nlist, dims) int8, in steps of ``centroid_scale``.
        centroid_scale: step of the centroids.
        sign_scale: step of the sign codes' 8-bit scales.
        refine_scale: step of the refinement codes' 16-bit scales.
        refine_error: root mean square of what refinement codes leave out of an inner product with a unit query.
    """

    mean: Vectors
    item_projection: Vectors
    query_projection: Float16
    refine_step: Vectors
    sign_amplitude: Vectors
    centroids: NDArray[np.int8]
    centroid_scale: float
    sign_scale: float
    refine_scale: float
    refine_error: float

    @property
    def sign_dims(self) -> int:
        """Number of dims with a sign bit and a 4-bit refinement code; the others have 2 bits."""
        return len(self.sign_amplitude)

    @property
    def decoded_centroids(self) -> Vectors:
        """(nlist, dims) float32."""
        return self.centroids.astype(np.float32) * np.float32(self.centroid_scale)

    def project(self, items: Stored) -> Vectors:
        """(n, dims) projections of (n, d) items, less their mean."""
        return np.asarray((floats(items) - self.mean) @ self.item_projection, np.float32)

    def projected_chunks(self, items: Stored) -> Iterator[tuple[int, Vectors]]:
        """Projections of all items, a chunk at a time, with the row of its first."""
        for start in range(0, len(items), CHUNK):
            yield start, self.project(items[start : start + CHUNK])


def train(
    items: Stored,
    queries: Vectors | None,
    dims: int | None,
    sign_dims: int | None,
    nlist: int | None,
    assignments: int,
    rng: np.random.Generator,
    tell: Progress,
) -> Quantizer:
    """Train a quantizer on samples of the items and of queries; see :meth:`hivlp.ann.AnnIndex.build`."""
    chosen = np.sort(rng.choice(len(items), min(len(items), SAMPLE), replace=False))
    sample = floats(items[chosen])
    asked = sample if queries is None else queries[:SAMPLE]
    tell("projection", 0, 1)
    mean, of_items, of_queries = projections(sample, asked)
    if dims is None:
        for_signs, needed = choose_dims(sample, asked, mean, of_items, of_queries, len(items))
        sign_dims = choose_sign_dims(for_signs, len(items)) if sign_dims is None else sign_dims
        dims = affordable_dims(sign_dims, needed, len(items), assignments)
    sign_dims = choose_sign_dims(dims, len(items)) if sign_dims is None else min(sign_dims, dims)
    turn = np.zeros((dims, dims), np.float32)
    turn[:sign_dims, :sign_dims] = random_rotation(sign_dims, rng)
    turn[sign_dims:, sign_dims:] = random_rotation(dims - sign_dims, rng)
    item_projection, query_projection = of_items[:, :dims] @ turn, of_queries[:, :dims] @ turn
    projected = (sample - mean) @ item_projection
    tell("projection", 1, 1)
    nlist = nlist or max(1, min(len(items) // 64, int(4 * np.sqrt(len(items)))))
    tell("partition", 0, 1)
    wider = projected
    wanted = min(len(items), VECTORS_A_LIST * nlist, PARTITION_SAMPLE)
    if wanted > len(sample):
        more = np.sort(rng.choice(len(items), wanted, replace=False))
        parts = (floats(items[more[at : at + CHUNK]]) - mean for at in range(0, wanted, CHUNK))
        wider = np.concatenate([part @ item_projection for part in parts])
    centroids, centroid_scale = to_int8(k_means(wider, min(nlist, len(wider)), rng))
    tell("partition", 1, 1)
    decoded = centroids.astype(np.float32) * np.float32(centroid_scale)
    nearest = decoded[assign(decoded, projected, 1)[:, 0]]
    residual = projected - nearest
    magnitudes = np.abs(residual[:, :sign_dims])
    amplitude = np.maximum(magnitudes.mean(0), 1e-12)
    spread = np.sqrt(np.einsum("nd,nd->d", residual, residual) / len(residual))
    step = (relative_steps(dims, sign_dims) * np.maximum(spread, 1e-12)).astype(np.float32)
    scales, (codes, refine_scales) = sign_scales(magnitudes, amplitude), refine(residual, step, sign_dims)
    some = slice(None, None, -(-len(sample) // ERROR_SAMPLE))
    centers = code_centers(dims, sign_dims).astype(np.float32)
    decoded_some = nearest[some] + (codes[some] - centers) * step * refine_scales[some, None]
    return Quantizer(
        mean=mean,
        item_projection=np.ascontiguousarray(item_projection),
        query_projection=np.ascontiguousarray(query_projection.T, np.float16),
        refine_step=step,
        sign_amplitude=amplitude,
        centroids=centroids,
        centroid_scale=centroid_scale,
        # Room for items that lie further out than any of the sample.
        sign_scale=max(1.5 * float(np.quantile(scales, 0.999)), 1e-20) / 255,
        refine_scale=max(4 * float(refine_scales.max(initial=0)), 1e-20) / 65_535,
        refine_error=max(1e-20, _rms_product(asked[:1000], sample[some] - mean - decoded_some @ query_projection.T)),
    )


def projections(items: Vectors, queries: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """LeanVec-OOD projections of a sample; see :func:`hivlp.linalg.lean_vec`.

    Items are taken from their mean, which adds a constant to all scores of a query.

    Returns:
        (d,) mean of the items, (d, d) for items, (d, d) for queries; any number of first columns may be taken.
    """
    mean = items.mean(0)
    centred, queries64 = (items - mean).astype(np.float64), queries.astype(np.float64)
    moments = centred.T @ centred / len(items), queries64.T @ queries64 / len(queries)
    of_items, of_queries = lean_vec(*moments, floor=FLOOR)
    return mean, of_items.astype(np.float32), of_queries.astype(np.float32)


def random_rotation(dims: int, rng: np.random.Generator) -> Vectors:
    """(dims, dims) random rotation: spreads the variance evenly over the dims of the codes."""
    return np.linalg.qr(rng.normal(size=(dims, dims)))[0].astype(np.float32)


def _rms_product(queries: Vectors, errors: Vectors) -> float:
    """Root mean square of the inner products of (n, d) errors with (m, d) queries, these scaled to unit length."""
    products = queries @ errors.T
    return float(np.sqrt(np.mean(products**2) / max(np.mean(np.einsum("qd,qd->q", queries, queries)), 1e-20)))


def choose_dims(
    sample: Vectors, queries: Vectors, mean: Vectors, of_items: Vectors, of_queries: Vectors, count: int
) -> tuple[int, int]:
    """Fewest dims whose scores keep 99.5% of the ten nearest of ``count`` items within the best 40, and the best 20.

    In a sample, ten nearest are fewer by the sampling rate: the more items, the closer their scores. Searches of more
    than :data:`SMALL` items probe more lists, where more dims cost more than the rows that they spare: 40 decide both.
    """
    asked = queries[:1000]
    best = max(1, round(10 * len(sample) / count))
    scores = asked @ sample.T
    truth = _top(scores, best)
    width = sample.shape[1]
    most = int(min(512, max(16, width // 16 * 16)))
    centred = sample - mean
    scores[:] = 0
    of_forty = done = 0
    for dims in (dims for dims in CANDIDATE_DIMS if dims < min(width, most)):
        scores += (asked @ of_queries[:, done:dims]) @ (centred @ of_items[:, done:dims]).T
        done = dims
        own = np.take_along_axis(scores, truth, 1)
        ranks = np.stack([np.count_nonzero(scores > one[:, None], axis=1) for one in own.T])
        if not of_forty and np.mean(ranks < 4 * best) >= KEPT_RECALL:
            of_forty = dims
        if of_forty and (count > SMALL or np.mean(ranks < 2 * best) >= KEPT_RECALL):
            return of_forty, dims
    return of_forty or most, most


def choose_sign_dims(dims: int, count: int) -> int:
    """Number of dims with a sign bit, of codes of ``count`` items.

    Shorter sign codes are read faster from memory; the refinement codes of a few more candidates cost less than that.
    """
    return dims if count <= SMALL else min(dims, MAX_SIGN_DIMS)


def affordable_dims(sign_dims: int, needed: int, count: int, assignments: int) -> int:
    """Dims that the codes need, or the most with which the codes of ``count`` items fit :data:`MEMORY` bytes."""
    most = max(MEMORY, MEMORY_A_ROW * count)

    def fits(dims: int) -> bool:
        return count * assignments * layout.code_bytes(dims, min(sign_dims, dims)) <= most

    return (
        needed if fits(needed) else max((dims for dims in CANDIDATE_DIMS if dims < needed and fits(dims)), default=64)
    )


def _top(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    count = min(count, scores.shape[1])
    return np.argpartition(-scores, count - 1, 1)[:, :count]
