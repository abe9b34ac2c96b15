"""Folders that are built aside and put into place whole, and what processes that died on the way have left.

A scratch folder is locked by the process that builds it, for as long as it lives: the system lets go of the lock with
the process, however that ends. So whoever can take the lock may remove the folder. A process id would not tell: it is
given again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows: nobody's scratch is known to be abandoned, and stays
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".scratch"
OLD = ".old"


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to build it in; removed at the end, if it is still there by its name.

    Those for the same target whose processes have died are removed first.

    Raises:
        OSError: if it cannot be made.
    """
    sweep(target.parent, target.name)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent))
        lock = _lock(folder)
        if lock is not None or fcntl is None:
            break  # otherwise another process has just taken it for abandoned
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Keep a folder, made if it is not there, to this process; False where another one, or this one already, has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        yield lock is not None or fcntl is None
    finally:
        if lock is not None:
            os.close(lock)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file aside and put it into place, so that what is there is whole.

    Args:
        path: of the file.
        write: called with where to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path) as scratch:
        write(scratch / path.name)
        (scratch / path.name).replace(path)


def sweep(parent: Path, name: str = "*") -> None:
    """Remove the scratch folders for targets of this name that no living process holds."""
    for folder in parent.glob(f".{name if name == '*' else _literal(name)}.*{SUFFIX}"):
        lock = _lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def put(folder: Path, target: Path) -> None:
    """Move a folder to a place where another may be; at every moment one of the two is :func:`standing` there.

    One process at a time may do so.

    Raises:
        OSError: if it cannot be done; what was there is there still.
    """
    settle(target)
    old = _old(target)
    if os.path.lexists(target):
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        settle(target)
        raise
    sync_folder(target.parent)
    _remove(old)


def settle(target: Path) -> None:
    """Finish or undo a :func:`put` that was killed; for one process at a time."""
    old = _old(target)
    if not os.path.lexists(target):
        with suppress(FileNotFoundError):
            old.rename(target)
    _remove(old)


def standing(target: Path) -> Path:
    """Where the folder is: at its place, or beside it in the middle of a :func:`put`."""
    old = _old(target)
    return old if not target.exists() and old.exists() else target


def sync_folder(folder: Path) -> None:
    """Wait until what was created and renamed in a folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}{OLD}")


def _remove(path: Path) -> None:
    """Whatever it is: a link to a folder goes, and not the folder."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lock(folder: Path) -> int | None:
    """A lock on a folder that nobody else holds; None if somebody does, or the folder is gone."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == folder.stat().st_ino:
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
