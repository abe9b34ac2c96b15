"""Pools of real vectors: WordNet's words asked for by glosses, and a million sentences asked for by titles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.collection import ITEMS, TEST, TRAIN
from hivlp.bench.ann.real import TRAINED_FROM, read_real
from hivlp.bench.ann.sentences import MILLION, read_sentences
from hivlp.bench.paper.systems import BATCH
from hivlp.encode import HiVLP
from hivlp.levels import Vectors

TUNING = 1_500
"""Glosses that an index is tuned with; of titles, all that may be learnt from."""


@dataclass(frozen=True)
class Pool:
    """What is searched, and what asks.

    Attributes:
        items: (N, 768) float32 or float16, memory-mapped.
        queries: (400, 768) float32.
        train: others to tune with.
        key: names the vectors; what is made of them is kept under it.
    """

    items: Vectors | NDArray[np.float16]
    queries: Vectors
    train: Vectors
    key: str


class Pools:
    """Pools by their number of items."""

    def __init__(self, model: HiVLP) -> None:
        """Encode the words where they are not in the cache.

        Args:
            model: encodes items and queries.

        Raises:
            DataError: if WordNet is not there.
        """
        self._model, self._real = model, read_real(model)

    def key(self, count: int) -> str:
        """The name of a pool's vectors, which are not read for it."""
        return f"{self._real.key}-{count}" if count <= len(self._real.words) else f"sentences-{self._real.key}-{count}"

    def read(self, count: int) -> Pool:
        """A pool; a larger one than there are words is of sentences.

        Args:
            count: its items.

        Raises:
            DataError: if a package with sentences is not installed.
        """
        if count <= len(self._real.words):
            items, queries, train = self._real.words, self._real.glosses, self._real.glosses[TRAINED_FROM:][:TUNING]
        else:
            sentences = read_sentences(self._model, MILLION)
            items, queries, train = (sentences.read(name) for name in (ITEMS, TEST, TRAIN))
        asked, learnt = (np.asarray(part, np.float32) for part in (queries[:BATCH], train))
        return Pool(items[:count], asked, learnt, self.key(count))


def index_folder(folder: Path, key: str) -> Path:
    """Where the index of a pool is kept."""
    return folder / f"index-{key}"
