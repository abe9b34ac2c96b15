"""Compiled kernels of the approximate index, where a C compiler was at hand; without them searches are exhaustive."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import interface
from hivlp.ann.rows import Stored, dim, is_int8
from hivlp.errors import IndexFolderError
from hivlp.levels import Vectors

LIBRARY = "_kernels.so"
VARIANTS = ("generic", "avx2", "avx512", "neon")
"""Instruction sets, as the kernels number them."""
_DOT: Sequence[Any] = [c_void_p, c_int64, c_int, c_void_p, c_int64, c_void_p, c_int, c_void_p]
_EMPTY = ctypes.c_char * 0


def pointer(array: NDArray[Any]) -> int:
    """Address of an array's first value; the caller keeps the array alive."""
    address: int = array.__array_interface__["data"][0]
    return address


def view(array: NDArray[Any]) -> Any:
    """Pointer argument for a function of the library, made four times as fast if the array is writable."""
    try:
        return _EMPTY.from_buffer(array)  # type: ignore[arg-type]
    except TypeError:
        return pointer(array)


@cache
def load() -> ctypes.CDLL | None:
    """Library of the kernels with its widest variant chosen; None where it is missing, stale or refused.

    The environment variable ``HIVLP_KERNELS`` names the widest variant to use, or ``off``.
    """
    wanted = os.environ.get("HIVLP_KERNELS", "")
    path = Path(__file__).with_name(LIBRARY)
    if wanted == "off" or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
        stale = library.hivlp_interface().decode() != interface.describe()
    except OSError:  # built for another machine
        return None
    except AttributeError:
        stale = True
    if stale:  # in a folder whose sources were changed since it was built
        warnings.warn(f"{path} is older than this code and is not used: install hivlp again", stacklevel=2)
        return None
    library.hivlp_use_variant(VARIANTS.index(wanted) if wanted in VARIANTS else len(VARIANTS))
    return library


def kernels() -> ctypes.CDLL:
    """Library of the kernels.

    Raises:
        IndexFolderError: without one.
    """
    library = load()
    if library is None:
        raise IndexFolderError("the kernels are not compiled here: install a C compiler, then hivlp again")
    return library


def _declare(library: ctypes.CDLL) -> None:
    index, params, stats = (
        POINTER(each) for each in (interface.IvfIndex, interface.IvfParams, interface.SearchStats)
    )  # fmt: skip
    library.hivlp_interface.argtypes = []
    library.hivlp_interface.restype = c_char_p
    library.hivlp_use_variant.argtypes = [c_int]
    library.hivlp_use_variant.restype = c_int
    library.hivlp_dot.argtypes = _DOT
    library.hivlp_search.argtypes = [
        index, c_void_p, c_int64, params, c_int64, c_int64, c_void_p, c_void_p, c_void_p, stats,
    ]  # fmt: skip
    library.hivlp_search_rows.argtypes = [
        index, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, stats,
    ]  # fmt: skip
    library.hivlp_assign.argtypes = [
        c_void_p, c_void_p, c_float, c_int64, c_void_p, c_void_p, c_float, c_int64, c_int, c_void_p, c_int64, c_int,
        c_void_p,
    ]  # fmt: skip
    library.hivlp_bounds.argtypes = [
        c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int, c_void_p, c_void_p, c_void_p,
        c_int64, c_double, c_double, c_double, c_double, c_double, c_void_p, c_void_p, c_void_p,
    ]  # fmt: skip
    library.hivlp_bounds.restype = c_int64
    library.hivlp_to_float16.argtypes = [c_void_p, c_int64, c_void_p]
    library.hivlp_to_float16.restype = c_int


