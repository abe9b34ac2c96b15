"""One level's vectors on disk: a raw, append-only file of little-endian float rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError, IndexFolderError, VectorError
from hivlp.levels import Level, Vectors
from hivlp.store.half import as_stored

HALF = np.dtype("<f2")
"""What new files hold: half the bytes, and a cosine to some 1e-4."""

CHUNK = 4096
"""Vectors that are read and copied at once."""

PIECE = 256
"""Vectors that are converted and written at once."""

SUFFIXES = {"<f2": "f16", "<f4": "f32"}
Stored = NDArray[Any]
"""Vectors of a file's own dtype."""
Checksums = NDArray[np.uint32]


@dataclass(frozen=True)
class Rows:
    """Vectors as a file holds them, ready to be written.

    Attributes:
        stored: (n, dim) in the file's dtype and C order, of rows that :func:`check_vectors` lets pass.
        sums: (n,) checksum of each row.
    """

    stored: Stored
    sums: Checksums

    @classmethod
    def of(cls, vectors: Vectors | Stored, dtype: np.dtype[Any]) -> Rows:
        """Vectors in this dtype, with their checksums."""
        stored = as_stored(vectors, dtype)
        return cls(stored, row_checksums(stored))

    @classmethod
    def room(cls, count: int, dim: int, dtype: np.dtype[Any]) -> Rows:
        """Room for so many, to :meth:`put` them into."""
        return cls(np.empty((count, dim), dtype), np.empty(count, np.uint32))

    def put(self, first: int, vectors: Vectors) -> None:
        """Fill rows from ``first`` on with these."""
        last = first + len(vectors)
        stored = as_stored(vectors, self.stored.dtype, self.stored[first:last])
        self.sums[first:last] = row_checksums(stored)

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, rows: slice | Sequence[int]) -> Rows:
        return Rows(np.ascontiguousarray(self.stored[rows]), self.sums[rows])


class VectorFile:
    """Rows of one level. How many of them exist is the catalog's word, not the file's length."""

    def __init__(self, path: Path, dim: int, dtype: np.dtype[Any] = HALF) -> None:
        self.path = path
        self.dim = dim
        self.dtype = dtype

    @classmethod
    def of(cls, folder: Path, level: Level, generation: int, dtype: str = HALF.str) -> VectorFile:
        """The file of a level in one generation; ``dtype`` is ``<f2`` or ``<f4``."""
        return cls(folder / f"{level.name}.{generation}.{SUFFIXES[dtype]}", level.dim, np.dtype(dtype))

    def create(self) -> None:
        """Make the empty file."""
        with self.path.open("xb") as file:
            os.fsync(file.fileno())

    def held(self) -> int:
        """How many whole rows the file is long enough for.

        Raises:
            IndexFolderError: if the file is missing or may not be read.
        """
        try:
            return self.path.stat().st_size // (self.dim * self.dtype.itemsize)
        except FileNotFoundError as error:
            raise DamagedIndexError(f"the index is damaged: {self.path} is missing; run `hivlp repair`") from error
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def map(self, rows: int) -> Stored:
        """(rows, dim) read-only view of the committed rows, in the file's dtype; no row is read until it is used.

        Raises:
            IndexFolderError: if the file is missing or holds fewer rows.
        """
        held = self.held()
        if held < rows:
            raise DamagedIndexError(
                f"the index is damaged: {self.path} holds {held} of {rows} vectors; run `hivlp repair`"
            )
        if rows == 0:
            return np.empty((0, self.dim), self.dtype)
        try:
            return np.memmap(self.path, self.dtype, "r", shape=(rows, self.dim))
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def write(self, first: int, vectors: Vectors | Stored | Rows) -> Checksums:
        """Write rows from ``first`` on, whatever lay there, and wait until they are on disk.

        Rows from ``first`` on were never committed, so nothing that exists is overwritten.

        Returns:
            (rows,) checksums of what was written.

        Raises:
            OSError: if the disk is full or fails; the file then may hold a part, which nobody will read.
        """
        if not isinstance(vectors, Rows):
            vectors = np.asarray(vectors)
        elif vectors.stored.dtype != self.dtype:
            raise ValueError(f"rows of {vectors.stored.dtype} for a file of {self.dtype}")
        offset = first * self.dim * self.dtype.itemsize
        sums = np.empty(len(vectors), np.uint32)
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.ftruncate(handle, offset)
            # In pieces that stay in the processor's cache from one step to the next.
            for start in range(0, len(vectors), PIECE):
                piece = vectors[start : start + PIECE]
                rows = piece if isinstance(piece, Rows) else Rows.of(piece, self.dtype)
                sums[start : start + PIECE] = rows.sums
                data = memoryview(rows.stored.data).cast("B")
                while data:
                    written = os.pwrite(handle, data, offset)
                    data, offset = data[written:], offset + written
            os.fsync(handle)
        finally:
            os.close(handle)
        return sums


def row_checksums(stored: Stored) -> Checksums:
    """(rows,) CRC-32 of each row's bytes."""
    return np.fromiter(map(zlib.crc32, np.ascontiguousarray(stored)), np.uint32, len(stored))


def not_unit(vectors: Stored) -> NDArray[np.int64]:
    """Rows that no unit vector can be: not finite, zero, or of another length."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = vectors if vectors.dtype.itemsize > 2 else vectors.astype(np.float32)
        squares = np.einsum("ij,ij->i", wide, wide)
    return np.flatnonzero(~(np.abs(squares - 1) < 2e-2))  # a NaN compares false


def check_vectors(level: Level, vectors: Any, paths: Sequence[str]) -> None:
    """Refuse what cannot be stored.

    Args:
        level: that the vectors belong to.
        vectors: (len(paths), dim) float, rows of unit length; or :class:`Rows`, whose length is not looked at again.
        paths: of the items, to name the culprit by.

    Raises:
        VectorError: naming the first row that is wrong, and its path.
    """
    if vectors is None:
        raise VectorError(f"level {level.name}: no vectors for it were given")
    if len(vectors) != len(paths):
        raise VectorError(f"level {level.name}: {len(vectors)} vectors for {len(paths)} items")
    ready = isinstance(vectors, Rows)
    if ready:
        vectors = vectors.stored
    if getattr(vectors, "shape", None) != (len(paths), level.dim):
        for row, vector in enumerate(vectors):
            if np.shape(vector) != (level.dim,):
                raise _refusal(level, row, paths, f"is of shape {np.shape(vector)}, not ({level.dim},)")
    if ready:
        return
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise _refusal(level, 0, paths, f"is of {array.dtype}, not of floating-point numbers")
    for row in not_unit(array):
        norm = float(np.linalg.norm(array[row].astype(np.float64)))
        what = f"of length {norm:.4g}, not 1" if np.isfinite(norm) else "not finite"
        raise _refusal(level, int(row), paths, "is zero" if norm == 0 else f"is {what}")


def _refusal(level: Level, row: int, paths: Sequence[str], what: str) -> VectorError:
    return VectorError(f"level {level.name}, row {row}: the vector of {paths[row]} {what}")
