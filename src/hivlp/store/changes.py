"""Change counter of ``items.db``: whether a commit has come since, without SQL, a lock or a system call.

SQLite counts its write transactions in bytes 24 to 27 of the file (https://sqlite.org/fileformat2.html, 1.3.7), and
every commit of a rollback journal changes them before it succeeds. They are read through a mapping of the first page.

POSIX has it that whoever closes a file lets go of all locks that the process has on it, those of SQLite's connections
included. So all stores of a process share one mapping of a file, which is closed with the last of them.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

COUNTER = slice(24, 28)
HEADER = 100
"""Bytes of SQLite's header."""

Key = tuple[int, int]
MAPPED: dict[Key, tuple[mmap.mmap, int]] = {}
"""Mapping of each file's header by device and inode, and how many stores share it."""
_lock = threading.Lock()
_given_up: deque[ChangeCounter] = deque()
"""Counters that are to be closed by whoever holds the lock, or gets it next."""


class ChangeCounter:
    """Change counter of one file, for as long as its store is open."""

    def __init__(self, file: Path) -> None:
        """Map the header.

        Raises:
            OSError: if the file cannot be opened.
            ValueError: if it is shorter than a header.
        """
        self._file = file
        try:
            with _lock:
                self._key: Key | None = _key_of(file)
                shared = MAPPED.get(self._key)
                if shared is None:
                    # Nothing in this process has the file open yet: to close this handle lets go of no lock.
                    with _open(file) as handle:
                        shared = mmap.mmap(handle.fileno(), HEADER, access=mmap.ACCESS_READ), 0
                        self._key = _key_of(handle.fileno())
                self._header, stores = shared
                MAPPED[self._key] = self._header, stores + 1
        finally:
            _settle()

    def read(self) -> bytes:
        """The counter; another one after a commit.

        Raises:
            ValueError: if it is closed.
        """
        return self._header[COUNTER]

    def in_place(self) -> bool:
        """Whether the file that was opened is still the one of this name."""
        try:
            return _key_of(self._file) == self._key
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
        header, stores = MAPPED.pop(self._key)
        if stores > 1:
            MAPPED[self._key] = header, stores - 1
        else:
            header.close()
        self._key = None


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


def _key_of(file: Path | int) -> Key:
    status = os.stat(file)  # noqa: PTH116  (also of a handle)
    return status.st_dev, status.st_ino
