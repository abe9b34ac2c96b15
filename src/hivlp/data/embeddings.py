"""Vectors that somebody has made already: ``.npy`` files, parquet columns, and folders as clip-retrieval writes them.

Everything is read in pieces; a set of vectors need not fit in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.data.table import CAPTION_COLUMNS
from hivlp.errors import DataError, MissingExtraError
from hivlp.levels import Vectors

Raw = NDArray[np.floating]

COLUMN = "embedding"
PATH_COLUMNS = ("path", "image_path", "file_name", "filename", "filepath", "file", "url", "id", "key")
IMAGE_FOLDER, TEXT_FOLDER, METADATA_FOLDER = "img_emb", "text_emb", "metadata"
CHUNK = 16_384
# Row groups of parquet are read whole when a sample is taken: so many times as many rows as are wanted, at most.
SAMPLE_EXCESS = 4


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
    """

    file: Path
    first: int
    vectors: Raw
    told: Sequence[Told]
    refused: Mapping[int, str]


class _Part(Protocol):
    """One file of vectors."""

    @property
    def file(self) -> Path: ...

    @property
    def dim(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def chunks(self) -> Iterator[Chunk]: ...

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]: ...


class EmbeddingSource:
    """One or several files of vectors, in order.

    Attributes:
        dim: length of every vector.
        rows: how many there are.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self.dim = parts[0].dim
        self.rows = sum(part.rows for part in parts)
        for part in parts:
            if part.dim != self.dim:
                raise DataError(f"{part.file} holds vectors of {part.dim} dims, {parts[0].file} of {self.dim}")

    def chunks(self) -> Iterator[Chunk]:
        """All rows, some thousands at a time.

        Raises:
            DataError: if a file turns out to be damaged.
        """
        for part in self._parts:
            yield from part.chunks()

    def sample(self, count: int, seed: int = 0) -> Vectors:
        """At most ``count`` unit vectors drawn from all files; rows that are no vectors are passed over.

        Raises:
            DataError: if a file turns out to be damaged.
        """
        rng = np.random.default_rng(seed)
        share = min(1.0, count / max(1, self.rows))
        vectors, filled = np.empty((min(count, self.rows), self.dim), np.float32), 0
        for part in self._parts:
            for raw in part.some(math.ceil(share * part.rows), rng):
                good, refused = unit_rows(raw)
                good = np.delete(good, list(refused), axis=0)[: len(vectors) - filled]
                vectors[filled : filled + len(good)] = good
                filled += len(good)
        return vectors[:filled]


def open_embeddings(path: Path | str, *, column: str | None = None, texts: bool = False) -> EmbeddingSource:
    """Open vectors without reading them.

    Args:
        path: a ``.npy`` file of (N, d) float16, float32 or float64; a parquet file with a column of lists of floats,
            beside which ``path`` (or ``image_path``, ``url``, ``id``, …) and ``caption`` are recognised and everything
            else is metadata; a folder of such files; or a clip-retrieval folder (``img_emb/img_emb_0.npy`` beside
            ``metadata/metadata_0.parquet``), whose files are paired by their number.
        column: of parquet that holds the vectors; default ``embedding``.
        texts: take ``text_emb`` of a clip-retrieval folder, not ``img_emb``.

    Raises:
        DataError: if there are no vectors there, or files do not fit together.
        MissingExtraError: if parquet is needed and pyarrow is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        return EmbeddingSource([_open_file(path, column)])
    if (path / IMAGE_FOLDER).is_dir() or (path / TEXT_FOLDER).is_dir():
        return EmbeddingSource(_open_clip_retrieval(path, texts or not (path / IMAGE_FOLDER).is_dir()))
    for suffix in (".npy", ".parquet"):
        if files := _numeric_order(path.glob(f"*{suffix}")):
            return EmbeddingSource([_open_file(file, column) for file in files])
    raise DataError(f"{path} holds no .npy or .parquet files, and no {IMAGE_FOLDER} folder as clip-retrieval writes it")


def has_texts(path: Path) -> bool:
    """Whether this is a clip-retrieval folder with vectors of pictures and of their texts."""
    return (path / IMAGE_FOLDER).is_dir() and (path / TEXT_FOLDER).is_dir()


