"""Real vectors of the shipped model: WordNet's words asked for by its glosses, and a million sentences by titles.

Encoding takes minutes, and a million an hour, so vectors are kept in a cache, by the model's fingerprint and by what
was encoded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.ann.documents import Documents, read_documents
from hivlp.bench.ann.measure import ITEMS, TEST, TRAIN, TRUTH, Collection
from hivlp.bench.ann.truth import exact
from hivlp.data.contents import content_hash
from hivlp.encode import HiVLP
from hivlp.encode.stream import default_workers
from hivlp.files.digests import cache_folder
from hivlp.files.npy import open_npy
from hivlp.files.scratch import write_whole
from hivlp.levels import Vectors
from hivlp.mini.wordnet import PARTS, read_synsets

GLOSSES, TESTED, TRAINED_FROM = 25_000, 1_000, 2_000
MILLION, MILLION_TRAIN = 1_000_000, 60_000
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
            _keep(folder / f"{names[name]}.npy", _encode(model, of, name))
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


def read_million(model: HiVLP, documents: Callable[[], Documents] = read_documents) -> Collection:
    """A million sentences asked for by titles, encoded if they are not in the cache yet.

    What is encoded is kept in parts: who stops it loses minutes, not hours. Beside the collection's files lies
    ``validation.npy``, queries for whoever chooses something.

    Args:
        model: encodes them.
        documents: reads the texts.

    Raises:
        DataError: if a package with texts is not installed.
    """
    texts = documents()
    sides = {
        "queries": texts.test[:TESTED],
        "validation": texts.validation[:TESTED],
        "train": texts.train[:MILLION_TRAIN],
        "items": texts.sentences[:MILLION],
    }
    folder = bench_folder() / f"million-{content_hash(json.dumps([model.fingerprint, sides]).encode())[:16]}"
    if not (folder / TRUTH).is_file():
        parts = folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        vectors = {name: _encode_parts(model, of, parts / name) for name, of in sides.items()}
        _keep(folder / "validation.npy", vectors["validation"].astype(np.float32))
        queries, train = (vectors[name].astype(np.float32) for name in ("queries", "train"))
        write_collection(folder, vectors["items"], queries, train)
        shutil.rmtree(parts)
    return Collection(folder)


def write_collection(
    folder: Path, items: NDArray[np.float16] | Vectors, test: Vectors, train: Vectors
) -> Collection:  # fmt: skip
    """Put a collection and its exact answers where engines can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    small = items.astype(np.float16, copy=False)
    arrays: dict[str, NDArray[Any]] = {ITEMS: small, TEST: test, TRAIN: train, TRUTH: exact(small, test)}
    for name, array in arrays.items():
        _keep(folder / name, array)
    return Collection(folder)


def _encode(model: HiVLP, texts: Sequence[str], what: str) -> Vectors:
    finest = model.levels[-1].name
    parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]

    def one(part: Sequence[str]) -> Vectors:
        return np.asarray(model.encode_text(part, levels=[finest])[finest], np.float32)

    with ThreadPoolExecutor(default_workers()) as pool:
        return np.concatenate(list(tqdm(pool.map(one, parts), desc=what, total=len(parts), disable=None)))


def _encode_parts(model: HiVLP, texts: Sequence[str], path: Path) -> NDArray[np.float16]:
    """(n, d) vectors of the finest level, half precision; each part is kept in a file as soon as it is there."""
    finest = model.levels[-1].name
    starts = range(0, len(texts), CHUNK)

    def one(start: int) -> Path:
        part = path.with_name(f"{path.name}-{start}.npy")
        if not part.is_file():
            vectors = model.encode_text(texts[start : start + CHUNK], levels=[finest])[finest]
            _keep(part, np.asarray(vectors, np.float16))
        return part

    with ThreadPoolExecutor(default_workers()) as pool:
        return np.concatenate([np.load(part) for part in list(tqdm(pool.map(one, starts), path.name, len(starts)))])


def _keep(path: Path, array: NDArray[Any]) -> None:
    """Write aside and rename, so that what is there is whole."""
    write_whole(path, lambda scratch: np.save(scratch, array))
