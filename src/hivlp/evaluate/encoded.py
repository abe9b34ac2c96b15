"""Pictures and captions of a data set as level vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.data.pairs import Pair, Pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode.base import Encoder
from hivlp.encode.stream import encode_stream
from hivlp.errors import DataError
from hivlp.levels import Embeddings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """Pictures and captions as level vectors.

    Attributes:
        pairs: those that could be read.
        images: one row a pair.
        texts: one row a caption, in the order of the pairs.
        owner: (captions,) number of the pair that each belongs to.
        skipped: pictures that could not be read, and damaged parts of their source.
    """

    pairs: list[Pair]
    images: Embeddings
    texts: Embeddings
    owner: NDArray[np.int64]
    skipped: int

    def some(self, numbers: NDArray[np.integer]) -> Encoded:
        """Some of the pictures, by ascending number, with their captions; nothing of them was skipped."""
        texts = np.flatnonzero(np.isin(self.owner, numbers))
        owner = np.searchsorted(numbers, self.owner[texts])
        pairs = [self.pairs[number] for number in numbers]
        return Encoded(pairs, self.images.rows(numbers), self.texts.rows(texts), owner, 0)

    @classmethod
    def together(cls, parts: Sequence[Encoded]) -> Encoded:
        """Several data sets as one collection, in which their pictures and captions compete with each other."""
        starts = np.cumsum([0, *(len(part.pairs) for part in parts)])
        owner = np.concatenate([part.owner + start for part, start in zip(parts, starts, strict=False)])
        return cls(
            [pair for part in parts for pair in part.pairs],
            Embeddings.concatenate([part.images for part in parts]),
            Embeddings.concatenate([part.texts for part in parts]),
            owner,
            sum(part.skipped for part in parts),
        )


def encode_pairs(pairs: Sequence[Pair], model: Encoder, *, progress: bool = True) -> Encoded:
    """Encode pictures with captions; broken pictures are left out with a warning.

    Args:
        pairs: pictures with one or more captions each.
        model: the encoder.
        progress: show a bar on stderr.

    Raises:
        DataError: if no picture can be read.
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
    return Encoded(kept, Embeddings.concatenate(parts), model.encode_text(texts), owner, skipped)
