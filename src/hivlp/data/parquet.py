"""Captions in parquet files, with the pictures inside them or beside them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.data.pairs import Pair, clean_captions, split_of_shard, within
from hivlp.data.table import CAPTION_COLUMNS, IMAGE_COLUMNS, find_column, merge_rows, row_split
from hivlp.errors import DataError, MissingExtraError, PictureError


@dataclass(frozen=True)
class ParquetCell:
    """A picture in one row of a parquet file.

    The smallest part of a column that can be read is a row group. The last two are kept, so reading in order is fast;
    reading in random order reads a group for nearly every picture.

    Attributes:
        file: the parquet file.
        column: holds the bytes, or a ``{bytes, path}`` struct as Hugging Face's datasets write it.
        group: number of the row group.
        row: within the group.
        images: where the path of a struct without bytes starts from.
    """

    file: Path
    column: str
    group: int
    row: int
    images: Path

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            PictureError: if it cannot be had.
        """
        try:
            value = _column_chunk(self.file, self.column, self.group)[self.row].as_py()
            if isinstance(value, dict):
                path = value.get("path")
                value = value.get("bytes")
                if value is None and isinstance(path, str):
                    value = within(self.images, path, str(self.file)).read_bytes()
        except (OSError, ValueError, LookupError, DataError) as error:  # pyarrow's errors are ValueError or OSError
            raise PictureError(f"cannot be read from {self.file}: {error}") from error
        if not isinstance(value, bytes):
            raise PictureError(f"row {self.row} of group {self.group} in {self.file} has no picture")
        return value


def read_parquet(files: Sequence[Path], images: Path | None = None) -> list[Pair]:
    """Read parquet files with a picture and one or several captions in each row.

    The picture column holds paths, encoded pictures, or structs of both; columns are named as in
    :func:`hivlp.data.table.read_table`. Without a ``split`` column, a file name that begins with a split's name
    (``test-00000-of-00004.parquet``) decides. Pictures stay in the files until they are read.

    Args:
        files: in the order wanted.
        images: where picture paths start from; by default the folder of each file.

    Raises:
        DataError: if a file cannot be used.
        MissingExtraError: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("reading parquet", "data") from error
    pairs: list[Pair] = []
    for file in files:
        try:
            pairs += _read_file(file, file.parent if images is None else images)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is not a readable parquet file: {str(error).splitlines()[0]}") from error
    return pairs


def _read_file(file: Path, images: Path) -> list[Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        image = find_column(schema.names, IMAGE_COLUMNS, "picture", str(file))
        caption = find_column(schema.names, CAPTION_COLUMNS, "caption", str(file))
        others = [caption] + (["split"] if "split" in schema.names else [])
        kind = schema.field(image).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            rows = ((where, row) for where, _, _, row in _rows(parquet, file, [image, *others]))
            return merge_rows(rows, images, split_of_shard(file))
        if not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(f"{file}: column {image} holds {kind}, not paths or pictures")
        pairs = []
        for count, (where, group, index, row) in enumerate(_rows(parquet, file, others)):
            if captions := clean_captions(row[caption]):
                cell = ParquetCell(file, image, group, index, images)
                split = row_split(row, where) or split_of_shard(file)
                pairs.append(Pair(f"{file.stem}/{count}", cell, captions, split))
        return pairs


def _rows(parquet: Any, file: Path, columns: list[str]) -> Iterator[tuple[str, int, int, Mapping[str, Any]]]:
    """Each row's description, row group, place within it, and values."""
    count = 0
    for group in range(parquet.num_row_groups):
        for index, row in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
            count += 1
            yield f"{file}, row {count}", group, index, row


@functools.lru_cache(maxsize=2)
def _column_chunk(file: Path, column: str, group: int) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(column)
