"""Captions in parquet files, with the pictures inside them or beside them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.data.pairs import Pair, Pairs, split_of_shard, within
from hivlp.data.readers.arrow import arrow_errors, batches, is_bytes, is_text, opened, plain_type, values
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.table import CAPTION_COLUMNS, IMAGE_COLUMNS, SPLIT_COLUMNS, find_column, merge_rows, row_split
from hivlp.data.readers.values import captions_of, column_named
from hivlp.errors import DataError, PictureError
from hivlp.files.reading import printable

PATH_LIMIT = 4096
SAMPLE = 64  # rows that are looked at to tell paths from pictures


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
            with arrow_errors(f"row group {self.group}"):
                value = _column_chunk(self.file, self.column, self.group, self.file.stat().st_mtime_ns)[
                    self.row
                ].as_py()
            if isinstance(value, dict):
                path = value.get("path")
                value = value.get("bytes")
                if value is None and isinstance(path, str):
                    value = Pair("", within(self.images, path, str(self.file)), ()).read()
        except DataError as error:
            raise PictureError(f"cannot be read from {self.file}: {error}") from error
        if not isinstance(value, bytes):
            raise PictureError(f"row {self.row} of group {self.group} in {self.file} has no picture")
        return value


def read_parquet(files: Sequence[Path], root: Path, images: Path | None = None) -> Pairs:
    """Read parquet files with a picture and one or several captions in each row.

    The picture column holds paths, encoded pictures, or structs of both; columns are named and their values converted
    as by :func:`hivlp.data.readers.table.read_table`. Without a ``split`` column, the split is that of the file's name
    (``test-00000-of-00004.parquet``), of its folders or of the picture's. Pictures stay in the files until they are
    read.

    A file or a row group that is damaged is passed over, and named in the log.

    Args:
        files: in the order wanted.
        root: the folder that their names start from.
        images: where picture paths start from; by default the folder of each file.

    Raises:
        DataError: if a file has no such columns, a row cannot be used, or nothing is left because files are damaged.
        MissingExtraError: if pyarrow is not installed.
    """
    skips = Skips()
    pairs: list[Pair] = []
    for file in files:
        with contextlib.ExitStack() as stack:
            try:
                parquet = stack.enter_context(opened(file))
            except DataError as error:
                skips.damage(error)
                continue
            shard = file.relative_to(root).with_suffix("").as_posix()
            reader = _Reader(file, shard, parquet, skips, split_of_shard(file, root))
            pairs += reader.pairs(file.parent if images is None else images)
    return skips.close(root, pairs)


@dataclass(frozen=True)
class _Reader:
    """One open file."""

    file: Path
    shard: str
    parquet: Any
    skips: Skips
    split: str | None

    def pairs(self, images: Path) -> list[Pair]:
        """What the rows hold."""
        import pyarrow as pa

        where, schema = printable(self.file), self.parquet.schema_arrow
        image = find_column(schema.names, IMAGE_COLUMNS, "picture", where)
        caption = find_column(schema.names, CAPTION_COLUMNS, "caption", where)
        split = column_named(schema.names, SPLIT_COLUMNS)
        others = [caption] + ([split] if split else [])
        kind = plain_type(schema.field(image).type)
        if is_text(kind) or (is_bytes(kind) and self._holds_paths(image)):
            return merge_rows((row[::3] for row in self._rows([image, *others])), images, self.skips, self.split)
        if not (pa.types.is_struct(kind) or is_bytes(kind)):
            raise DataError(f"{where}: column {image} holds {kind}, not paths or pictures")
        pairs = []
        for number, (place, group, index, row) in enumerate(self._rows(others)):
            try:
                captions = captions_of(row[caption], place)
            except DataError as error:
                self.skips.damage(error)
                continue
            if not captions:
                self.skips.no_caption(place)
                continue
            cell = ParquetCell(self.file, image, group, index, images)
            said = row_split(row, place) or self.split or "train"
            pairs.append(Pair(f"{self.shard}/{number}", cell, captions, said, self.shard))
        return pairs

    def _holds_paths(self, column: str) -> bool:
        """Whether bytes are text: no format of pictures begins with a line of it that is so long."""
        for group in range(self.parquet.num_row_groups):
            with contextlib.suppress(DataError):  # a group that is damaged is named when rows are read
                for batch in batches(self.file, self.parquet, [column], [group]):
                    for value in values(self.file, batch.slice(0, SAMPLE), column):
                        if value is not None:
                            return is_path(value)
        return False

    def _rows(self, columns: list[str]) -> Iterator[tuple[str, int, int, Mapping[str, Any]]]:
        """Each row's description, row group, place within it, and values."""
        first = 0
        for group in range(self.parquet.num_row_groups):
            index = 0
            try:
                for batch in batches(self.file, self.parquet, columns, [group]):
                    cells = [values(self.file, batch, column) for column in columns]
                    for row in zip(*cells, strict=True):
                        place = f"{printable(self.file)}, row {first + index + 1}"
                        yield place, group, index, dict(zip(columns, row, strict=True))
                        index += 1
            except DataError as error:
                self.skips.damage(f"{error}; the rows {first + index + 1} and following of group {group} are lost")
            first += self.parquet.metadata.row_group(group).num_rows


def is_path(value: bytes) -> bool:
    """Whether bytes are a picture's path: no format of pictures begins with a line of text."""
    try:
        return len(value) <= PATH_LIMIT and value.decode().isprintable()
    except UnicodeDecodeError:
        return False


@functools.lru_cache(maxsize=2)
def _column_chunk(file: Path, column: str, group: int, changed: int) -> Any:
    with opened(file) as parquet:
        return parquet.read_row_group(group, columns=[column]).column(column)
