"""Pairs of a picture and its captions, and the split that names of files and folders say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from hivlp.data.pictures.source import opened_source
from hivlp.errors import DataError
from hivlp.files.reading import printable

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": "train training restval",
    "val": "val valid validation dev eval evaluation minival",
    "test": "test testing testdev holdout",
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names.split()}

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
        """The pairs of one split."""
        return Pairs((pair for pair in self if pair.split == split), self.skipped)

    def splits(self) -> str:
        """The splits that there are, for a message."""
        return ", ".join(name for name in SPLITS if any(pair.split == name for pair in self)) or "none at all"


def split_named(name: str) -> str | None:
    """``train``, ``val`` or ``test`` for the words in use for them, such as ``restval``; None for other words."""
    return _SPLITS.get(name.strip().lower())


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
