"""Items, the index's own description, and the state of one commit, as values."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, NamedTuple

from hivlp.levels import Level, check_levels
from hivlp.store.codec import BY_DTYPE, FLOAT16, FLOAT32, VectorCodec
from hivlp.store.fields.declared import Field, checked_fields
from hivlp.store.path_codec import PathCodec
from hivlp.store.schema import (
    CODEC_FORMAT,
    FORMAT,
    OLD_FORMAT,
    PENDING_FORMAT,
    PENDING_RELATIVE_FORMAT,
    RELATIVE_FORMAT,
    RELATIVE_FORMATS,
)

MOST = 1 << 62  # one more commit must still fit SQLite's integers
LAST = (1 << 63) - 1
"""The largest integer of SQLite."""
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
        dtype: of the codec of every level; from format 3 on, of the finest level alone.
        fields: that are declared.
        columns: files of the fields' columns; None where there are none.
        payloads: file of what hits show; None where there is none.
    """

    rows: int
    generation: int
    commits: int
    format: int
    dtype: str
    fields: tuple[Field, ...] = ()
    columns: ColumnFiles | None = None
    payloads: PayloadFile | None = None

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
        fields = fields_of(meta["fields"]) if "fields" in meta else ()
        columns = ColumnFiles.of(meta["columns"]) if "columns" in meta else None
        payloads = PayloadFile.of(meta["payloads"]) if "payloads" in meta else None
        return cls(rows, generation, commits, version, dtype, fields, columns, payloads)

    def to_meta(self) -> dict[str, object]:
        """The table ``meta`` of a new index in this state."""
        meta = {name: getattr(self, name) for name in ("rows", "generation", "commits", "format", "dtype")}
        return {**meta, "fields": fields_text(self.fields)} if self.fields else meta

    @property
    def has_checksums(self) -> bool:
        """Whether records and vectors carry checksums."""
        return self.format > OLD_FORMAT

    @property
    def is_relative(self) -> bool:
        """Whether paths are relative to the folder that the index lies in."""
        return str(self.format) in RELATIVE_FORMATS

    @property
    def has_pending(self) -> bool:
        """Whether rows may be pending, of the coarsest level alone."""
        return self.format >= PENDING_FORMAT

    @property
    def compacted_dtype(self) -> str:
        """What compaction writes: the float32 of format 1 becomes float16."""
        return self.dtype if self.format >= CODEC_FORMAT else FLOAT16.dtype

    def codecs(self, levels: int) -> tuple[VectorCodec, ...]:
        """The codec of each of so many levels, coarse to fine."""
        finest = BY_DTYPE[self.dtype]
        return (FLOAT16 if self.format >= CODEC_FORMAT else finest,) * (levels - 1) + (finest,)


class ColumnFiles(NamedTuple):
    """Which files of columns belong to a commit: names and checksums are in the catalog, and nowhere else.

    Files of another commit, or damaged ones, have other checksums and are not used.

    Attributes:
        generation: of the rows that they know.
        rows: that they know, the first ones.
        mark: in the name of their folder; another one each time that files are written, so that commits with the same
            one have these rows in common.
        checks: CRC-32 of each file, by name.
    """

    generation: int
    rows: int
    mark: int
    checks: Mapping[str, int]

    @classmethod
    def of(cls, text: Any) -> ColumnFiles:
        """From the table ``meta``.

        Raises:
            ValueError: if a value is none that it can have.
        """
        try:
            generation, rows, mark, checks = json.loads(text)
            numbers = [generation, rows, mark, *checks.values()]
        except (TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError("columns are not described") from error
        if not all(type(number) is int and 0 <= number <= MOST for number in numbers):
            raise ValueError("columns are described by impossible numbers")
        return cls(generation, rows, mark, checks)

    def text(self) -> str:
        """For the table ``meta``."""
        return json.dumps([self.generation, self.rows, self.mark, self.checks])


class PayloadFile(NamedTuple):
    """Which payload file belongs to a commit (:mod:`hivlp.store.payloads`).

    Attributes:
        generation: of the rows that it knows.
        rows: that it knows, the first ones.
        mark: in its name; another one each time that it is written.
    """

    generation: int
    rows: int
    mark: int

    @property
    def name(self) -> str:
        """Of the file."""
        return f"payloads.{self.mark:015x}"

    @classmethod
    def of(cls, text: Any) -> PayloadFile:
        """From the table ``meta``.

        Raises:
            ValueError: if a value is none that it can have.
        """
        try:
            made = cls(*json.loads(text))
        except (TypeError, RecursionError, ValueError) as error:
            raise ValueError("the payload file is not described") from error
        if not all(type(number) is int and 0 <= number <= MOST for number in made):
            raise ValueError("the payload file is described by impossible numbers")
        return made

    def text(self) -> str:
        """For the table ``meta``."""
        return json.dumps(list(self))


def fields_of(text: Any) -> tuple[Field, ...]:
    """Declared fields, as the table ``meta`` has them.

    Raises:
        ValueError: if they are none.
    """
    try:
        return checked_fields(json.loads(text))
    except (TypeError, RecursionError) as error:
        raise ValueError("fields are no fields") from error


def fields_text(fields: Iterable[Field]) -> str:
    """Declared fields for the table ``meta``."""
    return json.dumps({field.name: field.type for field in fields})


def format_of(codec: VectorCodec, *, relative: bool, pending: bool = False) -> int:
    """The format of a folder with this codec, with relative paths or absolute ones, and perhaps with pending rows."""
    if pending:
        return PENDING_RELATIVE_FORMAT if relative else PENDING_FORMAT
    if relative:
        return RELATIVE_FORMAT
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

    def difference(self, other: About) -> str:
        """What is against vectors of another index in this one, as the end of a sentence; empty if nothing is."""
        mine, theirs = (", ".join(f"{level.name} {level.dim}" for level in each.levels) for each in (self, other))
        if self.model != other.model:
            return f"was made with {other.model}, this index with {self.model}"
        if mine != theirs:
            return f"has the levels {theirs}, this index has {mine}"
        if (self.fingerprint, self.levels) != (other.fingerprint, other.levels):
            return f"was made with {other.model} too, but of other weights, settings or coarse maps"
        return ""


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
        """From :func:`os.stat`, checked now; times that SQLite cannot hold, after 2262, are the last that it can."""
        times = status.st_mtime_ns, status.st_ctime_ns, time.time_ns()
        return cls(status.st_size, *(max(-LAST, min(LAST, at)) for at in times))

    def same_file(self, other: Stamp) -> bool:
        """Whether size and times are those of another stamp, whenever the two were checked."""
        return self[:3] == other[:3]


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
    def of(cls, record: Sequence[Any], paths: PathCodec) -> Item:
        """From an :class:`hivlp.store.schema.ItemRecord`, whoever wrote it, and the codec of its path.

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
        return cls(item_id, paths.decode(path), content, caption, known, row, Stamp(*stamp))


class NewItem(NamedTuple):
    """A picture about to be stored."""

    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    stamp: Stamp
