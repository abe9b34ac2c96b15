"""The few tags of EXIF and TIFF that matter here, read without trusting a count or an offset.

Pillow reads every tag with all its values as soon as it is asked for one: a few kilobytes that point at each other
become gigabytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from hivlp.data.pictures.source import Source

ORIENTATION, EXIF_FOLDER, TAKEN = 0x0112, 0x8769, 0x9003
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_ENTRIES = 4096
_TAKEN = re.compile(rb"(\d{4}):(\d{2}):(\d{2}) (\d{2}:\d{2}:\d{2})")


@dataclass(frozen=True)
class Entry:
    """One tag: its type, how many values, and where they are."""

    kind: int
    count: int
    place: int

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return _SIZES.get(self.kind, 0) * self.count


class Directory:
    """The tags of one directory (IFD).

    Attributes:
        entries: by tag.
        sound: whether there are not too many, and each once; if not, another reader may see other values.
    """

    def __init__(self, source: Source, order: str, big: bool, place: int) -> None:
        self._source, self._order, self._big = source, order, big
        self.entries: dict[int, Entry] = {}
        self.sound = True
        width, step = (8, 20) if big else (2, 12)
        head = source.at(place, width)
        if len(head) < width:
            return
        (count,) = struct.unpack(order + ("Q" if big else "H"), head)
        self.sound = count <= _MAX_ENTRIES
        table = source.at(place + width, min(count, _MAX_ENTRIES) * step)
        inside = 8 if big else 4
        for at in range(0, len(table) - step + 1, step):
            tag, kind = struct.unpack_from(order + "HH", table, at)
            (values,) = struct.unpack_from(order + ("Q" if big else "I"), table, at + 4)
            entry = Entry(kind, values, place + width + at + step - inside)
            if entry.size > inside:
                (away,) = struct.unpack_from(order + ("Q" if big else "I"), table, at + step - inside)
                entry = Entry(kind, values, away)
            self.sound &= tag not in self.entries
            self.entries.setdefault(tag, entry)

    def numbers(self, tag: int, most: int = 16) -> tuple[int, ...]:
        """The first values of a tag of whole numbers; none if it is missing or of another type."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _NUMBERS:
            return ()
        size, code = _SIZES[entry.kind], _NUMBERS[entry.kind]
        raw = self._source.at(entry.place, min(entry.count, most) * size)
        return struct.unpack(f"{self._order}{len(raw) // size}{code}", raw[: len(raw) // size * size])

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return (self.numbers(tag, 1) or (default,))[0]

    def raw(self, tag: int, most: int) -> bytes:
        """The first bytes of a tag of any type."""
        entry = self.entries.get(tag)
        return b"" if entry is None else self._source.at(entry.place, min(entry.size, most))

    def inner(self, tag: int) -> Directory | None:
        """The directory that a tag points at."""
        place = self.number(tag, 0)
        return Directory(self._source, self._order, self._big, place) if place else None


def first_directory(source: Source) -> Directory | None:
    """The first directory of a TIFF file or EXIF block; None if it is neither."""
    head = source.at(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    big = 43 in head[2:4]
    if big and len(head) < 16:
        return None
    place = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    return Directory(source, order, big, place)


def exif_directory(block: bytes) -> Directory | None:
    """The first directory of an EXIF block as files hold it, with or without the name before it."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    return first_directory(Source.of(block)) if block else None


def orientation(directory: Directory | None) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it is damaged: no reason to lose the picture."""
    found = 1 if directory is None else directory.number(ORIENTATION, 1)
    return found if 1 <= found <= 8 else 1


def facts(directory: Directory | None) -> Mapping[str, str]:
    """``taken``: the camera's local time, as in ``2024-06-01T12:30:00``, where it is told."""
    inner = None if directory is None else directory.inner(EXIF_FOLDER)
    taken = _TAKEN.match(inner.raw(TAKEN, 20)) if inner is not None else None
    return {} if taken is None else {"taken": _iso(taken)}


def _iso(taken: re.Match[bytes]) -> str:
    year, month, day, clock = (part.decode("ascii") for part in taken.groups())
    return f"{year}-{month}-{day}T{clock}"
