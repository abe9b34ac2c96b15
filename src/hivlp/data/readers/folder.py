"""A folder of pictures with a caption file beside each, or a table for all."""

from __future__ import annotations

from pathlib import Path

from hivlp.data.pairs import Pair, Pairs, split_of_folders
from hivlp.data.readers.skips import Skips
from hivlp.data.readers.table import read_table
from hivlp.data.readers.values import clean_captions
from hivlp.data.walk import Found, NotRead, find_pictures
from hivlp.errors import DataError
from hivlp.files.reading import printable, read_text

_TABLES = tuple(f"{stem}.{suffix}" for stem in ("captions", "metadata") for suffix in ("jsonl", "csv", "tsv"))


def read_folder(root: Path) -> Pairs:
    """Read a folder of pictures.

    If it holds a table called ``captions`` or ``metadata`` (``.jsonl``, ``.csv`` or ``.tsv``), that counts. Otherwise
    each line of ``X.txt`` is a caption of the picture ``X.*`` next to it, at any depth; pictures without a caption are
    passed over, and a folder named like a split (``train``, ``val2017``, ``test_images``) makes that split. Captions
    that cannot be read cost their picture, named in the log.

    Raises:
        DataError: if the table cannot be read, or nothing is left because captions cannot be.
    """
    for table in _TABLES:
        if (root / table).is_file():
            return read_table(root / table)
    pairs = []
    bare: list[Path] = []
    skips = Skips()
    for found in find_pictures([root]):
        if isinstance(found, NotRead):
            if found.path.with_suffix(".txt").is_file():
                skips.damage(f"{printable(found.path)}: {found.why}")
            continue
        if not isinstance(found, Found):
            skips.damage(f"{printable(found.path)}: {found.error}")
            continue
        try:
            captions = _sidecar(found.path.with_suffix(".txt"))
        except DataError as error:
            skips.damage(error)
            continue
        if not captions:
            bare.append(found.path)
        else:
            name = found.path.relative_to(root).as_posix()
            pairs.append(Pair(name, found.path, captions, split_of_folders(name) or "train"))
    for path in bare if pairs else ():  # a folder without any is no data set, and is said to be none
        skips.no_caption(printable(path))
    return skips.close(root, pairs)


def _sidecar(path: Path) -> tuple[str, ...]:
    try:
        if not path.exists():
            return ()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from error
    return clean_captions(read_text(path).splitlines())
