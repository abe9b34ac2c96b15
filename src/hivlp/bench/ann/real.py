"""Real vectors: WordNet's words as items and its glosses as queries, from the shipped model.

Encoding takes minutes, so the vectors are kept in a cache, by the model's fingerprint and by what was encoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann.collection import write_array
from hivlp.data.contents import content_hash
from hivlp.encode import HiVLP
from hivlp.encode.stream import default_workers
from hivlp.files.digests import cache_folder
from hivlp.files.npy import open_npy
from hivlp.levels import Vectors
from hivlp.mini.wordnet import PARTS, read_synsets

GLOSSES, TESTED, TRAINED_FROM = 25_000, 1_000, 2_000
CHUNK = 2_000


@dataclass(frozen=True)
class RealSet:
    """Unit vectors of the finest level, float32.

    Attributes:
        words: (148,730, d) items.
        glosses: (25,000, d) queries in a random order; the first 1,000 test, those from 2,000 on may be learnt from.
        key: names the model and what was encoded; whatever is made of the set is kept under it.
    """

    words: Vectors
    glosses: Vectors
    key: str = ""


def bench_folder() -> Path:
    """Where benchmarks keep their vectors, in the cache."""
    return cache_folder() / "bench"


def read_real(model: HiVLP) -> RealSet:
    """The vectors, encoded if they are not in the cache yet.

    Args:
        model: encodes them.

    Raises:
        DataError: if WordNet is not there.
    """
    folder = bench_folder() / f"real-{model.fingerprint[:16]}"
    words, glosses = read_wordnet()
    texts = {"words": words, "glosses": glosses[:GLOSSES]}
    names = {name: f"{name}-{content_hash(json.dumps(of).encode())}" for name, of in texts.items()}
    for name, of in texts.items():
        if not (folder / f"{names[name]}.npy").is_file():
            write_array(folder / f"{names[name]}.npy", encode_texts(model, of, name))
    arrays = {name: open_npy(folder / f"{file}.npy") for name, file in names.items()}
    key = content_hash(json.dumps([model.fingerprint, names]).encode())[:16]
    return RealSet(**arrays, key=key)


def read_wordnet(folder: Path | None = None) -> tuple[list[str], list[str]]:
    """All distinct words, sorted, and all distinct glosses' first sentences, in a random order.

    Args:
        folder: default the environment's ``HIVLP_WORDNET``, or Debian's place.

    Raises:
        DataError: if it is not there.
    """
    synsets = [synset for part in PARTS for synset in read_synsets(part, folder).values()]
    words = {word for synset in synsets for word in synset.words}
    glosses = {synset.gloss for synset in synsets}
    shuffled = sorted(glosses)
    np.random.default_rng(0).shuffle(shuffled)
    return sorted(words), shuffled


def encode_texts(model: HiVLP, texts: Sequence[str], what: str) -> Vectors:
    """(n, d) vectors of the finest level, float32, with a bar that is called ``what``."""
    finest = model.levels[-1].name
    parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]

    def one(part: Sequence[str]) -> Vectors:
        return np.asarray(model.encode_text(part, levels=[finest])[finest], np.float32)

    with ThreadPoolExecutor(default_workers()) as pool:
        return np.concatenate(list(tqdm(pool.map(one, parts), desc=what, total=len(parts), disable=None)))
