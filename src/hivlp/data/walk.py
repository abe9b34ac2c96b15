"""Finding pictures in folders, whatever the folders hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hivlp.errors import DataError

PICTURE_SUFFIXES = frozenset(
    {
        ".apng",
        ".avif",
        ".bmp",
        ".gif",
        ".ico",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Lower-case suffixes by which a file in a folder is taken for a picture."""

_INDEX_FILE = "items.db"


@dataclass(frozen=True)
class Found:
    """A file that is worth decoding."""

    path: Path


@dataclass(frozen=True)
class Unreadable:
    """A folder or file that was passed over, and why."""

    path: Path
    error: str


def find_pictures(roots: Iterable[Path]) -> Iterator[Found | Unreadable]:
    """Walk folders for pictures, in an order that depends only on the names.

    A root that is a file is yielded whatever its suffix. In a folder, files count by :data:`PICTURE_SUFFIXES`; names
    that start with a dot and hivlp index folders are passed over. Links to folders are not followed, nor are links to
    files that lie outside the root; so no loop can arise, and no folder is walked twice even if roots overlap.

    Args:
        roots: folders and files.

    Returns:
        An iterator over what was found and what could not be read.

    Raises:
        DataError: at once, if a root does not exist.
    """
    checked = list(roots)
    for root in checked:
        try:
            root.stat()
        except FileNotFoundError:
            raise DataError(f"{_printable(root)} does not exist") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{_printable(root)} cannot be read: {_reason(error)}") from error
    return _walk(checked)


def _walk(roots: list[Path]) -> Iterator[Found | Unreadable]:
    visited: set[tuple[int, int]] = set()
    for root in roots:
        if not root.is_dir():
            yield Found(root)
        elif (root / _INDEX_FILE).exists():
            yield Unreadable(root, "is a hivlp index, not a folder of pictures")
        else:
            yield from _walk_folder(root, visited)


def _walk_folder(root: Path, visited: set[tuple[int, int]]) -> Iterator[Found | Unreadable]:
    real_root = Path(os.path.realpath(root))
    # A stack of half-consumed listings instead of recursion: a path may hold more folders than Python has frames.
    stack: list[Iterator[os.DirEntry[str] | Unreadable]] = [_listing(root, visited)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, Unreadable):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            stack.append(_listing(Path(entry.path), visited))
        elif _has_picture_suffix(entry.name):
            problem = _why_not(entry, real_root)
            yield Found(Path(entry.path)) if problem is None else Unreadable(Path(entry.path), problem)


def _listing(folder: Path, visited: set[tuple[int, int]]) -> Iterator[os.DirEntry[str] | Unreadable]:
    """The visible entries of a folder by name; nothing for an index folder or one seen before."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            listed = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
            )
    except OSError as error:
        return iter([Unreadable(folder, _reason(error))])
    if (status.st_dev, status.st_ino) in visited or any(entry.name == _INDEX_FILE for entry in listed):
        return iter(())
    visited.add((status.st_dev, status.st_ino))
    return iter(listed)


def _why_not(entry: os.DirEntry[str], real_root: Path) -> str | None:
    """Why a file with a picture's name is not to be opened; None if it is."""
    try:
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(real_root):
            return "is a link that leaves the folder"
        if entry.is_file():
            return None
        return "is not a regular file" if Path(entry.path).exists() else "is a broken link"
    except OSError as error:
        return _reason(error)


def _has_picture_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122 (a Path for every file is slow)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _printable(path: Path) -> str:
    """The path on one line, with bytes that are no text replaced."""
    return repr(str(path))[1:-1] if not str(path).isprintable() else str(path)
