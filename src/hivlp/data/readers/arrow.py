"""Parquet reading by pyarrow, with every error turned into one line that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.errors import DataError, HivlpError, MissingExtraError
from hivlp.files.reading import one_line, open_regular, printable

_SHORT_FLOATS: dict[str, Any] = {"float": np.float32, "halffloat": np.float16}
ROWS = 16_384
"""Rows that are read at a time."""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A :class:`pyarrow.parquet.ParquetFile`, closed at the end.

    Raises:
        DataError: if it cannot be opened, or two columns have the same name.
        MissingExtraError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading parquet", "data") from error
    open_regular(file).close()
    with arrow_errors(f"{printable(file)} is not a readable parquet file"):
        parquet = pq.ParquetFile(file)
    with parquet:
        names = parquet.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{printable(file)}: two columns are called {twice!r}")
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        if min(counts, default=0) < 0 or sum(counts) != parquet.metadata.num_rows:
            raise DataError(f"{printable(file)} is damaged: its row groups hold {counts[:5]} of its rows")
        yield parquet


@contextlib.contextmanager
def arrow_errors(what: str) -> Iterator[None]:
    """Turn whatever reading raises into a DataError that begins with ``what``."""
    try:
        yield
    except HivlpError:
        raise
    except MemoryError as error:
        raise DataError(f"{what}: it needs more memory than there is") from error
    except Exception as error:
        # pyarrow raises its own errors, OSError, and whatever Python's conversions run into: UnicodeDecodeError,
        # OverflowError for dates that no calendar has, NotImplementedError, KeyError, ...
        raise DataError(f"{what}: {one_line(error)}") from error


def batches(
    file: Path | str, parquet: Any, columns: Sequence[str], groups: Sequence[int] | None = None, size: int = ROWS
) -> Iterator[Any]:
    """Record batches of at most ``size`` rows, of some columns and row groups.

    Raises:
        DataError: if the file is damaged there.
    """
    found = parquet.iter_batches(size, columns=list(columns), row_groups=None if groups is None else list(groups))
    while True:
        with arrow_errors(f"{printable(file)} is damaged"):
            batch = next(found, None)
        if batch is None:
            return
        yield batch


def values(file: Path | str, batch: Any, column: str) -> list[Any]:
    """The values of one column of a batch, as Python has them; texts as bytes if one of them is not UTF-8.

    Raises:
        DataError: if they are none.
    """
    with arrow_errors(f"{printable(file)}: column {column} cannot be read"):
        array = batch.column(column)
        short = _SHORT_FLOATS.get(str(plain_type(array.type)))
        if short is not None:  # 0.1 as it was meant, not as the nearest float64 has it
            return [None if each is None else float(str(short(each))) for each in array.to_pylist()]
        try:
            found: list[Any] = array.to_pylist()
        except (ValueError, OverflowError, NotImplementedError):
            import pyarrow as pa

            if is_text(array.type):  # some of it is not UTF-8: let each value be looked at
                found = array.cast(plain_type(array.type)).cast(pa.large_binary()).to_pylist()
            elif pa.types.is_temporal(array.type):
                # Times finer than Python's; and farther ones, which have no text either.
                texts = array.cast(pa.string()).to_pylist()
                found = [None if text and text.startswith("<value out of range") else text for text in texts]
            else:
                raise
        return found


def plain_type(kind: Any) -> Any:
    """What an arrow type is of, without an extension's name or a dictionary around it."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def is_text(kind: Any) -> bool:
    """Whether an arrow type is one of strings."""
    return str(plain_type(kind)) in ("string", "large_string", "string_view")


def is_bytes(kind: Any) -> bool:
    """Whether an arrow type is one of bytes."""
    return str(plain_type(kind)).startswith(("binary", "large_binary", "fixed_size_binary"))
