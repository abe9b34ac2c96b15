"""``.npy`` files that may be damaged, or made to do harm: whatever they say ends in an array or a :class:`ValueError`.

NumPy's own reader trusts a header: one flipped bit in it may raise almost anything, and a few bytes may ask for any
amount of memory. Here a file must be exactly as long as its header says, a regular file, and of plain numbers.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

ALIGNED = 16  # bytes: what an array begins at a multiple of, in a file
PIECE = 1 << 22  # bytes that are added up at once
Buffer = bytes | mmap.mmap
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_file(path: Path, most: int | None = None) -> bytes:
    """All of a regular file.

    Args:
        path: that is read.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no regular file, or longer.
    """
    with _open(path) as file:
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
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse(data: Buffer) -> NDArray[Any]:
    """The array that the bytes of a ``.npy`` file are, as a view of them.

    Raises:
        ValueError: if they are no such file, or another one than :func:`numpy.save` writes of plain numbers.
    """
    view = memoryview(data)
    start = io.BytesIO(bytes(view[: 2 * 10_000]))
    try:
        version = npy.read_magic(start)
        shape, fortran, dtype = READERS[version](start)
    except Exception as error:  # the header is Python source: a damaged one raises anything
        raise ValueError("it has no header that makes sense") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"{dtype} is no dtype of plain numbers")
    if len(shape) > 8 or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{shape} is no shape of an array")
    bytes_of = dtype.itemsize
    for length in shape:
        bytes_of *= length
    offset = start.tell()
    if offset + bytes_of != len(view):
        raise ValueError(f"it has {len(view)} bytes instead of {offset + bytes_of}")
    if offset % ALIGNED:
        raise ValueError("its header is of an odd length")
    return np.ndarray(shape, dtype, view, offset, order="F" if fortran else "C")


def checksum(data: Buffer) -> int:
    """CRC-32 of some bytes."""
    view, check = memoryview(data), 0
    for start in range(0, len(view), PIECE):
        check = zlib.crc32(view[start : start + PIECE], check)
    return check


def _open(path: Path) -> io.FileIO:
    # Opened without waiting: a named pipe that nobody writes to would never answer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    file = io.FileIO(handle, "r")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file
