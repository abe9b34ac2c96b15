"""Payload file: what hits show of the items, by row, in a file ``payloads.MARK`` that is read without SQL.

It is derived, and spares a search the lookup of its hits, which takes longer than to find them. The catalog names it
(:class:`hivlp.store.records.PayloadFile`) in the commit that it belongs to. What a row shows never changes within a
generation, so it stays good for the first rows of every later commit, and whoever has it open sees the commit that was
searched, whatever was committed since. A new one is written beside the old one before a commit names it. One that is
missing, of another length, or of a commit that is no more (where a backup was put back) is not used; a record that is
damaged is looked up in the catalog instead.

Layout, all numbers little-endian: (rows + 1) uint64, where each record begins and the last one ends, from the start of
the file; then, for each row that had an item, a record of CRC-32 (uint32, of what follows, begun with the row), id
(int64), bytes of the path (uint32), bytes of the caption (int32, -1 without one), path, caption, metadata (JSON), in
UTF-8.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from hivlp.files.scratch import sync_folder
from hivlp.store.lookup import Shown
from hivlp.store.records import PayloadFile, State

NAME = "payloads"
MARK_BITS = 60
LEAST_ROWS = 5_000
"""Rows from which on a payload file is written: those of a smaller index are soon remembered."""
GROWTH = 20
"""Part of the rows, one in so many, up to which those that came later are read from the catalog."""
LEAST_TAIL = 1000
"""Rows up to which they are, however few there are."""
HEAD = struct.Struct("<IqIi")
SPAN = struct.Struct("<QQ")
CHECKED = 4  # bytes of the checksum, which it does not cover
BUFFER = 1 << 20


class Payloads:
    """Payload file, memory-mapped, for any number of threads."""

    def __init__(self, path: Path, rows: int) -> None:
        """Open a file.

        Args:
            path: of the file.
            rows: that it knows.

        Raises:
            OSError: if it cannot be opened.
            ValueError: if it is of another length than it says.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size, self.rows = len(self._map), rows
        if size < 8 * (rows + 1) or self._map[8 * rows : 8 * (rows + 1)] != size.to_bytes(8, "little"):
            raise ValueError(f"{path.name} has {size} bytes, which is not what it says")

    def get(self, row: int) -> Shown | None:
        """What a row shows, one of the first :attr:`rows`; None if it had no item then, or its record is damaged."""
        start, end = SPAN.unpack_from(self._map, 8 * row)
        record = self._map[start:end]
        if len(record) < HEAD.size:
            return None
        crc, item_id, path, caption = HEAD.unpack_from(record)
        if crc != _crc(memoryview(record)[CHECKED:], row):
            return None
        rest, after = HEAD.size + path, HEAD.size + path + max(caption, 0)
        try:
            words = None if caption < 0 else record[rest:after].decode()
            return Shown(item_id, os.fsdecode(record[HEAD.size : rest]), words, record[after:].decode())
        except ValueError:
            return None


def save(folder: Path, shown: Iterable[tuple[int, Shown]], state: State) -> PayloadFile:
    """Write the payload file of a commit into the index folder, beside the one that is there.

    Args:
        folder: of the index.
        shown: row, and what it shows, of each item of the commit, by row.
        state: of the commit.

    Returns:
        What the catalog must say of it.

    Raises:
        OSError: if it cannot be written.
    """
    made = PayloadFile(state.generation, state.rows, secrets.randbits(MARK_BITS))
    lengths, header = np.zeros(state.rows + 1, np.int64), 8 * (state.rows + 1)
    place = folder / made.name
    try:
        with place.open("xb", buffering=BUFFER) as file:
            file.seek(header)
            for row, each in shown:
                record = _record(row, each)
                lengths[row + 1] = len(record)
                file.write(record)
            file.seek(0)
            file.write((header + np.cumsum(lengths)).astype("<u8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            place.unlink()
        raise
    return made


def open_payloads(folder: Path, state: State) -> Payloads | None:
    """The payload file of a commit; None if there is none, or it is not what the catalog says."""
    made = state.payloads
    if made is None or made.generation != state.generation or made.rows > state.rows:
        return None
    try:
        return Payloads(folder / made.name, made.rows)
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
    found = open_payloads(folder, state)
    return found is None or state.rows - found.rows > max(LEAST_TAIL, state.rows // GROWTH)


def damage(folder: Path, state: State, shown: Iterable[tuple[int, Shown]]) -> str | None:
    """What is wrong with the payload file that a commit names; None if nothing is.

    Args:
        folder: of the index.
        state: of the commit.
        shown: row, and what it shows, of each item of the commit.
    """
    if state.payloads is None or state.payloads.generation != state.generation:
        return None
    found = open_payloads(folder, state)
    if found is None:
        return "it is missing, or has another length"
    wrong = sum(found.get(row) != each for row, each in shown if row < found.rows)
    return f"{wrong} of its records are not those of the catalog" if wrong else None


def _record(row: int, shown: Shown) -> bytes:
    path, caption = os.fsencode(shown.path), None if shown.caption is None else shown.caption.encode()
    head = HEAD.pack(0, shown.id, len(path), -1 if caption is None else len(caption))
    body = b"".join((head[CHECKED:], path, caption or b"", shown.text.encode()))
    return _crc(body, row).to_bytes(CHECKED, "little") + body


def _crc(body: bytes | memoryview, row: int) -> int:
    """Checksum of a record in its place: another row's record is no right one."""
    return zlib.crc32(body, row & 0xFFFFFFFF)
