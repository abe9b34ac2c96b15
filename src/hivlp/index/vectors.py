"""One level's vectors on disk: a raw, append-only file of little-endian float32 rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hivlp.errors import IndexFolderError
from hivlp.levels import Vectors

DTYPE = np.dtype("<f4")


class VectorFile:
    """Rows of one level. How many of them exist is the catalog's word, not the file's length."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self.dim = dim

    def create(self) -> None:
        """Make the empty file."""
        with self.path.open("xb") as file:
            os.fsync(file.fileno())

    def map(self, rows: int) -> Vectors:
        """(rows, dim) read-only view of the committed rows; no row is read until it is used.

        Raises:
            IndexFolderError: if the file is missing or holds fewer rows.
        """
        try:
            size = self.path.stat().st_size
        except FileNotFoundError as error:
            raise IndexFolderError(f"the index is damaged: {self.path} is missing") from error
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error
        if size < rows * self.dim * DTYPE.itemsize:
            held = size // (self.dim * DTYPE.itemsize)
            raise IndexFolderError(f"the index is damaged: {self.path} holds {held} of {rows} vectors")
        if rows == 0:
            return np.empty((0, self.dim), DTYPE)
        try:
            return np.memmap(self.path, DTYPE, "r", shape=(rows, self.dim))
        except OSError as error:
            raise IndexFolderError(f"{self.path} cannot be read: {error.strerror}") from error

    def write(self, first: int, vectors: Vectors) -> None:
        """Write rows from ``first`` on, whatever lay there, and wait until they are on disk.

        Rows from ``first`` on were never committed, so nothing that exists is overwritten.

        Raises:
            OSError: if the disk is full or fails; the file then may hold a part, which nobody will read.
        """
        data = memoryview(np.ascontiguousarray(vectors, DTYPE).tobytes())
        offset = first * self.dim * DTYPE.itemsize
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.ftruncate(handle, offset)
            while data:
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(handle)
        finally:
            os.close(handle)