def unit_rows(raw: Raw, out: Vectors | None = None) -> tuple[Vectors, dict[int, str]]:
    """Vectors at unit length, and row -> why it has none; such rows are zero.

    Args:
        raw: (n, d) floats.
        out: (n, d) where the vectors go; default a new array.

    Returns:
        (n, d) float32, and the refusals.
    """
    with np.errstate(all="ignore"):
        vectors = np.empty(raw.shape, np.float32) if out is None else out
        vectors[:] = raw
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        vectors /= norms[:, None]
    refused = {}
    # Squares outside float32 do not make a vector bad: look again, in double.
    for row in np.flatnonzero(~((norms > 1e-15) & (norms < 1e15))).tolist():
        exact = raw[row].astype(np.float64)
        largest = np.abs(exact).max(initial=0.0)
        vectors[row] = 0
        if not np.isfinite(largest):
            refused[row] = f"the vector holds {'NaN' if np.isnan(exact).any() else 'an infinite number'}"
        elif largest == 0:
            refused[row] = "the vector is zero"
        else:
            exact /= largest
            vectors[row] = exact / np.linalg.norm(exact)
    return vectors, refused


def _open_file(file: Path, column: str | None) -> _Part:
    match file.suffix.lower():
        case ".npy":
            return _Npy(file)
        case ".parquet":
            return _Parquet(file, column)
    raise DataError(f"{file} is neither .npy nor .parquet")


class _Npy:
    """Vectors in a memory-mapped array, with what metadata says of each."""

    def __init__(self, file: Path, metadata: Path | None = None) -> None:
        self.file = file
        try:
            self._array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file} is not a readable .npy file: {error}") from error
        if not isinstance(self._array, np.ndarray) or self._array.ndim != 2 or self._array.shape[1] == 0:
            shape = getattr(self._array, "shape", "?")
            raise DataError(f"{file} has shape {shape}: one vector a row, (rows, dims), is needed")
        if self._array.dtype.kind != "f" or self._array.dtype.itemsize not in (2, 4, 8):
            raise DataError(f"{file} holds {self._array.dtype}: float16, float32 or float64 is needed")
        self.rows, self.dim = self._array.shape
        self._metadata = metadata
        if metadata is not None:
            with _opened(metadata) as parquet:
                count = parquet.metadata.num_rows
            if count != self.rows:
                raise DataError(
                    f"{file} has {self.rows} rows, {metadata} has {count}: captions and paths would be off by some; "
                    "was the export interrupted?"
                )

    def chunks(self) -> Iterator[Chunk]:
        told = _told(self._metadata) if self._metadata else None
        for first in range(0, self.rows, CHUNK):
            vectors = np.asarray(self._array[first : first + CHUNK])
            yield Chunk(self.file, first, vectors, next(told) if told else [NOTHING_TOLD] * len(vectors), {})

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        rows = np.sort(rng.choice(self.rows, count, replace=False))
        for first in range(0, count, CHUNK):
            yield np.asarray(self._array[rows[first : first + CHUNK]])


class _Parquet:
    """Vectors in a column of lists."""

    def __init__(self, file: Path, column: str | None) -> None:
        import pyarrow as pa

        self.file = file
        with _opened(file) as parquet:
            schema = parquet.schema_arrow
            lists = [field.name for field in schema if _is_vector(field.type)]
            self._column = column or COLUMN
            if self._column not in schema.names:
                hint = f"name one of these with --column: {', '.join(lists)}" if lists else "it has no lists of floats"
                raise DataError(f"{file} has no column {self._column}; {hint}")
            kind = schema.field(self._column).type
            if self._column not in lists:
                raise DataError(f"{file}: column {self._column} holds {kind}, not lists of float16, float32 or float64")
            self._groups = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
            self.rows = sum(self._groups)
            self._others = [name for name in schema.names if name not in lists]
            self.dim = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_length(parquet)
            if self.dim < 1:
                raise DataError(f"{file}: column {self._column} holds no vector")

    def _first_length(self, parquet: Any) -> int:
        for batch in parquet.iter_batches(CHUNK, columns=[self._column]):
            for value in batch.column(0):
                if value.is_valid and len(value):
                    return len(value)
        return 0

    def chunks(self) -> Iterator[Chunk]:
        first = 0
        with _opened(self.file) as parquet:
            for batch in _batches(self.file, parquet, [self._column, *self._others]):
                vectors, refused = _matrix(batch.column(self._column), self.dim)
                told = _tell(batch.select(self._others)) if self._others else [NOTHING_TOLD] * len(vectors)
                yield Chunk(self.file, first, vectors, told, refused)
                first += len(vectors)

    def some(self, count: int, rng: np.random.Generator) -> Iterator[Raw]:
        groups, held = [], 0
        for group in rng.permutation(len(self._groups)).tolist():
            if held < SAMPLE_EXCESS * count:
                groups.append(group)
                held += self._groups[group]
        chosen = np.sort(rng.choice(held, min(count, held), replace=False))
        first = 0
        with _opened(self.file) as parquet:
            for batch in _batches(self.file, parquet, [self._column], sorted(groups)):
                here = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
                first += len(batch)
                yield _matrix(batch.column(0).take(here), self.dim)[0]


