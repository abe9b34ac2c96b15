"""A picture and the captions that describe it; and where pairs come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from hivlp.errors import DataError, PictureError

SPLITS = ("train", "val", "test")

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Stored(Protocol):
    """A picture that is no file of its own: it lies inside another file, or is drawn on demand."""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            PictureError: if it cannot be had.
        """


@dataclass(frozen=True)
class Pair:
    """One picture with its captions.

    A list of pairs holds references, not pictures, so that a corpus never has to fit into memory.

    Attributes:
        id: names the picture within its source.
        picture: where the encoded picture is, or the picture itself.
        captions: at least one, none of them empty.
        split: ``train``, ``val`` or ``test``.
    """

    id: str
    picture: Path | Stored | bytes
    captions: tuple[str, ...]
    split: str = "train"

    def read(self) -> bytes:
        """The encoded picture, for :func:`hivlp.data.pictures.decode`.

        Raises:
            PictureError: if it cannot be read.
        """
        if isinstance(self.picture, bytes):
            return self.picture
        if not isinstance(self.picture, Path):
            return self.picture.read()
        try:
            return self.picture.read_bytes()
        except (OSError, ValueError) as error:
            raise PictureError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load_pairs(source: str | Path, split: str | None = None, *, images: Path | None = None) -> list[Pair]:
    """Read the pairs of a data set, in an order that is the same every time.

    ====================================  ==============================================================
    ``stamps``, ``openclipart``           the data sets of these Debian packages
    ``flashcards``                        the drawings in Debian's pysiogame, with their words
    ``scenes:COUNT``                      rendered scenes, as many as wanted, with exact captions
    ``demo``                              the pictures that ship with hivlp
    ``X.json``                            Karpathy's JSON
    ``X.csv``, ``X.tsv``, ``X.jsonl``     a table of captions
    ``X.parquet``, or a folder of them    a table of captions, the pictures often inside it
    ``X.tar``, or a folder of them        webdataset
    a folder                              pictures, with a caption file beside each or a table for all
    ====================================  ==============================================================

    Args:
        source: one of the above; the words come before files of the same name (write ``./stamps`` for those).
        split: keep only ``train``, ``val`` or ``test``.
        images: the folder that picture paths in a table or Karpathy's JSON start from, if it is not the file's own.

    Raises:
        DataError: if the source is missing, cannot be read, or has no pairs of that split.
        MissingExtraError: if it needs a package that is not installed.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
    pairs = _read(source, images, split)
    if split is None:
        if not pairs:
            raise DataError(f"{source} holds no picture with a caption")
        return pairs
    chosen = [pair for pair in pairs if pair.split == split]
    if not chosen:
        present = ", ".join(name for name in SPLITS if any(pair.split == name for pair in pairs)) or "none at all"
        raise DataError(f"{source} holds no pairs of the split {split!r}; it has {present}")
    return chosen


def _read(source: str | Path, images: Path | None, split: str | None) -> list[Pair]:
    # Readers are imported when they are needed: they build on this module, and some pull in large packages.
    from hivlp.data import flashcards, folder, karpathy, openclipart, parquet, scenes, stamps, table, webdataset

    if source == "stamps":
        return stamps.read_stamps(split=split)
    if source == "openclipart":
        return openclipart.read_openclipart()
    if source == "flashcards":
        return flashcards.read_flashcards()
    if isinstance(source, str) and source.startswith(scenes.PREFIX):
        return scenes.read_scenes(source.removeprefix(scenes.PREFIX))
    if source == "demo":
        return folder.read_folder(Path(str(resources.files("hivlp") / "assets" / "pictures")))
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        if tars := sorted(path.glob("*.tar")):
            return webdataset.read_webdataset(tars)
        if files := sorted(path.glob("*.parquet")):
            return parquet.read_parquet(files, images)
        return folder.read_folder(path)
    match path.suffix.lower():
        case ".json":
            return karpathy.read_karpathy(path, images)
        case ".csv" | ".tsv" | ".jsonl":
            return table.read_table(path, images)
        case ".parquet":
            return parquet.read_parquet([path], images)
        case ".tar":
            return webdataset.read_webdataset([path])
    raise DataError(f"{path} is not a data set: give a folder, or a .json, .jsonl, .csv, .tsv, .parquet or .tar file")


def split_named(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for the words in use for them, such as ``restval``; None for other words."""
    return _SPLIT_NAMES.get(name.strip().lower())


def split_of_shard(path: Path) -> str:
    """The split that a shard's name begins with, as in ``test-00000-of-00004.parquet``; otherwise ``train``."""
    return split_named(path.stem.replace("_", "-").split("-")[0]) or "train"


def within(root: Path, name: str, where: str) -> Path:
    """The file that a data set names, which must lie in its root folder: data from others must not reach beyond.

    Args:
        root: the folder that names start from.
        name: as written in the data set.
        where: file and row, for the error.

    Raises:
        DataError: if the name is empty, absolute or climbs with ``..``.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name:
        raise DataError(f"{where}: the picture's path is empty or not a path")
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{where}: the picture's path leaves its folder: {name}")
    return root / name


def clean_captions(value: object) -> tuple[str, ...]:
    """The captions in a field that holds one string or a list of them, stripped, without empty and repeated ones."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    texts = (" ".join(text.split()) for text in values if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if text))
