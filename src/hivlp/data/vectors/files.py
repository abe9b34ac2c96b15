"""One file of vectors, read in chunks: ``.npy`` or a parquet column, with path, caption and metadata of each row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.data.readers.arrow import arrow_errors, batches, opened, values
from hivlp.data.readers.table import CAPTION_COLUMNS
from hivlp.data.readers.values import as_text, column_named
from hivlp.errors import DataError
from hivlp.files.npy import open_npy

Raw = NDArray[np.floating]

COLUMN = "embedding"
PATH_COLUMNS = ("path", "image_path", "file_name", "filename", "filepath", "file", "url", "id", "key")
CHUNK = 16_384
# Row groups of parquet are read whole when a sample is taken: so many times as many rows as are wanted, at most.
SAMPLE_EXCESS = 4


class UnfitError(DataError):
    """A sound file of another layout, or that does not belong to its partner: not to be skipped as a damaged one is."""


@dataclass(frozen=True)
class Told:
    """What is known of one vector beside its numbers."""

    path: str | None
    caption: str | None
    metadata: dict[str, Any]


NOTHING_TOLD = Told(None, None, {})


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file.

    Attributes:
        file: that holds the vectors.
        first: number of the first row within the file, from 0.
        vectors: (n, d) float16, float32 or float64 as stored; no row is checked yet.
        told: n of what is known.
        refused: row of the chunk -> why there is no vector in it; ``vectors`` holds zeros there.
        in_memory: whether they were given, and ``file`` only stands for them in messages.
    """

    file: Path
    first: int
    vectors: Raw
    told: Sequence[Told]
    refused: Mapping[int, str]
    in_memory: bool = False


class NpyFile:
    """Vectors in a memory-mapped array, with what metadata says of each.

    Attributes:
        file: that holds them.
        rows: how many there are.
        dim: length of each.
    """

    def __init__(self, file: Path, metadata: Path | None = None) -> None:
        self.file = file
        self._array = open_npy(file)
        if self._array.ndim != 2 or self._array.shape[1] == 0:
            raise UnfitError(f"{file} has shape {self._array.shape}: one vector a row, (rows, dims), is needed")
        self.rows, self.dim = self._array.shape
        self._metadata = metadata
        if metadata is not None:
            with opened(metadata) as parquet:
                count = parquet.metadata.num_rows
            if count != self.rows:
                raise UnfitError(
                    f"{file} has {self.rows} rows, {metadata} has {count}: captions and paths would be off by some; "
                    "was the export interrupted?"
                )

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, at most ``CHUNK`` at a time."""
        told = _told(self._metadata) if self._metadata else None
        for first in range(0, self.rows, CHUNK):
            vectors = np.asarray(self._array[first : first + CHUNK])
            known, refused = next(told, ([], {})) if told else ([NOTHING_TOLD] * len(vectors), {})
            if len(known) != len(vectors):
                raise DataError(f"{self._metadata} is damaged: it ends before row {first + len(vectors)}")
            yield Chunk(self.file, first, vectors, known, refused)

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        """At most so many rows drawn at random, in pieces, not checked."""
        rows = np.sort(rng.choice(self.rows, count, replace=False))
        for first in range(0, count, CHUNK):
            yield np.asarray(self._array[rows[first : first + CHUNK]])


class ParquetColumn:
    """Vectors in a column of lists; attributes as of :class:`NpyFile`."""

    def __init__(self, file: Path, column: str | None) -> None:
        self.file = file
        with opened(file) as parquet:
            import pyarrow as pa

            schema = parquet.schema_arrow
            lists = [field.name for field in schema if is_vector(field.type)]
            self._column = column or COLUMN
            if self._column not in schema.names:
                hint = f"name one of these with --column: {', '.join(lists)}" if lists else "it has no lists of floats"
                raise UnfitError(f"{file} has no column {self._column}; {hint}")
            kind = schema.field(self._column).type
            if self._column not in lists:
                raise UnfitError(
                    f"{file}: column {self._column} holds {kind}, not lists of float16, float32 or float64"
                )
            self._groups = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
            self.rows = sum(self._groups)
            self._others = [name for name in schema.names if name not in lists]
            self.dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_length(parquet)
            if self.dim < 1:
                raise UnfitError(f"{file}: column {self._column} holds no vector")

    def _first_length(self, parquet: Any) -> int:
        for batch in batches(self.file, parquet, [self._column], size=CHUNK):
            for value in batch.column(0):
                if value.is_valid and len(value):
                    return len(value)
        return 0

    def chunks(self) -> Iterator[Chunk]:
        """See :class:`NpyFile`."""
        first = 0
        with opened(self.file) as parquet:
            for batch in batches(self.file, parquet, [self._column, *self._others], size=CHUNK):
                vectors, refused = self._matrix(batch.column(self._column))
                told, unusable = tell(self.file, batch.select(self._others))
                yield Chunk(self.file, first, vectors, told, unusable | refused)
                first += len(vectors)

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        """See :class:`NpyFile`."""
        groups, held = [], 0
        for group in rng.permutation(len(self._groups)).tolist():
            if held < SAMPLE_EXCESS * count:
                groups.append(group)
                held += self._groups[group]
        chosen = np.sort(rng.choice(held, min(count, held), replace=False))
        first = 0
        with opened(self.file) as parquet:
            for batch in batches(self.file, parquet, [self._column], sorted(groups), CHUNK):
                here = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
                first += len(batch)
                yield self._matrix(batch.column(0).take(here))[0]

    def _matrix(self, column: Any) -> tuple[Raw, dict[int, str]]:
        with arrow_errors(f"{self.file} is damaged"):
            return matrix(column, self.dim)


class Part(Protocol):
    """Vectors of one origin, usually a file; attributes as of :class:`NpyFile`."""

    file: Path
    rows: int
    dim: int

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order, at most ``CHUNK`` at a time."""

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        """At most so many rows drawn at random, in pieces, not checked."""


