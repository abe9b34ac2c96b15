"""What an index knows of a picture, of itself, and of one commit: the words that the storage speaks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hivlp.levels import Level, check_levels
from hivlp.store.vectors import SUFFIXES

MOST = 1 << 62  # one more commit must still fit SQLite's integers


@dataclass(frozen=True)
class State:
    """What a commit says of the index as a whole."""

    rows: int
    generation: int
    commits: int
    format: int
    dtype: str

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> State:
        """From the table ``meta``.

        Raises:
            ValueError: if a value is missing, or is none that it can have.
        """
        rows, generation, commits, version = (
            _whole(meta, name) for name in ("rows", "generation", "commits", "format")
        )
        dtype = meta.get("dtype", "<f4")  # which format 1 does not say
        if dtype not in SUFFIXES:
            raise ValueError(f"dtype is {dtype!r:.40}")
        return cls(rows, generation, commits, version, dtype)


@dataclass(frozen=True)
class About:
    """What an index was made with."""

    model: str
    source: str
    fingerprint: str
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> About:
        """From the table ``meta``.

        Raises:
            ValueError: if a value is missing, or is none that it can have.
        """
        texts = [meta.get(name) for name in ("model", "source", "fingerprint", "levels")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("it does not say what the index was made with")
        model, source, fingerprint, levels = map(str, texts)
        try:
            found = check_levels([Level(**level) for level in json.loads(levels)])
        except (TypeError, RecursionError) as error:
            raise ValueError("levels are no list of levels") from error
        return cls(model, source, fingerprint, found)


def _whole(meta: Mapping[str, Any], name: str) -> int:
    value = meta.get(name)
    if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= MOST):
        raise ValueError(f"{name} is {value!r:.40}")
    return int(value)


class Stamp(NamedTuple):
    """What a file's status said when its content was read; times in ns."""

    size: int
    mtime: int
    ctime: int
    checked: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """From :func:`os.stat`, checked now."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, time.time_ns())


@dataclass(frozen=True)
class Item:
    """One stored picture."""

    id: int
    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    row: int
    stamp: Stamp


class NewItem(NamedTuple):
    """A picture about to be stored."""

    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    stamp: Stamp
