"""Items whose files are gone: moved ones are known again by their content, missing ones are marked or pruned."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from hivlp.data.exclude import Exclude
from hivlp.store.folder import Store
from hivlp.store.names import places, stored_path
from hivlp.store.records import GONE, Item, Stamp

COPIES = 100
"""Items of one content among which one is looked for whose file has moved."""
AT_ONCE = 10_000
"""Items that are marked or pruned in one commit."""


class Walked:
    """What a walk through folders has met of the items that there were before it."""

    def __init__(self, store: Store, roots: Iterable[Path], given: Iterable[Path]) -> None:
        """Nothing is met yet.

        Args:
            store: whose items are looked for.
            roots: folders and files that are walked.
            given: all that were named, those below others and those that are not there among them. A disk may be
                mounted at each, as at those folders in which one was at an earlier walk.
        """
        self._store = store
        self._folders = [os.path.realpath(root) for root in roots if root.is_dir()]
        places = [os.path.realpath(root) for root in given if not root.is_file()]
        self._met = bytearray()
        self._moved: set[int] = set()
        self._replaced: set[str] = set()
        self._disks: set[str] = set()
        with store.reading() as reader:
            self._last, self._known_disks = reader.last_id(), set(reader.disks())
        self._walked_disks = {
            disk for disk in self._known_disks if any(_is_in(disk, folder) for folder in self._folders)
        }
        among = (*self._folders, *places, *sorted(self._walked_disks))
        self._places = {place: _identity(place) for place in among}
        self._found = dict.fromkeys(self._places, False)

    def met(self, item: Item) -> None:
        """An item's file was there."""
        byte, bit = divmod(item.id, 8)
        if byte >= len(self._met):
            self._met.extend(bytes(byte + 1 - len(self._met) + len(self._met) // 2))
        self._met[byte] |= 1 << bit

    def found(self, path: str) -> None:
        """There was a picture at a path, whether or not an item."""
        for folder, before in self._found.items():
            if not before and _is_in(path, folder):
                self._found[folder] = True

    def replaced(self, path: str) -> None:
        """At a path is something else than the picture that was there, and no other picture that can be read."""
        self._replaced.add(path)

    def disk(self, folder: Path) -> None:
        """A folder lies on another disk than what is around it."""
        self._disks.add(os.path.realpath(folder))

    def moved_to(self, path: str, copies: Iterable[Item]) -> Item | None:
        """The item, among those of the same content, whose file has moved to a path; None if each is still there.

        A file outside the walked folders counts as moved only if its own folder is still there: it may lie on a disk
        that is not connected.
        """
        for item in copies:
            if item.id in self._moved or not is_gone(item.path, path):
                continue
            home = os.path.dirname(item.path)  # noqa: PTH120
            if any(_is_in(item.path, folder) for folder in self._folders) or os.path.isdir(home):  # noqa: PTH112
                self._moved.add(item.id)
                return item
        return None

    def settle(self, exclude: Exclude, *, prune: bool) -> tuple[int, int, list[str]]:
        """Mark the items of the walked folders whose files are gone, or remove them and what is excluded now.

        Those in whose files' place is no picture are marked, too, and never removed: it may yet be mended.

        Args:
            exclude: of the walk.
            prune: whether to remove them.

        Returns:
            How many are missing, how many were removed, and folders that were spared because they are not there, no
            picture was found in them, or another disk came in their place: their own may not be connected.
        """
        missing: list[tuple[int, Stamp]] = []
        marked = 0
        removed: list[int] = []
        spared: set[str] = set()
        away = [place for place, before in self._places.items() if not self._found[place] or _identity(place) != before]
        with self._store.reading() as reader:
            for folder in self._folders:
                gone, left_out = [], []
                for item_id, path, stamp in reader.paths_under(folder):
                    if path in self._replaced and item_id <= self._last:
                        gone.append((item_id, stamp))
                    if item_id > self._last or self._was_met(item_id) or path in self._replaced:
                        continue
                    if is_gone(path):
                        place = next((each for each in away if _is_in(path, each)), None)
                        if prune and place is None:
                            removed.append(item_id)
                            continue
                        gone.append((item_id, stamp))
                        spared.update(() if place is None else (place,))
                    elif prune and exclude.leaves_out(path[len(os.path.join(folder, "")) :]):  # noqa: PTH118
                        left_out.append(item_id)
                removed += left_out
                marked += len(gone)
                missing += [(item_id, stamp._replace(size=GONE)) for item_id, stamp in gone if stamp.size != GONE]
            before = reader.may_miss()
            # One in which pictures were found, though it is no other disk any more, is a folder like others.
            folders = {disk for disk in self._walked_disks if self._found[disk]}
            disks = self._disks | (self._known_disks - folders)
            disks = {disk for disk in disks if next(reader.paths_under(disk), None) is not None}
        for start in range(0, len(removed), AT_ONCE):
            self._store.remove(removed[start : start + AT_ONCE])
        for start in range(0, len(missing), AT_ONCE):
            with self._store.changing() as writer:
                writer.restamp(missing[start : start + AT_ONCE])
                writer.note_missing(True)
        if disks != self._known_disks:
            with self._store.changing() as writer:
                writer.note_disks(sorted(disks))
        if before and not missing:
            with self._store.reading() as reader:
                none_left = reader.missing() == 0
            if none_left:
                with self._store.changing() as writer:
                    writer.note_missing(False)
        return marked, len(removed), sorted(spared) if prune else []

    def _was_met(self, item_id: int) -> bool:
        byte, bit = divmod(item_id, 8)
        return byte < len(self._met) and bool(self._met[byte] >> bit & 1)


def is_gone(path: str, other: str | None = None) -> bool:
    """Whether there is no file at a path any more. One that may not be looked at counts as there.

    Args:
        path: of an item.
        other: a path that the file may have now: where names differ in case alone, or in their spelling in Unicode,
            some systems find the file by either.
    """
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return True
        if other is None or not os.path.samestat(status, os.lstat(other)):
            return False
        folder, name = os.path.split(path)
        return name not in os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def holds(store: Store, root: Path) -> bool:
    """Whether there are items at a path or below it."""
    with store.reading() as reader:
        return next(reader.paths_under(os.path.realpath(root)), None) is not None


def relocate(store: Store, old: str, new: str) -> tuple[int, int]:
    """The job behind :meth:`hivlp.index.Index.relocate`."""
    target = stored_path(new)
    store.respell()
    with store.changing() as writer:
        for place in places(old):
            found = sorted(writer.reader.paths_under(place.rstrip("/") or "/"), key=lambda item: item[1])
            if found:
                break
        else:
            return 0, 0
        source = place.rstrip("/")
        moves = [(item_id, target.rstrip("/") + path[len(source) :] or "/", stamp) for item_id, path, stamp in found]
        moving = {item_id for item_id, _, _ in moves}
        taken = writer.reader.at_paths([path for _, path, _ in moves])
        kept = [move for move in moves if move[1] not in taken or taken[move[1]].id in moving]
        replaced = [item_id for item_id, path, _ in moves if path in taken and taken[path].id not in moving]
        if replaced:
            writer.remove(replaced)
        # Where OLD and NEW overlap, a path may be taken until its own item has moved: by way of names nothing has.
        writer.move((item_id, f"\0{item_id}", stamp) for item_id, _, stamp in kept)
        writer.move(kept)
        return len(kept), len(replaced)


def _identity(place: str) -> tuple[int, int] | None:
    """Disk and inode of what is at a path; None if there is nothing."""
    try:
        status = os.stat(place)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))  # noqa: PTH118
