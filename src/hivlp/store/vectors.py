"""Vector files: one level's stored rows one after the other, append-only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.rows import Stored
from hivlp.errors import DamagedIndexError, IndexFolderError, VectorError
from hivlp.levels import Level, Vectors
from hivlp.store.codec import CODECS, Checksums, VectorCodec, not_unit, row_checksums
from hivlp.store.records import State

CHUNK = 4096
"""Rows that are read and copied at once."""

PIECE = 256
"""Rows that are encoded and written at once: few enough to stay in the processor's cache from one step to the next."""
FOR_WRITING = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""A link in a stranger's index may lead to any file, and where rows are pending, even a search writes."""


@dataclass(frozen=True)
class Rows:
    """Stored rows with their checksums, ready to be written.

    Attributes:
        codec: that encoded them.
        stored: n rows in C order, of vectors that :func:`check_vectors` lets pass.
        sums: (n,) checksum of each row.
    """

    codec: VectorCodec
    stored: Stored
    sums: Checksums

    @classmethod
    def of(cls, vectors: Vectors, codec: VectorCodec) -> Rows:
        """Encode (n, dim) float vectors."""
        stored = codec.encode(vectors)
        return cls(codec, stored, row_checksums(stored))

    @classmethod
    def room(cls, count: int, dim: int, codec: VectorCodec) -> Rows:
        """Room for so many rows, to :meth:`put` vectors into."""
        return cls(codec, codec.empty(count, dim), np.empty(count, np.uint32))

    def put(self, first: int, vectors: Vectors) -> None:
        """Encode vectors into the rows from ``first`` on."""
        last = first + len(vectors)
        self.sums[first:last] = row_checksums(self.codec.encode(vectors, self.stored[first:last]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and length of the vectors."""
        return len(self.sums), self.codec.dim(self.stored)

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, rows: slice | Sequence[int]) -> Rows:
        return Rows(self.codec, np.ascontiguousarray(self.stored[rows]), self.sums[rows])


class VectorFile:
    """The stored rows of one level. How many of them exist is the catalog's word, not the file's length."""

    def __init__(self, folder: Path, level: Level, generation: int, codec: VectorCodec) -> None:
        self.path = folder / f"{level.name}.{generation}.{codec.suffix}"
        self.level, self.codec = level, codec
        self.row = codec.row(level.dim)

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
            return self.path.stat().st_size // self.row.itemsize
        except FileNotFoundError as error:
            raise DamagedIndexError(f"the index is damaged: {self.path} is missing; run `hivlp repair`") from error
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def map(self, rows: int, *, private: bool = False) -> Stored:
        """Memory map of the first rows, read-only; no row is read until it is used.

        Args:
            rows: how many.
            private: may be written to instead, which neither the file nor anybody else sees.

        Raises:
            IndexFolderError: if the file is missing or holds fewer rows.
        """
        held = self.held()
        if held < rows:
            raise DamagedIndexError(
                f"the index is damaged: {self.path} holds {held} of {rows} vectors; run `hivlp repair`"
            )
        if rows == 0:
            return self.codec.empty(0, self.level.dim)
        try:
            return np.memmap(self.path, self.row, "c" if private else "r", shape=(rows,))
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def damaged(self, row: int) -> DamagedIndexError:
        """The error for a row that is not as it was written."""
        return DamagedIndexError(f"the index is damaged: {self.path}, row {row}; run `hivlp repair`")

    def write(self, first: int, vectors: Vectors | Rows) -> Checksums:
        """Write rows from ``first`` on, whatever lay there, and wait until they are on disk.

        Rows from ``first`` on were never committed, so nothing that exists is overwritten.

        Args:
            first: row of the first.
            vectors: (n, dim) float, or rows of this file's codec.

        Returns:
            (n,) checksums of what was written.

        Raises:
            OSError: if the disk is full or fails; the file then may hold a part, which nobody will read.
        """
        if not isinstance(vectors, Rows):
            vectors = np.asarray(vectors)
        elif vectors.codec is not self.codec:
            raise ValueError(f"rows of {vectors.codec.name} for a file of {self.codec.name}")
        offset = first * self.row.itemsize
        sums = np.empty(len(vectors), np.uint32)
        handle = os.open(self.path, FOR_WRITING)
        try:
            os.ftruncate(handle, offset)
            for start in range(0, len(vectors), PIECE):
                piece = vectors[start : start + PIECE]
                rows = piece if isinstance(piece, Rows) else Rows.of(piece, self.codec)
                sums[start : start + PIECE] = rows.sums
                data = memoryview(rows.stored.view(np.uint8).data).cast("B")
                while data:
                    written = os.pwrite(handle, data, offset)
                    data, offset = data[written:], offset + written
            os.fsync(handle)
        finally:
            os.close(handle)
        return sums

    def fill(self, rows: NDArray[np.int64], vectors: Rows) -> None:
        """Write pending rows in place, and wait until they are on disk; nobody reads them before the commit.

        Args:
            rows: (n,) ascending.
            vectors: n rows of this file's codec.

        Raises:
            OSError: if the disk fails; the rows then hold anything, and are pending still.
        """
        handle = os.open(self.path, FOR_WRITING)
        try:
            for row, stored in zip(rows.tolist(), vectors.stored, strict=True):
                if os.pwrite(handle, stored.tobytes(), row * self.row.itemsize) != self.row.itemsize:
                    raise OSError(f"{self.path} was written in part")
            os.fsync(handle)
        finally:
            os.close(handle)


def vector_files(folder: Path, levels: Sequence[Level], state: State) -> tuple[VectorFile, ...]:
    """The files of a commit, coarse to fine."""
    codecs = state.codecs(len(levels))
    return tuple(
        VectorFile(folder, level, state.generation, codec) for level, codec in zip(levels, codecs, strict=True)
    )


def drop_old_files(folder: Path, levels: Sequence[Level], state: State) -> None:
    """Remove the vector files of other generations than the commit's."""
    kept = {file.path for file in vector_files(folder, levels, state)}
    for level in levels:
        for codec in CODECS.values():
            for path in folder.glob(f"{level.name}.*.{codec.suffix}"):
                if path not in kept:
                    with suppress(OSError):
                        path.unlink()


def check_vectors(level: Level, vectors: Any, paths: Sequence[str], pending: NDArray[np.bool_] | None = None) -> None:
    """Refuse what cannot be stored.

    Args:
        level: that the vectors belong to.
        vectors: (len(paths), dim) float, rows of unit length; or :class:`Rows`, whose length is not looked at again.
        paths: of the items, to name the culprit by.
        pending: (len(paths),) whether a row has no vector of this level yet.

    Raises:
        VectorError: naming the first row that is wrong, and its path.
    """
    if vectors is None:
        raise VectorError(f"level {level.name}: no vectors for it were given")
    if len(vectors) != len(paths):
        raise VectorError(f"level {level.name}: {len(vectors)} vectors for {len(paths)} items")
    if isinstance(vectors, Rows):
        if vectors.shape[1] != level.dim:
            raise _refusal(level, 0, paths, f"is of shape ({vectors.shape[1]},), not ({level.dim},)")
        return
    if getattr(vectors, "shape", None) != (len(paths), level.dim):
        for row, vector in enumerate(vectors):
            if np.shape(vector) != (level.dim,):
                raise _refusal(level, row, paths, f"is of shape {np.shape(vector)}, not ({level.dim},)")
    array = np.asarray(vectors)
    if array.dtype.kind != "f":
        raise _refusal(level, 0, paths, f"is of {array.dtype}, not of floating-point numbers")
    for row in not_unit(array):
        if pending is not None and pending[row]:
            continue
        norm = float(np.linalg.norm(array[row].astype(np.float64)))
        what = f"of length {norm:.4g}, not 1" if np.isfinite(norm) else "not finite"
        raise _refusal(level, int(row), paths, "is zero" if norm == 0 else f"is {what}")


def _refusal(level: Level, row: int, paths: Sequence[str], what: str) -> VectorError:
    return VectorError(f"level {level.name}, row {row}: the vector of {paths[row]} {what}")
