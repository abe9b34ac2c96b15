"""Captions and metadata by path, as callers of :meth:`hivlp.index.Index.add` give them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from hivlp.data.json_values import as_json, is_missing
from hivlp.errors import DataError
from hivlp.store.names import at_home, composed, stored_path

T = TypeVar("T")


class Told(Generic[T]):
    """What a caller tells of files, by their path."""

    def __init__(self, by_path: Mapping[Path | str, T]) -> None:
        self._exact = {}
        for path, value in by_path.items():
            from_home = str(path).startswith("~") and not os.path.lexists(path)
            self._exact[stored_path(at_home(Path(path)) if from_home else path)] = value
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
        if not is_missing(caption):
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
        if not is_missing(values):
            if not hasattr(values, "items"):
                raise DataError(f"metadata of {path} must be a JSON object (a dict), not {type(values).__name__}")
            given[path] = as_json(values, f"metadata of {path}")
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
