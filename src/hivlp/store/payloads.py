"""Payload file: what hits show of the items, by row, in a file ``payloads.MARK`` that is read without SQL.

It is derived, and spares a search the lookup of its hits, which takes longer than to find them. The catalog names it
(:class:`hivlp.store.records.PayloadFile`) in the commit that it belongs to. What a row shows never changes within a
generation, so it stays good for the first rows of every later commit, and whoever has it open sees the commit that was
searched, whatever was committed since. A new one is written beside the old one before a commit names it. One that is
missing, of another length, or of a commit that is no more (where a backup was put back) is not used; a record that is
damaged is looked up in the catalog instead.

Layout, all numbers little-endian: :data:`MAGIC`; for each row where its record begins, from the start of the file
(uint64), and the record's CRC-32, begun with the row (uint32); where the last record ends (uint64); the records. A
record is what a row shows as JSON, in UTF-8: an array of id, path, caption and metadata, as the catalog spells
them. A row without an item has an empty one.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from hivlp.files.scratch import sync_folder
from hivlp.store.lookup import Shown, decode
from hivlp.store.path_codec import PathCodec
from hivlp.store.records import PayloadFile, State

NAME = "payloads"
MARK_BITS = 60
Columns = tuple[Sequence[int], Sequence[str], Sequence[str | None], Sequence[dict[str, Any]]]
"""Ids, paths, captions and metadata of some items."""
LEAST_ROWS = 5_000
"""Rows from which on a payload file is written: those of a smaller index are soon remembered."""
GROWTH = 20
"""Part of the rows, one in so many, up to which those that came later are read from the catalog."""
LEAST_TAIL = 1000
"""Rows up to which they are, however few there are."""
MAGIC = b"hits\0\0\0\2"
TABLE = np.dtype([("start", "<u8"), ("crc", "<u4")])
ENTRY = struct.Struct("<QIQ")
"""Start and checksum of a record, and the start of the next."""
Record = tuple[int, str, str | None, dict[str, Any]]
KINDS: tuple[set[type], ...] = {int}, {str}, {str, NoneType}, {dict}
"""Types in a record."""
_RECORDS = msgspec.json.Decoder(list[Record])
LOW = 0xFFFFFFFF  # bits of a row that a checksum begins with: another row's record is no right one
BUFFER = 1 << 20


class Payloads:
    """Payload file, memory-mapped, for any number of threads."""

    def __init__(self, path: Path, rows: int, paths: PathCodec) -> None:
        """Open a file.

        Args:
            path: of the file.
            rows: that it knows.
            paths: how the catalog, and the file, spell the paths of items.

        Raises:
            OSError: if it cannot be opened.
            ValueError: if it is of another length than it says.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size, self.rows, self._paths = len(self._map), rows, paths
        end = len(MAGIC) + TABLE.itemsize * rows
        if self._map[: len(MAGIC)] != MAGIC or self._map[end : end + 8] != size.to_bytes(8, "little"):
            raise ValueError(f"{path.name} is none, or of another length than it says")

    def record(self, row: int) -> bytes:
        """What a row shows, one of the first :attr:`rows`; empty if it had no item then, or its record is damaged."""
        start, crc, end = ENTRY.unpack_from(self._map, len(MAGIC) + TABLE.itemsize * row)
        record = self._map[start:end]
        return record if crc32(record, row & LOW) == crc else b""

    def read(self, rows: Iterable[int]) -> Columns | None:
        """What some rows show, its own for who asks; None unless all are here, and as they were written.

        Raises:
            ValueError: if a record with a right checksum is none.
        """
        records = self._records(rows)
        return None if records is None else self.columns(records)

    def ids(self, rows: Iterable[int]) -> list[int] | None:
        """Ids of the items in some rows; None unless all are here, and as they were written.

        Raises:
            ValueError: if a record with a right checksum is none.
        """
        records = self._records(rows)
        return None if records is None else [int(record[1 : record.index(b",")]) for record in records]

    def _records(self, rows: Iterable[int]) -> list[bytes] | None:
        records, among, entry, first, step = [], self._map, ENTRY.unpack_from, len(MAGIC), TABLE.itemsize
        for row in rows:  # :meth:`record`, in half the time
            if row >= self.rows:
                return None
            start, crc, end = entry(among, first + step * row)
            record = among[start:end]
            if not record or crc32(record, row & LOW) != crc:
                return None
            records.append(record)
        return records

    def columns(self, records: Sequence[bytes]) -> Columns:
        """What records of this file say.

        Raises:
            ValueError: if one is none.
        """
        ids, paths, captions, metadata = columns(records)
        if self._paths.base is not None:
            paths = list(map(self._paths.decode, paths))
        return ids, paths, captions, metadata


