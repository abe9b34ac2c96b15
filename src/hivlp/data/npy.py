"""``.npy`` files from anybody: the header is parsed, never evaluated, and checked before a byte of data is mapped."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DataError, HivlpError
from hivlp.reading import one_line, open_regular, printable, reason

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 10_000
# An array that holds nothing may still claim dims that no other could have.
EMPTY_LIMIT = 1 << 30

_FIELD = re.compile(
    r"""\s*(?P<quote>['"])(?P<name>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?:(?P<mark>['"])(?P<descr>[<>=]?[a-zA-Z]\d{1,2}|\|?[a-zA-Z]1)(?P=mark)|(?P<order>True|False)|\((?P<shape>[\d\sL,]*)\))
    \s*(?:,|$)""",
    re.VERBOSE | re.ASCII,
)
_DIM = re.compile(r"\s*(0|[1-9]\d{0,18})L?\s*", re.ASCII)
_VALUES = {"descr": "descr", "fortran_order": "order", "shape": "shape"}


def open_npy(
    path: Path | str, *, kinds: str = "f", ndim: int | None = None, error: type[HivlpError] = DataError
) -> NDArray[Any]:
    """Map an array of plain numbers into memory, read-only.

    The file must be a regular one, its header well formed, its data as long as the header says and no longer: a shape
    that a flipped bit has changed is refused. Nothing is ever unpickled or evaluated.

    Args:
        path: of a ``.npy`` file, format 1.0, 2.0 or 3.0.
        kinds: letters of :attr:`numpy.dtype.kind` that are taken; of ``f``, ``i``, ``u`` and ``b``.
        ndim: that the array must have.
        error: what to raise.

    Returns:
        The array, in its own dtype and order, as a :class:`numpy.memmap` if it holds anything.

    Raises:
        error: naming the file, if it is anything else.
    """
    path = Path(path)
    with open_regular(path, error, "is not a readable .npy file") as file:
        try:
            dtype, shape, order = _header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            if dtype.kind not in kinds:
                raise _Refused(f"holds {dtype}, not {_named(kinds)}")
            if ndim is not None and len(shape) != ndim:
                raise _Refused(f"has shape {shape}, not {ndim} dimension{'s' * (ndim != 1)}")
            if 0 in shape and math.prod(max(1, dim) for dim in shape) > EMPTY_LIMIT:
                raise _Refused(f"is not a readable .npy file: its shape is {shape}")
            # Python's integers: the product of a damaged shape may be beyond 64 bits.
            wanted, there = math.prod(shape) * dtype.itemsize, size - start
            if wanted != there:
                raise _Refused(f"is not a readable .npy file: its header says {wanted} bytes of data, it holds {there}")
            if wanted == 0:
                return np.empty(shape, dtype)
            return np.memmap(file, dtype, "r", start, shape, order)
        except _Refused as problem:
            raise error(f"{printable(path)} {problem}") from problem
        except (OSError, ValueError, OverflowError, MemoryError) as problem:
            raise error(f"{printable(path)} cannot be read: {reason(problem)}") from problem


def read_npy(
    path: Path | str,
    *,
    limit: int,
    kinds: str = "f",
    ndim: int | None = None,
    error: type[HivlpError] = DataError,
) -> NDArray[Any]:
    """As :func:`open_npy`, but an array in memory, of at most ``limit`` bytes."""
    mapped = open_npy(path, kinds=kinds, ndim=ndim, error=error)
    if mapped.nbytes > limit:
        raise error(f"{printable(path)} is too large: {mapped.nbytes} bytes of data, at most {limit} are expected here")
    try:
        return np.array(mapped)
    except MemoryError as problem:
        raise error(f"{printable(path)} cannot be read: {one_line(problem)}") from problem


class _Refused(Exception):
    """What is wrong with a file, to be said after its name."""


def _header(file: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...], Any]:
    """Dtype, shape and order ("C" or "F"); the file stands at the data then."""
    start = file.read(8)
    if start[:6] != MAGIC:
        hint = ": it is a .npz archive, or another zip file; save one array by numpy.save" * start.startswith(b"PK")
        raise _Refused(f"is not a readable .npy file{hint}" if start else "is not a readable .npy file: it is empty")
    if start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise _Refused("is not a readable .npy file: its format is not 1.0, 2.0 or 3.0")
    width = 2 if start[6] == 1 else 4
    length = file.read(width)
    size = int.from_bytes(length, "little")
    if size > HEADER_LIMIT:
        raise _Refused(f"is not a readable .npy file: its header claims {size} bytes")
    header = file.read(size)
    if len(length) < width or len(header) < size:
        raise _Refused("is not a readable .npy file: it ends within its header")
    text = header.decode("ascii", "replace").strip(" \n")
    values: dict[str, str] = {}
    place, end = 1, len(text) - 1
    if text[:1] == "{" and text[-1:] == "}":
        while place < end and text[place:end].strip() and (match := _FIELD.match(text, place, end)):
            value = match[_VALUES[match["name"]]]
            if value is None or match["name"] in values:
                break
            values[match["name"]] = value
            place = match.end()
    if len(values) != 3 or text[place:end].strip():
        if re.search(r"\|?O\d*['\"]|[,\[(]\s*\(?['\"][<>|=]?[a-zA-Z]\d", text):
            raise _Refused("is not a readable .npy file: it holds Python objects or records, not plain numbers")
        raise _Refused("is not a readable .npy file: its header is damaged")
    return _dtype(values["descr"]), _shape(values["shape"]), "F" if values["fortran_order"] == "True" else "C"


def _dtype(descr: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise _Refused(f"is not a readable .npy file: there is no dtype {descr!r}") from None
    # As numpy writes it: "i1" and "|i1" alike, but no byte order where there is none to have.
    if dtype.kind not in "fiub" or dtype.itemsize not in (1, 2, 4, 8):
        raise _Refused(f"holds {dtype}: plain numbers of at most 64 bits are needed")
    return dtype


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not parts[-1].strip():
        parts.pop()
    elif len(parts) == 1:  # "(3)" is a number, not a tuple
        raise _Refused("is not a readable .npy file: its header is damaged")
    matches = [_DIM.fullmatch(part) for part in parts]
    dims = [int(match[1]) for match in matches if match]
    if len(dims) < len(matches) or len(dims) > 32 or any(dim > 2**62 for dim in dims):
        raise _Refused("is not a readable .npy file: its shape is damaged")
    return tuple(dims)


def _named(kinds: str) -> str:
    names = {"f": "floats", "i": "integers", "u": "unsigned integers", "b": "booleans"}
    return " or ".join(names[kind] for kind in kinds)
