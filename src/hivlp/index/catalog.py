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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import IndexFolderError, QueryError
from hivlp.levels import Level

FILE = "items.db"
FORMAT = 1
BUSY_SECONDS = 30.0
WHERE_SECONDS = 5.0
# No value that a condition makes may be longer: time limits do not reach inside a function such as zeroblob().
WHERE_BYTES = 1 << 24
WHERE_TABLES = ("items", "json_each", "json_tree")

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path NOT NULL UNIQUE,               -- TEXT; a BLOB where the file's name is not UTF-8
    hash BLOB NOT NULL,                 -- SHA-256 of the file's content
    caption TEXT,
    metadata TEXT NOT NULL DEFAULT '{}',
    row INTEGER NOT NULL,               -- in every level's vector file
    size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, checked INTEGER NOT NULL
);
CREATE INDEX items_row ON items (row);
CREATE INDEX items_hash ON items (hash);
CREATE TABLE dead (row INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True)
class State:
    """What a commit says of the index as a whole."""

    rows: int
    generation: int
    commits: int


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


def pack_path(path: str) -> str | bytes:
    """A path as SQLite can hold it: text, or bytes if the name is not valid UTF-8."""
    try:
        path.encode("utf-8")
        return path
    except UnicodeEncodeError:
        return os.fsencode(path)


