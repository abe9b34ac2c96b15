"""A walk through folders for pictures, in the order of their names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hivlp.data.exclude import Exclude
from hivlp.data.kinds import kind_of_name, why_unread
from hivlp.errors import DataError
from hivlp.files.reading import printable, reason

_INDEX_FILE = "items.db"


@dataclass(frozen=True)
class Found:
    """A file that is worth decoding."""

    path: Path


@dataclass(frozen=True)
class Unreadable:
    """A folder or file that was passed over, and why.

    Attributes:
        path: of it.
        error: why.
        replaced: whether something else has a picture's name: a broken link, one that is not followed, a pipe.
    """

    path: Path
    error: str
    replaced: bool = False


@dataclass(frozen=True)
class NotRead:
    """A file or folder of a kind that is passed over as a whole, and why."""

    path: Path
    kind: str
    why: str


LINKED_FOLDER, HIDDEN = "linked folder", "hidden"
EXCLUDED = "excluded by "
"""What the kind of something begins with that an exclude pattern matched, before the pattern."""


def find_pictures(
    roots: Iterable[Path], exclude: Exclude | None = None, on_disk: Callable[[Path], object] | None = None
) -> Iterator[Found | Unreadable | NotRead]:
    """Walk folders for pictures, in an order that depends only on the names.

    A root that is a file is yielded whatever its suffix. In a folder, files count by the suffixes that
    :mod:`hivlp.data.kinds` knows; names that start with a dot, what a pattern excludes, and hivlp index folders are
    passed over. Links to folders are not followed, nor are links to files that lie outside the root; so no loop can
    arise, and no folder is walked twice even if roots overlap.

    Args:
        roots: folders and files.
        exclude: patterns of what is passed over below the roots; default :data:`hivlp.data.exclude.DEFAULTS`.
        on_disk: called with each folder below the roots that lies on another disk than the folder around it.

    Returns:
        An iterator over what was found, what could not be read, and the pictures, videos and folders that are not read.

    Raises:
        DataError: at once, if a root does not exist.
    """
    checked = list(roots)
    for root in checked:
        try:
            root.stat()
        except FileNotFoundError:
            raise DataError(f"{printable(root)} does not exist") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{printable(root)} cannot be read: {reason(error)}") from error
    return _walk(checked, Exclude() if exclude is None else exclude, on_disk)


def count_pictures(roots: Iterable[Path], exclude: Exclude | None = None) -> int:
    """How many pictures :func:`find_pictures` finds, and what it cannot read, for a bar that shows how far a job is."""
    return sum(not isinstance(found, NotRead) for found in find_pictures(roots, exclude))


def _walk(
    roots: list[Path], exclude: Exclude, on_disk: Callable[[Path], object] | None
) -> Iterator[Found | Unreadable | NotRead]:
    visited: set[tuple[int, int]] = set()
    for root in roots:
        if not root.is_dir():
            yield Found(root)
        elif (root / _INDEX_FILE).exists():
            yield Unreadable(root, "is a hivlp index, not a folder of pictures")
        else:
            yield from _walk_folder(root, visited, exclude, on_disk)


def _walk_folder(
    root: Path, visited: set[tuple[int, int]], exclude: Exclude, on_disk: Callable[[Path], object] | None
) -> Iterator[Found | Unreadable | NotRead]:
    real_root = Path(os.path.realpath(root))
    above = len(os.path.join(root, ""))  # noqa: PTH118
    # A stack of half-consumed listings instead of recursion: a path may hold more folders than Python has frames.
    stack = [_listing(root, visited)]
    while stack:
        disk, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, Unreadable):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            left_out = _left_out(entry, entry.path[above:], exclude, folder=True)
            if left_out is None:
                folder = Path(entry.path)
                stack.append(_listing(folder, visited))
                if on_disk is not None and stack[-1][0] not in (disk, None):
                    on_disk(folder)
            else:
                yield left_out
        elif (kind := _kind(entry.name)) is not None:
            if (left_out := _left_out(entry, entry.path[above:], exclude, folder=False)) is not None:
                yield left_out
                continue
            if why := why_unread(kind):
                yield NotRead(Path(entry.path), kind, why)
                continue
            yield _why_not(entry, real_root) or Found(Path(entry.path))
        elif _is_linked_folder(entry) and not entry.name.startswith("."):
            yield NotRead(Path(entry.path), LINKED_FOLDER, "is not followed; give it as a path of its own")


def _listing(folder: Path, visited: set[tuple[int, int]]) -> tuple[int | None, Iterator[os.DirEntry[str] | Unreadable]]:
    """The disk that a folder lies on, and its entries by name; nothing for an index folder or one seen before."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            # macOS leaves a "._a.jpg" beside each file on disks of other systems: none of them is worth a word.
            listed = sorted((each for each in entries if not each.name.startswith("._")), key=lambda each: each.name)
    except OSError as error:
        return None, iter([Unreadable(folder, reason(error))])
    if (status.st_dev, status.st_ino) in visited or any(entry.name == _INDEX_FILE for entry in listed):
        return None, iter(())
    visited.add((status.st_dev, status.st_ino))
    return status.st_dev, iter(listed)


def _left_out(entry: os.DirEntry[str], inside: str, exclude: Exclude, *, folder: bool) -> NotRead | None:
    """Why an entry is passed over, if it is, by its name or its path below the root."""
    if entry.name.startswith("."):
        return NotRead(Path(entry.path), HIDDEN, "has a name that begins with a dot; give it as a path of its own")
    if (pattern := exclude.match(inside, folder=folder)) is not None:
        return NotRead(Path(entry.path), f"{EXCLUDED}{pattern}", "matches a pattern of what is excluded")
    return None


def _why_not(entry: os.DirEntry[str], real_root: Path) -> Unreadable | None:
    """Why a file with a picture's name is not to be opened; None if it is."""
    path = Path(entry.path)
    try:
        if entry.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real_root):
            return Unreadable(path, "is a link that leaves the folder", replaced=True)
        if entry.is_file():
            return None
        return Unreadable(path, "is not a regular file" if path.exists() else "is a broken link", replaced=True)
    except OSError as error:
        return Unreadable(path, reason(error), replaced=error.errno == errno.ELOOP)


def _is_linked_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _kind(name: str) -> str | None:
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 (a Path for every file is slow)
    return kind_of_name(suffix) if suffix else None
