"""``.npy`` files from anybody: the header is parsed, never evaluated, and checked before a byte of data is looked at.

Two faces on one parser. :func:`open_npy` and :func:`read_npy` are for files that a person names: plain numbers of the
kinds that are wanted, or one of our errors with the file's name. :func:`map_file` and :func:`parse` are for the files
of a folder that has its own word for what is wrong (an engine, maps): records too, or a :class:`ValueError`.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DataError, HivlpError
from hivlp.files.reading import one_line, open_file, open_regular, printable, reason

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 10_000
# An array that holds nothing may still claim dims that no other could have.
EMPTY_LIMIT = 1 << 30
ALIGNED = 16  # bytes: what an array begins at a multiple of, in a file that is used in place
PIECE = 1 << 22  # bytes that are added up at once
Buffer = bytes | mmap.mmap

_PLAIN = r"(?:[<>=]?[a-zA-Z]\d{1,2}|\|?[a-zA-Z]1)"
_RECORD = re.compile(
    rf"""\(\s*(['"])(?P<name>\w+)\1\s*,\s*(['"])(?P<descr>{_PLAIN})\3\s*(?:,\s*\((?P<shape>[\d\s,]*)\)\s*)?\)\s*(?:,\s*|$)""",
    re.VERBOSE | re.ASCII,
)
_FIELD = re.compile(
    rf"""\s*(?P<quote>['"])(?P<name>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?:(?P<mark>['"])(?P<descr>{_PLAIN})(?P=mark)|\[(?P<records>[^\[\]]*)\]|(?P<order>True|False)
    |\((?P<shape>[\d\s,L]*)\))\s*(?:,|$)""",
    re.VERBOSE | re.ASCII,
)
_DIM = re.compile(r"\s*(0|[1-9]\d{0,18})L?\s*", re.ASCII)
_VALUES = {"descr": ("descr", "records"), "fortran_order": ("order",), "shape": ("shape",)}


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
            if dtype.kind == "V":
                raise _Refused("is not a readable .npy file: it holds Python objects or records, not plain numbers")
            if dtype.kind not in kinds:
                raise _Refused(f"holds {dtype}, not {_named(kinds)}")
            if ndim is not None and len(shape) != ndim:
                raise _Refused(f"has shape {shape}, not {ndim} dimension{'s' * (ndim != 1)}")
            start = file.tell()
            if _data_bytes(dtype, shape, os.fstat(file.fileno()).st_size - start) == 0:
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


def read_file(path: Path, most: int | None = None) -> bytes:
    """All of a regular file.

    Args:
        path: that is read.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, or longer.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"{size} bytes are too many")
        return file.read()


def map_file(path: Path) -> Buffer:
    """A regular file as memory whose pages are read when they are used.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse(data: Buffer) -> NDArray[Any]:
    """The array that the bytes of a ``.npy`` file are, as a view of them; of plain numbers or records of such.

    Raises:
        ValueError: if they are no such file, or another one than :func:`numpy.save` writes.
    """
    view = memoryview(data)
    start = io.BytesIO(bytes(view[: HEADER_LIMIT + 12]))
    try:
        dtype, shape, order = _header(start)
        _data_bytes(dtype, shape, len(view) - start.tell())
    except _Refused as problem:
        raise ValueError(f"it {problem}") from problem
    if start.tell() % ALIGNED:
        raise ValueError("its header is of an odd length")
    return np.ndarray(shape, dtype, view, start.tell(), order=order)


def checksum(data: Buffer) -> int:
    """CRC-32 of some bytes."""
    view, check = memoryview(data), 0
    for start in range(0, len(view), PIECE):
        check = zlib.crc32(view[start : start + PIECE], check)
    return check


class _Refused(Exception):
    """What is wrong with a file, to be said after its name."""


def _data_bytes(dtype: np.dtype[Any], shape: tuple[int, ...], there: int) -> int:
    """How long the data is, which must be all that there is."""
    if 0 in shape and math.prod(max(1, dim) for dim in shape) > EMPTY_LIMIT:
        raise _Refused(f"is not a readable .npy file: its shape is {shape}")
    # Python's integers: the product of a damaged shape may be beyond 64 bits.
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != there:
        raise _Refused(f"is not a readable .npy file: its header says {wanted} bytes of data, it holds {there}")
    return wanted


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
            value = next((match[group] for group in _VALUES[match["name"]] if match[group] is not None), None)
            if value is None or match["name"] in values:
                break
            values[match["name"]] = value
            place = match.end()
    if len(values) != 3 or text[place:end].strip():
        if re.search(r"\|?O\d*['\"]", text):
            raise _Refused("is not a readable .npy file: it holds Python objects or records, not plain numbers")
        raise _Refused("is not a readable .npy file: its header is damaged")
    descr = values["descr"]
    dtype = _records(descr) if "(" in descr else _dtype(descr)
    return dtype, _shape(values["shape"]), "F" if values["fortran_order"] == "True" else "C"


def _records(text: str) -> np.dtype[Any]:
    """The dtype of records, from what stands between the brackets."""
    fields: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    place, text = 0, text.strip()
    while place < len(text) and (match := _RECORD.match(text, place)):
        if match["name"] in fields:
            break
        fields[match["name"]] = _dtype(match["descr"]), _shape(match["shape"] or "")
        place = match.end()
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in fields.values())
    if place < len(text) or not 0 < size <= EMPTY_LIMIT:
        raise _Refused("is not a readable .npy file: its header is damaged")
    return np.dtype([(name, dtype, shape) for name, (dtype, shape) in fields.items()])


def _dtype(descr: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise _Refused(f"is not a readable .npy file: there is no dtype {descr!r:.40}") from None
    # As numpy writes it: "i1" and "|i1" alike, but no byte order where there is none to have.
    if dtype.kind not in "fiub" or dtype.itemsize not in (1, 2, 4, 8):
        kind = "Python objects or records" if dtype.kind == "O" else str(dtype)
        raise _Refused(f"holds {kind}: plain numbers of at most 64 bits are needed")
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