def release_memory() -> None:
    """Give freed memory back to the system; glibc keeps some of it otherwise."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def check_rows(rows: NDArray[np.integer[Any]], count: int) -> None:
    """Check row numbers before a kernel looks them up.

    Raises:
        IndexError: if one is not among the first ``count``.
    """
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < count):
        raise IndexError(f"rows must be from 0 to {count - 1}, not {rows.min()} to {rows.max()}")


def check_mask(mask: NDArray[np.uint8] | None, count: int) -> None:
    """Check a filter mask of one bit a row before a kernel reads it.

    Raises:
        ValueError: if it is not of so many rows.
    """
    if mask is not None and (
        mask.dtype != np.uint8 or mask.ndim != 1 or len(mask) < -(-count // 8) or not mask.flags.c_contiguous
    ):
        raise ValueError(f"{count} rows need {-(-count // 8)} bytes of bits, not {mask.shape} of {mask.dtype}")


@cache
def load_short() -> ctypes.PyDLL | None:
    """Library of the kernels whose calls keep the interpreter's lock; None without kernels.

    For calls that take less time than to let go of the lock and to take it back: threads that search side by side
    would wait for each other at every one of them.
    """
    if load() is None:
        return None
    library = ctypes.PyDLL(str(Path(__file__).with_name(LIBRARY)))
    library.hivlp_dot.argtypes = _DOT
    library.hivlp_unit.argtypes = [c_void_p, c_int64, c_void_p]
    library.hivlp_unit.restype = c_double
    library.hivlp_units.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    library.hivlp_units.restype = None
    library.hivlp_project.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    return library


def unit(vector: Vectors) -> tuple[Vectors, float]:
    """A (dim,) float32 vector in C order at unit length, and its length before; that of 0 or inf voids the vector."""
    library, result = load_short(), np.empty_like(vector)
    if library is not None:
        return result, float(library.hivlp_unit(view(vector), len(vector), view(result)))
    wide = vector.astype(np.float64)  # squares of float32 may not fit float32
    norm = float(wide @ wide) ** 0.5
    return ((wide / norm).astype(np.float32) if 0 < norm < np.inf else result), norm


def units(vectors: Vectors) -> tuple[Vectors, NDArray[np.float64]]:
    """(n, dim) float32 vectors in C order, each as :func:`unit` makes it, and their (n,) lengths before."""
    library, (count, dim), result = load_short(), vectors.shape, np.empty_like(vectors)
    if library is None:
        made = [unit(vector) for vector in vectors]
        for row, (vector, _) in zip(result, made, strict=True):
            row[:] = vector
        return result, np.array([length for _, length in made], np.float64)
    lengths = np.empty(count, np.float64)
    library.hivlp_units(view(vectors), count, dim, view(result), view(lengths))
    return result, lengths


def project(matrix: Vectors, vector: Vectors) -> Vectors:
    """(m,) products of the rows of an (m, dim) float32 matrix with a (dim,) vector, both in C order."""
    library = load_short()
    if library is None:
        product: Vectors = matrix @ vector
        return product
    result = np.empty(len(matrix), np.float32)
    library.hivlp_project(pointer(matrix), len(matrix), len(vector), pointer(vector), pointer(result))
    return result


SHORT = 1 << 18
"""Products of numbers that take less time than to let go of the interpreter's lock and to take it back."""


def dot(stored: Stored, query: Vectors, rows: NDArray[np.int64] | None = None) -> Vectors | None:
    """Inner products of stored rows with a query, each depending on its own row alone; None where no kernel reads them.

    Args:
        stored: (n, dim) float16, or (n,) records of int8, in C order.
        query: (dim,).
        rows: numbers of the rows wanted (default: all).

    Raises:
        IndexError: if one of the rows is not there.
        ValueError: if the query is of another length.
    """
    library, int8 = load(), is_int8(stored)
    if library is None or not stored.flags.c_contiguous or not (int8 or stored.dtype == np.float16):
        return None
    query = np.ascontiguousarray(query, np.float32)
    if query.shape != (dim(stored),):
        raise ValueError(f"a query of {query.shape} does not fit to vectors of {dim(stored)} dims")
    which = None if rows is None else np.ascontiguousarray(rows, np.int64)
    if which is not None:
        check_rows(which, len(stored))
    out = np.empty(len(stored) if which is None else len(which), np.float32)
    short = load_short() if len(out) * len(query) <= SHORT else None
    (short or library).hivlp_dot(
        pointer(stored), stored.nbytes // max(1, len(stored)), int8, None if which is None else pointer(which),
        len(out), pointer(query), len(query), pointer(out),
    )  # fmt: skip
    return out


def to_half(numbers: NDArray[np.float32], halves: NDArray[np.uint16]) -> bool:
    """Float32 to float16 by the processor's own instruction: to nearest, ties to even.

    Args:
        numbers: in C order.
        halves: bits of the float16 numbers, of the same size and in C order; written.

    Returns:
        Whether it was done: not without kernels, without such an instruction, or where a number is NaN.
    """
    if numbers.size != halves.size or not (numbers.flags.c_contiguous and halves.flags.c_contiguous):
        raise ValueError(f"{numbers.shape} numbers do not fit into {halves.shape}")
    library = load()
    return library is not None and bool(library.hivlp_to_float16(pointer(numbers), numbers.size, pointer(halves)))
