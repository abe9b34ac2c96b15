"""A picture and the captions that describe it; and where pairs come from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from hivlp.data.pictures.source import opened_source
from hivlp.errors import DataError
from hivlp.files.reading import printable

SPLITS = ("train", "val", "test")

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "minival": "val",
    "test": "test",
    "testing": "test",
    "testdev": "test",
    "holdout": "test",
}

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# What stands beside a split in the name of a folder, without saying what its pictures show.
_FOLDER_WORDS = frozenset({"image", "images", "img", "imgs", "pictures", "photos", "set", "split", "data"})
_PLAIN_FOLDER = re.compile(r"[A-Za-z]+(?:[-_.]?[A-Za-z]+)?[-_.]?\d{0,4}")


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
        shard: what the id begins with that is the name of a file of many pictures, not of a folder.
    """

    id: str
    picture: Path | Stored | bytes
    captions: tuple[str, ...]
    split: str = "train"
    shard: str = ""

    @property
    def folders(self) -> list[str]:
        """Names of the folders that hold the picture, outermost first."""
        return self.id.removeprefix(f"{self.shard}/" if self.shard else "").split("/")[:-1]

    def read(self) -> bytes:
        """The encoded picture, for :func:`hivlp.data.pictures.decode`.

        Raises:
            PictureError: if it cannot be read.
        """
        if isinstance(self.picture, bytes):
            return self.picture
        if not isinstance(self.picture, Path):
            return self.picture.read()
        with opened_source(self.picture) as source:
            return source.whole().read()


class Pairs(list[Pair]):
    """Pairs in the order of their source.

    Attributes:
        skipped: how many parts of the source were damaged: files, row groups, samples, rows.
    """

    def __init__(self, pairs: Iterable[Pair] = (), skipped: int = 0) -> None:
        super().__init__(pairs)
        self.skipped = skipped

    def of(self, split: str) -> Pairs:
        """Those of one split."""
        return Pairs((pair for pair in self if pair.split == split), self.skipped)


def load_pairs(source: str | Path, split: str | None = None, *, images: Path | None = None) -> Pairs:
    """Read the pairs of a data set, in an order that is the same every time.

    ====================================  ==============================================================
    ``stamps``, ``openclipart``           the data sets of these Debian packages
    ``flashcards``                        the drawings in Debian's pysiogame, with their words
    ``scenes:COUNT``                      rendered scenes, as many as wanted, with exact captions
    ``demo``                              the pictures that ship with hivlp
    ``X.json``                            Karpathy's JSON, or COCO's own captions
    ``X.csv``, ``X.tsv``, ``X.jsonl``     a table of captions
    ``X.txt``, ``X.token``                the same, or Flickr's ``picture.jpg#0``, a tab and a caption in each line
    ``X.parquet``, or a folder of them    a table of captions, the pictures often inside it
    ``X.tar``, or a folder of them        webdataset
    a folder                              pictures, with a caption file beside each or a table for all
    ====================================  ==============================================================

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
    try:
        if not path.exists():
            raise DataError(f"{printable(path)} does not exist")
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from error
    if path.is_dir():
        if tars := _shards(path, (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            return webdataset.read_webdataset(tars, path)
        if files := _shards(path, (".parquet",)):
            return parquet.read_parquet(files, path, images)
        return folder.read_folder(path)
    match path.suffix.lower():
        case ".json":
            return karpathy.read_karpathy(path, images)
        case ".csv" | ".tsv" | ".jsonl" | ".txt" | ".token":
            return table.read_table(path, images)
        case ".parquet":
            return parquet.read_parquet([path], path.parent, images)
        case ".tar":
            return webdataset.read_webdataset([path], path.parent)
    raise DataError(f"{path} is not a data set: give a folder, or a .json, .jsonl, .csv, .tsv, .parquet or .tar file")


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


def split_named(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for the words in use for them, such as ``restval``; None for other words."""
    return _SPLIT_NAMES.get(name.strip().lower())


def split_of_name(stem: str) -> str | None:
    """The split that the name of a shard or a table says, as in ``cc3m-validation-0000`` or ``captions_val2017``.

    Names of such files are made of words that describe the data set. Of several splits in one name that counts which
    must not be trained on: ``test`` before ``val`` before ``train``.
    """
    said = {split_named(word) for word in _WORDS.findall(stem)}
    return next((split for split in reversed(SPLITS) if split in said), None)


def split_of_shard(file: Path, root: Path) -> str | None:
    """The split that the name of a file of many pairs says, or else its folders below ``root``."""
    return split_of_name(file.stem) or split_of_folders(file.relative_to(root).as_posix())


def split_of_folders(name: str) -> str | None:
    """The split that a picture's folders say, as in ``val2017/1.jpg``, ``images/dev/2.jpg`` or ``test_images/3.jpg``.

    A folder may be named for what its pictures show: only a name that is a split, and nothing but it, counts.
    """
    said = set()
    for folder in name.replace("\\", "/").split("/")[:-1]:
        words = [word for word in _WORDS.findall(folder) if word.lower() not in _FOLDER_WORDS]
        if len(words) == 1 and _PLAIN_FOLDER.fullmatch(folder):
            said.add(split_named(words[0]))
    return next((split for split in reversed(SPLITS) if split in said), None)


def within(root: Path, name: str, where: str) -> Path:
    """The file that a data set names, which must lie in its root folder: data from others must not reach beyond.

    Args:
        root: the folder that names start from.
        name: as written in the data set.
        where: file and row, for the error.

    Raises:
        DataError: if the name is empty, absolute or climbs with ``..``.
    """
    try:
        if not name or b"\0" in os.fsencode(name):
            raise ValueError
    except ValueError:  # or it holds what no file system can hold
        raise DataError(f"{where}: the picture's path is empty or not a path") from None
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{where}: the picture's path leaves its folder: {printable(name)[:200]}")
    return root / name


def clean_captions(value: object) -> tuple[str, ...]:
    """The captions in a field that holds one string or a list of them, stripped, without empty and repeated ones."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    texts = (" ".join(_whole(text).split()) for text in values if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if text))


def _whole(text: str) -> str:
    """A text that can be encoded: halves of characters beyond 16 bits, as JSON may hold them, are joined or marked."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
