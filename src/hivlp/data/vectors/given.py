"""Vectors that are in memory: an array with what is known of its rows, or a table with a column of lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.data.json_values import as_json, is_missing
from hivlp.data.readers.arrow import arrow_errors
from hivlp.data.vectors.files import CHUNK, COLUMN, Chunk, Raw, Told, is_vector, matrix, tell
from hivlp.data.vectors.source import EmbeddingSource
from hivlp.errors import DataError, MissingExtraError
from hivlp.levels import off_torch

HERE = Path("given")
"""What stands in messages for the file that given vectors do not have."""


class GivenVectors:
    """Vectors in an array, as one part of an :class:`hivlp.data.vectors.source.EmbeddingSource`.

    Attributes:
        file: stands for them in messages.
        rows: how many there are.
        dim: length of each.
    """

    file = HERE

    def __init__(self, array: Raw, told: Sequence[Told], refused: Mapping[int, str] | None = None) -> None:
        """All rows at once: (n, d) floats, what is known of each, and row -> why there is no vector in it."""
        self._array, self._told, self._refused = array, told, dict(refused or {})
        self.rows, self.dim = array.shape

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, some thousands at a time."""
        for first in range(0, self.rows, CHUNK):
            last = min(first + CHUNK, self.rows)
            refused = {row - first: why for row, why in self._refused.items() if first <= row < last}
            yield Chunk(self.file, first, self._array[first:last], self._told[first:last], refused, in_memory=True)

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        """At most so many rows drawn at random, in pieces, not checked."""
        rows = np.sort(rng.choice(self.rows, count, replace=False))
        for first in range(0, count, CHUNK):
            yield self._array[rows[first : first + CHUNK]]


def given_vectors(
    vectors: Any,
    *,
    ids: Iterable[Any] | None = None,
    captions: Iterable[str | None] | None = None,
    metadata: Any = None,
    column: str | None = None,
) -> EmbeddingSource:
    """A source of vectors that are in memory.

    Args:
        vectors: (n, d) array or tensor of floats, or a table (pandas, polars, Arrow) with a column of lists of floats.
        ids: n texts or whole numbers, which become the items' paths; default a column of the table as of parquet
            (:func:`hivlp.data.vectors.source.open_embeddings`), or the row's number.
        captions: n texts.
        metadata: n mappings, name -> n values, or a table of n rows.
        column: of a table that holds the vectors; default ``embedding``.

    Raises:
        DataError: if these are no vectors, or there is not one of each for every row.
        MissingExtraError: if a table is given and pyarrow is not installed.
    """
    if _is_table(vectors):
        array, told, refused = _of_table(vectors, column)
    else:
        array, told, refused = _matrix(vectors), [Told(None, None, {})] * len(vectors), {}
    count = len(array)
    if not count:
        raise DataError("there are no vectors")
    names = [told.path for told in told] if ids is None else [_name(each) for each in _listed("ids", ids, count)]
    names = [str(row) if name is None else name for row, name in enumerate(names)]
    if ids is not None and len(set(names)) < count:
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise DataError(f"ids must differ from each other: {twice!r:.80} comes twice")
    words = [told.caption for told in told] if captions is None else _listed("captions", captions, count)
    facts = [told.metadata for told in told] if metadata is None else _metadata(metadata, count)
    for row, (text, known) in enumerate(zip(words, facts, strict=True)):
        if not isinstance(text, str | None):
            raise DataError(f"caption {row} is no text, but {type(text).__name__}")
        if not isinstance(known, Mapping):
            raise DataError(f"metadata {row} is no mapping, but {type(known).__name__}")
    known_rows = [
        Told(name, text, _told(known, f"metadata {row}"))
        for row, (name, text, known) in enumerate(zip(names, words, facts, strict=True))
    ]
    return EmbeddingSource([GivenVectors(array, known_rows, refused)])


def _is_table(given: Any) -> bool:
    return hasattr(given, "__arrow_c_stream__") and hasattr(given, "columns")


def _of_table(given: Any, column: str | None) -> tuple[Raw, list[Told], dict[int, str]]:
    table = _arrow(given)
    lists = [field.name for field in table.schema if is_vector(field.type)]
    column = column or (COLUMN if COLUMN in table.schema.names or len(lists) != 1 else lists[0])
    if column not in lists:
        hint = f"name one of these: {', '.join(lists)}" if lists else "it has no lists of floats"
        raise DataError(f"the table has no vectors in a column {column}; {hint}")
    with arrow_errors("the table cannot be read"):
        cells = table.column(column).combine_chunks()
        if hasattr(cells, "chunks"):  # a chunked array of one chunk, in older versions
            cells = cells.chunk(0)
        lengths = [len(value) for value in cells[:1000] if value.is_valid]
        if not lengths:
            raise DataError(f"column {column} holds no vector")
        array, refused = matrix(cells, lengths[0])
    told: list[Told] = []
    others = [name for name in table.schema.names if name not in lists]
    for batch in table.select(others).combine_chunks().to_batches() if others else ():
        known, unusable = tell(HERE, batch)
        refused.update({len(told) + row: why for row, why in unusable.items()})
        told += known
    return array, told or [Told(None, None, {})] * len(array), refused


def _arrow(given: Any) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("a table", "data") from error
    try:
        table = pa.table(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{type(given).__name__} cannot be read as a table: {error}") from error
    # The rows of pandas' own index are numbers of no meaning, unless somebody has named them.
    return table.drop_columns([name for name in table.schema.names if name.startswith("__index_level_")])


def _matrix(given: Any) -> Raw:
    given = off_torch(given)
    try:
        array = np.asarray(given)
        if array.dtype.kind in "iu":
            array = array.astype(np.float32)
        if array.dtype == object:
            array = np.array([np.asarray(row, np.float32) for row in array])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"vectors are an (n, d) array of floats or a table, not {type(given).__name__}") from error
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] == 0:
        raise DataError(f"vectors are an (n, d) array of floats, not {array.shape} {array.dtype}")
    return array


def _listed(what: str, given: Iterable[Any], count: int) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(f"{what} must be one for each vector, not {type(given).__name__}")
    listed = given.tolist() if isinstance(given, np.ndarray) else list(given)
    if len(listed) != count:
        raise DataError(f"there are {count} vectors and {len(listed)} {what}")
    return listed


def _name(given: Any) -> str:
    """An id as the path of an item."""
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return str(int(given))
    if hasattr(given, "__fspath__"):
        return str(given)
    if not isinstance(given, str) or not given or "\0" in given:
        raise DataError(f"an id is a text or a whole number, not {given!r:.40}")
    return str(given)


def _metadata(given: Any, count: int) -> list[Any]:
    if _is_table(given):
        return _listed("rows of metadata", _arrow(given).to_pylist(), count)
    if isinstance(given, Mapping):
        columns = {str(name): _listed(f"values of {name}", values, count) for name, values in given.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] or [{}] * count
    return _listed("metadata", given, count)


def _told(metadata: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Metadata of a row as JSON holds them, without those that are missing; dates as text."""
    return {
        str(key): as_json(value.isoformat() if hasattr(value, "isoformat") else value, f"{where}: {key}")
        for key, given in metadata.items()
        if not is_missing(value := given.item() if isinstance(given, np.generic) else given)
    }
