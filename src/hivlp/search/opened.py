"""Approximate index of an index folder as readers hold it: opened once, whatever is committed beside it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hivlp.ann import AnnIndex, bounds, native
from hivlp.ann.bounds import Bounds
from hivlp.ann.manifest import MANIFEST, InvalidAnnIndexError, read_manifest
from hivlp.ann.rows import Stored
from hivlp.errors import IndexFolderError
from hivlp.files.scratch import standing
from hivlp.search.approximate import Approximate
from hivlp.search.operating_points import FOLDER, Tuned, sample
from hivlp.store.records import State

logger = logging.getLogger(__name__)
Identity = tuple[int, int, int]
"""Of a manifest: time of its last change in ns, inode, bytes."""
LOOK_SECONDS = 0.05
"""Time within which a look at the folder is good; what lies open stays valid in any case."""
LOOKS = 3
"""Times that files are read which another process may be replacing, before they are done without."""


@dataclass
class _Opened:
    """Files of one approximate index, and whether they are as they were written."""

    identity: Identity
    tuned: Tuned
    index: AnnIndex
    bounds: Bounds | None
    place: Path
    sound: bool | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fits(self, generation: int, rows: int) -> bool:
        """Whether a commit's rows are those that it knows, and perhaps some more."""
        return self.tuned.generation == generation and self.index.count <= rows

    def is_sound(self) -> bool:
        """Whether all that exact answers depend on is as it was written; summed up once, before the first of them."""
        with self._lock:
            if self.sound is None:
                file = self.index.arrays.damage()
                self.sound = file is None
                if file is not None:
                    _warn(InvalidAnnIndexError(self.place, file, "it is not what was written"))
            return self.sound


class AnnFolder:
    """Approximate index in an index folder, if there is one that is of use; shared by searches in any thread.

    Another process may put a new one in its place at any time, without a commit. Its files are written once and renamed
    into place together, so that one look at the manifest tells whether they are still the ones that are open.

    One that is damaged is done without, and a line of the log says so, once.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is opened yet.

        Args:
            folder: of the index.
        """
        self._folder = folder
        self._manifest = str(folder / FOLDER / MANIFEST)
        self._opened: _Opened | None = None
        self._refused: Identity | None = None
        self._looked = -math.inf
        self._found: Identity | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._opened = None

    def identity(self) -> Identity | None:
        """Which approximate index is there now, or was :data:`LOOK_SECONDS` ago; None without one of use."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._found, self._looked = self._look(), now
        identity, opened = self._found, self._opened
        if opened is not None and opened.identity == identity and opened.sound is False:
            self._refused = identity  # damage that an exact search has found
        return None if identity == self._refused else identity

    def _look(self) -> Identity | None:
        if native.load() is None:  # without kernels, scanning everything is the faster way
            return None
        try:
            status = os.stat(self._manifest)  # noqa: PTH116  (a path's own takes ten times as long)
        except OSError:
            try:
                status = (standing(self._folder / FOLDER) / MANIFEST).stat()
            except OSError:
                return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def look_again(self) -> None:
        """Look at the folder at the next search, however soon that is."""
        self._looked = -math.inf

    def open(self, vectors: Stored, state: State) -> tuple[Identity | None, Approximate | None]:
        """The approximate index that is there now, over the rows of a commit, and which one it is.

        For one thread at a time.

        Args:
            vectors: (rows, dim) of the finest level.
            state: of the commit.
        """
        plain = np.asarray(vectors)  # slices of a memmap that are memmaps themselves are slow to make
        for _ in range(LOOKS):
            self.look_again()
            identity = self.identity()
            if identity is None:
                self._opened = None
                return None, None
            opened = self._opened
            if opened is None or opened.identity != identity or not opened.fits(state.generation, len(plain)):
                failure: IndexFolderError | None = None
                try:
                    opened = self._open(identity, plain, state.generation)
                except IndexFolderError as error:
                    opened, failure = None, error
                self.look_again()
                if identity != self.identity():  # what is known of one may have been read of the other
                    continue
                self._opened = opened
                if failure is not None:
                    self._refused = identity
                    _warn(failure)
                if opened is None:
                    return (None if failure is not None else identity), None
            index = AnnIndex(opened.index.arrays, plain)
            bound = None if opened.bounds is None else opened.bounds.over(index)
            return identity, Approximate(index, opened.tuned, bound, opened.is_sound)
        return None, None

    def _open(self, identity: Identity, vectors: Stored, generation: int) -> _Opened | None:
        found = open_ann(self._folder, vectors, generation)
        return None if found is None else _Opened(identity, *found, self._folder / FOLDER)


def _warn(reason: IndexFolderError) -> None:
    logger.warning("searching without the approximate index: %s", reason)


def open_ann(folder: Path, vectors: Stored, generation: int) -> tuple[Tuned, AnnIndex, Bounds | None] | None:
    """The approximate index of an index folder; None if it knows the rows by other numbers.

    Args:
        folder: of the index.
        vectors: (rows, dim) of the finest level.
        generation: of the vector files.

    Raises:
        IndexFolderError: if it is missing, of another format, damaged, or of other vectors.
    """
    place = standing(folder / FOLDER)
    manifest = read_manifest(place)
    try:
        tuned = Tuned.of_manifest(manifest)
    except ValueError as error:
        raise InvalidAnnIndexError(place, MANIFEST, str(error)) from error
    if tuned.generation != generation:
        return None
    index = AnnIndex.load(place, vectors)
    if index.count != tuned.rows:
        raise InvalidAnnIndexError(place, MANIFEST, f"it speaks of {tuned.rows} rows instead of {index.count}")
    if tuned.sample not in (-1, sample(vectors[: tuned.rows])):
        raise InvalidAnnIndexError(place, MANIFEST, "it is of other vectors")
    return tuned, index, bounds.load(place, manifest, index)


def stored_bytes(folder: Path) -> int:
    """Bytes that the approximate index of an index folder takes on disk; 0 without one."""
    total = 0
    with suppress(OSError):  # another process may be putting a new one in its place
        for file in standing(folder / FOLDER).iterdir():
            total += file.stat().st_size
    return total
