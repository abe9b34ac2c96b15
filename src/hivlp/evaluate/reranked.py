"""Recall of a search whose last candidates a fusion model orders again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.data.pairs import Pair
from hivlp.evaluate.encoded import Encoded
from hivlp.evaluate.recall import candidates, own_captions
from hivlp.evaluate.results import Recalls, Reranked
from hivlp.levels import Vectors
from hivlp.search.fusion import Fuse, Reranker, Shown


@dataclass(frozen=True)
class Reranking:
    """How the last candidates of an evaluation are ordered again.

    Attributes:
        model: the fusion model.
        depth: candidates of each query that it is given; None for as many as it is made for.
    """

    model: Reranker
    depth: int | None = None


def reranked(encoded: Encoded, shortlist: int, how: Reranking, *, progress: bool = True) -> Reranked:
    """Recalls in both directions after a cascade and a fusion model.

    Args:
        encoded: pictures and captions.
        shortlist: candidates that each coarser level hands on.
        how: the fusion model.
        progress: show a bar on stderr.

    Raises:
        QueryError: if the depth is out of range.
    """
    fuse, started, pairs = Fuse.of(how.model, how.depth), time.perf_counter(), 0
    names = list(encoded.images)
    texts = [caption for pair in encoded.pairs for caption in pair.captions]
    shown = [_shown(pair) for pair in encoded.pairs]
    images, words = ([side[name] for name in names] for side in (encoded.images, encoded.texts))
    ways = ((words, images, encoded.owner[:, None]), (images, words, own_captions(encoded.owner, len(shown))))
    ranks = []
    with tqdm(total=len(texts) + len(shown), desc="re-ranking", disable=None if progress else True) as bar:
        for way, (queries, items, own) in enumerate(ways):
            found = np.full(len(own), len(items[0]), np.int64)
            for query, (rows, scores) in enumerate(candidates(queries, items, own, shortlist)):
                mine = np.isin(rows, own[query])
                order = np.lexsort((mine, -scores))  # a tie with the right one counts against it
                head, rest = order[: fuse.keep], order[fuse.keep :]
                to_image = way == 0
                captions = [texts[query]] * len(head) if to_image else [texts[row] for row in rows[head]]
                pictures = [shown[row] for row in rows[head]] if to_image else [shown[query]] * len(head)
                fused = how.model.score(captions, pictures)
                pairs += len(head)
                bar.update(1)
                found[query] = _rank(np.nan_to_num(fused, nan=-np.inf), mine[head], mine[rest], len(items[0]))
            ranks.append(found)
    seconds = round(time.perf_counter() - started, 2)
    return Reranked(Recalls.of_ranks(ranks[0], ranks[1]), fuse.to_json(), pairs, seconds)


def _rank(fused: Vectors, mine: NDArray[np.bool_], later: NDArray[np.bool_], lost: int) -> int:
    """Rank of the best own candidate: among those that the fusion model ordered, else among the later ones."""
    if mine.any():
        return int(np.count_nonzero(fused[~mine] >= fused[mine].max()))
    return len(mine) + int(later.argmax()) if later.any() else lost


def _shown(pair: Pair) -> Shown:
    return Shown.file(pair.picture) if isinstance(pair.picture, Path) else Shown.stored(pair.id, pair.read)
