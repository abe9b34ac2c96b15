"""The registry of pair readers, and :func:`load_pairs`, which picks one by name or suffix."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hivlp.data.pairs import SPLITS, Pair, Pairs, split_of_folders
from hivlp.data.readers.folder import read_folder
from hivlp.data.readers.karpathy import read_karpathy
from hivlp.data.readers.parquet import read_parquet
from hivlp.data.readers.reader import Reader, Source
from hivlp.data.readers.table import read_table
from hivlp.data.readers.webdataset import read_webdataset
from hivlp.errors import DataError
from hivlp.files.reading import printable
from hivlp.plugins import Registry

_TABLE = Reader(lambda source: read_table(source.files[0], source.images))
# Compressed tars are shards too: they are named as what cannot be read.
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")

READERS: Registry[Reader] = Registry(
    "hivlp.readers",
    {
        "demo": Reader(lambda _: read_folder(Path(str(resources.files("hivlp") / "assets" / "pictures")))),
        ".json": Reader(lambda source: read_karpathy(source.files[0], source.images)),
        **dict.fromkeys((".csv", ".tsv", ".jsonl", ".txt", ".token"), _TABLE),
        ".tar": Reader(lambda source: read_webdataset(source.files, source.root), shards=_TARS),
        ".parquet": Reader(lambda source: read_parquet(source.files, source.root, source.images), shards=(".parquet",)),
    },
)
"""Readers by the name of a data set (``demo``) or by the suffix of a file (``.tar``)."""


def load_pairs(source: str | Path, split: str | None = None, *, images: Path | None = None) -> Pairs:
    """Read the pairs of a data set, in an order that is the same every time.

    ====================================  ==============================================================
    ``demo``                              the pictures that ship with hivlp
    ``X.json``                            Karpathy's JSON, or COCO's own captions
    ``X.csv``, ``X.tsv``, ``X.jsonl``     a table of captions
    ``X.txt``, ``X.token``                a table, or lines of ``picture.jpg#0``, tab, caption (Flickr)
    ``X.parquet``, or a folder of them    a table of captions, the pictures often inside it
    ``X.tar``, or a folder of them        webdataset
    a folder                              pictures, with a caption file beside each or a table for all
    ``stamps``, ``openclipart``           the data sets of these Debian packages
    ``flashcards``                        the drawings in Debian's pysiogame, with their words
    ``scenes:COUNT``                      rendered scenes, as many as wanted, with exact captions
    ``scenes:COUNT:hard``                 the same with relations within, textures, words, clutter, three captions each
    ====================================  ==============================================================

    Other packages may add names and suffixes (:mod:`hivlp.plugins`, group ``hivlp.readers``).

    Args:
        source: one of the above; the words come before files of the same name (write ``./stamps`` for those).
        split: keep only ``train``, ``val`` or ``test``.
        images: the folder that picture paths in a table or Karpathy's JSON start from, if it is not the file's own.

    What is damaged in a source of many parts is passed over: named in the log, a few of each kind, and counted.

    Raises:
        DataError: if the source is missing, cannot be read, or has no pairs of that split.
        MissingExtraError: if it needs a package that is not installed.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
    read = _read(source, images, split)
    pairs = read if isinstance(read, Pairs) else Pairs(read)
    if split is None:
        if not pairs:
            raise DataError(f"{source} holds no picture with a caption")
        return pairs
    chosen = pairs.of(split)
    if not chosen:
        raise DataError(f"{source} holds no pairs of the split {split!r}; it has {pairs.splits()}")
    return chosen


def family_of(source: str) -> str:
    """The family of a named data set (:attr:`hivlp.data.readers.reader.Reader.family`); empty for any other."""
    reader = _named(source)
    return "" if reader is None else reader.family


def _named(source: str) -> Reader | None:
    name, colon, _ = source.partition(":")
    reader = READERS.get(name) if name.isidentifier() else None
    return reader if reader is not None and bool(reader.argument) == bool(colon) else None


def _read(source: str | Path, images: Path | None, split: str | None) -> Sequence[Pair]:
    if isinstance(source, str) and (named := _named(source)) is not None:
        return named.read(Source(images=images, argument=source.partition(":")[2], split=split))
    path = Path(source)
    try:
        if not path.exists():
            raise DataError(f"{printable(path)} does not exist")
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from error
    if path.is_dir():
        reader, files = _sharded(path)
        return read_folder(path) if reader is None else reader.read(Source(tuple(files), path, images, split=split))
    reader = READERS.get(path.suffix.lower()) if path.suffix else None
    if reader is None:
        known = ", ".join(name for name in READERS.names() if name.startswith("."))
        raise DataError(f"{path} is not a data set: give a folder, or a file of these kinds: {known}")
    return reader.read(Source((path,), path.parent, images, split=split))


def shards_in(folder: Path) -> list[Path]:
    """The shards that make a folder a data set, sorted; empty for one of another kind.

    Raises:
        DataError: if it cannot be read.
    """
    return _sharded(folder)[1]


def _sharded(folder: Path) -> tuple[Reader | None, list[Path]]:
    for suffix in (name for name in READERS.names() if name.startswith(".")):
        reader = READERS.get(suffix)
        if reader is not None and reader.shards and (files := _shards(folder, reader.shards)):
            return reader, files
    return None, []


def _shards(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of many pairs in a folder, in its folder ``data``, and in those that are named like a split."""
    try:
        inner = [each for each in folder.iterdir() if each.is_dir() and (each.name == "data" or _is_split(each.name))]
        found = [file for place in (folder, *inner) for file in place.iterdir() if not file.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(file for file in found if file.name.lower().endswith(suffixes) and not file.is_dir())


def _is_split(folder: str) -> bool:
    return split_of_folders(f"{folder}/") is not None
