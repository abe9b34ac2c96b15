"""Recall in both directions, at each level and for the cascade.

Protocol (Karpathy & Fei-Fei, 2015, as used since): image-to-text R@K is the share of pictures with at least one of
their own captions among the K best; text-to-image R@K is the share of captions whose picture is among the K best.
A candidate that scores exactly as high as the right one counts as ranked before it.

Each level alone is judged by its float32 vectors. The cascade is judged as people search: by the stages of
:mod:`hivlp.search.plan`, over vectors as an index stores them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DataError
from hivlp.evaluate.results import Recalls, Scores
from hivlp.levels import DEFAULT_SHORTLIST, Embeddings, Level, Vectors
from hivlp.search.collection import Collection
from hivlp.search.filters import Rows
from hivlp.search.plan import cascade
from hivlp.search.stages import Asked
from hivlp.store.codec import FLOAT16

BLOCK_FLOATS = 1 << 21  # scores at once: they stay in the processor's cache, and memory stays bounded
QUERIES = 256  # that share one scan
# Two float32 sums of `dim` products, in whatever order, differ by some sqrt(dim) · 2^-24 of the product of the lengths
# (Higham & Mary, 2019); four times that is never reached.
ROUNDING = 4 * 2.0**-24


def score(
    images: Embeddings, texts: Embeddings, owner: NDArray[np.int64], shortlist: int = DEFAULT_SHORTLIST
) -> Scores:
    """Recalls of each level alone and of the cascade over all of them.

    Args:
        images: N pictures.
        texts: M captions, at the same levels.
        owner: (M,) which picture each caption describes.
        shortlist: candidates that each coarser level hands on, at least 1.

    Raises:
        DataError: if the shortlist is empty.
    """
    if shortlist < 1:
        raise DataError(f"a shortlist of {shortlist} hands on nothing: it must be at least 1")
    names = list(images)
    levels = {name: Recalls.of_ranks(*level_ranks(texts[name], images[name], owner)) for name in names}
    cascade = levels[names[-1]]
    if len(names) > 1:
        text_vectors, image_vectors = [texts[name] for name in names], [images[name] for name in names]
        to_image = cascade_ranks(text_vectors, image_vectors, owner[:, None], shortlist)
        to_text = cascade_ranks(image_vectors, text_vectors, own_captions(owner, images.count), shortlist)
        cascade = Recalls.of_ranks(to_image, to_text)
    return Scores(levels, cascade, shortlist)


def level_ranks(
    texts: Vectors, images: Vectors, owner: NDArray[np.int64], block_floats: int = BLOCK_FLOATS
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank (from 0) of each caption's picture, and of the best of each picture's captions, by one level alone.

    What ranks before is counted, not sorted. One matrix product serves both directions; since BLAS rounds a score by
    where it lies in the matrix, those too close to the right one's are computed again, each from its own two vectors:
    equal vectors have equal scores, and a tie counts against.

    Args:
        texts: (M, D) float32.
        images: (N, D) float32.
        owner: (M,) which picture each caption describes.
        block_floats: scores that are computed at once.

    Returns:
        (M,) ranks among the pictures, and (N,) ranks among the captions; a picture without captions is ranked M.
    """
    count, total = len(texts), len(images)
    own = _pairwise(texts, images, np.arange(count), owner)
    best = np.full(total, -np.inf, np.float32)
    np.maximum.at(best, owner, own)
    lengths = (float(np.linalg.norm(side, axis=1).max(initial=0)) for side in (texts, images))
    error = np.float32(ROUNDING * texts.shape[1] ** 0.5 * np.prod(list(lengths)) + np.finfo(np.float32).tiny)
    to_image, to_text = np.zeros(count, np.int64), np.zeros(total, np.int64)
    step = max(1, block_floats // max(1, total))
    for start in range(0, count, step):
        stop = min(start + step, count)
        scores = texts[start:stop] @ images.T
        for bar, ranks, axis in ((own[start:stop, None], to_image[start:stop], 1), (best, to_text, 0)):
            above = scores > bar + error
            ranks += np.count_nonzero(above, axis=axis)
            near = np.flatnonzero((scores >= bar - error) ^ above)
            text, image = np.divmod(near, total)
            others = owner[start + text] != image
            text, image = text[others], image[others]
            exact = _pairwise(texts, images, start + text, image)
            place = text if axis == 1 else image
            ahead = exact >= (own[start + text] if axis == 1 else best[image])
            ranks += np.bincount(place[ahead], minlength=len(ranks))
    to_image[~np.isfinite(own)] = total
    to_text[~np.isfinite(best)] = count
    return to_image, to_text


def cascade_ranks(
    queries: Sequence[Vectors], items: Sequence[Vectors], own: NDArray[np.int64], shortlist: int
) -> NDArray[np.int64]:
    """Rank (from 0) of each query's best own item in a search; the number of items if the cascade lost all of them.

    Args:
        queries: (Q, D) float32 a level, coarse to fine, at least two.
        items: (N, D) float32 a level, coarse to fine.
        own: (Q, C) the items that belong to each query, padded with -1.
        shortlist: items that the coarsest level hands on.

    Returns:
        (Q,) ranks; a tie with an item that is not the query's own counts against it, at the shortlist's edge too.
    """
    ranks = np.full(len(own), len(items[0]), np.int64)
    for number, (rows, scores) in enumerate(searches(queries, items, own, shortlist)):
        right = np.isin(rows, own[number])
        if right.any() and np.isfinite(best := scores[right].max()):
            ranks[number] = np.count_nonzero(scores[~right] >= best)
    return ranks


def searches(
    queries: Sequence[Vectors], items: Sequence[Vectors], own: NDArray[np.int64], shortlist: int
) -> Iterator[tuple[Rows, Vectors]]:
    """Rows and finest scores that the search's own cascade ranks for each query; see :func:`cascade_ranks`.

    An own item whose coarse score equals that of the shortlist's last is left out of the shortlist.
    """
    total = len(items[0])
    levels = tuple(Level(f"level{number}", part.shape[1], number, number) for number, part in enumerate(items, 1))
    collection = Collection.of(levels, tuple(FLOAT16.encode(vectors) for vectors in items))
    scan, *rest = cascade(levels, [shortlist] * (len(items) - 1))
    for start in range(0, len(own), QUERIES):
        batch = [list(query) for query in zip(*(level[start : start + QUERIES] for level in queries), strict=True)]
        asked = Asked(batch, shortlist)
        found = scan.run(collection, asked, ())
        for place, (rows, coarse, _) in enumerate(found):
            mine = own[start + place]
            if len(rows) < total and (coarse[np.isin(rows, mine)] == coarse[-1:]).any():
                scores = collection.scanners[0].rescore(batch[place][0], np.arange(total))
                unlucky = np.lexsort((np.isin(np.arange(total), mine), -scores))[:shortlist]
                found[place] = found[place]._replace(rows=unlucky)
        for stage in rest:
            found = stage.run(collection, asked, found)
        yield from ((each.rows, each.scores) for each in found)


def candidates(
    queries: Sequence[Vectors], items: Sequence[Vectors], own: NDArray[np.int64], shortlist: int
) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Rows and finest scores of each query: all rows where there is one level, a cascade's where there are several."""
    if len(queries) > 1:
        yield from searches(queries, items, own, shortlist)
        return
    rows = np.arange(len(items[0]))
    for query in queries[0]:
        yield rows, query @ items[0].T


def _pairwise(texts: Vectors, images: Vectors, text: Rows, image: Rows) -> Vectors:
    """(n,) scores of the given pairs, each depending on its own two vectors alone."""
    scores = np.empty(len(text), np.float32)
    step = max(1, BLOCK_FLOATS // max(1, texts.shape[1]))
    for start in range(0, len(text), step):
        part = slice(start, start + step)
        scores[part] = np.einsum("ij,ij->i", texts[text[part]], images[image[part]])
    return scores


def own_captions(owner: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """(N, C) caption numbers of each picture, padded with -1."""
    counts = np.bincount(owner, minlength=images)
    table = np.full((images, int(counts.max())), -1, np.int64)
    seen = np.zeros(images, np.int64)
    for caption, image in enumerate(owner):
        table[image, seen[image]] = caption
        seen[image] += 1
    return table
