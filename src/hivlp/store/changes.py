"""Change counter of ``items.db``: whether a commit has come since, without SQL, a lock or a system call.

SQLite counts its write transactions in bytes 24 to 27 of the file (https://sqlite.org/fileformat2.html, 1.3.7), and
every commit of a rollback journal changes them before it succeeds. They are read through a mapping of the first page.

POSIX has it that whoever closes a file lets go of all locks that the process has on it, those of SQLite's connections
included. So all stores of a process share one mapping of a file, which is closed with the last of them.
"""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

COUNTER = slice(24, 28)
HEADER = 100
"""Bytes of SQLite's header."""

Key = tuple[int, int]
MAPPED: dict[Key, tuple[mmap.mmap, int]] = {}
"""Mapping of each file's header by device and inode, and how many stores share it."""
_lock = threading.Lock()


class ChangeCounter:
    """Change counter of one file, for as long as its store is open."""

    def __init__(self, file: Path) -> None:
        """Map the header.

        Raises:
            OSError: if the file cannot be opened.
            ValueError: if it is shorter than a header.
        """
        with _lock:
            status = file.stat()
            self._key: Key | None = (status.st_dev, status.st_ino)
            shared = MAPPED.get(self._key)
            if shared is None:
                # Nothing in this process has the file open yet: to close this handle lets go of no lock.
                with file.open("rb") as handle:
                    shared = mmap.mmap(handle.fileno(), HEADER, access=mmap.ACCESS_READ), 0
            self._header, stores = shared
            MAPPED[self._key] = self._header, stores + 1

    def read(self) -> bytes:
        """The counter; another one after a commit."""
        return self._header[COUNTER]

    def close(self) -> None:
        """Let go of the file, when its store's connections are closed; nothing is wrong with doing so twice."""
        with _lock:
            if self._key is None:
                return
            header, stores = MAPPED.pop(self._key)
            if stores > 1:
                MAPPED[self._key] = header, stores - 1
            else:
                header.close()
            self._key = None
