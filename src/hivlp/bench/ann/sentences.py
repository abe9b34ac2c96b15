"""A million real vectors: sentences of dictionaries and manuals by the shipped model, asked for by titles."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.ann.collection import Collection, write_collection
from hivlp.bench.ann.documents import Documents, read_documents
from hivlp.bench.ann.real import TESTED, bench_folder
from hivlp.data.contents import content_hash
from hivlp.encode import HiVLP
from hivlp.encode.stream import default_workers
from hivlp.files.scratch import write_whole

MILLION, TRAIN_QUERIES = 1_000_000, 60_000
PART = 2_000  # texts


def read_sentences(
    model: HiVLP, count: int = MILLION, documents: Callable[[], Documents] = read_documents
) -> Collection:
    """Sentences asked for by titles, encoded if they are not in the cache yet.

    A million takes one core about an hour, so what is encoded is kept in parts: who stops it, or asks for more
    sentences later, loses seconds. Beside the collection's files lies ``validation.npy``, queries for whoever chooses
    something.

    Args:
        model: encodes them.
        count: of sentences, at most :data:`MILLION`. They are in the order of their hashes: fewer are a random sample.
        documents: reads the texts.

    Raises:
        DataError: if a package with texts is not installed.
    """
    texts = documents()
    queries = {
        "test": texts.test[:TESTED],
        "validation": texts.validation[:TESTED],
        "train": texts.train[:TRAIN_QUERIES],
    }
    sentences = texts.sentences[:MILLION]
    key = content_hash(json.dumps([model.fingerprint, queries, sentences]).encode())[:16]
    folder = bench_folder() / f"sentences-{key}"
    sentences = sentences[:count]
    collection = Collection(folder / str(len(sentences)))
    if collection.is_whole():
        return collection
    asked = {name: encode_parts(model, of, folder / "parts", name).astype(np.float32) for name, of in queries.items()}
    return write_collection(collection.folder, encode_parts(model, sentences, folder / "parts", "items"), **asked)


def encode_parts(model: HiVLP, texts: Sequence[str], folder: Path, name: str) -> NDArray[np.float16]:
    """(n, d) unit vectors of the finest level, from files of :data:`PART` texts; those that are not there are made.

    Args:
        model: encodes the texts.
        texts: always the same ones for a folder and name, but for how many.
        folder: of the files.
        name: that theirs begin with.
    """
    finest = model.levels[-1]
    vectors = np.empty((len(texts), finest.dim), np.float16)

    def fill(start: int) -> None:
        path, part = folder / f"{name}-{start}.npz", texts[start : start + PART]
        found = _read_part(path)
        if found is None or len(found) != len(part):
            found = model.encode_text(part, levels=[finest.name])[finest.name].astype(np.float16)
            write_whole(path, lambda scratch: np.savez(scratch, vectors=found))
        vectors[start : start + PART] = found

    starts = range(0, len(texts), PART)
    with ThreadPoolExecutor(default_workers()) as pool:
        list(tqdm(pool.map(fill, starts), name, len(starts), disable=None))
    return vectors


def _read_part(path: Path) -> NDArray[np.float16] | None:
    """None if it is not there or damaged: the archive has a checksum of its own."""
    try:
        with np.load(path) as archive:
            vectors: NDArray[np.float16] = archive["vectors"]
            return vectors
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
