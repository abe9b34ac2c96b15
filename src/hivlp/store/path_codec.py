"""Path codec: how a catalog spells the paths of its items, absolute or relative to the folder that the index lies in.

A relative index lies beside its pictures, on a disk that is mounted elsewhere tomorrow. Its catalog spells a path below
that folder without it, ``2019/a.jpg``; any other absolute one as it is, ``/elsewhere/b.jpg``; and what is no absolute
path, such as the name of a vector, behind ``./``. Each path has one spelling, and each spelling that is accepted is one
path's. Everywhere else in hivlp, paths are absolute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

NO_PATH = "./"
"""What stands before a text that is no absolute path, in a relative index."""
FIRST = b""
"""The least blob: SQLite sorts text before blobs."""

Spelled = str | bytes
"""A path as SQLite can hold it: text, or bytes where a name is not UTF-8."""


class PathCodec:
    """Paths ↔ their spellings in one catalog.

    Attributes:
        base: what relative paths continue, with a slash at its end; None if all paths are stored as they are.
    """

    def __init__(self, base: str | None = None) -> None:
        self.base = base

    @classmethod
    def beside(cls, index: Path) -> PathCodec:
        """The codec of a relative index, by its folder."""
        return cls(os.path.join(os.path.dirname(os.path.realpath(index)), ""))  # noqa: PTH118, PTH120

    def encode(self, path: str) -> Spelled:
        """A path's spelling."""
        return _pack(path if self.base is None else self._relative(path, self.base))

    def encode_all(self, paths: Sequence[str]) -> Sequence[Spelled]:
        """The spelling of each of many paths."""
        if self.base is not None:
            base = self.base
            paths = [self._relative(path, base) for path in paths]
        try:
            "".join(paths).encode("utf-8")  # at once, which fails if one of them does
            return paths
        except UnicodeEncodeError:
            return [_pack(path) for path in paths]

    def decode(self, spelled: Spelled) -> str:
        """The path of a spelling, whoever wrote it.

        Raises:
            ValueError: if it is no path's: a relative one that leaves its folder, or takes a way about.
        """
        path = os.fsdecode(spelled) if isinstance(spelled, bytes) else spelled
        if self.base is None or path.startswith("/"):
            return path
        if path.startswith(NO_PATH) and not path.startswith("/", len(NO_PATH)):
            return path[len(NO_PATH) :]
        if not _is_direct(path):
            raise ValueError(f"{path!r:.80} is not a path below the folder of the index")
        return self.base + path

    def shown(self, spelled: Spelled) -> str:
        """The path of a spelling; of one that is no path's, the spelling itself."""
        try:
            return self.decode(spelled)
        except ValueError:
            return os.fsdecode(spelled)

    def ranges(self, path: str) -> Iterator[tuple[str, tuple[Spelled, ...]]]:
        """SQL conditions and their values, for the item at a path and all in the folder of that name together.

        Each is a range of the index of paths. No two hold for the same item.
        """
        if self.base is None:
            yield from _ranges(path)
        elif not path.startswith("/"):
            yield from _ranges(NO_PATH + path)
        else:
            yield from _ranges(path)
            if self.base.startswith(path.rstrip("/") + "/"):
                # All relative ones, which begin with neither "/" nor "./"; "0" is the character after "/".
                yield "path >= '' AND path < './'", ()
                yield "path >= '.0' AND path < '/'", ()
                yield "path >= '0' AND path < ?", (FIRST,)
                yield "path >= ? AND path < ?", (FIRST, b"./")
                yield "path >= ? AND path < ?", (b".0", b"/")
                yield "path >= ?", (b"0",)
            elif (relative := self._relative(path.rstrip("/"), self.base)) != path.rstrip("/"):
                yield from _ranges(relative)

    def misspelled(self) -> Iterator[tuple[str, tuple[Spelled, ...]]]:
        """Conditions as :meth:`ranges` has them for absolute spellings below the folder, where it was moved to them."""
        if self.base is not None:
            yield from _ranges(self.base)

    @staticmethod
    def _relative(path: str, base: str) -> str:
        if not path.startswith("/"):
            return NO_PATH + path
        inside = path[len(base) :]
        return inside if path.startswith(base) and _is_direct(inside) else path


def is_text(path: str) -> bool:
    """Whether a path is stored as text, of which there may be another spelling in Unicode."""
    return isinstance(_pack(path), str)


def _pack(path: str) -> Spelled:
    try:
        path.encode("utf-8")
        return path
    except UnicodeEncodeError:
        return os.fsencode(path)


def _is_direct(path: str) -> bool:
    """Whether a relative path has no empty part, and none that means this folder or the one above."""
    if not path or path[0] in "./" or path[-1] in "./" or "/." in path or "//" in path:
        return not any(part in ("", ".", "..") for part in path.split("/"))
    return True


def _ranges(path: str) -> Iterator[tuple[str, tuple[Spelled, ...]]]:
    yield "path = ?", (_pack(path),)
    folder = path.rstrip("/")
    # "0" is the character after "/". Text sorts before blobs, so each kind has a range of its own in the index; a
    # folder whose own name is not UTF-8 holds blobs alone.
    yield "path > ? AND path < ?", (os.fsencode(folder) + b"/", os.fsencode(folder) + b"0")
    if isinstance(_pack(folder), str):
        yield "path > ? AND path < ?", (folder + "/", folder + "0")
