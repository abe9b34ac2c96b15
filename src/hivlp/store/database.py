"""Connections to ``items.db``: how it is opened, and a pool of connections for the threads of one process.

A commit here is what makes vectors exist: they are written and synced first, and rows past the committed count are
nobody's. SQLite runs with a rollback journal and full synchronisation, so that a commit survives a power cut and a
copy on a read-only medium can be searched.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.store import schema
from hivlp.store.changes import ChangeCounter
from hivlp.store.names import composed
from hivlp.store.schema import record_crc

FILE = "items.db"
META_DAMAGED = "the table meta is not as it was written"
BUSY_SECONDS = 30.0
PASSING = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
)
READ_CACHE_KIB = 16_384
# Hashes come in no order: a large addition touches most pages of their index, and must not write them out twice.
WRITE_CACHE_KIB = 65_536
LOOK_SECONDS = 0.05
"""Time within which a look at whether the file is still in its place is good for reading a snapshot."""
MOST_IDLE = 16
"""Connections that wait to be borrowed; of more threads at once, each opens one of its own."""


def connect(file: Path) -> sqlite3.Connection:
    """A new connection, which one thread at a time may use."""
    db = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    # EXTRA also syncs the folder once the journal is gone; with FULL a power cut could bring the journal, and with
    # it the state before the commit, back.
    try:
        db.execute("PRAGMA synchronous=EXTRA")
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA cache_size=-{READ_CACHE_KIB}")
    except sqlite3.Error:
        db.close()
        raise
    db.create_function("record_crc", -1, record_crc, deterministic=True)
    db.create_function("composed", 1, composed, deterministic=True)
    return db


def check_own(folder: Path, db: sqlite3.Connection) -> dict[str, Any]:
    """The table ``meta`` of an index, once nothing is against opening it.

    Raises:
        IndexFolderError: if it is of another format.
        DamagedIndexError: if it holds what hivlp does not make, such as a trigger, which would act by itself.
        ValueError: if the table ``meta`` is damaged.
    """
    meta, strange = schema.read_meta(db), schema.differences(db, exact=False)
    if db.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        strange.append("a write-ahead log")
    if strange:
        raise DamagedIndexError(
            f"{folder / FILE} is damaged, or was changed by others: {strange[0]} is not as hivlp makes it"
        )
    if meta.get("format") not in schema.FORMATS:
        raise IndexFolderError(
            f"{folder} has index format {meta.get('format')}, this hivlp reads {schema.FORMATS[-1]}: upgrade"
        )
    if not schema.meta_is_whole(db):
        raise ValueError(META_DAMAGED)
    return meta


def passing(error: Exception) -> bool:
    """Whether SQLite could not get at the file, which says nothing of what is in it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING


class Connections:
    """Connections to one ``items.db``, each borrowed by one thread at a time; the last given back is lent first."""

    def __init__(self, file: Path) -> None:
        """No connection is open yet.

        Raises:
            OSError: if the file cannot be opened.
        """
        self._file, self._process = file, os.getpid()
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._lent = 0
        self._closed = False
        self._changes = ChangeCounter(file)
        self._looked = time.monotonic()
        weakref.finalize(self, self._changes.give_up)  # of a store that nobody closes

    def changes(self) -> bytes:
        """Change counter of the file: another one after a commit, whoever made it.

        Raises:
            IndexFolderError: if the pool is closed, or of another process, or another file is in place of this one.
        """
        self.check()
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.check_place()
        try:
            return self._changes.read()
        except ValueError:  # closed by another thread since the check
            self.check()
            raise

    def check_place(self) -> None:
        """Check that the file is still the one that was opened: a store that is put in its place has other vectors.

        Raises:
            IndexFolderError: if not.
        """
        if not self._changes.in_place():
            self.check()  # perhaps closed meanwhile
            raise IndexFolderError(f"{self._file.parent} was moved, deleted or replaced: open it again")
        self._looked = time.monotonic()

    def check(self) -> None:
        """Check that the pool is open, and used in the process that made it: SQLite's locks do not survive a fork.

        Raises:
            IndexFolderError: if not.
        """
        if self._closed:
            raise IndexFolderError(f"{self._file.parent} was closed: open it again")
        if self._process != os.getpid():
            raise IndexFolderError(f"{self._file.parent} was opened by another process: open it once in each process")

    @contextmanager
    def borrow(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread, until the block ends.

        Raises:
            IndexFolderError: if the pool is closed, or of another process.
            sqlite3.Error: if the file cannot be opened.
        """
        self.check()
        with self._lock:
            self._lent += 1
            db = self._idle.pop() if self._idle else None
        kept = False
        try:
            if db is None:
                db = connect(self._file)
            yield db
        finally:
            with self._lock:
                if db is not None and not self._closed and len(self._idle) < MOST_IDLE:
                    self._idle.append(db)
                    kept = True
            if db is not None and not kept:
                db.close()
            with self._lock:
                self._lent -= 1
                if self._closed and not self._lent:
                    self._changes.close()

    def close(self) -> None:
        """Close all connections, those that are borrowed when they come back; nothing is wrong with doing so twice."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            if not self._lent:  # otherwise the last connection that comes back does so
                self._changes.close()