def unpack_path(value: str | bytes) -> str:
    """The inverse of :func:`pack_path`."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


class Catalog:
    """A connection to ``items.db``. Not for sharing between threads."""

    COLUMNS = "id, path, hash, caption, metadata, row, size, mtime, ctime, checked"

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
            meta = self._meta()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise IndexFolderError(f"{self._path} is damaged: {error}") from error
        if meta.get("format") != str(FORMAT):
            self._db.close()
            raise IndexFolderError(
                f"{folder} has index format {meta.get('format')}, this hivlp reads {FORMAT}: upgrade"
            )
        levels = tuple(Level(**level) for level in json.loads(meta["levels"]))
        self.about = About(meta["model"], meta["source"], meta["fingerprint"], levels)

    @staticmethod
    def create(folder: Path, about: About) -> None:
        """Write a new catalog into an empty folder."""
        db = Catalog._connect(folder / FILE)
        try:
            Catalog._tune(db)
            db.executescript(f"BEGIN;{SCHEMA}")
            values = {
                "format": FORMAT,
                "model": about.model,
                "source": about.source,
                "fingerprint": about.fingerprint,
                "levels": json.dumps([asdict(level) for level in about.levels]),
                "rows": 0,
                "generation": 0,
                "commits": 0,
            }
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in values.items()])
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
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"{self._path} cannot be read: {error}") from error

    @contextmanager
    def writing(self) -> Iterator[State]:
        """All or nothing: the block's changes are committed and on disk when it ends, or never were."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self.state()
            self._db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'commits'")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def state(self) -> State:
        """Committed rows, generation of the vector files, and a number that grows with each commit."""
        meta = self._meta()
        return State(int(meta["rows"]), int(meta["generation"]), int(meta["commits"]))

    def _meta(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def set_rows(self, rows: int, generation: int | None = None) -> None:
        """Declare how many vector rows exist, and in which generation of files."""
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'rows'", (str(rows),))
        if generation is not None:
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'generation'", (str(generation),))

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
        """An item by its path."""
        return self._one("path = ?", pack_path(path))

    def at_paths(self, paths: Sequence[str]) -> dict[str, Item]:
        """The items that there are at these paths, by path."""
        found = {}
        for start in range(0, len(paths), 500):
            part = [pack_path(path) for path in paths[start : start + 500]]
            marks = ",".join("?" * len(part))
            for values in self._db.execute(f"SELECT {self.COLUMNS} FROM items WHERE path IN ({marks})", part):
                item = self._item(values)
                found[item.path] = item
        return found

    def with_hash(self, content: bytes) -> Item | None:
        """Any item with this content."""
        return self._one("hash = ?", content)

    def _one(self, condition: str, value: object) -> Item | None:
        found = self._db.execute(f"SELECT {self.COLUMNS} FROM items WHERE {condition} LIMIT 1", (value,)).fetchone()
        return self._item(found) if found else None

    @staticmethod
    def _item(values: Sequence[Any]) -> Item:
        item_id, path, content, caption, metadata, row, *stamp = values
        return Item(item_id, unpack_path(path), content, caption, json.loads(metadata), row, Stamp(*stamp))

    def in_rows(self, rows: Sequence[int]) -> list[Item]:
        """The items in these rows, in this order."""
        found = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            marks = ",".join("?" * len(part))
            for values in self._db.execute(f"SELECT {self.COLUMNS} FROM items WHERE row IN ({marks})", part):
                item = self._item(values)
                found[item.row] = item
        return [found[row] for row in rows]

    def live(self) -> NDArray[np.int64]:
        """(items, 2) of row and id, by row."""
        pairs = self._db.execute("SELECT row, id FROM items ORDER BY row")
        return np.fromiter(pairs, np.dtype((np.int64, 2)))

    def all_items(self) -> Iterator[Item]:
        """Every item, by row; do not write while this runs."""
        for values in self._db.execute(f"SELECT {self.COLUMNS} FROM items ORDER BY row"):
            yield self._item(values)

    def under(self, path: str) -> list[Item]:
        """The item at a path, and all items in the folder of that name."""
        folder = path.rstrip("/")
        # "0" is the character after "/". Text sorts before blobs, so each kind has a range of its own in the index; a
        # folder whose own name is not UTF-8 holds blobs alone.
        first, last = os.fsencode(folder) + b"/", os.fsencode(folder) + b"0"
        ranges: list[tuple[str | bytes, str | bytes]] = [(first, last)]
        if isinstance(pack_path(folder), str):
            ranges.append((folder + "/", folder + "0"))
        select = f"SELECT {self.COLUMNS} FROM items WHERE"
        found = self._db.execute(f"{select} path = ?", (pack_path(path),)).fetchall()
        for bounds in ranges:
            found += self._db.execute(f"{select} path >= ? AND path < ?", bounds).fetchall()
        return [self._item(values) for values in found]

    def put(self, item: NewItem, row: int) -> int:
        """Store an item in a row; one at the same path is replaced, keeps its id, and its old row dies."""
        before = self.at(item.path)
        metadata = json.dumps(item.metadata)
        caption = None if item.caption is None else item.caption.encode("utf-8", "replace").decode("utf-8")
        stamp = (item.stamp.size, item.stamp.mtime, item.stamp.ctime, item.stamp.checked)
        if before is None:
            cursor = self._db.execute(
                "INSERT INTO items (path, hash, caption, metadata, row, size, mtime, ctime, checked) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (pack_path(item.path), item.hash, caption, metadata, row, *stamp),
            )
            return int(cursor.lastrowid or 0)
        self._db.execute("INSERT INTO dead VALUES (?)", (before.row,))
        self._db.execute(
            "UPDATE items SET hash=?, caption=?, metadata=?, row=?, size=?, mtime=?, ctime=?, checked=? WHERE id=?",
            (item.hash, caption, metadata, row, *stamp, before.id),
        )
        return before.id

    def restamp(self, item_id: int, stamp: Stamp) -> None:
        """Note that an item's file was read again and had the same content."""
        self._db.execute(
            "UPDATE items SET size=?, mtime=?, ctime=?, checked=? WHERE id=?",
            (stamp.size, stamp.mtime, stamp.ctime, stamp.checked, item_id),
        )

    def delete(self, items: Iterable[Item]) -> None:
        """Forget items; their rows die."""
        for item in items:
            self._db.execute("DELETE FROM items WHERE id = ?", (item.id,))
            self._db.execute("INSERT INTO dead VALUES (?)", (item.row,))

    def renumber(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give items new rows, as (new, id), and forget the dead ones."""
        self._db.executemany("UPDATE items SET row = ? WHERE id = ?", moves)
        self._db.execute("DELETE FROM dead")

    def rows_where(self, condition: str) -> list[int]:
        """Rows of the items for which an SQL expression over id, path, caption and metadata holds.

        Raises:
            QueryError: if it is not such an expression, does more than read items, or takes too long.
        """
        if "\x00" in condition or not condition.strip():
            raise QueryError("--where is empty or holds a NUL character")
        deadline = time.monotonic() + WHERE_SECONDS

        def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
            if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
                return sqlite3.SQLITE_OK
            if action == sqlite3.SQLITE_READ and first in WHERE_TABLES:
                return sqlite3.SQLITE_OK
            # load_extension is off by default in this library; refused here all the same.
            if action == sqlite3.SQLITE_FUNCTION and second not in ("load_extension", "writefile", "readfile"):
                return sqlite3.SQLITE_OK
            return sqlite3.SQLITE_DENY

        # SQLite builds a table-valued function once, with rights that a condition does not get.
        self._db.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
        longest = self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, WHERE_BYTES)
        self._db.set_authorizer(authorize)
        self._db.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
        try:
            # Only a whole expression fits both here and below: one that closes a bracket early to add a query of its
            # own, such as `0) UNION SELECT (1`, cannot stand inside CAST.
            self._db.execute(f"SELECT CAST(({condition}\n) AS INTEGER) FROM items LIMIT 0")
            return [row for (row,) in self._db.execute(f"SELECT row FROM items WHERE ({condition}\n)")]
        except (sqlite3.OperationalError, sqlite3.DataError) as error:
            if "interrupted" in str(error):
                raise QueryError(f"--where took longer than {WHERE_SECONDS:.0f} s") from error
            raise QueryError(f"--where is not a condition on id, path, caption, metadata: {error}") from error
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            raise QueryError(f"--where is not a condition on id, path, caption, metadata: {error}") from error
        finally:
            self._db.set_authorizer(None)
            self._db.set_progress_handler(None, 0)
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