def columns(records: Sequence[bytes]) -> Columns:
    """What records say, paths as they are spelled, decoded together, which takes a third of the time.

    Raises:
        ValueError: if one is none.
    """
    listed = b"[%s]" % b",".join(records)
    try:
        found = _RECORDS.decode(listed)
    except (ValueError, RecursionError):
        found = _found(listed)
    if len(found) != len(records):
        raise ValueError("no records")
    ids, paths, captions, metadata = zip(*found, strict=True) if found else ((),) * 4
    return ids, paths, captions, metadata


def _found(listed: bytes) -> list[Record]:
    """Records as Python's own decoder reads them, slower by half: it knows NaN, and half a surrogate pair."""
    try:
        found = decode(listed.decode())[0]
        ids, paths, captions, metadata = zip(*found, strict=True)
    except (RecursionError, TypeError) as error:  # the last where one is no array
        raise ValueError("no records") from error
    known = zip(KINDS, (ids, paths, captions, metadata), strict=True)
    if not all(kinds.issuperset(map(type, column)) for kinds, column in known):
        raise ValueError("no records")
    return [*map(tuple, found)]


def save(folder: Path, shown: Iterable[tuple[int, Shown]], state: State, paths: PathCodec) -> PayloadFile:
    """Write the payload file of a commit into the index folder, beside the one that is there.

    Args:
        folder: of the index.
        shown: row, and what it shows, of each item of the commit, by row.
        state: of the commit.
        paths: how the catalog spells paths.

    Returns:
        What the catalog must say of it.

    Raises:
        OSError: if it cannot be written.
    """
    made = PayloadFile(state.generation, state.rows, secrets.randbits(MARK_BITS))
    table, header = np.zeros(state.rows, TABLE), len(MAGIC) + TABLE.itemsize * state.rows + 8
    lengths = np.zeros(state.rows + 1, np.int64)
    place = folder / made.name
    try:
        with place.open("xb", buffering=BUFFER) as file:
            file.seek(header)
            for row, each in shown:
                record = _record(each, paths)
                lengths[row + 1], table["crc"][row] = len(record), crc32(record, row & LOW)
                file.write(record)
            ends = header + np.cumsum(lengths)
            table["start"] = ends[:-1]
            file.seek(0)
            file.write(MAGIC + table.tobytes() + int(ends[-1]).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            place.unlink()
        raise
    return made


def open_payloads(folder: Path, state: State, paths: PathCodec) -> Payloads | None:
    """The payload file of a commit; None if there is none, or it is not what the catalog says."""
    made = state.payloads
    if made is None or made.generation != state.generation or made.rows > state.rows:
        return None
    try:
        return Payloads(folder / made.name, made.rows, paths)
    except (OSError, ValueError):
        return None


def drop_others(folder: Path, state: State) -> None:
    """Remove payload files that the last commit does not name; for the only writer."""
    for place in folder.glob(f"{NAME}.*"):
        if state.payloads is None or place.name != state.payloads.name:
            place.unlink(missing_ok=True)


def are_due(folder: Path, state: State) -> bool:
    """Whether a commit needs a payload file, another one than there is, or one that knows what came since."""
    if not state.has_checksums:
        return False
    found = open_payloads(folder, state, PathCodec())  # only its length is asked for
    return found is None or state.rows - found.rows > max(LEAST_TAIL, state.rows // GROWTH)


def damage(folder: Path, state: State, shown: Iterable[tuple[int, Shown]], paths: PathCodec) -> str | None:
    """What is wrong with the payload file that a commit names; None if nothing is.

    Args:
        folder: of the index.
        state: of the commit.
        shown: row, and what it shows, of each item of the commit.
        paths: how the catalog spells paths.
    """
    if state.payloads is None or state.payloads.generation != state.generation:
        return None
    found = open_payloads(folder, state, paths)
    if found is None:
        with suppress(OSError), (folder / state.payloads.name).open("rb") as file:
            if file.read(8) == (8 * (state.payloads.rows + 1)).to_bytes(8, "little"):
                return None  # of the layout before: the next writer replaces it
        return "it is missing, or has another length"
    wrong = sum(not _says(found.record(row), each, paths) for row, each in shown if row < found.rows)
    return f"{wrong} of its records are not those of the catalog" if wrong else None


def _says(record: bytes, shown: Shown, paths: PathCodec) -> bool:
    if record == _record(shown, paths):
        return True
    # Written where the picture lay elsewhere; since then the index was moved beside it.
    return shown.path.startswith("/") and record == _record(shown, PathCodec())


def _record(shown: Shown, paths: PathCodec) -> bytes:
    path = json.dumps(os.fsdecode(paths.encode(shown.path)))  # in ASCII: it need not be UTF-8
    caption = "null" if shown.caption is None else json.dumps(shown.caption, ensure_ascii=False)
    return f"[{shown.id},{path},{caption},{shown.text}]".encode()
