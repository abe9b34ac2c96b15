"""Captions in a table beside the pictures: CSV, TSV or JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hivlp.data.pairs import Pair, Pairs, split_named, split_of_folders, split_of_name, within
from hivlp.data.readers.separated import read_separated
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.values import as_text, captions_of, column_named
from hivlp.errors import DataError
from hivlp.files.reading import parse_json, printable, read_lines

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "filepath", "file", "image_path", "image_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "comment")
SPLIT_COLUMNS = ("split",)
_NUMBERED = re.compile(r"(?P<image>[^\t]+\.\w+)#\d+\t(?P<caption>.*)")


def read_table(path: Path, images: Path | None = None) -> Pairs:
    """Read a table with a picture's path and a caption in each row.

    The columns are the first present of :data:`IMAGE_COLUMNS` and of :data:`CAPTION_COLUMNS`, and optionally
    ``split``, whatever their case. Rows of the same picture become one pair with several captions; in JSON lines a row
    may also hold a list of captions. Values become text by :func:`hivlp.data.readers.values.as_text`; rows without a
    caption are skipped and counted in the log. Without ``split``, the split is that of the table's name
    (``captions_val.csv``) or of the picture's folders (``val2017/1.jpg``).

    Args:
        path: a ``.jsonl`` file, or a ``.csv`` or ``.tsv`` file as :func:`hivlp.data.readers.separated.read_separated`
            takes it; UTF-8, or as its byte-order mark says. Or one without a header whose lines are Flickr's
            ``picture.jpg#0``, tab, caption.
        images: where picture paths start from; by default the table's folder.

    Raises:
        DataError: naming file and line, if a row cannot be used or names a picture outside the folder.
    """
    root = path.parent if images is None else images
    json_lines = path.suffix.lower() == ".jsonl"
    if json_lines:
        rows = _json_lines(path)
    elif _NUMBERED.match(next(read_lines(path), "")):
        rows = _numbered(path)
    else:
        rows = read_separated(path, IMAGE_COLUMNS, CAPTION_COLUMNS)
    skips = Skips()
    pairs = merge_rows(rows, root, skips, split_of_name(path.stem))
    return skips.close(path, pairs)


def merge_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], root: Path, skips: Skips, split_of_file: str | None = None
) -> list[Pair]:
    """Turn rows, each with a description of where it stands, into pairs in order of each picture's first row.

    A row without a path, or whose caption is no text, is passed over and named in the log.

    Raises:
        DataError: see :func:`read_table`.
    """
    captions: dict[str, dict[str, None]] = {}  # in order, each once
    splits: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    for where, row in rows:
        name = row[find_column(row, IMAGE_COLUMNS, "picture", where)]
        column = find_column(row, CAPTION_COLUMNS, "caption", where)
        try:
            name, texts = _path(name, where), captions_of(row[column], where)
        except DataError as error:
            skips.damage(error)
            continue
        split = row_split(row, where) or split_of_file or split_of_folders(name) or "train"
        if name not in pictures:
            pictures[name] = within(root, name, where)
            splits[name] = split
        elif splits[name] != split:
            raise DataError(f"{where}: {name} is in two splits, {splits[name]} and {split}")
        if not texts:
            skips.no_caption(where)
        captions.setdefault(name, {}).update(dict.fromkeys(texts))
    return [
        Pair(id=name, picture=picture, captions=tuple(captions[name]), split=splits[name])
        for name, picture in pictures.items()
        if captions[name]
    ]


def _path(name: Any, where: str) -> str:
    if isinstance(name, bytes):
        try:
            return name.decode()
        except UnicodeDecodeError:
            raise DataError(f"{where}: the picture's path holds bytes that are not UTF-8 text") from None
    if not isinstance(name, str):
        raise DataError(f"{where}: the picture's path is missing" + f": it is {name!r:.40}" * (name is not None))
    return name


def find_column(columns: Iterable[str], names: tuple[str, ...], what: str, where: str) -> str:
    """The first of ``names`` among the columns, see :func:`hivlp.data.readers.values.column_named`.

    Raises:
        DataError: if there is none.
    """
    found = column_named(columns, names)
    if found is None:
        raise DataError(f"{where}: no {what} column; it must be called {' or '.join(names)}")
    return found


def row_split(row: Mapping[str, Any], where: str) -> str | None:
    """The split that a row names, None if it names none.

    Raises:
        DataError: if it names one that does not exist.
    """
    column = column_named(row, SPLIT_COLUMNS)
    try:
        name = as_text(row[column]) if column is not None else None
    except ValueError as error:
        raise DataError(f"{where}: the split {error}") from error
    if not name or not name.strip():
        return None
    split = split_named(name)
    if split is None:
        raise DataError(f"{where}: there is no split {name!r:.40}")
    return split


def _numbered(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Lines of a picture's name, the caption's number, a tab and the caption, as Flickr8k and Flickr30k have them."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            row = _NUMBERED.match(line)
            if row is None:
                raise DataError(f"{where}: not a picture's name, # and a number, a tab, and a caption")
            yield where, row.groupdict()


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            yield where, parse_json(line, where)
