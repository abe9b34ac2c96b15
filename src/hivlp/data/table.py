"""Captions in a table beside the pictures: CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hivlp.data.pairs import Pair, clean_captions, split_named, within
from hivlp.errors import DataError

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "filepath", "file")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")


def read_table(path: Path, images: Path | None = None) -> list[Pair]:
    """Read a table with a picture's path and a caption in each row.

    The columns are the first present of :data:`IMAGE_COLUMNS` and of :data:`CAPTION_COLUMNS`, and optionally
    ``split``. Rows of the same picture become one pair with several captions; in JSON lines a row may also hold a list
    of captions. Rows without a caption are passed over.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file in UTF-8.
        images: where picture paths start from; by default the table's folder.

    Raises:
        DataError: naming file and row, if a row cannot be used or names a picture outside the folder.
    """
    root = path.parent if images is None else images
    rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _separated(path)
    try:
        return merge_rows(rows, root)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error


def merge_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], root: Path, default_split: str = "train") -> list[Pair]:
    """Turn rows, each with a description of where it stands, into pairs in order of each picture's first row.

    Raises:
        DataError: see :func:`read_table`.
    """
    captions: dict[str, tuple[str, ...]] = {}
    splits: dict[str, str] = {}
    pictures: dict[str, Path] = {}
    for where, row in rows:
        name = row[find_column(row, IMAGE_COLUMNS, "picture", where)]
        texts = clean_captions(row[find_column(row, CAPTION_COLUMNS, "caption", where)])
        if not isinstance(name, str):
            raise DataError(f"{where}: the picture's path is missing")
        split = row_split(row, where) or default_split
        if name not in pictures:
            pictures[name] = within(root, name, where)
            splits[name] = split
        elif splits[name] != split:
            raise DataError(f"{where}: {name} is in two splits, {splits[name]} and {split}")
        captions[name] = tuple(dict.fromkeys((*captions.get(name, ()), *texts)))
    return [
        Pair(id=name, picture=picture, captions=captions[name], split=splits[name])
        for name, picture in pictures.items()
        if captions[name]
    ]


def find_column(columns: Iterable[str], names: tuple[str, ...], what: str, where: str) -> str:
    """The first of ``names`` among the columns.

    Raises:
        DataError: if there is none.
    """
    present = set(columns)
    for name in names:
        if name in present:
            return name
    raise DataError(f"{where}: no {what} column; it must be called {' or '.join(names)}")


def row_split(row: Mapping[str, Any], where: str) -> str | None:
    """The split that a row names, None if it names none.

    Raises:
        DataError: if it names one that does not exist.
    """
    name = row.get("split")
    if not name:
        return None
    split = split_named(str(name))
    if split is None:
        raise DataError(f"{where}: there is no split {name!r}")
    return split


def _separated(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: not a JSON object")
            yield where, row
