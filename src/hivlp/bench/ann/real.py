"""Real vectors: WordNet's words as items, its glosses as queries, and captioned pictures, all from the shipped model.

Encoding takes minutes, so the vectors are kept in a cache, by the model's fingerprint and by what was encoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.ann.measure import ITEMS, TEST, TRAIN, TRUTH, Collection
from hivlp.bench.ann.truth import exact
from hivlp.data.contents import Contents, content_hash
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import default_workers, encode_stream
from hivlp.files.digests import cache_folder
from hivlp.files.npy import open_npy
from hivlp.files.scratch import write_whole
from hivlp.levels import Embeddings, Vectors
from hivlp.mini.wordnet import PARTS, read_synsets

GLOSSES, TESTED, TRAINED_FROM = 25_000, 1_000, 2_000
CHUNK = 2_000


@dataclass(frozen=True)
class RealSet:
    """Unit vectors of the finest level, float32.

    Attributes:
        words: (148,730, d) items.
        glosses: (25,000, d) queries in a random order; the first 1,000 test, those from 2,000 on may be learnt from.
        pictures: (about 3,000, d) drawings and photo cut-outs.
        captions: of the pictures, in their order.
        key: names the model and what was encoded; whatever is made of the set is kept under it.
    """

    words: Vectors
    glosses: Vectors
    pictures: Vectors
    captions: Vectors
    key: str = ""


def bench_folder() -> Path:
    """Where benchmarks keep their vectors, in the cache."""
    return cache_folder() / "bench"


def read_real(model: HiVLP, *, pictures: bool = True) -> RealSet:
    """The vectors, encoded if they are not in the cache yet.

    Args:
        model: encodes them.
        pictures: whether they are wanted too; otherwise the set has none.

    Raises:
        DataError: if WordNet or the pictures are not there.
    """
    folder = bench_folder() / f"real-{model.fingerprint[:16]}"
    words, glosses = read_wordnet()
    texts = {"words": words, "glosses": glosses[:GLOSSES]}
    names = {name: f"{name}-{content_hash(json.dumps(of).encode())}" for name, of in texts.items()}
    for name, of in texts.items():
        if not (folder / f"{names[name]}.npy").is_file():
            _keep(folder / f"{names[name]}.npy", encode_texts(model, of, name))
    if pictures:
        pairs = load_pairs("stamps") + load_pairs("openclipart")
        contents = Contents.read(pairs).digest
        names |= {name: f"{name}-{contents[:32]}" for name in ("pictures", "captions")}
        if not all((folder / f"{names[name]}.npy").is_file() for name in ("pictures", "captions")):
            for name, vectors in zip(("pictures", "captions"), _pictures(model, pairs), strict=True):
                _keep(folder / f"{names[name]}.npy", vectors)
    none = np.empty((0, model.levels[-1].dim), np.float32)
    arrays = {name: open_npy(folder / f"{file}.npy") for name, file in names.items()}
    key = content_hash(json.dumps([model.fingerprint, names]).encode())[:16]
    return RealSet(**{name: arrays.get(name, none) for name in ("words", "glosses", "pictures", "captions")}, key=key)


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


def write_collection(folder: Path, items: Vectors, test: Vectors, train: Vectors) -> Collection:
    """Put a collection and its exact answers where engines can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    small = items.astype(np.float16)
    arrays: dict[str, NDArray[Any]] = {ITEMS: small, TEST: test, TRAIN: train, TRUTH: exact(small, test)}
    for name, array in arrays.items():
        _keep(folder / name, array)
    return Collection(folder)


def encode_texts(model: HiVLP, texts: Sequence[str], what: str) -> Vectors:
    """(n, d) vectors of the finest level, float32, with a bar that is called ``what``."""
    finest = model.levels[-1].name
    parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]

    def one(part: Sequence[str]) -> Vectors:
        return np.asarray(model.encode_text(part, levels=[finest])[finest], np.float32)

    with ThreadPoolExecutor(default_workers()) as pool:
        return np.concatenate(list(tqdm(pool.map(one, parts), desc=what, total=len(parts), disable=None)))


def _pictures(model: HiVLP, pairs: Sequence[Pair]) -> tuple[Vectors, Vectors]:
    finest = model.levels[-1].name
    done, captions = [], []
    stream = encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture))
    for batch in tqdm(stream, desc="pictures", disable=None):
        done.append(batch.embeddings)
        captions += [pair.captions[0] for pair in batch.jobs]
    return Embeddings.concatenate(done)[finest], encode_texts(model, captions, "captions")


def _keep(path: Path, array: NDArray[Any]) -> None:
    """Write aside and rename, so that what is there is whole."""
    write_whole(path, lambda scratch: np.save(scratch, array))
