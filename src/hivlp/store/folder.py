"""Store: an index folder on disk, ``items.db`` and one vector file a level, for many readers and one writer."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hivlp.errors import BusyIndexError, DamagedIndexError, IndexFolderError
from hivlp.files.scratch import settle, sweep
from hivlp.levels import Embeddings, Level
from hivlp.store import schema
from hivlp.store.compacting import Progress, rewrite
from hivlp.store.database import FILE, META_DAMAGED, WRITE_CACHE_KIB, Connections, check_own, passing
from hivlp.store.fields.declared import Field, joined
from hivlp.store.lookup import AT_ONCE, Shown, look_up
from hivlp.store.names import each_item
from hivlp.store.path_codec import PathCodec
from hivlp.store.reader import Reader, Views
from hivlp.store.records import About, Item, NewItem, Stamp
from hivlp.store.vectors import Rows, drop_old_files
from hivlp.store.writer import Writer

logger = logging.getLogger(__name__)
LOCK = "lock"
ENGINE = "engine"
"""Where the approximate index is kept; a store only finishes what a process that was killed began to put there."""


class Store:
    """Items and their vectors, durable. Any thread may read and write; one at a time writes, others wait for it.

    Attributes:
        path: of the folder.
        about: what the index was made with.
        levels: coarse to fine.
        paths: how the catalog spells paths.
        read_only: whether every write is refused.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open an existing folder.

        Args:
            path: of the folder.
            read_only: refuse every write, as on a medium that cannot be written.

        Raises:
            IndexFolderError: if it is not an index, is damaged, or of another format.
        """
        self.path, self.read_only = path.absolute(), read_only
        file = self.path / FILE
        try:
            if not file.is_file():
                raise IndexFolderError(f"{path} is not an index: it has no {FILE}")
            self._connections = Connections(file)
        except OSError as error:
            raise IndexFolderError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise DamagedIndexError(f"{file} is damaged: it is shorter than a database's header") from error
        try:
            with self._connections.borrow() as db:
                meta = check_own(path, db)
                self.about = About.of(meta)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            self._connections.close()
            if passing(error):
                raise IndexFolderError(f"{file} cannot be read: {error}") from error
            raise DamagedIndexError(f"{file} is damaged: {error}") from error
        except IndexFolderError:
            self._connections.close()
            raise
        self.levels: tuple[Level, ...] = self.about.levels
        is_relative = meta["format"] in schema.RELATIVE_FORMATS
        self.paths = PathCodec.beside(self.path) if is_relative else PathCodec()
        self._views = Views()
        self._turn = threading.RLock()
        self._lock = FileLock(self.path / LOCK, thread_local=False)
        self._mine = threading.local()

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is an index in this folder."""
        return os.path.isfile(Path(path) / FILE)  # noqa: PTH113 (Path.is_file raises if access is denied)

    def close(self) -> None:
        """Let go of the files."""
        self._connections.close()
        self._views.clear()

    @property
    def in_place(self) -> bool:
        """Whether the folder is the one that was opened, not another one that was put into its place."""
        try:
            self._connections.check_place()
        except IndexFolderError:
            return False
        return True

    def changes(self) -> bytes:
        """Change counter of the catalog: another one after a commit, whoever made it; read without a lock.

        Raises:
            IndexFolderError: if the store is closed, or belongs to another process.
        """
        return self._connections.changes()

    def __len__(self) -> int:
        with self.reading() as reader:
            return reader.count()

    @property
    def lends(self) -> int:
        """Grows whenever pending rows were filled for this process alone (:meth:`lend`)."""
        return self._views.lends

    def lend(self, contents: Sequence[bytes], embeddings: Embeddings) -> None:
        """Fill pending rows for this process alone, where they cannot be stored; see :meth:`fill`."""
        self._views.lend([level.name for level in self.levels[1:]], contents, embeddings)

    # Transactions.

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """One consistent commit: nobody's change is seen, or succeeds, before the block ends; for any thread.

        Nests in one thread: the inner block reads the commit of the outer one. (A transaction of its own would wait for
        a writer who waits for the outer one.)

        Raises:
            IndexFolderError: if the store is closed, belongs to another process, or cannot be read.
        """
        self._connections.check()
        outer = getattr(self._mine, "reader", None)
        if outer is not None:
            yield outer
            return
        try:
            with self._connections.borrow() as db:
                self._connections.check_place()
                db.execute("BEGIN")
                try:
                    self._mine.reader = self._reader(db)
                    yield self._mine.reader
                finally:
                    self._mine.reader = None
                    if db.in_transaction:
                        db.execute("COMMIT")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            kind = IndexFolderError if passing(error) else DamagedIndexError
            raise kind(f"{self.path / FILE} cannot be read: {error}") from error

    def check_writable(self) -> None:
        """Check that this store was not opened read-only.

        Raises:
            IndexFolderError: if it was.
        """
        if self.read_only:
            raise IndexFolderError(f"{self.path} was opened read-only: it cannot be written")

    @contextmanager
    def writer(self, *, wait: bool = True) -> Iterator[None]:
        """Be the only writer: other threads wait, other processes are refused; nests in one thread.

        Args:
            wait: for another thread that is writing; otherwise this one is refused, too.

        Raises:
            IndexFolderError: if another process is writing, or the folder cannot be written or was opened read-only.
        """
        self._connections.check()
        self.check_writable()
        if not self._turn.acquire(blocking=wait):
            raise BusyIndexError(f"{self.path} is being written by another thread")
        try:
            self._connections.check()  # perhaps closed while it waited
            self._connections.check_place()  # the lock would be made in any folder of this name, and the folder too
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise BusyIndexError(
                    f"{self.path} is being written by another process: try again when it is done"
                ) from error
            except OSError as error:
                raise IndexFolderError(f"{self.path} cannot be written: {write_reason(error)}") from error
            try:
                if self._lock.lock_counter == 1:
                    self._tidy()
                yield
            finally:
                self._lock.release()
        finally:
            self._turn.release()

    @contextmanager
    def changing(self, *, upgrade: bool = True, wait: bool = True) -> Iterator[Writer]:
        """One transaction: the block's changes are committed and on disk when it ends, or never were.

        Args:
            upgrade: bring an index of format 1 to format 2.
            wait: for another thread that is writing.

        Raises:
            IndexFolderError: if another process is writing, or the disk is full, read-only or failing.
        """
        self._connections.check()
        assert not getattr(self._mine, "reader", None), "a commit would wait for its own thread, which is reading"
        with self.writer(wait=wait), self._guard(), self._connections.borrow() as db:
            db.execute(f"PRAGMA cache_size=-{WRITE_CACHE_KIB}")
            self._connections.check_place()
            db.execute("BEGIN IMMEDIATE")
            try:
                if not schema.meta_is_whole(db):  # a new checksum must not vouch for what was damaged before
                    raise DamagedIndexError(f"{self.path / FILE} is damaged: {META_DAMAGED}")
                schema.part_hashes(db)
                writer = Writer(self._reader(db), db)
                # A compaction that was killed may have left some.
                drop_old_files(self.path, self.levels, writer.reader.state)
                if upgrade and not writer.reader.state.has_checksums:
                    writer.upgrade()
                yield writer
                writer.finish()
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    # Changes.

    def append(
        self,
        items: Sequence[NewItem],
        embeddings: Embeddings | Mapping[str, Rows] | None,
        *,
        restamp: Iterable[tuple[int, Stamp]] = (),
        moves: Iterable[tuple[int, str, Stamp]] = (),
        new: bool = False,
        pending: NDArray[np.bool_] | None = None,
    ) -> int:
        """Commit items with their vectors: vectors to disk first, the catalog last.

        Args:
            items: one for each row of ``embeddings``; an item at a known path replaces it.
            embeddings: level name -> (n, dim) float unit vectors, or rows that its codec encoded.
            restamp: items whose files were read again and found unchanged.
            moves: items whose files have other paths now, as (id, path, stamp); done first.
            new: whether the caller, who is the only writer, has seen that no item has any of these paths.
            pending: (n,) whether an item has the coarsest level's vector alone, and zeros in the others; None if none.

        Returns:
            How many of the items replaced another.

        Raises:
            IndexFolderError: if the disk is full or fails; the index is then as it was.
            VectorError: if a vector is not finite, not of unit length, or not of its level's shape; nothing is stored.
        """
        with self.changing() as writer:
            writer.move(moves)
            updated = 0
            if items and embeddings is not None:
                updated = writer.append(items, embeddings, new=new, pending=pending)
            writer.restamp(restamp)
        return updated

    def fill(self, contents: Sequence[bytes], embeddings: Embeddings, *, wait: bool = True) -> int:
        """Commit the finer levels' vectors of pending pictures, wherever items of the same content lie.

        Args:
            contents: SHA-256 of each picture.
            embeddings: (n, dim) float unit vectors of every level; the coarsest's are there already.
            wait: for another thread that is writing.

        Returns:
            How many rows were filled; those that are not pending any more are passed over.

        Raises:
            BusyIndexError: if another process is writing, or with ``wait`` False another thread.
            IndexFolderError: if the disk is full or fails; the rows are pending still.
        """
        with self.changing(wait=wait) as writer:
            pending = writer.reader.integrity.pending()
            found: dict[int, int] = {}
            for place, content in enumerate(contents):
                found.update((item.row, place) for item in writer.reader.copies(content))
            rows = np.intersect1d(np.array([*found], np.int64), pending)
            if len(rows):
                places = [found[row] for row in rows.tolist()]
                writer.fill(rows, embeddings.rows(places))
        return len(rows)

    def remove(self, items: int | str | Path | Iterable[int | str | Path]) -> int:
        """Remove items by id or path; a folder's path removes everything in it.

        Args:
            items: ids, which are numbers, and paths, which are text: ``"3"`` is a path. A path finds what was stored
                under this very name, or else under another spelling of it in Unicode.

        Returns:
            How many were removed.

        Raises:
            QueryError: if one is not in the index, or a path could mean several; then nothing is removed.
        """
        with self.changing() as writer:
            return writer.remove(each_item(items))

    def settle_pending(self) -> int:
        """How many items are pending; where only tombstones are left of them, the index is whole again."""
        with self.reading() as reader:
            count, has_pending = reader.pending_count(), reader.state.has_pending
        if not count and has_pending:
            with self.changing() as writer:
                writer.end_pending(writer.reader.integrity.pending())
        return count

    def compact(self, on_progress: Progress | None = None) -> int:
        """Rewrite the vector files without the rows of removed and replaced items.

        See :meth:`hivlp.index.Index.compact`.

        Args:
            on_progress: called with how many vectors are written, and of how many.

        Returns:
            How many rows were given back.

        Raises:
            DamagedIndexError: if a vector or a record that it would copy is not as it was written.
        """
        freed = 0
        with self.writer():
            with self.changing() as writer:
                reader = writer.reader
                damaged = reader.integrity.damaged_item()
                if damaged is not None:
                    raise DamagedIndexError(f"{self.path}: the record of item {damaged} is damaged; run `hivlp repair`")
                if reader.count() != reader.state.rows or reader.state.dtype != reader.state.compacted_dtype:
                    freed = rewrite(writer, on_progress)
            self.drop_old_files()
        return freed

    def declare(self, fields: Sequence[Field]) -> None:
        """Declare fields beside those that there are; one that is declared again gets its new type.

        Raises:
            ArgumentError: if they are too many, or differ from one of those before in case alone.
        """
        with self.writer():
            with self.reading() as reader:
                wanted = joined(reader.state.fields, fields)
            if wanted != reader.state.fields:
                with self.changing() as writer:
                    writer.declare(fields)

    def respell(self) -> None:
        """Spell paths as a relative index does that lie beside it only since it was moved there without them."""
        if self.paths.base is None:
            return
        with self.writer():
            with self.reading() as reader:
                moves = reader.misspelled()
            if moves:
                with self.changing() as writer:
                    writer.respell(moves)

    def drop_old_files(self) -> None:
        """Remove vector files of other generations than the last commit's; for the only writer."""
        with self.reading() as reader:
            drop_old_files(self.path, self.levels, reader.state)

    # What there is.

    def look_up(self, rows: Sequence[int], commits: int) -> dict[int, Shown] | None:
        """What is shown of the items in some rows, if that is still as a commit has it; None if it may not be.

        Nothing is looked up inside :meth:`reading` of the same thread: it would wait for a writer who waits for that.

        Args:
            rows: each once.
            commits: number of the commit.

        Raises:
            IndexFolderError: if the store is closed, or belongs to another process.
        """
        found: dict[int, Shown] = {}
        if getattr(self._mine, "reader", None) is not None:
            return None
        try:
            with self._connections.borrow() as db:
                for start in range(0, len(rows), AT_ONCE) if rows else (0,):
                    part = look_up(db, rows[start : start + AT_ONCE], self.paths)
                    if part is None or part[0] != str(commits):
                        return None
                    found.update(part[1])
        except sqlite3.Error:  # which a reader says in words
            return None
        return found

    def named(self, path: str) -> list[Item]:
        """:meth:`hivlp.store.reader.Reader.named` of the last commit."""
        with self.reading() as reader:
            return reader.named(path)

    def embeddings(self, row: int) -> Embeddings:
        """The stored vectors of one row, (1, dim) float32 a level; of a pending row the coarsest level's alone.

        Raises:
            DamagedIndexError: if they are not as they were written.
        """
        with self.reading() as reader:
            found = reader.embeddings([row], check=True, whole=False)
            if reader.are_pending([row])[0]:
                name = self.levels[0].name
                return Embeddings({name: found[name]})
            return found

    def info(self) -> dict[str, Any]:
        """What the index holds, and whether its files are as long as they must be.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        with self.reading() as reader:
            return reader.info()

    # Inside.

    def _reader(self, db: sqlite3.Connection) -> Reader:
        return Reader(self.path, db, self.about, self.paths, self._views)

    def _tidy(self) -> None:
        """Remove what processes that died have left, and finish what they began; for the only writer."""
        sweep(self.path)
        for left in self.path.glob(f".{ENGINE}.*"):
            if left.suffix[1:].isdigit():  # as earlier versions called what they built engines in
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            settle(self.path / ENGINE)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """A disk that is full, read-only or failing is told in a sentence."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise DamagedIndexError(f"{self.path} is damaged: {error}; run `hivlp repair`") from error
        except (OSError, sqlite3.Error) as error:
            raise IndexFolderError(
                f"{self.path} cannot be written: {write_reason(error)}; "
                "what was reported is safe, the rest is not stored"
            ) from error


@contextmanager
def reading(path: Path | str) -> Iterator[Reader]:
    """The last commit of a folder that is opened for this alone.

    Raises:
        IndexFolderError: if it is not an index, is damaged, or cannot be read.
    """
    with closing(Store(Path(path))) as store, store.reading() as reader:
        yield reader


def write_reason(error: Exception) -> str:
    """Why a folder cannot be written or read, in the system's words."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()
