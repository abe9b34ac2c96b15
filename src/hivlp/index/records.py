"""What an index knows of a picture, of itself, and of one commit: the words that the storage speaks."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from hivlp.levels import Level


@dataclass(frozen=True)
class State:
    """What a commit says of the index as a whole."""

    rows: int
    generation: int
    commits: int
    format: int
    dtype: str


@dataclass(frozen=True)
class About:
    """What an index was made with."""

    model: str
    source: str
    fingerprint: str
    levels: tuple[Level, ...]


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
