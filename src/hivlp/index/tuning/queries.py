"""Queries that an approximate index is tuned with: given ones, captions, words that the model knows, or items' sums."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.ann_index import MIN_ROUTER_ROWS
from hivlp.ann.rows import Stored, dim, floats
from hivlp.errors import DataError, QueryError
from hivlp.files import npy
from hivlp.files.reading import read_lines
from hivlp.index.queries import QueryEncoder
from hivlp.levels import Vectors
from hivlp.search.calibration import Progress
from hivlp.store.folder import Store

HELD_OUT = 400  # queries that operating points are measured with, if there are three times as many
MOST_HELD_OUT = 1000  # or a tenth of them: the better a recall is known, the faster the parameters that surely reach it
MOST_QUERIES = 20_000  # that are learnt from; of a large index, one for so many rows, as there are more lists to teach
GIVEN = ("given vectors", "given texts")
"""What queries are called that a person chose."""
ENCODED = 6_000  # texts that are encoded to learn from, at most


def split(asked: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The queries that operating points are measured with, and those to learn from."""
    held_out = max(1, min(HELD_OUT, len(asked) // 3), min(MOST_HELD_OUT, len(asked) // 10))
    return asked[:held_out], asked[held_out:]


def queries_to_learn(
    store: Store,
    encoder: QueryEncoder,
    given: Path | Sequence[str] | Vectors | None,
    vectors: Stored,
    tell: Progress,
) -> tuple[Vectors, str]:
    """(m, dim) unit vectors to learn and to measure with, and where they are from.

    Raises:
        QueryError: if those that are given make no sense.
    """
    if isinstance(given, Path) and given.suffix == ".npy":
        try:
            given = np.array(npy.parse(npy.map_file(given)))
        except (OSError, ValueError, MemoryError) as error:
            raise QueryError(f"{given} cannot be read: {error}") from error
    if isinstance(given, Path):
        try:
            given = [line.strip() for line in read_lines(given) if line.strip()]
        except DataError as error:
            raise QueryError(str(error)) from error
    width = dim(vectors)
    if isinstance(given, np.ndarray):
        if given.ndim != 2 or given.shape[1] != width or len(given) < 2 or given.dtype.kind != "f":
            raise QueryError(f"queries must be (2 or more, {width}) floats, not {given.shape} {given.dtype}")
        return unit(np.asarray(given, np.float32)), GIVEN[0]
    if given is not None:
        if len(given) < 2:
            raise QueryError("tuning needs at least two queries")
        return _encode(encoder, list(given)[:MOST_QUERIES], tell), GIVEN[1]
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
    if len(vectors) < MIN_ROUTER_ROWS:
        return _pairs_of_items(vectors), "pairs of items"
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(vectors), min(len(vectors), ENCODED), replace=False))
    return unit(floats(vectors[chosen])), "the items themselves"


def _pairs_of_items(vectors: Stored) -> Vectors:
    """(m, dim) unit sums of two items each: queries that are near to several items and equal to none.

    Items themselves would be too easy a sample where lists are ranked by their centroids: each is its own best answer,
    and texts lie apart from all pictures. A router, of larger indexes, learns more from the items.
    """
    rng, count = np.random.default_rng(0), len(vectors)
    some = min(count, ENCODED)
    first = rng.choice(count, some, replace=False)
    second = (first + rng.integers(1, count, some)) % count  # another one
    one, other = (unit(floats(vectors[rows])) for rows in (first, second))
    both = one + other
    opposite = np.linalg.norm(both, axis=1) < 1e-3
    both[opposite] = one[opposite]
    return unit(both)


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
        parts += [query[-1] for query in encoder.of_many(texts[start : start + 256], None, hint=False)]
        tell("queries", min(start + 256, len(texts)), len(texts))
    return np.stack(parts)


def unit(vectors: Vectors) -> Vectors:
    """Rows at length 1.

    Raises:
        QueryError: if one has no direction.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise QueryError("a query vector is zero or not finite")
    rows: Vectors = vectors / norms
    return rows
