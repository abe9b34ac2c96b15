"""The engine of an index folder as a reader holds it: opened once, whatever is committed beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from hivlp.engine import Engine, bounds, native
from hivlp.engine.arrays import MANIFEST
from hivlp.engine.bounds import Bounds
from hivlp.errors import IndexFolderError
from hivlp.index.engine_scan import EngineScanner
from hivlp.index.exact_scan import ExactScanner
from hivlp.index.tuning import FOLDER, Tuned
from hivlp.index.vectors import Stored

Identity = tuple[int, int, int]


class OpenedEngine:
    """What ``hivlp tune`` left in an index folder, if it is of use.

    Another process may put a new engine in its place at any time, without a commit. Its files are written once and
    renamed into place together, so that one look at the manifest tells whether they are still the ones that are open.

    Attributes:
        tuned: what the engine is known to do; None without one.
        scanner: over the rows of the commit that was last seen; None without an engine that knows them.
        exact: likewise, for exact answers; None also where an engine has no bounds.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is opened yet.

        Args:
            folder: of the index.
        """
        self._folder = folder
        self._manifest = folder / FOLDER / MANIFEST
        self._identity: Identity | None = None
        self._vectors: Stored | None = None
        self._engine: Engine | None = None
        self._bounds: Bounds | None = None
        self.tuned: Tuned | None = None
        self.scanner: EngineScanner | None = None
        self.exact: ExactScanner | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._identity = self._vectors = self._engine = self._bounds = self.tuned = self.scanner = self.exact = None

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
        if identity is None:
            return
        plain = np.asarray(vectors)  # slices of a memmap that are memmaps themselves are slow to make
        if tuned is not None and engine is not None and tuned.generation == generation and tuned.rows <= len(plain):
            engine = Engine(engine.arrays, plain)  # of the same generation, rows only come in addition
            self._use(tuned, engine, None if bound is None else bound.over(engine))
            return
        tuned = Tuned.load(self._folder)
        if tuned is None or tuned.generation != generation:
            return
        # One that is damaged, or is just being replaced, is done without.
        with suppress(IndexFolderError):
            engine, bound = bounds.load(self._folder / FOLDER, plain)
            if self._look() == identity:  # otherwise what it is known to do may be said of another
                self._use(tuned, engine, bound)

    def _use(self, tuned: Tuned, engine: Engine, bound: Bounds | None) -> None:
        self.tuned, self._engine, self._bounds = tuned, engine, bound
        self.scanner = EngineScanner(engine, engine.arrays.count, engine.fine)
        self.exact = None if bound is None else ExactScanner(self.scanner, bound, engine.fine)

    def _look(self) -> Identity | None:
        try:
            status = self._manifest.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def stored_bytes(folder: Path) -> int:
    """What the engine of an index folder takes on disk; 0 without one."""
    total = 0
    with suppress(OSError):  # another process may be putting a new one in its place
        for file in (folder / FOLDER).iterdir():
            total += file.stat().st_size
    return total
