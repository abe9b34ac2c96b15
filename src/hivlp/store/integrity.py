"""What ``items.db`` knows of its own soundness: checksums of records and vectors, and items whose vectors are lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.store import schema
from hivlp.store.schema import COLUMNS, FORMAT, record_crc, unpack_path
from hivlp.store.vectors import Checksums


class Integrity:
    """A part of :class:`hivlp.store.catalog.Catalog`, on the same connection and inside the same transactions."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # The database itself.

    def faults(self) -> list[str]:
        """What SQLite's own check, and a look at the file's length and the tables' definitions, find wrong."""
        (pages,), (page_size,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        length = Path(self._db.execute("PRAGMA database_list").fetchone()[2]).stat().st_size
        if length < pages * page_size:  # SQLite would read zeros
            return [f"the file holds {length} of {pages * page_size} bytes"]
        with self._lenient():
            found = [text for (text,) in self._db.execute("PRAGMA integrity_check") if text != "ok"]
            if self._has_checksums():
                found += [f"the definition of {name!r} is not as it was written" for name in schema.altered(self._db)]
        return found

    def rebuild_indexes(self) -> None:
        """Make SQLite's indexes anew from its tables."""
        self._db.execute("REINDEX")

    def records(self) -> Iterator[tuple[tuple[Any, ...], bool]]:
        """Each item's columns, and whether they are as they were written (format 1 cannot tell), by id.

        Text that is no UTF-8 comes with surrogates instead of an error.
        """
        columns = len(COLUMNS.split(","))
        with self._lenient():
            for values in self._db.execute("SELECT * FROM items ORDER BY id"):
                record, crc = values[:columns], values[columns:]
                yield record, not crc or crc[0] == record_crc(*record)

    def path_of(self, item_id: int) -> str:
        """The path of an item, whatever state its record is in."""
        with self._lenient():
            found = self._db.execute("SELECT path FROM items WHERE id = ?", (item_id,)).fetchone()
        return "?" if found is None else unpack_path(found[0] if isinstance(found[0], (str, bytes)) else repr(found[0]))

    def damaged_item(self) -> int | None:
        """The id of an item whose record is not as it was written, if there is one."""
        found = self._db.execute(f"SELECT id FROM items WHERE crc != record_crc({COLUMNS}) LIMIT 1").fetchone()
        return None if found is None else int(found[0])

    # Vectors.

    def add_block(self, level: str, first: int, crcs: Checksums) -> None:
        """Note the checksums of rows that were written together."""
        record = (level, first, len(crcs), crcs.astype("<u4").tobytes())
        self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", (*record, record_crc(*record)))

    def forget_blocks(self, level: str) -> None:
        """Drop the checksums of a level, whose file is about to be replaced."""
        self._db.execute("DELETE FROM blocks WHERE level = ?", (level,))

    def checksums(self, level: str, rows: int) -> tuple[Checksums, NDArray[np.bool_]]:
        """(rows,) checksums of a level's vectors, and (rows,) whether each is known: its own record is as written."""
        crcs, known = np.zeros(rows, np.uint32), np.zeros(rows, bool)
        if not self._has_checksums():
            return crcs, known
        with self._lenient():
            for *record, crc in self._db.execute("SELECT * FROM blocks WHERE level = ?", (level,)):
                _, first, count, data = record
                if type(first) is not int or type(count) is not int or not isinstance(data, bytes):
                    continue
                if crc == record_crc(*record) and 0 <= first <= first + count <= rows and len(data) == 4 * count:
                    crcs[first : first + count] = np.frombuffer(data, "<u4")
                    known[first : first + count] = True
        return crcs, known

    def checksum(self, level: str, row: int) -> int | None:
        """The checksum of one row's vector, if there is one."""
        if not self._has_checksums():
            return None
        found = self._db.execute(
            "SELECT substr(crcs, 4 * (? - first) + 1, 4) FROM blocks WHERE level = ? AND first <= ? "
            "ORDER BY first DESC LIMIT 1",
            (row, level, row),
        ).fetchone()
        return (
            int.from_bytes(found[0], "little") if found and isinstance(found[0], bytes) and len(found[0]) == 4 else None
        )

    def check_rows(self, rows: int) -> None:
        """Check that what is said of rows is said of rows that there are.

        Raises:
            DamagedIndexError: if an item, or a removed one, has another row than 0 … ``rows`` - 1.
        """
        for table in ("items", "dead"):
            for row in self._db.execute(f"SELECT min(row), max(row) FROM {table}").fetchone():
                if row is not None and (type(row) is not int or not 0 <= row < rows):
                    raise DamagedIndexError(
                        f"the index is damaged: the table {table} names row {row!r:.40}, there are {rows}; "
                        "run `hivlp repair`"
                    )

    # Items without vectors.

    def lose(self, ids: Iterable[int]) -> None:
        """Set items aside until their pictures are indexed again: their vectors are damaged."""
        for item_id in ids:
            known = "SELECT id, path, caption, metadata FROM items WHERE id = ?"
            record = self._db.execute(known, (item_id,)).fetchone()
            self._db.execute("INSERT OR REPLACE INTO lost VALUES (?, ?, ?, ?, ?)", (*record, record_crc(*record)))
            self._db.execute("DELETE FROM items WHERE id = ?", (item_id,))

    def lost_count(self) -> int:
        """Number of items set aside."""
        return int(self._db.execute("SELECT COUNT(*) FROM lost").fetchone()[0]) if self._has_checksums() else 0

    def lost(self) -> tuple[list[tuple[int, str]], list[int]]:
        """Items set aside, as (id, path), and the ids of those whose record is damaged."""
        whole: list[tuple[int, str]] = []
        damaged: list[int] = []
        if self._has_checksums():
            with self._lenient():
                for *record, crc in self._db.execute("SELECT * FROM lost ORDER BY id"):
                    if crc == record_crc(*record):
                        whole.append((record[0], unpack_path(record[1])))
                    else:
                        damaged.append(record[0])
        return whole, damaged

    def forget(self, ids: Iterable[int]) -> None:
        """Drop the records of items, set aside or not, whatever became of their rows."""
        for item_id in ids:
            self._db.execute("DELETE FROM items WHERE id = ?", (item_id,))
            self._db.execute("DELETE FROM lost WHERE id = ?", (item_id,))

    # Inside.

    def _has_checksums(self) -> bool:
        found = self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        return found is not None and found[0] == str(FORMAT)

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        self._db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            yield
        finally:
            self._db.text_factory = str
