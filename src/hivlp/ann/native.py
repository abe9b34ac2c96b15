"""The compiled kernels, where they could be built; everything works without them, more slowly."""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import suppress
from ctypes import POINTER, Structure, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

LIBRARY = "_kernels.so"
VARIANTS = ("generic", "avx2", "avx512", "neon")
_NOTHING = ctypes.c_char * 0


class EngineStruct(Structure):
    """``engine`` of kernels.c."""

    _fields_ = (
        ("map", c_void_p),
        ("amplitude", c_void_p),
        ("step", c_void_p),
        ("keys", c_void_p),
        ("key_bias", c_void_p),
        ("key_steps", c_void_p),
        ("group_keys", c_void_p),
        ("group_bias", c_void_p),
        ("centres", c_void_p),
        ("starts", c_void_p),
        ("signs", c_void_p),
        ("factors", c_void_p),
        ("heads", c_void_p),
        ("rows", c_void_p),
        ("nibbles", c_void_p),
        ("fine", c_void_p),
        ("count", c_int64),
        ("lists", c_int64),
        ("dims", c_int32),
        ("signed_dims", c_int32),
        ("fine_dim", c_int32),
        ("centre_scale", c_float),
        ("factor_scale", c_float),
        ("group_scale", c_float),
        ("stretch_scale", c_float),
        ("error", c_float),
    )


class EffortStruct(Structure):
    """``effort`` of kernels.c."""

    _fields_ = (
        ("lists", c_int64),
        ("last", c_int64),
        ("margin", c_float),
        ("slack", c_float),
        ("tolerance", c_float),
    )


class WorkStruct(Structure):
    """What searches did, ``work_done`` of kernels.c: lists and codes read, nibbles and fine rows scored."""

    _fields_ = (("lists", c_int64), ("codes", c_int64), ("nibbles", c_int64), ("fine", c_int64))


def pointer(array: NDArray[Any]) -> int:
    """Where an array's values begin; the caller keeps it alive."""
    address: int = array.__array_interface__["data"][0]
    return address


def view(array: NDArray[Any]) -> Any:
    """The same as an argument for a function of the library, in a quarter of the time where it may be written to."""
    try:
        return _NOTHING.from_buffer(array)  # type: ignore[arg-type]
    except TypeError:
        return pointer(array)


@cache
def load() -> ctypes.CDLL | None:
    """The library with its widest variant chosen, or None; ``HIVLP_KERNELS=off`` refuses it."""
    wanted = os.environ.get("HIVLP_KERNELS", "")
    path = Path(__file__).with_name(LIBRARY)
    if wanted == "off" or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
        _declare(library)
        old = library.hivlp_engine_bytes() != ctypes.sizeof(EngineStruct)
    except OSError:  # built for another machine
        return None
    except AttributeError:
        old = True
    if old:  # in a folder whose sources were changed since it was built
        warnings.warn(f"{path} is older than this code and is not used: install hivlp again", stacklevel=2)
        return None
    most = VARIANTS.index(wanted) if wanted in VARIANTS else len(VARIANTS)
    library.hivlp_choose(most)
    library.hivlp_bounds_choose(most)
    return library


def _declare(library: ctypes.CDLL) -> None:
    library.hivlp_choose.argtypes = [c_int]
    library.hivlp_choose.restype = c_int
    library.hivlp_signs.argtypes = [
        c_void_p, c_void_p, c_int64, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p,
    ]  # fmt: skip
    library.hivlp_nibbles.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_int, c_void_p]
    library.hivlp_nibbles4.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_int, c_void_p]
    library.hivlp_keys.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_void_p]
    library.hivlp_nibble_keys.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_void_p]
    library.hivlp_dot4.argtypes = [c_void_p, c_void_p, c_int, c_void_p]
    library.hivlp_dot16.argtypes = [c_void_p, c_void_p, c_int, c_void_p]
    library.hivlp_bytes.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_void_p]
    library.hivlp_dot.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int, c_void_p]
    library.hivlp_search.argtypes = [
        POINTER(EngineStruct), c_void_p, c_int64, POINTER(EffortStruct), c_int64, c_int64, c_void_p, c_void_p, c_void_p,
        POINTER(WorkStruct),
    ]  # fmt: skip
    library.hivlp_search_whole.argtypes = [
        POINTER(EngineStruct), c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p,
        POINTER(WorkStruct),
    ]  # fmt: skip
    library.hivlp_search_rows.argtypes = [
        POINTER(EngineStruct), c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p,
        POINTER(WorkStruct),
    ]  # fmt: skip
    library.hivlp_assign.argtypes = [
        c_void_p, c_void_p, c_float, c_int64, c_void_p, c_void_p, c_float, c_int64, c_int, c_void_p, c_int64, c_int,
        c_void_p,
    ]  # fmt: skip
    library.hivlp_bounds_choose.argtypes = [c_int]
    library.hivlp_bounds_choose.restype = c_int
    library.hivlp_bounds.argtypes = [
        c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int, c_void_p, c_void_p, c_void_p,
        c_int64, c_double, c_double, c_double, c_double, c_double, c_void_p, c_void_p, c_void_p,
    ]  # fmt: skip
    library.hivlp_bounds.restype = c_int64
    library.hivlp_halves.argtypes = [c_void_p, c_int64, c_void_p]
    library.hivlp_halves.restype = c_int


