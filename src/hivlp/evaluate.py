"""Recall in both directions, at each level and for the cascade.

Protocol (Karpathy & Fei-Fei, 2015, as used since): image-to-text R@K is the share of pictures with at least one of
their own captions among the K best; text-to-image R@K is the share of captions whose picture is among the K best.
A candidate that scores exactly as high as the right one counts as ranked before it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.data.pairs import Pair, Pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode.base import Encoder
from hivlp.encode.stream import encode_stream
from hivlp.errors import DataError
from hivlp.levels import Embeddings, Vectors

logger = logging.getLogger(__name__)
CUTOFFS = (1, 5, 10)
BLOCK = 1024  # queries scored at once: bounds memory at BLOCK × gallery floats


def evaluate(pairs: Sequence[Pair], model: Encoder, *, shortlist: int = 20, progress: bool = True) -> dict[str, Any]:
    """Encode pictures and captions, then report recalls in the shape that the command prints.

    Broken pictures are left out with a warning, and counted in ``skipped``, as are damaged parts of their source.

    Args:
        pairs: pictures with one or more captions each.
        model: the encoder.
        shortlist: candidates that each coarser level hands on.
        progress: show a bar on stderr.

    Raises:
        DataError: if there is nothing to evaluate.
    """
    kept: list[Pair] = []
    parts: list[Embeddings] = []
    skipped = pairs.skipped if isinstance(pairs, Pairs) else 0
    with tqdm(total=len(pairs), desc="pictures", disable=None if progress else True) as bar:
        for batch in encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture)):
            for pair, reason in batch.failures:
                logger.warning("skipped %s: %s", pair.id, reason)
            skipped += len(batch.failures)
            kept += batch.jobs
            parts.append(batch.embeddings)
            bar.update(len(batch.jobs) + len(batch.failures))
    if not kept:
        raise DataError("no picture could be read")
    texts = [caption for pair in kept for caption in pair.captions]
    owner = np.repeat(np.arange(len(kept)), [len(pair.captions) for pair in kept])
    result = score(Embeddings.concatenate(parts), model.encode_text(texts), owner, shortlist)
    return {"model": model.name, "images": len(kept), "captions": len(texts), "skipped": skipped, **result}


def score(images: Embeddings, texts: Embeddings, owner: NDArray[np.int64], shortlist: int) -> dict[str, Any]:
    """Recalls of each level alone and of the cascade over all of them.

    Args:
        images: N pictures.
        texts: M captions, at the same levels.
        owner: (M,) which picture each caption describes.
        shortlist: candidates that each coarser level hands on.
    """
    names = list(images)
    levels = {}
    for name in names:
        to_image = first_hits([texts[name]], [images[name]], owner[:, None], None)
        to_text = first_hits([images[name]], [texts[name]], _own_captions(owner, images.count), None)
        levels[name] = summary(to_image, to_text)
    finest = levels[names[-1]]
    text_vectors, image_vectors = [texts[name] for name in names], [images[name] for name in names]
    to_image = first_hits(text_vectors, image_vectors, owner[:, None], shortlist)
    to_text = first_hits(image_vectors, text_vectors, _own_captions(owner, images.count), shortlist)
    cascade: dict[str, Any] = summary(to_image, to_text)
    cascade["shortlist"] = shortlist
    cascade["retained"] = {
        direction: {
            cutoff: round(cascade[direction][cutoff] / value, 4) if value else 1.0
            for cutoff, value in finest[direction].items()
        }
        for direction in ("text_to_image", "image_to_text")
    }
    return {"levels": levels, "cascade": cascade}


def first_hits(
    queries: Sequence[Vectors], items: Sequence[Vectors], own: NDArray[np.int64], shortlist: int | None
) -> NDArray[np.int64]:
    """Rank (from 0) of each query's best own item; the number of items if the cascade lost all of them.

    Args:
        queries: (Q, D) a level, coarse to fine.
        items: (N, D) a level, coarse to fine.
        own: (Q, C) the items that belong to each query, padded with -1.
        shortlist: items kept by each level but the last; None ranks all of them by the only level given.

    Returns:
        (Q,) ranks; a tie with an item that is not the query's own counts against it.
    """
    total = len(items[0])
    ranks = np.empty(len(queries[0]), np.int64)
    for start in range(0, len(ranks), BLOCK):
        stop = min(start + BLOCK, len(ranks))
        block_own = own[start:stop]
        mine = np.zeros((stop - start, total), bool)
        rows, columns = np.nonzero(block_own >= 0)
        mine[rows, block_own[rows, columns]] = True
        alive = np.ones_like(mine)
        for number, (query, item) in enumerate(zip(queries, items, strict=True)):
            scores = np.where(alive, query[start:stop] @ item.T, -np.inf)
            if number < len(queries) - 1 and shortlist is not None and shortlist < total:
                # Own items go last among equals, so that a tie at the edge of the shortlist counts against us.
                order = np.lexsort((mine, -scores), axis=1)[:, :shortlist]
                alive = np.zeros_like(alive)
                np.put_along_axis(alive, order, True, axis=1)
        alive &= np.isfinite(scores)
        best = np.where(mine & alive, scores, -np.inf).max(1, keepdims=True)
        before = (alive & ~mine & (scores >= best)).sum(1)
        ranks[start:stop] = np.where(np.isfinite(best[:, 0]), before, total)
    return ranks


def summary(to_image: NDArray[np.int64], to_text: NDArray[np.int64]) -> dict[str, Any]:
    """R@K in percent for both directions, their sum, and their mean (AR)."""
    directions = {
        name: {f"R@{cutoff}": round(float(100 * (ranks < cutoff).mean()), 2) for cutoff in CUTOFFS}
        for name, ranks in (("text_to_image", to_image), ("image_to_text", to_text))
    }
    rsum = sum(value for recalls in directions.values() for value in recalls.values())
    return {**directions, "AR": round(rsum / 6, 2), "rsum": round(rsum, 2)}


def _own_captions(owner: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """(N, C) caption numbers of each picture, padded with -1."""
    counts = np.bincount(owner, minlength=images)
    table = np.full((images, int(counts.max())), -1, np.int64)
    seen = np.zeros(images, np.int64)
    for caption, image in enumerate(owner):
        table[image, seen[image]] = caption
        seen[image] += 1
    return table
