"""Checksums of records and vectors as one commit has them, and the items whose vectors are lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.rows import Stored
from hivlp.errors import DamagedIndexError
from hivlp.store import schema
from hivlp.store.codec import Checksums, row_checksums
from hivlp.store.database import META_DAMAGED
from hivlp.store.path_codec import PathCodec
from hivlp.store.records import Item, State
from hivlp.store.schema import BLOCK, ITEM, LOST, ItemRecord, LostRecord, record_crc
from hivlp.store.vectors import VectorFile


class Integrity:
    """What can be checked of one commit; the part of :class:`hivlp.store.reader.Reader` that looks for damage."""

    def __init__(self, db: sqlite3.Connection, state: State, paths: PathCodec) -> None:
        self._db, self._state, self._paths = db, state, paths

    def faults(self) -> list[str]:
        """What SQLite's own check, and a look at the file's length and the tables' definitions, find wrong."""
        (pages,), (page_size,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        length = Path(self._db.execute("PRAGMA database_list").fetchone()[2]).stat().st_size
        if length < pages * page_size:  # SQLite would read zeros
            return [f"the file holds {length} of {pages * page_size} bytes"]
        with self._lenient():
            found = [text for (text,) in self._db.execute("PRAGMA integrity_check") if text != "ok"]
            if self._state.has_checksums:
                differing = schema.differences(self._db, exact=True)
                found += [f"the definition of {what} is not as it was written" for what in differing]
        if not schema.meta_is_whole(self._db):
            found.append(META_DAMAGED)
        return found

    # Records.

    def records(self) -> Iterator[tuple[ItemRecord, bool]]:
        """Every record of an item by id, and whether it is as it was written and makes sense.

        Text that is no UTF-8 comes with surrogates instead of an error.
        """
        with self._lenient():
            column = "crc" if self._state.has_checksums else "NULL"
            for *values, crc in self._db.execute(f"SELECT {ITEM}, {column} FROM items ORDER BY id"):
                whole = not self._state.has_checksums or crc == record_crc(*values)
                yield ItemRecord._make(values), whole and self._makes_sense(values)

    def damaged_item(self) -> int | None:
        """The id of an item whose record is not as it was written, if there is one."""
        if not self._state.has_checksums:
            return None
        found = self._db.execute(f"SELECT id FROM items WHERE crc != record_crc({ITEM}) LIMIT 1").fetchone()
        return None if found is None else int(found[0])

    def path_of(self, item_id: int) -> str:
        """The path of an item, whatever state its record is in."""
        with self._lenient():
            found = self._db.execute("SELECT path FROM items WHERE id = ?", (item_id,)).fetchone()
        return "?" if found is None else self.shown_path(found[0])

    def shown_path(self, value: Any) -> str:
        """A path for people, whatever a damaged record holds in its place."""
        return self._paths.shown(value if isinstance(value, (str, bytes)) else repr(value))

    def lost_count(self) -> int:
        """Number of items set aside because their vectors are damaged."""
        return int(self._db.execute("SELECT COUNT(*) FROM lost").fetchone()[0]) if self._state.has_checksums else 0

    def lost(self) -> tuple[list[tuple[int, str]], list[int]]:
        """Items set aside, as (id, path), and the ids of those whose record is damaged."""
        whole: list[tuple[int, str]] = []
        damaged: list[int] = []
        if self._state.has_checksums:
            with self._lenient():
                for *values, crc in self._db.execute(f"SELECT {LOST}, crc FROM lost ORDER BY id"):
                    record = LostRecord._make(values)
                    try:
                        path = self._paths.decode(record.path)
                    except ValueError:
                        path = None
                    if path is not None and crc == record_crc(*record):
                        whole.append((record.id, path))
                    else:
                        damaged.append(record.id)
        return whole, damaged

    # Vectors.

    def pending(self, *, lenient: bool = False) -> NDArray[np.int64]:
        """Rows that have the coarsest level's vector alone, ascending; those of tombstones among them.

        Args:
            lenient: pass over a damaged record, whose rows then count as filled, with wrong checksums.

        Raises:
            DamagedIndexError: if a record is not as it was written.
        """
        parts: list[NDArray[np.int64]] = []
        if self._state.has_pending:
            select = f"SELECT {BLOCK}, crc FROM blocks WHERE level = ? ORDER BY first"
            for *values, crc in self._db.execute(select, (schema.PENDING,)):
                rows = _pending_rows(values, self._state.rows) if crc == record_crc(*values) else None
                if rows is not None:
                    parts.append(rows)
                elif not lenient:
                    raise DamagedIndexError("the index is damaged: which pictures are pending; run `hivlp repair`")
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def checksums(self, level: str, first: int, last: int) -> tuple[Checksums, NDArray[np.bool_]]:
        """Checksums of a level's rows from ``first`` to before ``last``, and whether each is known.

        One is known if the record that holds it is as it was written, and the row was; a pending one's is 0 in the
        finer levels.
        """
        crcs, known = np.zeros(last - first, np.uint32), np.zeros(last - first, bool)
        if not self._state.has_checksums:
            return crcs, known
        select = (
            f"SELECT {BLOCK}, crc FROM blocks WHERE level = ?1 AND first < ?3 AND first >= "
            "ifnull((SELECT max(first) FROM blocks WHERE level = ?1 AND first <= ?2), 0)"
        )
        with self._lenient():
            for *values, crc in self._db.execute(select, (level, first, last)):
                _, start, count, data = values
                if type(start) is not int or type(count) is not int or not isinstance(data, bytes):
                    continue
                if crc == record_crc(*values) and 0 <= start <= start + count and len(data) == 4 * count:
                    begin, end = max(start, first), min(start + count, last)
                    if begin < end:
                        crcs[begin - first : end - first] = np.frombuffer(data, "<u4")[begin - start : end - start]
                        known[begin - first : end - first] = True
        pending = self.pending(lenient=True)
        rows = pending[(pending >= first) & (pending < last)] - first
        known[rows[crcs[rows] == 0]] = False
        return crcs, known

    def check(self, file: VectorFile, rows: NDArray[np.int64], stored: Stored) -> Checksums:
        """Compare stored rows with the checksums that were written with them.

        Args:
            file: that they are from.
            rows: (n,) their numbers.
            stored: n rows.

        Returns:
            (n,) checksums of the rows as they are.

        Raises:
            DamagedIndexError: naming the first that differs.
        """
        found = row_checksums(stored)
        if len(rows):
            first = int(rows.min())
            crcs, known = self.checksums(file.level.name, first, int(rows.max()) + 1)
            for row in rows[known[rows - first] & (found != crcs[rows - first])]:
                raise file.damaged(int(row))
        return found

    def check_rows(self) -> None:
        """Check that items and removed ones are in rows that there are.

        Raises:
            DamagedIndexError: if one is not.
        """
        for table in ("items", "dead"):
            for row in self._db.execute(f"SELECT min(row), max(row) FROM {table}").fetchone():
                if row is not None and (type(row) is not int or not 0 <= row < self._state.rows):
                    raise DamagedIndexError(
                        f"the index is damaged: the table {table} names row {row!r:.40}, there are {self._state.rows}; "
                        "run `hivlp repair`"
                    )

    @contextmanager
    def _lenient(self) -> Iterator[None]:
        self._db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            yield
        finally:
            self._db.text_factory = str

    def _makes_sense(self, values: list[Any]) -> bool:
        try:
            Item.of(values, self._paths)
        except ValueError:
            return False
        return True


def _pending_rows(values: Sequence[Any], rows: int) -> NDArray[np.int64] | None:
    """Pending rows of a block's record; None if it makes no sense."""
    _, first, count, bits = values
    if type(first) is not int or type(count) is not int or not isinstance(bits, bytes):
        return None
    if not (0 <= first <= first + count <= rows and len(bits) == -(-count // 8)):
        return None
    return first + np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little"))
