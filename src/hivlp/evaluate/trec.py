"""TREC run files and qrels of an evaluation, which ir-measures, ranx, trec_eval and others read.

A run has lines ``topic Q0 document rank score tag``, qrels have ``topic 0 document grade``. Recall@K as this package
reports it is Success@K of these files (``Success@1`` of ir-measures, ``hit_rate@1`` of ranx).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hivlp.data.pairs import Pair
from hivlp.errors import DataError
from hivlp.evaluate.encoded import Encoded
from hivlp.evaluate.recall import candidates, own_captions
from hivlp.evaluate.results import DIRECTIONS
from hivlp.levels import Vectors

DEPTH = 1000
"""Documents of a topic, as TREC's runs have."""


@dataclass(frozen=True)
class Topic:
    """One query with its documents.

    Attributes:
        name: of the query.
        documents: names of what was found, best first.
        scores: (n,) float32, strictly falling, since tools order equal scores each in their own way.
        relevant: names of the query's own items, whether they were found or not.
    """

    name: str
    documents: Sequence[str]
    scores: Vectors
    relevant: Sequence[str]


def write_trec(folder: Path, encoded: Encoded, shortlist: int, tag: str, depth: int = DEPTH) -> list[Path]:
    """Write ``text_to_image.run``, ``text_to_image.qrels``, ``image_to_text.run``, ``image_to_text.qrels``.

    Ranks are those of the cascade (of the only level, where there is one); a tie with a query's own item counts
    against it. Pictures are named by their path in the data set, captions by ``PATH#0`` and so on, spaces as ``%20``.

    Args:
        folder: made where it is not there; files of these names are written anew.
        encoded: pictures and captions.
        shortlist: candidates that each coarser level hands on.
        tag: name of the run; spaces become ``_``.
        depth: documents of a topic, at most.

    Returns:
        The four files.

    Raises:
        DataError: if they cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for direction in DIRECTIONS:
            run, qrels = (folder / f"{direction}.{kind}" for kind in ("run", "qrels"))
            with run.open("w", encoding="utf-8") as ranks, qrels.open("w", encoding="utf-8") as grades:
                for topic in topics(encoded, shortlist, direction, depth):
                    for rank, (name, score) in enumerate(zip(topic.documents, topic.scores, strict=True), start=1):
                        ranks.write(f"{topic.name} Q0 {name} {rank} {score:.9g} {'_'.join(tag.split()) or 'hivlp'}\n")
                    grades.writelines(f"{topic.name} 0 {name} 1\n" for name in topic.relevant)
            written += [run, qrels]
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    return written


def topics(encoded: Encoded, shortlist: int, direction: str, depth: int = DEPTH) -> Iterator[Topic]:
    """The queries of one direction with what a search finds for each.

    Args:
        encoded: pictures and captions.
        shortlist: candidates that each coarser level hands on.
        direction: ``text_to_image`` or ``image_to_text``.
        depth: documents of a topic, at most.
    """
    pictures = [_name(pair) for pair in encoded.pairs]
    captions = [f"{name}#{n}" for name, pair in zip(pictures, encoded.pairs, strict=True)
                for n in range(len(pair.captions))]  # fmt: skip
    images, texts = ([side[level] for level in encoded.images] for side in (encoded.images, encoded.texts))
    if direction == DIRECTIONS[0]:
        asked, queries, items, names, own = captions, texts, images, pictures, encoded.owner[:, None]
    else:
        asked, queries, items, names = pictures, images, texts, captions
        own = own_captions(encoded.owner, len(pictures))
    for number, (rows, scores) in enumerate(candidates(queries, items, own, shortlist)):
        order = np.lexsort((np.isin(rows, own[number]), -scores))[:depth]
        found = [names[row] for row in rows[order]]
        relevant = [names[row] for row in own[number] if row >= 0]
        yield Topic(asked[number], found, _falling(scores[order]), relevant)


def _falling(scores: Vectors) -> Vectors:
    """The same scores in the same order, equal ones each a float32 step below the one before."""
    found = np.asarray(scores, np.float32).copy()
    for at in range(1, len(found)):
        if found[at] >= found[at - 1]:
            found[at] = np.nextafter(found[at - 1], np.float32(-np.inf))
    return found


def _name(pair: Pair) -> str:
    """A picture's name without spaces, which separate the columns."""
    return quote(pair.id, safe="/._-+,:=@")