def is_vector(kind: Any) -> bool:
    """Whether an arrow type is a list of floats."""
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and pa.types.is_floating(kind.value_type)


def matrix(column: Any, dim: int) -> tuple[Raw, dict[int, str]]:
    """(n, dim) of an arrow column of lists, and row -> why it is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    kind = np.dtype(column.type.value_type.to_pandas_dtype())
    wrong = np.flatnonzero(lengths != dim).tolist()
    refused = {row: "no vector" if lengths[row] < 0 else f"{lengths[row]} numbers, not {dim}" for row in wrong}
    good = column if not refused else column.filter(pa.array(lengths == dim))
    # A number that is missing inside a list becomes NaN, and is refused as such.
    numbers = np.asarray(good.flatten().to_numpy(zero_copy_only=False), kind).reshape(-1, dim)
    if not refused:
        return numbers, refused
    vectors = np.zeros((len(column), dim), kind)
    vectors[lengths == dim] = numbers
    return vectors, refused


def _told(file: Path) -> Iterator[tuple[list[Told], dict[int, str]]]:
    """What a metadata file says of CHUNK rows at a time, and row -> why what it says cannot be used."""
    pending: list[Told] = []
    wrong: dict[int, str] = {}
    with opened(file) as parquet:
        names = [field.name for field in parquet.schema_arrow if not is_vector(field.type)]
        for batch in batches(file, parquet, names, size=CHUNK):
            told, refused = tell(file, batch)
            wrong.update({len(pending) + row: why for row, why in refused.items()})
            pending += told
            while len(pending) >= CHUNK:
                yield pending[:CHUNK], {row: why for row, why in wrong.items() if row < CHUNK}
                pending = pending[CHUNK:]
                wrong = {row - CHUNK: why for row, why in wrong.items() if row >= CHUNK}
    if pending:
        yield pending, wrong


def tell(file: Path, batch: Any) -> tuple[list[Told], dict[int, str]]:
    """What a batch says of each row, and row -> why its path or caption cannot be used."""
    columns = {name: values(file, batch, name) for name in batch.schema.names}
    named, captioned = (column_named(columns, names) for names in (PATH_COLUMNS, CAPTION_COLUMNS))
    paths, captions = (columns.pop(name) if name else [None] * len(batch) for name in (named, captioned))
    told, refused = [], {}
    for row, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        metadata = {name: plain for name, cells in columns.items() if (plain := _plain(cells[row])) is not None}
        known: list[str | None] = []
        for column, value in ((named, path), (captioned, caption)):
            try:
                known.append(_text(value))
            except ValueError as error:
                known.append(None)
                refused[row] = f"column {column} {error}"
        told.append(Told(known[0], known[1], metadata))
    return told, refused


def _text(value: Any) -> str | None:
    if isinstance(value, list):  # several captions
        return next((text for each in value if (text := as_text(each))), None)
    return as_text(value) or None


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, None if it has nothing to say."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case bytes():
            return None  # thumbnails and the like
    return str(value)  # dates, decimals
