"""The few tags of EXIF and TIFF that matter here, read without trusting a count or an offset.

Pillow reads every tag with all its values as soon as it is asked for one: a few kilobytes that point at each other
become gigabytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hivlp.data.pictures.facts import LONG_TEXT, Facts, camera, degrees, keywords, rating, text, when
from hivlp.data.pictures.source import Source

ORIENTATION, EXIF_FOLDER, GPS_FOLDER = 0x0112, 0x8769, 0x8825
XMP, IPTC = 700, 33723
"""Tags of a TIFF file that hold all of its XMP and IPTC data."""
_MAKE, _MODEL, _DESCRIPTION, _RATING = 0x010F, 0x0110, 0x010E, 0x4746
_TAKEN, _DIGITIZED, _LENS = 0x9003, 0x9004, 0xA434
_TITLE_16, _KEYWORDS_16 = 0x9C9B, 0x9C9E  # as Windows writes them, in UTF-16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_ENTRIES = 4096


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

    def fractions(self, tag: int, most: int) -> tuple[float, ...]:
        """The first values of a tag of fractions; none if it is missing, of another type, or one divides by zero."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in (5, 10):
            return ()
        raw = self._source.at(entry.place, min(entry.count, most) * 8)
        parts = struct.unpack(
            f"{self._order}{len(raw) // 8 * 2}{'I' if entry.kind == 5 else 'i'}", raw[: len(raw) // 8 * 8]
        )
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        return tuple(over / under for over, under in pairs) if all(under for _, under in pairs) else ()

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


def facts(directory: Directory | None) -> Facts:
    """What EXIF data says of when, where and with what a picture was taken."""
    if directory is None:
        return Facts()
    inner, gps = directory.inner(EXIF_FOLDER), directory.inner(GPS_FOLDER)
    times = [(inner, _TAKEN), (inner, _DIGITIZED)]
    lat, lon = (None, None) if gps is None else (_angle(gps, 1, 2, b"S", 90), _angle(gps, 3, 4, b"W", 180))
    return Facts(
        taken=next((told for place, tag in times if place is not None and (told := when(place.raw(tag, 20)))), None),
        camera=camera(*(text(directory.raw(tag, 64).split(b"\0")[0]) for tag in (_MAKE, _MODEL))),
        lens=None if inner is None else text(inner.raw(_LENS, 200).split(b"\0")[0]),
        lat=lat if lon is not None else None,
        lon=lon if lat is not None else None,
        rating=rating(directory.number(_RATING, -2)),
        keywords=keywords(_wide(directory.raw(_KEYWORDS_16, 8192)).split(";")),
        title=text(_wide(directory.raw(_TITLE_16, 1024))),
        description=text(directory.raw(_DESCRIPTION, 4096).split(b"\0")[0], LONG_TEXT),
    )


def _wide(raw: bytes) -> str:
    return raw.decode("utf-16-le", "ignore").partition("\0")[0]


def _angle(gps: Directory, side: int, tag: int, negative: bytes, most: int) -> float | None:
    """Degrees out of three fractions: degrees, minutes, seconds."""
    fractions = gps.fractions(tag, 3)
    if not fractions:
        return None
    value = sum(part / 60**place for place, part in enumerate(fractions))
    return degrees(-value if gps.raw(side, 1).upper() == negative else value, most)
