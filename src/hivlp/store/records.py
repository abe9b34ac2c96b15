"""Items, the index's own description, and the state of one commit, as values."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple

from hivlp.levels import Level, check_levels
from hivlp.store.codec import BY_DTYPE, FLOAT16, FLOAT32, VectorCodec
from hivlp.store.schema import CODEC_FORMAT, FORMAT, OLD_FORMAT, unpack_path

MOST = 1 << 62  # one more commit must still fit SQLite's integers
GONE = -1
"""Size in the stamp of an item whose file was not there when its folder was last walked."""


@dataclass(frozen=True)
class State:
    """What a commit says of the index as a whole.

    Attributes:
        rows: in each vector file, those of removed items included.
        generation: of the vector files.
        commits: a number that grows with each.
        format: of the folder.
        dtype: of the codec of every level; in format 3, of the finest level alone.
    """

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
        dtype = meta.get("dtype", FLOAT32.dtype)  # which format 1 does not say
        if dtype not in BY_DTYPE or (version < CODEC_FORMAT and BY_DTYPE[dtype] not in (FLOAT16, FLOAT32)):
            raise ValueError(f"dtype is {dtype!r:.40}")
        return cls(rows, generation, commits, version, dtype)

    @property
    def has_checksums(self) -> bool:
        """Whether records and vectors carry checksums."""
        return self.format > OLD_FORMAT

    @property
    def compacted_dtype(self) -> str:
        """What compaction writes: the float32 of format 1 becomes float16."""
        return self.dtype if self.format >= CODEC_FORMAT else FLOAT16.dtype

    def codecs(self, levels: int) -> tuple[VectorCodec, ...]:
        """The codec of each of so many levels, coarse to fine."""
        finest = BY_DTYPE[self.dtype]
        return (FLOAT16 if self.format >= CODEC_FORMAT else finest,) * (levels - 1) + (finest,)


def format_of(codec: VectorCodec) -> int:
    """The format of a new folder with this codec."""
    return FORMAT if codec is FLOAT16 else CODEC_FORMAT


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
    """What a file's status said when its content was read: size in bytes, times in ns."""

    size: int
    mtime: int
    ctime: int
    checked: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """From :func:`os.stat`, checked now."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, time.time_ns())


class Item(NamedTuple):
    """One stored picture; ``row`` is its place in every level's vector file."""

    id: int
    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    row: int
    stamp: Stamp

    @property
    def missing(self) -> bool:
        """Whether its file was not there when its folder was last walked."""
        return self.stamp.size == GONE

    @classmethod
    def of(cls, record: Sequence[Any]) -> Item:
        """From an :class:`hivlp.store.schema.ItemRecord`, whoever wrote it.

        Raises:
            ValueError: if a value is none that it can have.
        """
        item_id, path, content, caption, metadata, row, *stamp = record
        try:
            known = {} if metadata == "{}" else json.loads(metadata)
        except (TypeError, RecursionError) as error:
            raise ValueError("metadata is no JSON") from error
        if not (isinstance(known, dict) and isinstance(path, (str, bytes)) and isinstance(caption, (str, NoneType))):
            raise ValueError("a value is of another kind")
        if not isinstance(content, bytes) or {*map(type, stamp)} != {int}:
            raise ValueError("a value is of another kind")
        return cls(item_id, unpack_path(path), content, caption, known, row, Stamp(*stamp))


class NewItem(NamedTuple):
    """A picture about to be stored."""

    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    stamp: Stamp
