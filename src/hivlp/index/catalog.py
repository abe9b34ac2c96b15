"""``items.db``: which items an index holds, and how many vector rows exist. The source of truth.

A commit here is what makes vectors exist: they are written and synced first, and rows past the committed count are
nobody's. SQLite runs with a rollback journal and full synchronisation, so that a commit survives a power cut and a
copy on a read-only medium can be searched.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.index import schema
from hivlp.index.integrity import Integrity
from hivlp.index.schema import COLUMNS, FORMAT, OLD_FORMAT, WITH_HASH, pack_path, record_crc, unpack_path
from hivlp.index.vectors import HALF
from hivlp.index.where import rows_where
from hivlp.levels import Level

FILE = "items.db"
BUSY_SECONDS = 30.0
PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)
"""Errors of SQLite that say nothing of the file itself."""
# Hashes come in no order: a large addition touches most pages of their index, and must not write them out twice.
CACHE_KIB = 65_536
T = TypeVar("T")


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


@dataclass(frozen=True)
class Stamp:
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


@dataclass(frozen=True)
class NewItem:
    """A picture about to be stored; ``id`` is set when it replaces an item's content."""

    path: str
    hash: bytes
    caption: str | None
    metadata: dict[str, Any]
    stamp: Stamp


class Catalog:
    """A connection to ``items.db``. Not for sharing between threads."""

    def __init__(self, folder: Path) -> None:
        """Open an existing catalog.

        Raises:
            IndexFolderError: if there is none, it is damaged, or of another format.
        """
        self._path = folder / FILE
        try:
            if not self._path.is_file():
                raise IndexFolderError(f"{folder} is not an index: it has no {FILE}")
            self._db = self._connect(self._path)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise IndexFolderError(f"{self._path} cannot be read: {reason}") from error
        try:
            self._tune(self._db)
            self.integrity = Integrity(self._db)
            meta = self._meta()
            if meta.get("format") not in (str(OLD_FORMAT), str(FORMAT)):
                raise IndexFolderError(
                    f"{folder} has index format {meta.get('format')}, this hivlp reads {FORMAT}: upgrade"
                )
            self.check_meta()
            levels = tuple(Level(**level) for level in json.loads(meta["levels"]))
            self.about = About(meta["model"], meta["source"], meta["fingerprint"], levels)
        except (sqlite3.DatabaseError, KeyError, ValueError, TypeError) as error:
            self._db.close()
            raise DamagedIndexError(f"{self._path} is damaged: {error}") from error
        except IndexFolderError:
            self._db.close()
            raise

    @staticmethod
    def create(folder: Path, about: About) -> None:
        """Write a new catalog into an empty folder."""
        db = Catalog._connect(folder / FILE)
        try:
            Catalog._tune(db)
            db.execute("BEGIN")
            schema.make_tables(db)
            values = {
                "format": FORMAT,
                "model": about.model,
                "source": about.source,
                "fingerprint": about.fingerprint,
                "levels": json.dumps([asdict(level) for level in about.levels]),
                "dtype": HALF.str,
                "rows": 0,
                "generation": 0,
                "commits": 0,
            }
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in values.items()])
            _seal_meta(db)
            db.execute("COMMIT")
        finally:
            db.close()

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)

    @staticmethod
    def _tune(db: sqlite3.Connection) -> None:
        # EXTRA also syncs the folder once the journal is gone; with FULL a power cut could bring the journal, and with
        # it the state before the commit, back.
        db.execute("PRAGMA synchronous=EXTRA")
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        db.create_function("record_crc", -1, record_crc, deterministic=True)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def reading(self) -> Iterator[State]:
        """One consistent view: nobody's commit is seen, or succeeds, before the block ends."""
        try:
            self._db.execute("BEGIN")
            try:
                yield self.state()
            finally:
                if self._db.in_transaction:
                    self._db.execute("COMMIT")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            kind = IndexFolderError if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING else DamagedIndexError
            raise kind(f"{self._path} cannot be read: {error}") from error

    @contextmanager
    def writing(self) -> Iterator[State]:
        """All or nothing: the block's changes are committed and on disk when it ends, or never were."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self.check_meta()  # a new checksum must not vouch for what was damaged before
            yield self.state()
            self._db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'commits'")
            _seal_meta(self._db)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def state(self) -> State:
        """Committed rows, generation of the vector files, and a number that grows with each commit."""
        meta = self._meta()
        try:
            rows, generation, commits, version = (int(meta[key]) for key in ("rows", "generation", "commits", "format"))
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedIndexError(f"{self._path} is damaged: the table meta makes no sense ({error})") from error
        return State(rows, generation, commits, version, meta.get("dtype", "<f4"))

    def _meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def check_meta(self) -> None:
        """Check the index's own record.

        Raises:
            DamagedIndexError: if it is not as it was written.
        """
        meta = self._meta()
        if meta.get("format") != str(OLD_FORMAT) and meta.get("check") != str(_meta_crc(self._db, meta)):
            raise DamagedIndexError(f"{self._path} is damaged: the table meta is not as it was written")

    def upgrade(self) -> State:
        """From format 1 to 2, inside :meth:`writing`; the vectors' checksums are for the caller to add."""
        schema.upgrade_tables(self._db)
        return self.state()

    def set_rows(self, rows: int, generation: int | None = None, dtype: str | None = None) -> None:
        """Declare how many vector rows exist, and in which generation of files, of what dtype."""
        for key, value in (("rows", rows), ("generation", generation), ("dtype", dtype)):
            if value is not None:
                self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (str(value), key))

    def count(self) -> int:
        """Number of items."""
        try:
            return int(self._db.execute("SELECT COUNT(*) FROM items").fetchone()[0])
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"{self._path} cannot be read: {error}") from error

    def dead(self) -> list[int]:
        """Rows that belong to no item any more, ascending."""
        return [row for (row,) in self._db.execute("SELECT row FROM dead ORDER BY row")]

    def get(self, item_id: int) -> Item | None:
        """An item by its id."""
        return self._one("id = ?", item_id) if 0 < item_id < 1 << 63 else None

    def at(self, path: str) -> Item | None:
        """An item by its path.

        Raises:
            DamagedIndexError: if its record is not as it was written.
        """
        found = self._db.execute("SELECT * FROM items WHERE path = ?", (pack_path(path),)).fetchone()
        return self._checked(found) if found else None

    def at_paths(self, paths: Sequence[str]) -> dict[str, Item]:
        """The items that there are at these paths, by path."""
        found = {}
        for start in range(0, len(paths), 500):
            part = [pack_path(path) for path in paths[start : start + 500]]
            marks = ",".join("?" * len(part))
            for values in self._db.execute(f"SELECT {COLUMNS} FROM items WHERE path IN ({marks})", part):
                item = self._item(values)
                found[item.path] = item
        return found

    def with_hash(self, content: bytes) -> Item | None:
        """Any item with this content."""
        return self._one(WITH_HASH, content)

    def _one(self, condition: str, value: object) -> Item | None:
        found = self._db.execute(f"SELECT {COLUMNS} FROM items WHERE {condition} LIMIT 1", (value,)).fetchone()
        return self._item(found) if found else None

    def _item(self, values: Sequence[Any]) -> Item:
        item_id, path, content, caption, metadata, row, *stamp = values
        try:
            known = json.loads(metadata)
        except (ValueError, TypeError) as error:
            raise self._damaged(item_id) from error
        return Item(item_id, unpack_path(path), content, caption, known, row, Stamp(*stamp))

    def _damaged(self, item_id: int) -> DamagedIndexError:
        return DamagedIndexError(f"{self._path} is damaged: the record of item {item_id}; run `hivlp repair`")

    def _checked(self, values: Sequence[Any]) -> Item:
        """An item from all its columns, of which format 1 has no checksum."""
        *record, crc = values if len(values) > len(COLUMNS.split(",")) else (*values, None)
        if crc is not None and crc != record_crc(*record):
            raise self._damaged(values[0])
        return self._item(record)

    def in_rows(self, rows: Sequence[int]) -> list[Item]:
        """The items in these rows, in this order."""
        found = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            marks = ",".join("?" * len(part))
            for values in self._db.execute(f"SELECT {COLUMNS} FROM items WHERE row IN ({marks})", part):
                item = self._item(values)
                found[item.row] = item
        return self._each(found, rows)

    def _each(self, found: Mapping[int, T], rows: Sequence[int]) -> list[T]:
        for row in rows:
            if row not in found:
                raise DamagedIndexError(f"{self._path} is damaged: row {row} belongs to no item; run `hivlp repair`")
        return [found[row] for row in rows]

    def captions(self, limit: int) -> list[str]:
        """Different captions of items, as many as wanted or there are."""
        select = "SELECT DISTINCT caption FROM items WHERE caption IS NOT NULL AND TRIM(caption) != '' LIMIT ?"
        return [caption for (caption,) in self._db.execute(select, (limit,))]

    def hashes(self, rows: Sequence[int]) -> list[bytes]:
        """The content hashes of the items in these rows, in this order."""
        found: dict[int, bytes] = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT row, hash FROM items WHERE row IN ({marks})", part))
        return self._each(found, rows)

    def copies(self, content: bytes) -> list[Item]:
        """All items with this content, by row."""
        select = f"SELECT {COLUMNS} FROM items WHERE {WITH_HASH} ORDER BY row"
        return [self._item(values) for values in self._db.execute(select, (content,))]

    def live(self) -> NDArray[np.int64]:
        """(items, 2) of row and id, by row."""
        pairs = self._db.execute("SELECT row, id FROM items ORDER BY row")
        try:
            return np.fromiter(pairs, np.dtype((np.int64, 2)))
        except (TypeError, ValueError) as error:
            raise DamagedIndexError(f"{self._path} is damaged: {error}; run `hivlp repair`") from error

    def all_items(self) -> Iterator[Item]:
        """Every item, by row; do not write while this runs.

        Raises:
            DamagedIndexError: if a record is not as it was written.
        """
        for values in self._db.execute("SELECT * FROM items ORDER BY row"):
            yield self._checked(values)

    def under(self, path: str) -> list[Item]:
        """The item at a path, and all items in the folder of that name."""
        folder = path.rstrip("/")
        # "0" is the character after "/". Text sorts before blobs, so each kind has a range of its own in the index; a
        # folder whose own name is not UTF-8 holds blobs alone.
        first, last = os.fsencode(folder) + b"/", os.fsencode(folder) + b"0"
        ranges: list[tuple[str | bytes, str | bytes]] = [(first, last)]
        if isinstance(pack_path(folder), str):
            ranges.append((folder + "/", folder + "0"))
        select = f"SELECT {COLUMNS} FROM items WHERE"
        found = self._db.execute(f"{select} path = ?", (pack_path(path),)).fetchall()
        for bounds in ranges:
            found += self._db.execute(f"{select} path >= ? AND path < ?", bounds).fetchall()
        return [self._item(values) for values in found]

    def put(self, items: Sequence[NewItem], first: int) -> int:
        """Store items in rows from ``first`` on.

        One whose path is known, or comes twice, replaces the item there, which keeps its id; the old row dies. One that
        was lost comes back with its id and what was known of it.

        Returns:
            How many replaced another.
        """
        paths = [pack_path(item.path) for item in items]
        known = {path: (item_id, row) for path, item_id, row in self._with_paths("path, id, row", "items", paths)}
        lost = {path: rest for path, *rest in self._with_paths("path, id, caption, metadata", "lost", paths)}
        stored = set(known)
        next_id = schema.sequence(self._db) + 1
        records: dict[str | bytes, tuple[Any, ...]] = {}
        dead: list[tuple[int]] = []
        for row, (path, item) in enumerate(zip(paths, items, strict=True), start=first):
            caption, metadata = item.caption, item.metadata
            if path in known:
                item_id, before = known[path]
                dead.append((before,))
            elif path in lost:
                item_id, old_caption, old_metadata = lost[path]
                caption = old_caption if caption is None else caption
                metadata = {**json.loads(old_metadata), **metadata}
            else:
                item_id, next_id = next_id, next_id + 1
            known[path] = item_id, row
            if caption is not None:
                caption = caption.encode("utf-8", "replace").decode("utf-8")
            stamp = (item.stamp.size, item.stamp.mtime, item.stamp.ctime, item.stamp.checked)
            records[path] = (item_id, path, item.hash, caption, json.dumps(metadata), row, *stamp)
        sealed = [(path in stored, (*record, record_crc(*record))) for path, record in records.items()]
        self._db.executemany(
            f"INSERT INTO items ({COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [record for old, record in sealed if not old],
        )
        self._db.executemany(
            "UPDATE items SET hash=?, caption=?, metadata=?, row=?, size=?, mtime=?, ctime=?, checked=?, crc=? "
            "WHERE id=?",
            [(*record[2:], record[0]) for old, record in sealed if old],
        )
        self._db.executemany("INSERT INTO dead VALUES (?)", dead)
        self._db.executemany("DELETE FROM lost WHERE id = ?", [(rest[0],) for rest in lost.values()])
        return len(dead)

    def _with_paths(self, columns: str, table: str, paths: Sequence[str | bytes]) -> Iterator[Sequence[Any]]:
        if table == "lost" and self.integrity.lost_count() == 0:
            return
        for start in range(0, len(paths), 500):
            part = paths[start : start + 500]
            marks = ",".join("?" * len(part))
            yield from self._db.execute(f"SELECT {columns} FROM {table} WHERE path IN ({marks})", part).fetchall()

    def restamp(self, stamps: Iterable[tuple[int, Stamp]]) -> None:
        """Note that items' files were read again and had the same content."""
        # The new checksum must not vouch for a record that was damaged before.
        self._db.executemany(
            f"UPDATE items SET size=?1, mtime=?2, ctime=?3, checked=?4, crc = CASE crc WHEN record_crc({COLUMNS}) "
            "THEN record_crc(id, path, hash, caption, metadata, row, ?1, ?2, ?3, ?4) ELSE crc END WHERE id=?5",
            [(stamp.size, stamp.mtime, stamp.ctime, stamp.checked, item_id) for item_id, stamp in stamps],
        )

    def delete(self, items: Iterable[tuple[int, int]]) -> None:
        """Forget items, given as (id, row); their rows die."""
        for item_id, row in items:
            self._db.execute("DELETE FROM items WHERE id = ?", (item_id,))
            self._db.execute("INSERT INTO dead VALUES (?)", (row,))

    def renumber(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give items new rows, as (new, id), and forget the dead ones."""
        self._db.executemany("UPDATE items SET row = ? WHERE id = ?", moves)
        self._db.execute(f"UPDATE items SET crc = record_crc({COLUMNS})")
        self._db.execute("DELETE FROM dead")

    def rows_where(self, condition: str) -> list[int]:
        """Rows of the items for which a condition holds; see :func:`hivlp.index.where.rows_where`."""
        return rows_where(self._db, condition)


def _meta_crc(db: sqlite3.Connection, meta: Mapping[str, str]) -> int:
    return record_crc(*(meta.get(key) for key in schema.META), schema.sequence(db))


def _seal_meta(db: sqlite3.Connection) -> None:
    meta = dict(db.execute("SELECT key, value FROM meta"))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('check', ?)", (str(_meta_crc(db, meta)),))
