"""Tuning: the approximate index of an index is built, measured on its own data, and kept up with what is added."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import AnnIndex, native
from hivlp.ann.ann_index import ROUTER_QUERIES
from hivlp.ann.arrays import Arrays, read_array
from hivlp.ann.bounds import Bounds
from hivlp.ann.manifest import read_manifest
from hivlp.ann.rows import Stored, dim, floats
from hivlp.errors import IndexFolderError, QueryError
from hivlp.files import npy
from hivlp.files.scratch import standing
from hivlp.index.queries import QueryEncoder
from hivlp.index.tune_report import TuneReport
from hivlp.levels import Vectors
from hivlp.search.calibration import Progress, measure
from hivlp.search.operating_points import FOLDER, Tuned, sample
from hivlp.store.codec import FLOAT32
from hivlp.store.folder import Store
from hivlp.store.schema import CODEC_FORMAT

QUERIES = "queries.npy"
DEFAULT_RECALL = 0.99
LEAST_ROWS = 1000  # below this, an exhaustive scan is as fast
LEAST_DIMS = 16  # an approximate index has no fewer
HELD_OUT = 400  # queries that operating points are measured with, if there are three times as many
MOST_HELD_OUT = 1000  # or a tenth of them: the better a recall is known, the faster the parameters that surely reach it
MOST_QUERIES = 20_000  # that are learnt from; of a large index, one for so many rows, as there are more lists to teach
ROWS_A_QUERY = 100
QUERIES_A_ROW = 2  # of a small index: more would take more room beside it than its vectors
LEAST_QUERIES = 4_000
ENCODED = 6_000  # texts that are encoded to learn from, at most
GROWTH = 1.1  # from how many times the rows on the approximate index takes in what was added
RELEARN = 2.0  # from how many times the rows on it is trained anew


def tune(
    store: Store,
    encoder: QueryEncoder,
    queries: Path | Sequence[str] | Vectors | None = None,
    *,
    recall: float = DEFAULT_RECALL,
    on_progress: Progress | None = None,
) -> TuneReport:
    """The job behind :meth:`hivlp.index.Index.tune`."""
    tell: Progress = on_progress or (lambda what, done, total: None)
    if not 0 < recall <= 1:
        raise QueryError(f"recall must be above 0 and at most 1, not {recall}")
    native.kernels()  # raises where there are none
    started = time.perf_counter()
    with store.writer():
        vectors, alive, generation = finest(store)
        if len(vectors) < LEAST_ROWS:
            raise IndexFolderError(
                f"{store.path} has {len(vectors)} items: below {LEAST_ROWS} all are read, and there is nothing to tune"
            )
        if dim(vectors) < LEAST_DIMS:
            raise IndexFolderError(f"{store.path} has vectors of {dim(vectors)} dims: all are read, as fast as can be")
        asked, source = _queries(store, encoder, queries, vectors, tell)
        most = max(MOST_QUERIES, min(ROUTER_QUERIES, len(vectors) // ROWS_A_QUERY))
        most = min(most, max(LEAST_QUERIES, QUERIES_A_ROW * len(vectors)))
        asked = asked[np.random.default_rng(0).permutation(len(asked))[:most]]
        held_out, known = split(asked)
        index = AnnIndex.build(vectors, queries=known, on_progress=tell)
        bounds = Bounds.build(index, known, tell)
        front, ladder, likeness = measure(index, alive, held_out, tell)
        rows = len(vectors)
        tuned = Tuned(generation, rows, rows, source, recall, front, ladder, likeness, sample(index.vectors))
        save(store, index, bounds, tuned, asked)
    return TuneReport.of(store.path, index, bounds, tuned, time.perf_counter() - started)


def refresh(store: Store, on_progress: Progress | None = None) -> bool:
    """The job behind :meth:`hivlp.index.Index.refresh`."""
    before = Tuned.load(store.path, older=True)
    if before is None or native.load() is None:
        return False
    tell: Progress = on_progress or (lambda what, done, total: None)
    with store.writer():
        vectors, alive, generation = finest(store)
        arrays = _arrays(store.path)
        grown = len(vectors) >= GROWTH * before.rows or len(vectors) < before.rows
        stale = grown or generation != before.generation or arrays is None
        if not stale or len(vectors) < LEAST_ROWS:
            return False
        asked = _remembered(store.path, dim(vectors))
        if asked is None:
            return False
        held_out, known = split(asked)
        learnt = before.learnt_rows
        if arrays is None or len(vectors) >= RELEARN * learnt:
            index, learnt = AnnIndex.build(vectors, queries=known, on_progress=tell), len(vectors)
        else:
            index = AnnIndex.extend(arrays, vectors, on_progress=tell)
        bounds = Bounds.build(index, known, tell)
        measured = measure(index, alive, held_out, tell)
        tuned = Tuned(
            generation, len(vectors), learnt, before.queries, before.recall, *measured, sample(index.vectors)
        )  # fmt: skip
        save(store, index, bounds, tuned, asked)
    return True


def _arrays(folder: Path) -> Arrays | None:
    try:
        return Arrays.load(standing(folder / FOLDER))
    except IndexFolderError:
        return None


def _remembered(folder: Path, width: int) -> Vectors | None:
    """(m, width) queries that an approximate index was tuned with; None if they are damaged or missing."""
    place = standing(folder / FOLDER)
    try:
        asked = read_array(place, QUERIES, read_manifest(place, older=True))[1]
        if asked.ndim != 2 or asked.shape[1] != width or len(asked) < 2 or asked.dtype != np.float16:
            return None
        return _unit(asked.astype(np.float32))
    except (IndexFolderError, QueryError):
        return None


def split(asked: Vectors) -> tuple[Vectors, Vectors]:
    """The queries that settings are measured with, and those to learn from."""
    held_out = max(1, min(HELD_OUT, len(asked) // 3), min(MOST_HELD_OUT, len(asked) // 10))
    return asked[:held_out], asked[held_out:]


def finest(store: Store) -> tuple[Stored, NDArray[np.bool_] | None, int]:
    """Stored vectors of the finest level, which of them are alive, and the generation of their file."""
    with store.reading() as reader:
        vectors = np.asarray(reader.vectors()[-1])
        codec = reader.files()[-1].codec
        if codec is FLOAT32 and reader.state.format < CODEC_FORMAT:
            raise IndexFolderError(f"{store.path} is of an old format: `hivlp compact` it first")
        if codec is FLOAT32:
            raise IndexFolderError(
                f"{store.path} stores float32 vectors: an approximate index re-ranks float16 or int8 ones"
            )
        return vectors, reader.alive(), reader.state.generation


def _queries(
    store: Store,
    encoder: QueryEncoder,
    given: Path | Sequence[str] | Vectors | None,
    vectors: Stored,
    tell: Progress,
) -> tuple[Vectors, str]:
    """(m, dim) unit vectors to learn and to measure with, and where they are from."""
    if isinstance(given, Path) and given.suffix == ".npy":
        try:
            given = np.array(npy.parse(npy.map_file(given)))
        except (OSError, ValueError, MemoryError) as error:
            raise QueryError(f"{given} cannot be read: {error}") from error
    if isinstance(given, Path):
        try:
            given = [line for line in given.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise QueryError(f"{given} cannot be read: {error}") from error
    width = dim(vectors)
    if isinstance(given, np.ndarray):
        if given.ndim != 2 or given.shape[1] != width or len(given) < 2 or given.dtype.kind != "f":
            raise QueryError(f"queries must be (2 or more, {width}) floats, not {given.shape} {given.dtype}")
        return _unit(np.asarray(given, np.float32)), "given vectors"
    if given is not None:
        if len(given) < 2:
            raise QueryError("tuning needs at least two queries")
        return _encode(encoder, list(given)[:MOST_QUERIES], tell), "given texts"
    if encoder.model is not None:
        with store.reading() as reader:
            captions = reader.captions(ENCODED)
        if len(captions) >= ENCODED // 4:
            return _encode(encoder, captions, tell), "the captions of the index"
        words = vocabulary(encoder.model)
        if words:
            return _encode(
                encoder, captions + words[: ENCODED - len(captions)], tell
            ), "words of the model's vocabulary"
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(vectors), min(len(vectors), ENCODED), replace=False))
    return _unit(floats(vectors[chosen])), "the items themselves"


def vocabulary(model: Any) -> list[str]:
    """Words, and pairs of words, of a model's tokenizer: what its text side can say without knowing the pictures."""
    if not hasattr(model, "vocabulary"):
        return []
    known = model.vocabulary()
    # As word pieces spell whole words: as they are, or with a mark in front (▁ or Ġ) or behind (</w>).
    marked = any(re.match("[▁Ġ]|.+</w>$", piece) for piece in known)
    pattern = re.compile(r"(?:[▁Ġ]([a-z]{3,14})|([a-z]{3,14})</w>)$" if marked else r"([a-z]{3,14})()$")
    words = sorted({match[1] or match[2] for piece in known if (match := pattern.match(piece))})
    rng = np.random.default_rng(0)
    rng.shuffle(words)
    pairs = [f"{first} {second}" for first, second in zip(words, reversed(words), strict=True)]
    return [text for both in zip(words, pairs, strict=True) for text in both]


def _encode(encoder: QueryEncoder, texts: list[str], tell: Progress) -> Vectors:
    parts = []
    for start in range(0, len(texts), 256):
        parts += [query[-1] for query in encoder.of_many(texts[start : start + 256], None)]
        tell("queries", min(start + 256, len(texts)), len(texts))
    return np.stack(parts)


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise QueryError("a query vector is zero or not finite")
    unit: Vectors = vectors / norms
    return unit


def save(store: Store, index: AnnIndex, bounds: Bounds | None, tuned: Tuned, asked: Vectors) -> None:
    """Put an approximate index into its folder, whole or not at all, with its operating points and their queries."""
    extra = {QUERIES: asked.astype(np.float16), **({} if bounds is None else bounds.files())}
    place = store.path / FOLDER
    try:
        index.save(place, tuned.to_json(), extra)
    except OSError as error:
        raise IndexFolderError(f"{place} cannot be written: {error.strerror}") from error
