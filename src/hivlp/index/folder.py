"""The index folder as storage: ``items.db``, one vector file a level, one writer at a time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from hivlp.encode.stream import chunks
from hivlp.errors import IndexFolderError, QueryError
from hivlp.index import catalog as catalog_module
from hivlp.index.adding import stored_path
from hivlp.index.catalog import About, Catalog, Item, NewItem, Stamp, State
from hivlp.index.vectors import VectorFile
from hivlp.levels import Embeddings, Level, Vectors

LOCK = "lock"
CHUNK = 4096
Progress = Callable[[int, int], None]


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
        self._maps: list[Vectors] = []
        self._alive: NDArray[np.bool_] | None = None

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is an index in this folder."""
        return os.path.isfile(Path(path) / catalog_module.FILE)  # noqa: PTH113 (Path.is_file raises if access is denied)

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
            scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                for level in about.levels:
                    _vector_file(scratch, level, 0).create()
                for name, array in (arrays or {}).items():
                    with (scratch / name).open("xb") as file:
                        np.save(file, array, allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                Catalog.create(scratch, about)
                scratch.chmod(0o755)
                _sync_folder(scratch)
                scratch.rename(path)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            _sync_folder(path.parent)
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
        self, items: Sequence[NewItem], embeddings: Embeddings | None, *, restamp: Iterable[tuple[int, Stamp]] = ()
    ) -> int:
        """Commit items with their vectors: vectors to disk first, the catalog last.

        Args:
            items: one for each row of ``embeddings``; an item at a known path replaces it.
            embeddings: unit vectors at the index's levels.
            restamp: items whose files were read again and found unchanged.

        Returns:
            How many of the items replaced another.

        Raises:
            IndexFolderError: if the disk is full or fails; the index is then as it was.
        """
        with self._writer(), self._guard():
            with self.catalog.writing() as state:
                updated = 0
                if items and embeddings is not None:
                    self._check_rows(items, embeddings)
                    for level in self.levels:
                        file = _vector_file(self.path, level, state.generation)
                        file.map(state.rows)  # refuses to build on a damaged file
                        file.write(state.rows, embeddings[level.name])
                    for row, item in enumerate(items, start=state.rows):
                        updated += self.catalog.at(item.path) is not None
                        self.catalog.put(item, row)
                    self.catalog.set_rows(state.rows + len(items))
                for item_id, stamp in restamp:
                    self.catalog.restamp(item_id, stamp)
            return updated

    def remove(self, items: Iterable[int | str | Path]) -> int:
        """Remove items by id or path; a folder's path removes everything in it.

        Returns:
            How many were removed.

        Raises:
            QueryError: if one is not in the index; then nothing is removed.
        """
        with self._writer(), self._guard(), self.catalog.writing():
            chosen: dict[int, Item] = {}
            for wanted in items:
                if isinstance(wanted, int):
                    item = self.catalog.get(wanted)
                    found = [] if item is None else [item]
                else:
                    # The last for given embeddings, which keep the path that they came with.
                    places = (stored_path(wanted), os.path.realpath(wanted), os.fspath(wanted))
                    found = next(filter(None, map(self.catalog.under, places)), [])
                if not found:
                    raise QueryError(f"{self.path} has no item {wanted}")
                chosen.update({item.id: item for item in found})
            self.catalog.delete(chosen.values())
        return len(chosen)

    def compact(self, on_progress: Progress | None = None) -> int:
        """Rewrite the vector files without the rows of removed and replaced items.

        A new generation of files is written and synced, the catalog switches to it in one commit, and the old files go
        last; a crash at any point leaves one generation that is whole.

        Args:
            on_progress: called with how many vectors are written, and of how many.

        Returns:
            How many rows were given back.
        """
        with self._writer(), self._guard():
            with self.catalog.writing() as state:
                live, ids = self.catalog.live().T
                freed = state.rows - len(live)
                if freed == 0:
                    self._drop_old_files()  # a compaction that was killed may have left some
                    return 0
                generation = state.generation + 1
                for number, level in enumerate(self.levels):
                    old = _vector_file(self.path, level, state.generation).map(state.rows)
                    new = _vector_file(self.path, level, generation)
                    new.path.unlink(missing_ok=True)
                    new.create()
                    for start in range(0, len(live), CHUNK):
                        rows = live[start : start + CHUNK]
                        new.write(start, old[rows])
                        if on_progress is not None:
                            on_progress(number * len(live) + start + len(rows), len(live) * len(self.levels))
                _sync_folder(self.path)
                self.catalog.renumber(enumerate(ids.tolist()))
                self.catalog.set_rows(len(live), generation)
            self._drop_old_files()
        return freed

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
            mine, theirs = self.catalog.about, source.catalog.about
            if (mine.fingerprint, mine.levels) != (theirs.fingerprint, theirs.levels):
                raise IndexFolderError(
                    f"{other} was made with {theirs.model}, {self.path} with {mine.model}: not merged"
                )
            if source.path.resolve() == self.path.resolve():
                raise IndexFolderError(f"{other} is the same index")
            added = seen = 0
            with self._writer(), source.catalog.reading() as state:
                source._refresh(state)
                total = source.catalog.count()
                for chunk in chunks(source.catalog.all_items(), CHUNK):
                    new = [item for item in chunk if self.catalog.at(item.path) is None]
                    if new:
                        vectors = source._rows([item.row for item in new])
                        self.append([_copy(item) for item in new], vectors)
                        added += len(new)
                    seen += len(chunk)
                    if on_progress is not None:
                        on_progress(seen, total)
            return added

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
                "format": catalog_module.FORMAT,
                "items": self.catalog.count(),
                "rows": state.rows,
                "dead": len(self.catalog.dead()),
                "model": about.model,
                "source": about.source,
                "fingerprint": about.fingerprint,
                "levels": {level.name: level.dim for level in about.levels},
                "bytes": sum(file.stat().st_size for file in self.path.iterdir() if file.is_file()),
            }

    def embeddings(self, row: int) -> Embeddings:
        """The stored vectors of one row, (1, dim) a level."""
        with self.catalog.reading() as state:
            self._refresh(state)
            return self._rows([row])

    # Inside.

    def _refresh(self, state: State) -> None:
        """See what the last commit says; called inside a read transaction, so that files and catalog agree."""
        if state == self._state:
            return
        self._maps = [_vector_file(self.path, level, state.generation).map(state.rows) for level in self.levels]
        dead = self.catalog.dead()
        self._alive = None
        if dead:
            self._alive = np.ones(state.rows, bool)
            self._alive[dead] = False
        self._state = state

    def _rows(self, rows: Sequence[int]) -> Embeddings:
        return Embeddings(
            {level.name: np.array(part[rows]) for level, part in zip(self.levels, self._maps, strict=True)}
        )

    def _check_rows(self, items: Sequence[NewItem], embeddings: Embeddings) -> None:
        for level in self.levels:
            array = embeddings[level.name]
            if array.shape != (len(items), level.dim):
                raise ValueError(
                    f"level {level.name}: {array.shape} vectors for {len(items)} items of {level.dim} dims"
                )
            norms = np.linalg.norm(array, axis=1)
            bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))  # a NaN compares false
            if len(bad):
                raise ValueError(f"level {level.name}: the vector of {items[bad[0]].path} is not of unit length")

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """Be the only writer; nests."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise IndexFolderError(
                f"{self.path} is being written by another process: try again when it is done"
            ) from error
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be written: {_reason(error)}") from error
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """A disk that is full, read-only or failing is told in a sentence."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise IndexFolderError(
                f"{self.path} cannot be written: {_reason(error)}; what was reported is safe, the rest is not stored"
            ) from error

    def _drop_old_files(self) -> None:
        current = {_vector_file(self.path, level, self.catalog.state().generation).path for level in self.levels}
        for file in self.path.glob("*.f32"):
            if file not in current:
                with suppress(OSError):
                    file.unlink()


def _vector_file(folder: Path, level: Level, generation: int) -> VectorFile:
    return VectorFile(folder / f"{level.name}.{generation}.f32", level.dim)


def _copy(item: Item) -> NewItem:
    return NewItem(item.path, item.hash, item.caption, item.metadata, item.stamp)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
