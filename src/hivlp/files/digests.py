"""SHA-256 of large files, worked out once for as long as a file does not change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from hivlp.files.scratch import write_whole

SMALL = 1 << 20
"""Bytes of a file up to which it is hashed each time."""
RACY_NS = 2_000_000_000
"""A file changed within this time may change again without its time stamps showing it (git's "racy" rule)."""
MOST = 1000
"""Files that are remembered."""


def cache_folder() -> Path:
    """``HIVLP_CACHE``, or ``~/.cache/hivlp``: what can be made again at any time."""
    return Path(os.environ.get("HIVLP_CACHE") or Path.home() / ".cache" / "hivlp")


def sha256_of(path: Path) -> bytes:
    """SHA-256 of a file.

    That of a large file is remembered with the file's device, inode, size and times, the change of its inode included,
    which nobody can set: a search from the shell does not read a model's gigabyte again to know that it is the same.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= SMALL:
            return hashlib.file_digest(file, "sha256").digest()
        key = ":".join(
            str(part) for part in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )
        known = _known()
        with suppress(KeyError, ValueError, TypeError):
            digest = bytes.fromhex(known[key])
            if len(digest) == hashlib.sha256().digest_size:
                return digest
        digest = hashlib.file_digest(file, "sha256").digest()
        after = os.fstat(file.fileno())
    unchanged = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
        status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
    if unchanged and time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > RACY_NS:
        kept = dict(list(known.items())[-MOST + 1 :]) | {key: digest.hex()}
        with suppress(OSError):  # a cache that cannot be written is done without
            write_whole(_file(), lambda place: place.write_text(json.dumps(kept), encoding="utf-8"))
    return digest


def _file() -> Path:
    return cache_folder() / "digests.json"


def _known() -> dict[str, str]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