def give_back() -> None:
    """Hand memory that was freed back to the system; glibc keeps some of it until then."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def check_rows(rows: NDArray[np.integer[Any]], count: int) -> None:
    """Whether a kernel may look up these rows.

    Raises:
        IndexError: if one is not among the first ``count``.
    """
    if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < count):
        raise IndexError(f"rows must be from 0 to {count - 1}, not {rows.min()} to {rows.max()}")


def check_bits(bits: NDArray[np.uint8] | None, count: int) -> None:
    """Whether these are a bit for each of so many rows, as kernels read them.

    Raises:
        ValueError: if not.
    """
    if bits is not None and (
        bits.dtype != np.uint8 or bits.ndim != 1 or len(bits) < -(-count // 8) or not bits.flags.c_contiguous
    ):
        raise ValueError(f"{count} rows need {-(-count // 8)} bytes of bits, not {bits.shape} of {bits.dtype}")


@cache
def load_short() -> ctypes.PyDLL | None:
    """Library of the kernels whose calls keep the interpreter's lock; None without kernels.

    For calls that take less time than to let go of the lock and to take it back: threads that search side by side
    would wait for each other at every one of them.
    """
    if load() is None:
        return None
    library = ctypes.PyDLL(str(Path(__file__).with_name(LIBRARY)))
    library.hivlp_dot.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int, c_void_p]
    library.hivlp_unit.argtypes = [c_void_p, c_int64, c_void_p]
    library.hivlp_unit.restype = c_double
    library.hivlp_project.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    return library


def unit(vector: Vectors) -> tuple[Vectors, float]:
    """A (dim,) float32 vector in C order at unit length, and its length before; that of 0 or inf voids the vector."""
    library, result = load_short(), np.empty_like(vector)
    if library is not None:
        return result, float(library.hivlp_unit(pointer(vector), len(vector), pointer(result)))
    wide = vector.astype(np.float64)  # squares of float32 may not fit float32
    norm = float(wide @ wide) ** 0.5
    return ((wide / norm).astype(np.float32) if 0 < norm < np.inf else result), norm


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


def half_dot(vectors: NDArray[Any], query: Vectors, rows: NDArray[np.int64] | None = None) -> Vectors | None:
    """Dot products with float16 vectors, each depending on its own row alone; None without kernels.

    Args:
        vectors: (n, dim), rows one after the other in memory.
        query: (dim,).
        rows: those that are wanted (default: all).

    Raises:
        IndexError: if one of the rows is not there.
        ValueError: if the query is not as long as the vectors.
    """
    library = load()
    if library is None or not vectors.flags.c_contiguous or vectors.dtype != np.float16:
        return None
    query = np.ascontiguousarray(query, np.float32)
    if vectors.ndim != 2 or query.shape != vectors.shape[1:]:
        raise ValueError(f"a query of {query.shape} does not fit to vectors of {vectors.shape}")
    which = None if rows is None else np.ascontiguousarray(rows, np.int64)
    if which is not None:
        check_rows(which, len(vectors))
    out = np.empty(len(vectors) if which is None else len(which), np.float32)
    short = load_short() if len(out) * vectors.shape[1] <= SHORT else None
    (short or library).hivlp_dot(
        pointer(vectors), None if which is None else pointer(which), len(out), pointer(query),
        vectors.shape[1], pointer(out),
    )  # fmt: skip
    return out


def to_half(numbers: NDArray[np.float32], halves: NDArray[np.uint16]) -> bool:
    """The nearest float16 of each number, ties to even, as bits.

    Args:
        numbers: one after the other in memory.
        halves: as many, likewise, where they go.

    Returns:
        Whether it was done; the caller does it without kernels, without an instruction for it, and where a number is
        no number.
    """
    if numbers.size != halves.size or not (numbers.flags.c_contiguous and halves.flags.c_contiguous):
        raise ValueError(f"{numbers.shape} numbers do not fit into {halves.shape}")
    library = load()
    return library is not None and bool(library.hivlp_halves(pointer(numbers), numbers.size, pointer(halves)))
