"""The connection to ``items.db``: one consistent view to read, all or nothing to write, and the index's own record.

A commit here is what makes vectors exist: they are written and synced first, and rows past the committed count are
nobody's. SQLite runs with a rollback journal and full synchronisation, so that a commit survives a power cut and a
copy on a read-only medium can be searched.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.store import schema
from hivlp.store.integrity import Integrity
from hivlp.store.names import composed
from hivlp.store.records import About, State
from hivlp.store.schema import FORMAT, OLD_FORMAT, record_crc
from hivlp.store.vectors import HALF

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


class Database:
    """Opening, transactions, and the table ``meta``; for the thread that opened it."""

    def __init__(self, folder: Path) -> None:
        """Open an existing catalog.

        Raises:
            IndexFolderError: if there is none, it is damaged, or of another format.
        """
        self._path = folder / FILE
        try:
            if not self._path.is_file():
                raise IndexFolderError(f"{folder} is not an index: it has no {FILE}")
            self._connection: sqlite3.Connection | None = self._connect(self._path)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise IndexFolderError(f"{self._path} cannot be read: {reason}") from error
        self._owner = os.getpid(), threading.get_ident()
        try:
            self._tune(self._db)
            self.integrity = Integrity(self._db)
            meta = self._meta()
            self._check_own()
            if meta.get("format") not in (str(OLD_FORMAT), str(FORMAT)):
                raise IndexFolderError(
                    f"{folder} has index format {meta.get('format')}, this hivlp reads {FORMAT}: upgrade"
                )
            self.check_meta()
            self.about = About.of(meta)
        except (sqlite3.DatabaseError, KeyError, ValueError, TypeError) as error:
            self.close()
            raise DamagedIndexError(f"{self._path} is damaged: {error}") from error
        except IndexFolderError:
            self.close()
            raise

    @property
    def _db(self) -> sqlite3.Connection:
        """The connection, if :meth:`check_owner` has nothing against it."""
        self.check_owner()
        assert self._connection is not None
        return self._connection

    def check_owner(self) -> None:
        """Check that it is open, and used where it was opened.

        Raises:
            IndexFolderError: if it is closed, or of another thread or process.
        """
        if self._connection is None:
            raise IndexFolderError(f"{self._path.parent} was closed: open it again")
        if self._owner != (os.getpid(), threading.get_ident()):
            kind = "process" if self._owner[0] != os.getpid() else "thread"
            raise IndexFolderError(f"{self._path.parent} was opened by another {kind}: open it once in each {kind}")

    def _check_own(self) -> None:
        """Check that nobody has put anything into the database that acts by itself.

        Raises:
            DamagedIndexError: if there is something that hivlp does not make.
        """
        strange = schema.strange(self._db)
        if self._db.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            strange.append("a write-ahead log")
        if strange:
            raise DamagedIndexError(
                f"{self._path} is damaged, or was changed by others: {strange[0]} is not as hivlp makes it"
            )

    @staticmethod
    def create(folder: Path, about: About) -> None:
        """Write a new catalog into an empty folder."""
        db = Database._connect(folder / FILE)
        try:
            Database._tune(db)
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
        # Which thread may use it is for Database to say, in words.
        return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    @staticmethod
    def _tune(db: sqlite3.Connection) -> None:
        # EXTRA also syncs the folder once the journal is gone; with FULL a power cut could bring the journal, and with
        # it the state before the commit, back.
        db.execute("PRAGMA synchronous=EXTRA")
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        db.create_function("record_crc", -1, record_crc, deterministic=True)
        db.create_function("composed", 1, composed, deterministic=True)

    def close(self) -> None:
        """Close the connection; nothing is wrong with doing so twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
            schema.part_hashes(self._db)
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
        try:
            return State.of(self._meta())
        except ValueError as error:
            raise DamagedIndexError(f"{self._path} is damaged: the table meta makes no sense ({error})") from error

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


def _meta_crc(db: sqlite3.Connection, meta: Mapping[str, str]) -> int:
    return record_crc(*(meta.get(key) for key in schema.META), schema.sequence(db))


def _seal_meta(db: sqlite3.Connection) -> None:
    meta = dict(db.execute("SELECT key, value FROM meta"))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('check', ?)", (str(_meta_crc(db, meta)),))
