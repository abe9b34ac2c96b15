"""The engine of an index folder as a reader holds it: opened once, whatever is committed beside it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from hivlp.ann import Engine, bounds, native, whole
from hivlp.ann.bounds import Bounds
from hivlp.ann.manifest import MANIFEST, RefusedEngineError, read_manifest
from hivlp.errors import IndexFolderError
from hivlp.files.scratch import standing
from hivlp.search.ann_scan import EngineScanner
from hivlp.search.exact_scan import ExactScanner
from hivlp.search.operating_points import FOLDER, Tuned, sample
from hivlp.store.codec import Stored

logger = logging.getLogger(__name__)
Identity = tuple[int, int, int]
LOOKS = 3  # at an engine that others put in the place of one another


class OpenedEngine:
    """What ``hivlp tune`` left in an index folder, if it is of use.

    Another process may put a new engine in its place at any time, without a commit. Its files are written once and
    renamed into place together, so that one look at the manifest tells whether they are still the ones that are open.

    One that is damaged is done without, and a line of the log says so, once.

    Attributes:
        tuned: what the engine is known to do; None without one.
        scanner: over the rows of the commit that was last seen; None without an engine that knows them.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is opened yet.

        Args:
            folder: of the index.
        """
        self._folder = folder
        self._manifest = str(folder / FOLDER / MANIFEST)
        self._identity: Identity | None = None
        self._refused: Identity | None = None
        self._vectors: Stored | None = None
        self._engine: Engine | None = None
        self._bounds: Bounds | None = None
        self._exact: ExactScanner | None = None
        self.tuned: Tuned | None = None
        self.scanner: EngineScanner | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._identity = self._vectors = self._engine = self._bounds = self._exact = self.tuned = self.scanner = None

    @property
    def exact(self) -> ExactScanner | None:
        """As :attr:`scanner`, for exact answers; None also where an engine has no bounds.

        What these answers depend on is summed up before the first of them.
        """
        if self._exact is not None and self._engine is not None:
            file = self._engine.arrays.damage()
            if file is not None:
                self._refuse(RefusedEngineError(self._folder / FOLDER, file, "it is not what was written"))
        return self._exact

    def refresh(self, vectors: Stored, generation: int) -> None:
        """See whether another engine is there by now, and let the one that is know the rows of this commit.

        Args:
            vectors: (rows, dim) of the finest level; the same object until the next commit.
            generation: of the vector files.
        """
        if native.load() is None:  # without kernels, reading everything is the faster way
            self.close()
            return
        identity = self._look()
        if identity == self._identity and vectors is self._vectors:
            return
        same = identity == self._identity
        tuned, engine, bound = (self.tuned, self._engine, self._bounds) if same else (None, None, None)
        self.close()
        self._identity, self._vectors = identity, vectors
        plain = np.asarray(vectors)  # slices of a memmap that are memmaps themselves are slow to make
        if tuned is not None and engine is not None and tuned.generation == generation and tuned.rows <= len(plain):
            engine = Engine(engine.arrays, plain)  # of the same generation, rows only come in addition
            self._use(tuned, engine, None if bound is None else bound.over(engine))
            return
        for _ in range(LOOKS):
            if identity is None or identity == self._refused:
                return
            try:
                opened = open_engine(self._folder, plain, generation)
                failure = None
            except IndexFolderError as error:
                opened, failure = None, error
            before, identity = identity, self._look()
            self._identity = identity
            if identity != before:  # what is known of one may have been read of the other
                continue
            if failure is not None:
                self._refuse(failure)
            elif opened is not None:
                self._use(*opened)
            return

    def _use(self, tuned: Tuned, engine: Engine, bound: Bounds | None) -> None:
        self.tuned, self._engine, self._bounds = tuned, engine, bound
        self.scanner = EngineScanner(engine, engine.arrays.count, engine.fine)
        self._exact = None if bound is None else ExactScanner(self.scanner, bound, engine.fine)

    def _refuse(self, reason: IndexFolderError) -> None:
        self._refused = self._identity
        self._engine = self._bounds = self._exact = self.tuned = self.scanner = None
        logger.warning("searching without the engine: %s", reason)

    def _look(self) -> Identity | None:
        try:
            status = os.stat(self._manifest)  # noqa: PTH116  at every search: a path's own takes ten times as long
        except OSError:
            try:
                status = (standing(self._folder / FOLDER) / MANIFEST).stat()
            except OSError:
                return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def open_engine(folder: Path, vectors: Stored, generation: int) -> tuple[Tuned, Engine, Bounds | None] | None:
    """What ``hivlp tune`` left in an index folder; None if it knows the rows by other numbers.

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
        raise RefusedEngineError(place, MANIFEST, str(error)) from error
    if tuned.generation != generation:
        return None
    engine = Engine.load(place, vectors)
    if engine.arrays.count != tuned.rows:
        raise RefusedEngineError(place, MANIFEST, f"it speaks of {tuned.rows} rows instead of {engine.arrays.count}")
    if engine.arrays.count > whole.MOST and any(point.setting.lists == 0 for point in tuned.frontier):
        raise RefusedEngineError(place, MANIFEST, f"it has {tuned.rows} rows, too many to be read whole")
    if tuned.sample not in (-1, sample(vectors[: tuned.rows])):
        raise RefusedEngineError(place, MANIFEST, "it is of other vectors")
    return tuned, engine, bounds.load(place, manifest, engine)


def stored_bytes(folder: Path) -> int:
    """What the engine of an index folder takes on disk; 0 without one."""
    total = 0
    with suppress(OSError):  # another process may be putting a new one in its place
        for file in standing(folder / FOLDER).iterdir():
            total += file.stat().st_size
    return total
