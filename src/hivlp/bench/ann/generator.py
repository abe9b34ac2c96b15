"""A million vectors like those of captioned pictures, made from the real ones.

There are too few captioned pictures that everyone has. Words' vectors are many, but lie elsewhere than pictures': an
affine map (the optimal transport between two Gaussians) moves them to the pictures' mean and covariance. They are also
spread more evenly: pictures come in series of look-alikes, so the moved words are gathered around some of themselves,
each series by its own share. New vectors are then drawn around these: part of the way to some of their near
neighbours, plus differences of other neighbours (so that noise has the local shape), plus a little of the whole
covariance. Queries are drawn in that way around glosses that have been moved to the captions' mean and covariance.
:func:`match` says how like real ones they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.ann.measure import ITEMS, TEST, TRAIN, TRUTH, Collection
from hivlp.bench.ann.real import TESTED, RealSet
from hivlp.bench.ann.truth import exact
from hivlp.files.scratch import scratch_folder
from hivlp.levels import Vectors

NEIGHBOURS = 8
PARENTS = 4
REACH = 0.7  # of the way to the neighbours at most
NOISE = 0.35
WHOLE = 0.55  # of the noise is of the whole covariance; more fills the space between series
SERIES = 500
GATHERED = 0.95  # of the way to a series' middle, in the tightest one
MOVES = 2  # unit length undoes a little of the first
CELL = 300  # vectors among which neighbours are looked for, on average
BLOCK = 20_000
TRAIN_QUERIES = 60_000
SAMPLE = 2_000


@dataclass(frozen=True)
class Source:
    """Vectors to draw around.

    Attributes:
        vectors: (n, d) unit float32.
        near: (n, 1 + NEIGHBOURS) rows of the nearest ones, itself first.
    """

    vectors: Vectors
    near: NDArray[np.int64]

    def draw(self, count: int, rng: np.random.Generator, noise: float = NOISE) -> Vectors:
        """(count, d) new unit vectors, the same for the same generator state.

        Args:
            count: how many.
            rng: where all chance comes from.
            noise: how far from the neighbourhood's own points they lie.
        """
        vectors, near = self.vectors, self.near
        start = rng.integers(len(vectors), size=count)
        drawn = vectors[start].astype(np.float32) * 1.0
        weights = rng.dirichlet([1.0] * PARENTS, size=count).astype(np.float32)
        reach = rng.random(count).astype(np.float32)[:, None] * REACH
        for parent in range(PARENTS):
            other = near[start, 1 + rng.integers(NEIGHBOURS, size=count)]
            drawn += reach * weights[:, [parent]] * (vectors[other] - vectors[start])
        first = near[start, 1 + rng.integers(NEIGHBOURS, size=count)]
        second = near[first, 1 + rng.integers(NEIGHBOURS, size=count)]
        drawn += noise * rng.normal(size=(count, 1)).astype(np.float32) * (vectors[first] - vectors[second])
        one, two = rng.integers(len(vectors), size=count), rng.integers(len(vectors), size=count)
        drawn += noise * WHOLE * (vectors[one] - vectors[two])
        unit: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit

    def blocks(self, count: int, rng: np.random.Generator) -> Iterator[Vectors]:
        """Generated vectors, block by block, for more than fit into memory."""
        for done in range(0, count, BLOCK):
            yield self.draw(min(BLOCK, count - done), rng)


def sources(real: RealSet) -> tuple[Source, Source]:
    """What items and what queries are drawn around."""
    pictures = np.asarray(real.pictures)
    words = move(gather(move(np.asarray(real.words), pictures), np.random.default_rng(3)), pictures)
    glosses = move(np.asarray(real.glosses), np.asarray(real.captions))
    return Source(words, neighbours(words)), Source(glosses, neighbours(glosses))


def move(vectors: Vectors, onto: Vectors) -> Vectors:
    """(n, d) vectors with the mean and covariance of others, and of unit length again."""
    wanted, middle = _covariance(onto), onto.mean(0)
    for _ in range(MOVES):
        root, inverse = _roots(_covariance(vectors))
        between, _ = _roots(root @ wanted @ root, 1e-12)
        transport = (inverse @ between @ inverse).astype(np.float32)
        moved = middle + (vectors - vectors.mean(0)) @ transport
        vectors = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return vectors


def gather(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """(n, d) vectors, each some way towards the nearest of a few of them; how far is drawn for each of these."""
    middles = vectors[rng.permutation(len(vectors))[:SERIES]]
    share = (GATHERED * rng.random(len(middles))).astype(np.float32)
    gathered = np.empty_like(vectors)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        own = np.argmax(block @ middles.T, axis=1)
        gathered[start : start + BLOCK] = block + share[own][:, None] * (middles[own] - block)
    return gathered


def neighbours(vectors: Vectors) -> NDArray[np.int64]:
    """(n, 1 + NEIGHBOURS) rows of near ones, itself first: the nearest of those with the same nearest middle.

    Where there are too few of these, the rest are the row itself.
    """
    middles = vectors[np.random.default_rng(4).permutation(len(vectors))[: max(1, len(vectors) // CELL)]]
    starts = range(0, len(vectors), BLOCK)
    own = np.concatenate([np.argmax(vectors[start : start + BLOCK] @ middles.T, axis=1) for start in starts])
    near = np.repeat(np.arange(len(vectors))[:, None], 1 + NEIGHBOURS, axis=1)
    for cell in range(len(middles)):
        rows = np.flatnonzero(own == cell)
        count = min(NEIGHBOURS, len(rows) - 1)
        if count > 0:
            scores = vectors[rows] @ vectors[rows].T
            np.fill_diagonal(scores, -np.inf)
            near[rows, 1 : 1 + count] = rows[np.argpartition(-scores, count - 1, axis=1)[:, :count]]
    return near


def generate(folder: Path, real: RealSet, count: int) -> Collection:
    """A collection in its folder, made unless it is there; items go to disk block by block.

    Args:
        folder: is complete once it exists.
        real: what it is made from.
        count: of items.
    """
    if folder.is_dir():
        return Collection(folder)
    items, queries = sources(real)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        _fill(scratch, items, queries, count)
        scratch.rename(folder)
    return Collection(folder)


def _fill(scratch: Path, items: Source, queries: Source, count: int) -> None:
    """Write ``count`` items, queries and their answers into a folder."""
    dim = items.vectors.shape[1]
    stored = np.lib.format.open_memmap(scratch / ITEMS, mode="w+", dtype=np.float16, shape=(count, dim))
    done = 0
    with tqdm(total=count, desc="items", disable=None) as bar:
        for block in items.blocks(count, np.random.default_rng(5)):
            stored[done : done + len(block)] = block
            done += len(block)
            bar.update(len(block))
    stored.flush()
    asked = queries.draw(TESTED + TRAIN_QUERIES, np.random.default_rng(7))
    np.save(scratch / TEST, asked[:TESTED])
    np.save(scratch / TRAIN, asked[TESTED:])
    np.save(scratch / TRUTH, exact(stored, asked[:TESTED]))


def match(real: RealSet, generated: Collection) -> dict[str, dict[str, float]]:
    """Statistics of captioned pictures, of words, and of generated vectors, at equal sample size."""
    size = min(SAMPLE, len(real.pictures))
    items, asked = generated.read(ITEMS), np.asarray(generated.read(TEST))
    # The pictures' sources follow one another: the first captions alone are those of one source.
    captions = np.asarray(real.captions)[np.random.default_rng(1).permutation(len(real.captions))[:1000]]
    return {
        "pictures, captions": statistics(real.pictures, captions, size),
        "pictures, glosses": statistics(real.pictures, real.glosses[:1000], size),
        "words, glosses": statistics(real.words, real.glosses[:1000], size),
        "generated": statistics(items, asked[:1000], size),
    }


def statistics(items: NDArray[np.floating], queries: Vectors, size: int) -> dict[str, float]:  # type: ignore[type-arg]
    """What makes a search hard, of a random sample.

    Args:
        items: (n, d).
        queries: (m, d), at least 10.
        size: of the sample of items, more than 20.

    Returns:
        ``spectrum_8`` to ``spectrum_128``: the share of variance in so many principal directions; ``local_dim``: the
        median maximum-likelihood intrinsic dimension of 20 neighbours; ``mean_cosine``: of the queries' and the
        items' means; ``top10``: the tenth best score, in standard deviations over a query's mean; ``hubs``: the
        skewness of how often an item is among a query's ten best; ``nearest``: the median distance to the nearest;
        ``gap``: how many times farther a query's nearest item is; ``decay``: the median difference between a
        query's best score and its tenth.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(items))[:size])
    sample, asked = items[rows].astype(np.float32), np.asarray(queries, np.float32)
    centred = sample - sample.mean(0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    shares = np.cumsum(variances) / variances.sum()
    result = {f"spectrum_{dims}": float(shares[min(dims, len(shares)) - 1]) for dims in (8, 32, 64, 128)}
    squared = np.maximum(2 - 2 * sample[:1000] @ sample.T, 1e-9)
    distances = np.sqrt(np.sort(squared, axis=1)[:, 1:21])
    spread = np.log(distances[:, -1:] / np.maximum(distances[:, :-1], 1e-6)).mean(1)
    result["local_dim"] = float(np.median(1 / np.maximum(spread, 1e-6)))
    means = sample.mean(0), asked.mean(0)
    result["mean_cosine"] = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
    scores = asked @ sample.T
    tenth = -np.partition(-scores, 9, axis=1)[:, 9]
    result["top10"] = float(np.median((tenth - scores.mean(1)) / scores.std(1)))
    hits = np.bincount(np.argpartition(-scores, 10, axis=1)[:, :10].ravel(), minlength=len(sample))
    result["hubs"] = float(((hits - hits.mean()) ** 3).mean() / hits.std() ** 3)
    result["nearest"] = float(np.median(distances[:, 0]))
    best = scores.max(1)
    result["gap"] = float(np.median(np.sqrt(np.maximum(2 - 2 * best, 1e-9)))) / max(result["nearest"], 1e-6)
    result["decay"] = float(np.median(best - tenth))
    return {name: round(value, 3) for name, value in result.items()}


def _covariance(vectors: Vectors) -> Vectors:
    centred = vectors - vectors.mean(0)
    covariance: Vectors = centred.T @ centred / len(centred)
    return covariance


def _roots(
    matrix: NDArray[np.floating],  # type: ignore[type-arg]
    least: float = 1e-6,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Square root and inverse square root; directions without variance keep ``least`` of the largest."""
    values, directions = np.linalg.eigh(matrix.astype(np.float64))
    values = np.maximum(values, values.max() * least)
    return (directions * np.sqrt(values)) @ directions.T, (directions / np.sqrt(values)) @ directions.T
