"""File names: as people type them, and as they are stored."""

from __future__ import annotations

import operator
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hivlp.errors import ArgumentError, DataError

T = TypeVar("T")


def composed(value: T) -> T | str:
    """Text in composed Unicode (NFC); anything else as it is.

    Some systems spell é as one character and some as two; people see one letter, and type what their keyboard gives.
    """
    if isinstance(value, str) and not value.isascii():
        return unicodedata.normalize("NFC", value)
    return value


def stored_path(path: Path | str) -> str:
    """The path that a file is stored under: its folder with links resolved, its own name as it is."""
    # os.path, because a Path for every file is slow.
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def existing(path: Path | str) -> Path:
    """The file or folder that a typed path means: that very name, or ``~`` expanded, or another spelling in Unicode.

    A path that does not exist is given back as it is.
    """
    typed = Path(path)
    for place in (typed, at_home(typed)):
        if os.path.lexists(place):
            return place
        if not str(place).isascii():
            found = [Path(place.anchor)]
            for part in place.parts[bool(place.anchor) :]:
                found = [inner for outer in found for inner in _entries(outer, part)]
            if len(found) == 1:
                return found[0]
    return typed


def _entries(folder: Path, name: str) -> list[Path]:
    if name == ".." or os.path.lexists(folder / name):
        return [folder / name]
    try:
        return [folder / entry for entry in os.listdir(folder) if composed(entry) == composed(name)]  # noqa: PTH208
    except OSError:
        return []


def at_home(path: Path) -> Path:
    """A path with ``~`` replaced by the home folder."""
    try:
        return path.expanduser()
    except RuntimeError:  # of a user that there is not
        return path


def places(path: str) -> list[str]:
    """Where an item that a person calls by this path may be stored, the likeliest first.

    Raises:
        ArgumentError: if it is no path.
    """
    try:
        named = isinstance(path, str) and path != "" and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise ArgumentError(f"{path!r:.40} is not a path")
    # The path as it is, for given embeddings, which keep the path that they came with.
    found = [stored_path(path), os.path.realpath(path), path]
    home = os.path.expanduser(path)  # noqa: PTH111
    return list(dict.fromkeys(found if home == path else [*found, stored_path(home), os.path.realpath(home)]))


def folder_path(path: Any) -> Path:
    """The path of an index.

    Raises:
        ArgumentError: if it is none.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in str(path):
        raise ArgumentError(f"an index is a folder's path, not {path!r:.40}")
    return Path(path)


def each_path(paths: Any) -> Iterator[Path]:
    """Paths out of one, or of collections of them.

    Raises:
        DataError: if there is anything else.
    """
    if isinstance(paths, np.ndarray):
        paths = paths.tolist()
    if isinstance(paths, (str, os.PathLike)):
        if not os.fspath(paths):
            raise DataError("a path is empty")
        yield Path(paths)
    elif isinstance(paths, Iterable) and not isinstance(paths, (bytes, Mapping)):
        for each in list(paths):
            yield from each_path(each)
    else:
        raise DataError(f"{paths!r:.40} is not a path, but {type(paths).__name__}")


def each_item(items: Any) -> Iterator[int | str]:
    """Ids and paths out of one, or of a collection of them.

    Raises:
        ArgumentError: if there is anything else.
    """
    if isinstance(items, (str, bytes, os.PathLike)):
        path = os.fsdecode(items)
        if not path:
            raise ArgumentError("an item is an id or a path, not an empty text")
        yield path
        return
    if not isinstance(items, (bool, np.bool_)):
        try:
            yield operator.index(items)
            return
        except TypeError:
            if isinstance(items, Iterable) and not isinstance(items, Mapping) and getattr(items, "shape", None) != ():
                for item in items:
                    yield from each_item(item)
                return
    raise ArgumentError(f"an item is an id (a whole number) or a path, not {items!r:.40}")