def _is_vector(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and pa.types.is_floating(kind.value_type)


def _matrix(column: Any, dim: int) -> tuple[Raw, dict[int, str]]:
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


def _told(file: Path) -> Iterator[list[Told]]:
    """What a metadata file says, CHUNK rows at a time."""
    pending: list[Told] = []
    with _opened(file) as parquet:
        names = [field.name for field in parquet.schema_arrow if not _is_vector(field.type)]
        for batch in _batches(file, parquet, names):
            pending += _tell(batch)
            while len(pending) >= CHUNK:
                yield pending[:CHUNK]
                pending = pending[CHUNK:]
    if pending:
        yield pending


def _tell(batch: Any) -> list[Told]:
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    paths = next((columns.pop(name) for name in PATH_COLUMNS if name in columns), [None] * len(batch))
    captions = next((columns.pop(name) for name in CAPTION_COLUMNS if name in columns), [None] * len(batch))
    told = []
    for row, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        metadata = {name: plain for name, values in columns.items() if (plain := _plain(values[row])) is not None}
        told.append(Told(_text(path), _text(caption), metadata))
    return told


def _text(value: Any) -> str | None:
    if isinstance(value, list):  # several captions
        value = next((each for each in value if each), None)
    return None if value is None or value == "" else str(value)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, None if it has nothing to say."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case bytes():
            return None
    return str(value)  # dates, decimals


def _opened(file: Path) -> Any:
    """A parquet file, to be used in a ``with``."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading parquet", "data") from error
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is not a readable parquet file: {str(error).splitlines()[0]}") from error


def _batches(file: Path, parquet: Any, columns: list[str], groups: list[int] | None = None) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from parquet.iter_batches(CHUNK, columns=columns, row_groups=groups)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def _open_clip_retrieval(folder: Path, texts: bool) -> list[_Npy]:
    name = TEXT_FOLDER if texts else IMAGE_FOLDER
    vectors = _numbered(folder / name, ".npy")
    if not vectors:
        raise DataError(f"{folder / name} holds no files such as {name}_0.npy")
    if not (folder / METADATA_FOLDER).is_dir():
        return [_Npy(file) for file in vectors.values()]
    metadata = _numbered(folder / METADATA_FOLDER, ".parquet")
    # A file without its partner would leave captions beside other pictures' vectors, or vectors without a name.
    for number in sorted(vectors.keys() ^ metadata.keys()):
        lone, missing = (vectors, METADATA_FOLDER) if number in vectors else (metadata, name)
        raise DataError(f"{lone[number]} has no partner number {number} in {folder / missing}")
    return [_Npy(file, metadata[number]) for number, file in vectors.items()]


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Number at the end of a file's name -> the file, in numeric order."""
    found: dict[int, Path] = {}
    for file in folder.glob(f"*{suffix}"):
        if match := re.search(r"(\d+)$", file.stem):
            number = int(match[1])
            if number in found:
                raise DataError(f"{found[number]} and {file} have the same number")
            found[number] = file
    return dict(sorted(found.items()))


def _numeric_order(files: Iterable[Path]) -> list[Path]:
    """By name, numbers in it by their value."""

    def key(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", file.name)
        return [(int(part) if place % 2 else 0, part) for place, part in enumerate(parts)]

    return sorted(files, key=key)
