"""Change counter of ``items.db``: whether a commit has come since, without SQL or a lock.

SQLite counts its write transactions in bytes 24 to 27 of the file (https://sqlite.org/fileformat2.html, 1.3.7), and
every commit of a rollback journal changes them before it succeeds. They are read, not mapped: a file that somebody
truncates, as ``cp`` of a backup does for a moment, would kill a process that has it mapped.

POSIX has it that whoever closes a file lets go of all locks that the process has on it, those of SQLite's connections
included. So all stores of a process share one handle of a file, which is closed with the last of them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from hivlp.files.reading import LOCKED, Key, key_of

PLACE, SIZE = 24, 4
HEADER = 100
"""Bytes of SQLite's header."""

OPENED: dict[Key, tuple[BinaryIO, int]] = {}
"""Handle of each file, and how many stores share it."""
_lock = threading.Lock()
_given_up: deque[ChangeCounter] = deque()
"""Counters that are to be closed by whoever holds the lock, or gets it next."""


class ChangeCounter:
    """Change counter of one file, for as long as its store is open."""

    def __init__(self, file: Path) -> None:
        """Open the file.

        Raises:
            OSError: if the file cannot be opened.
            ValueError: if it is shorter than a header.
        """
        self._file = file
        self._seen = ctypes.create_string_buffer(SIZE)
        try:
            with _lock:
                self._key: Key | None = key_of(file)
                shared = OPENED.get(self._key)
                if shared is None:
                    # Nothing in this process has the file open yet: to close this handle lets go of no lock.
                    handle = _open(file)
                    status = os.fstat(handle.fileno())
                    if status.st_size < HEADER:
                        handle.close()
                        raise ValueError(f"it has {status.st_size} bytes")
                    shared, self._key = (handle, 0), key_of(handle.fileno())
                    LOCKED.add(self._key)
                self._handle, stores = shared
                self._number = self._handle.fileno()
                OPENED[self._key] = self._handle, stores + 1
        finally:
            _settle()

    def read(self) -> bytes:
        """The counter; another one after a commit, and an empty one of a file that was truncated.

        Raises:
            ValueError: if it is closed.
        """
        if self._key is None:
            raise ValueError("the counter is closed")
        return self._seen.raw if _pread()(self._number, self._seen, SIZE, PLACE) == SIZE else b""

    def in_place(self) -> bool:
        """Whether the file that was opened is still the one of this name."""
        try:
            return key_of(self._file) == self._key
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the file, when its store's connections are closed; nothing is wrong with doing so twice."""
        with _lock:
            self._release()
        _settle()

    def give_up(self) -> None:
        """:meth:`close` without waiting for anybody, so that the garbage collector may do so at any time.

        It may come in a thread that holds the lock already.
        """
        _given_up.append(self)
        _settle()

    def _release(self) -> None:
        if self._key is None:
            return
        handle, stores = OPENED.pop(self._key)
        if stores > 1:
            OPENED[self._key] = handle, stores - 1
        else:
            LOCKED.discard(self._key)
            handle.close()
        self._key = None


@cache
def _pread() -> Callable[[int, Any, int, int], int]:
    """``pread`` of the C library, called with the interpreter's lock held.

    :func:`os.pread` lets go of it: threads that search side by side would wait for each other at every search.
    """
    try:
        pread = ctypes.PyDLL(None).pread
    except (TypeError, AttributeError):  # on Windows
        return _seek_and_read
    pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    pread.restype = ctypes.c_ssize_t
    return pread


def _seek_and_read(number: int, out: Any, size: int, place: int) -> int:
    with _lock:
        os.lseek(number, place, os.SEEK_SET)
        data = os.read(number, size)
    out.raw = data.ljust(size, b"\0")
    return len(data)


def _settle() -> None:
    """Close what was given up, unless somebody holds the lock, who will."""
    while _given_up and _lock.acquire(blocking=False):
        try:
            with suppress(IndexError):
                _given_up.popleft()._release()
        finally:
            _lock.release()


def _open(file: Path) -> BinaryIO:
    """The file as SQLite opens it: on an overlay, a file of a lower layer is another once it is opened for writing."""
    try:
        return file.open("r+b")
    except OSError:
        return file.open("rb")
