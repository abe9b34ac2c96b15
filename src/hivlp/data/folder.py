"""A folder of pictures with a caption file beside each, or a table for all."""

from __future__ import annotations

from pathlib import Path

from hivlp.data.pairs import Pair, clean_captions, split_named
from hivlp.data.table import read_table
from hivlp.data.walk import Found, find_pictures
from hivlp.errors import DataError

_TABLES = tuple(f"{stem}.{suffix}" for stem in ("captions", "metadata") for suffix in ("jsonl", "csv", "tsv"))


def read_folder(root: Path) -> list[Pair]:
    """Read a folder of pictures.

    If it holds a table called ``captions`` or ``metadata`` (``.jsonl``, ``.csv`` or ``.tsv``), that counts. Otherwise
    each line of ``X.txt`` is a caption of the picture ``X.*`` next to it, at any depth; pictures without a caption are
    passed over, and a top-level folder named like a split (``train``, ``val``, ``test``) makes that split.

    Raises:
        DataError: if a caption file cannot be read.
    """
    for table in _TABLES:
        if (root / table).is_file():
            return read_table(root / table)
    pairs = []
    for found in find_pictures([root]):
        if isinstance(found, Found) and (captions := _sidecar(found.path.with_suffix(".txt"))):
            name = found.path.relative_to(root)
            split = split_named(name.parts[0]) if len(name.parts) > 1 else None
            pairs.append(Pair(name.as_posix(), found.path, captions, split or "train"))
    return pairs


def _sidecar(path: Path) -> tuple[str, ...]:
    try:
        return clean_captions(path.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
