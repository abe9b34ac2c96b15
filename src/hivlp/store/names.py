"""How a person spells the name of a file, and how it is stored."""

from __future__ import annotations

import math
import operator
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

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
    """The one path under which a file is stored: its folder resolved, so that links lead to one item, itself not."""
    # os.path, because a Path for every file is slow.
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def existing(path: Path | str) -> Path:
    """The file or folder that is meant: as typed, in the home folder for ``~``, or spelt otherwise in Unicode.

    What there is under the very name that was typed comes first; what does not exist is given back as it is.
    """
    typed = Path(path)
    for place in (typed, _at_home(typed)):
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


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # of a user that there is not
        return path


def places(path: str) -> list[str]:
    """Where an item that a person calls by this path may be stored, the likeliest first."""
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


class Told(Generic[T]):
    """What a caller tells of files, by their path."""

    def __init__(self, by_path: Mapping[Path | str, T]) -> None:
        self._exact = {}
        for path, value in by_path.items():
            at_home = str(path).startswith("~") and not os.path.lexists(path)
            self._exact[stored_path(_at_home(Path(path)) if at_home else path)] = value
        # A name in another spelling of Unicode will do if no file has this very one.
        self._composed = {
            composed(path): value
            for path, value in self._exact.items()
            if not path.isascii() and not os.path.lexists(path)
        }

    def get(self, path: str) -> T | None:
        """What was told of a stored path, if anything."""
        if path in self._exact:
            return self._exact[path]
        return self._composed.get(composed(path)) if self._composed and not path.isascii() else None


def told_captions(captions: Any) -> Told[str]:
    """Captions by path; a missing one (None or NaN, as pandas has it) is none.

    Raises:
        DataError: if they are no such thing.
    """
    given = {}
    for path, caption in _by_path("captions", captions):
        if not _is_missing(caption):
            if not isinstance(caption, str):
                raise DataError(f"the caption of {path} is no text, but {type(caption).__name__} {caption!r:.40}")
            given[path] = str(caption)
    return Told(given)


def told_metadata(metadata: Any) -> Told[dict[str, Any]]:
    """Metadata by path, as it is when it comes back out of JSON.

    Raises:
        DataError: if there is something that JSON cannot hold.
    """
    given = {}
    for path, values in _by_path("metadata", metadata):
        if not _is_missing(values):
            if not hasattr(values, "items"):
                raise DataError(f"metadata of {path} must be a JSON object (a dict), not {type(values).__name__}")
            given[path] = _as_json(values, f"metadata of {path}", 0)
    return Told(given)


def _by_path(what: str, given: Any) -> Iterator[tuple[Path | str, Any]]:
    if given is None:
        return
    if not hasattr(given, "items"):
        raise DataError(f"{what} must map paths, as {{path: …}}, not be a {type(given).__name__}")
    for path, value in given.items():
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(f"{what} must map paths: {path!r:.40} is none")
        yield Path(path), value


def _is_missing(value: Any) -> bool:
    """Whether it is None, a NaN, pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def _as_json(value: Any, where: str, depth: int) -> Any:
    """What JSON makes of a value; numpy's are Python's."""
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufUO":
        value = value.tolist()
    if value is None:
        return None
    if depth > 100:
        raise DataError(f"{where} is nested too deeply")
    match value:
        case bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise DataError(f"{where} is {value}, which JSON has no number for: give None, or leave it out")
            return float(value)
        case list() | tuple():
            return [_as_json(each, f"{where}[{place}]", depth + 1) for place, each in enumerate(value)]
    if hasattr(value, "items"):
        return {_key(name, where): _as_json(each, f"{where}: {name}", depth + 1) for name, each in value.items()}
    raise DataError(f"{where} must be JSON, not {type(value).__name__} {value!r:.40}")


def _key(name: Any, where: str) -> str:
    if isinstance(name, (str, int, np.integer)) and not isinstance(name, bool):
        return str(name)
    raise DataError(f"{where}: a key must be a text, not {name!r:.40}")
