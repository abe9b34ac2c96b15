"""Evaluation of a model: each level alone, the cascade over them, and a fusion model after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hivlp.data.pairs import Pair
from hivlp.encode.base import Encoder
from hivlp.evaluate.encoded import Encoded, encode_pairs
from hivlp.evaluate.recall import score
from hivlp.evaluate.reranked import Reranking, reranked
from hivlp.evaluate.results import Evaluation, Scores
from hivlp.evaluate.trec import write_trec
from hivlp.levels import DEFAULT_SHORTLIST


def evaluate(
    pairs: Sequence[Pair],
    model: Encoder,
    *,
    shortlist: int = DEFAULT_SHORTLIST,
    rerank: Reranking | None = None,
    trec: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Recalls of a model on pictures with captions, which it encodes.

    Broken pictures are left out with a warning, and counted in ``skipped``, as are damaged parts of their source.

    Args:
        pairs: pictures with one or more captions each.
        model: the encoder.
        shortlist: candidates that each coarser level hands on.
        rerank: a fusion model that orders the last candidates again.
        trec: a folder for the cascade's run files and qrels (:func:`hivlp.evaluate.trec.write_trec`).
        progress: show a bar on stderr.

    Raises:
        DataError: if there is nothing to evaluate, or the folder cannot be written.
    """
    encoded = encode_pairs(pairs, model, progress=progress)
    if trec is not None:
        write_trec(trec, encoded, shortlist, model.name)
    scores = scores_of(encoded, shortlist, rerank, progress=progress)
    return Evaluation(model.name, len(encoded.pairs), len(encoded.owner), encoded.skipped, scores)


def scores_of(encoded: Encoded, shortlist: int, rerank: Reranking | None = None, *, progress: bool = True) -> Scores:
    """Recalls of encoded pictures and captions.

    Args:
        encoded: what is judged.
        shortlist: candidates that each coarser level hands on.
        rerank: a fusion model that orders the last candidates again.
        progress: show a bar on stderr.

    Raises:
        DataError: if the shortlist is empty.
        QueryError: if the fusion model's depth is out of range.
    """
    found = score(encoded.images, encoded.texts, encoded.owner, shortlist)
    return found if rerank is None else replace(found, reranked=reranked(encoded, shortlist, rerank, progress=progress))
