"""The index folder as storage: ``items.db``, one vector file a level, one writer at a time."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError, IndexFolderError, QueryError
from hivlp.files.scratch import scratch_folder, settle, sweep, sync_folder
from hivlp.levels import Embeddings, Level
from hivlp.store.catalog import Catalog
from hivlp.store.compacting import Progress, compact, drop_old_files
from hivlp.store.database import FILE
from hivlp.store.merging import merge
from hivlp.store.names import composed, each_item, places
from hivlp.store.records import About, Item, NewItem, Stamp, State
from hivlp.store.schema import OLD_FORMAT
from hivlp.store.vectors import (
    CHUNK,
    Checksums,
    Rows,
    Stored,
    VectorFile,
    check_vectors,
    not_unit,
    row_checksums,
)

LOCK = "lock"
ENGINE = "engine"
"""Where :mod:`hivlp.index.tuning` keeps an engine."""


class IndexFolder:
    """Items and their vectors, durable; what :class:`hivlp.index.Index` builds on."""

    def __init__(self, path: Path) -> None:
        """Open an existing folder.

        Raises:
            IndexFolderError: if it is not an index, or is damaged.
        """
        self.path = path.absolute()
        self._lock = FileLock(self.path / LOCK)
        self.catalog = Catalog(path)
        self._state: State | None = None
        self._maps: list[Stored] = []
        self._alive: NDArray[np.bool_] | None = None

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is an index in this folder."""
        return os.path.isfile(Path(path) / FILE)  # noqa: PTH113 (Path.is_file raises if access is denied)

    @staticmethod
    def check_free(path: Path) -> None:
        """Whether an index can be made here.

        Raises:
            IndexFolderError: if the folder holds something.
        """
        if IndexFolder.exists(path):
            raise IndexFolderError(f"{path} is already an index: open it instead")
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise IndexFolderError(f"{path} exists and is not an index: choose another folder")
        except OSError as error:
            raise IndexFolderError(f"{path} cannot be created: {_reason(error)}") from error

    @staticmethod
    def make(path: Path, about: About, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Make an empty folder for what ``about`` says.

        Args:
            path: a folder that does not exist yet, or is empty.
            about: what the index is made with.
            arrays: name of a ``.npy`` file -> what belongs to the index beside the vectors.

        Raises:
            IndexFolderError: if the folder holds something, or cannot be written.
        """
        IndexFolder.check_free(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Built aside and moved into place whole: a crash leaves no half-made index under this name.
            with scratch_folder(path) as scratch:
                for level in about.levels:
                    VectorFile.of(scratch, level, 0).create()
                for name, array in (arrays or {}).items():
                    with (scratch / name).open("xb") as file:
                        np.save(file, array, allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                Catalog.create(scratch, about)
                sync_folder(scratch)
                scratch.rename(path)
            sync_folder(path.parent)
        except (OSError, sqlite3.Error) as error:
            raise IndexFolderError(f"{path} cannot be created: {_reason(error)}") from error

    def close(self) -> None:
        """Let go of the files."""
        self.catalog.close()
        self._maps, self._state = [], None

    @property
    def levels(self) -> tuple[Level, ...]:
        """Coarse to fine."""
        return self.catalog.about.levels

    @property
    def model_source(self) -> str:
        """Name or folder from which the index's model can be loaded again."""
        return self.catalog.about.source

    def __len__(self) -> int:
        return self.catalog.count()

    # Writing.

    def append(
        self,
        items: Sequence[NewItem],
        embeddings: Embeddings | Mapping[str, Rows] | None,
        *,
        restamp: Iterable[tuple[int, Stamp]] = (),
        new: bool = False,
    ) -> int:
        """Commit items with their vectors: vectors to disk first, the catalog last.

        Args:
            items: one for each row of ``embeddings``; an item at a known path replaces it.
            embeddings: unit vectors at the index's levels, float; stored as float16 (float32 in an index of format 1
                that was not compacted since). Or level name -> what its file shall hold.
            restamp: items whose files were read again and found unchanged.
            new: whether the caller, who is the only writer, has seen that no item has any of these paths.

        Returns:
            How many of the items replaced another.

        Raises:
            IndexFolderError: if the disk is full or fails; the index is then as it was.
            VectorError: if a vector is not finite, not of unit length, or not of its level's shape; nothing is stored.
        """
        updated = 0
        with self._changing() as state:
            if items and embeddings is not None:
                paths = [item.path for item in items]
                for level in self.levels:
                    check_vectors(level, embeddings.get(level.name), paths)
                files = [self._file(level, state) for level in self.levels]
                for file in files:
                    file.map(state.rows)  # refuses to build on a damaged file
                with ThreadPoolExecutor(1, "hivlp-write") as pool:
                    writes = [
                        pool.submit(file.write, state.rows, embeddings[level.name])
                        for file, level in zip(files, self.levels, strict=True)
                    ]
                    # Meanwhile; what counts is that all vectors are on disk before the commit.
                    updated = self.catalog.put(items, state.rows, new=new)
                for level, write in zip(self.levels, writes, strict=True):
                    self.catalog.integrity.add_block(level.name, state.rows, write.result())
                self.catalog.set_rows(state.rows + len(items))
            self.catalog.restamp(restamp)
        return updated

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
        with self._changing():
            chosen: dict[int, Item] = {}
            given_up: set[int] = set()
            set_aside = self.catalog.integrity.lost()[0]
            for wanted in each_item(items):
                if isinstance(wanted, int):
                    item = self.catalog.get(wanted)
                    found = [] if item is None else [item]
                    lost = {item_id for item_id, _ in set_aside if item_id == wanted}
                else:
                    found = self.named(wanted)
                    lost = {item_id for item_id, path in set_aside if composed(path) in map(composed, places(wanted))}
                if not found and not lost:
                    raise QueryError(f"{self.path} has no item {wanted}")
                chosen.update({item.id: item for item in found})
                given_up.update(lost if not found else ())
            self.catalog.delete((item.id, item.row) for item in chosen.values())
            self.catalog.integrity.forget(given_up)
        return len(chosen) + len(given_up)

    def named(self, path: str) -> list[Item]:
        """The item that a person calls by this path, or the items in the folder of that name.

        Raises:
            QueryError: if it could mean several.
        """
        tried = places(path)
        exact = (self.catalog.under(place) for place in tried)
        alike = (self.catalog.alike(place) for place in tried if not place.isascii())
        return next(filter(None, itertools.chain(exact, alike)), [])

    def compact(self, on_progress: Progress | None = None) -> int:
        """Rewrite the vector files without the rows of removed and replaced items.

        A new generation of files is written and synced, the catalog switches to it in one commit, and the old files go
        last; a crash at any point leaves one generation that is whole. Vectors kept in float32 since format 1 become
        float16.

        Args:
            on_progress: called with how many vectors are written, and of how many.

        Returns:
            How many rows were given back.

        Raises:
            DamagedIndexError: if a vector or a record that it would copy is not as it was written.
        """
        return compact(self, on_progress)

    def merge(self, other: Path | str, on_progress: Progress | None = None) -> int:
        """Add another index's items, except those whose path is here already.

        Args:
            other: the index folder that is read.
            on_progress: called with how many of its items are dealt with, and of how many.

        Returns:
            How many were added.

        Raises:
            IndexFolderError: if the other index was made with another model, or is this one.
        """
        with closing(IndexFolder(Path(other))) as source:
            return merge(self, source, other, on_progress)

    # Reading.

    def info(self) -> dict[str, Any]:
        """What the index holds, and whether its files are as long as they must be.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        with self.catalog.reading() as state:
            self._refresh(state)
            about = self.catalog.about
            return {
                "path": str(self.path),
                "format": state.format,
                "vectors": np.dtype(state.dtype).name,
                "items": self.catalog.count(),
                "lost": self.catalog.integrity.lost_count(),
                "rows": state.rows,
                "dead": len(self.catalog.dead()),
                "model": about.model,
                "source": about.source,
                "fingerprint": about.fingerprint,
                "levels": {level.name: level.dim for level in about.levels},
                "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()),
            }

    def embeddings(self, row: int) -> Embeddings:
        """The stored vectors of one row, (1, dim) float32 a level.

        Raises:
            DamagedIndexError: if they are not as they were written.
        """
        with self.catalog.reading() as state:
            self._refresh(state)
            for level, part in zip(self.levels, self._maps, strict=True):
                crc = self.catalog.integrity.checksum(level.name, row)
                if crc is not None and row_checksums(part[row : row + 1])[0] != crc:
                    raise self._damaged(self._file(level, state), row)
            return self._rows([row])

    # Inside.

    def _refresh(self, state: State) -> None:
        """See what the last commit says; called inside a read transaction, so that files and catalog agree."""
        if state == self._state:
            return
        self._maps = [self._file(level, state).map(state.rows) for level in self.levels]
        self.catalog.integrity.check_rows(state.rows)
        dead = self.catalog.dead()
        self._alive = None
        if dead:
            self._alive = np.ones(state.rows, bool)
            self._alive[dead] = False
        self._state = state

    def _rows(self, rows: Sequence[int] | NDArray[np.int64]) -> Embeddings:
        return Embeddings(
            {level.name: part[rows].astype(np.float32) for level, part in zip(self.levels, self._maps, strict=True)}
        )

    def _file(self, level: Level, state: State) -> VectorFile:
        return VectorFile.of(self.path, level, state.generation, state.dtype)

    def _upgrade(self, state: State) -> State:
        """From format 1 to 2; the vectors stay as they are, and get checksums if they can be what was written."""
        new = self.catalog.upgrade()
        for level in self.levels:
            file = self._file(level, state)
            vectors = file.map(state.rows)
            for start in range(0, state.rows, CHUNK):
                block = vectors[start : start + CHUNK]
                for row in not_unit(block):
                    raise self._damaged(file, start + int(row))
                self.catalog.integrity.add_block(level.name, start, row_checksums(block))
        return new

    def _check_sums(
        self,
        state: State,
        level: Level,
        rows: NDArray[np.int64],
        vectors: Stored,
        sums: tuple[Checksums, NDArray[np.bool_]],
    ) -> None:
        crcs, known = sums
        for row in rows[known[rows] & (row_checksums(vectors) != crcs[rows])]:
            raise self._damaged(self._file(level, state), int(row))

    @staticmethod
    def _damaged(file: VectorFile, row: int) -> DamagedIndexError:
        return DamagedIndexError(f"the index is damaged: {file.path}, row {row}; run `hivlp repair`")

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """One change, whole or not at all. An index of format 1 becomes one of format 2."""
        with self._writer(), self._guard(), self.catalog.writing() as state:
            drop_old_files(self, state)  # a compaction that was killed may have left some
            yield self._upgrade(state) if state.format == OLD_FORMAT else state

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """Be the only writer; nests."""
        self.catalog.check_owner()  # a lock that was inherited, or is another thread's, cannot be taken
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise IndexFolderError(
                f"{self.path} is being written by another process: try again when it is done"
            ) from error
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be written: {_reason(error)}") from error
        try:
            if self._lock.lock_counter == 1:
                self._tidy()
            yield
        finally:
            self._lock.release()

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
                f"{self.path} cannot be written: {_reason(error)}; what was reported is safe, the rest is not stored"
            ) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()
