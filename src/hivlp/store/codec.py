"""Vector codecs: how a unit vector is stored on disk, as float16, float32 or int8 with a scale a row."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import native
from hivlp.ann.rows import Stored, dim, floats, int8_row
from hivlp.levels import Vectors

Checksums = NDArray[np.uint32]

MAX_CODE = 127
BLOCK = 4096
"""Rows that are decoded at once where a whole array is checked."""


class VectorCodec:
    """Storage of float vectors of unit length, row by row: here, as numbers of a float type, rounded to nearest.

    Attributes:
        name: what people call it: ``float16``, ``float32``, ``int8``.
        dtype: what the table ``meta`` calls it.
        suffix: of its vector files.
    """

    def __init__(self, name: str, dtype: str, suffix: str) -> None:
        self.name, self.dtype, self.suffix = name, dtype, suffix

    def row(self, dim: int) -> np.dtype[Any]:
        """One stored row of ``dim`` numbers as a numpy dtype; its ``itemsize`` is the bytes a row."""
        return np.dtype((self.dtype, (dim,)))

    def dim(self, stored: Stored) -> int:
        """Length of the vectors that stored rows stand for."""
        return dim(stored)

    def empty(self, count: int, dim: int) -> Stored:
        """Uninitialised stored rows."""
        return np.empty(count, self.row(dim))

    def encode(self, vectors: NDArray[np.floating[Any]], out: Stored | None = None) -> Stored:
        """Stored rows of (n, dim) float vectors, contiguous; written to ``out`` if that is given."""
        stored = self.empty(*vectors.shape) if out is None else out
        if vectors.dtype == np.float32 and self.dtype == "<f2":
            numbers = np.ascontiguousarray(vectors)
            if native.to_half(numbers.reshape(-1), stored.reshape(-1).view("<u2")):
                return stored
        with np.errstate(over="ignore", invalid="ignore"):
            stored[...] = vectors
        return stored

    def decode(self, stored: Stored) -> Vectors:
        """(n, dim) float32 vectors of stored rows."""
        return floats(stored)

    def not_unit(self, stored: Stored) -> NDArray[np.int64]:
        """Rows that no unit vector can be: not finite, zero, or of another length."""
        parts = [not_unit(self.decode(stored[at : at + BLOCK])) + at for at in range(0, len(stored), BLOCK)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


class _Int8(VectorCodec):
    """Symmetric int8 ``codes`` (dim,) of a row, and a float32 ``scale`` that keeps the row's length.

    Codes are rounded multiples of max|x| / 127. The stored scale is |x| / |codes|, near max|x| / 127: so the decoded
    vector is as long as the encoded one, and its dot products are cosines.
    """

    def row(self, dim: int) -> np.dtype[Any]:
        return int8_row(dim)

    def encode(self, vectors: NDArray[np.floating[Any]], out: Stored | None = None) -> Stored:
        stored = self.empty(*vectors.shape) if out is None else out
        wide = np.asarray(vectors, np.float32)
        largest = np.abs(wide).max(axis=1, initial=0)
        codes = np.rint(wide * (MAX_CODE / np.where(largest > 0, largest, 1))[:, None])
        stored["codes"] = codes
        lengths, coded = (np.sqrt(np.einsum("ij,ij->i", each, each)) for each in (wide, codes))
        stored["scale"] = lengths / np.maximum(coded, 1)
        return stored


FLOAT16 = VectorCodec("float16", "<f2", "f16")
FLOAT32 = VectorCodec("float32", "<f4", "f32")
INT8: VectorCodec = _Int8("int8", "int8", "i8")
CODECS = {codec.name: codec for codec in (FLOAT16, FLOAT32, INT8)}
BY_DTYPE = {codec.dtype: codec for codec in CODECS.values()}


def codec_of(stored: Stored) -> VectorCodec:
    """The codec that stored these rows."""
    return BY_DTYPE["int8" if stored.dtype.names else stored.dtype.str]


def row_checksums(stored: Stored) -> Checksums:
    """(n,) CRC-32 of each row's bytes."""
    return np.fromiter(map(zlib.crc32, np.ascontiguousarray(stored)), np.uint32, len(stored))


def not_unit(vectors: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Rows of (n, dim) float vectors that are not finite, zero, or of another length than 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = vectors if vectors.dtype.itemsize > 2 else vectors.astype(np.float32)
        squares = np.einsum("ij,ij->i", wide, wide)
    return np.flatnonzero(~(np.abs(squares - 1) < 2e-2))  # a NaN compares false
