"""IPTC: facts out of the records that newsrooms, and photo programs after them, put into JPEG and TIFF files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from hivlp.data.pictures.facts import LONG_TEXT, Facts, keywords, text, when

_HEAD = b"Photoshop 3.0\0"
_MOST_RESOURCES, _MOST_RECORDS = 1000, 2000
_TITLE, _KEYWORD, _DATE, _TIME, _HEADLINE, _CAPTION = 5, 25, 55, 60, 105, 120


def iptc_of_photoshop(block: bytes) -> bytes:
    """The IPTC records in a JPEG's application data of Photoshop's; empty if there are none."""
    place = len(_HEAD) if block.startswith(_HEAD) else 0
    for _ in range(_MOST_RESOURCES):
        if block[place : place + 4] != b"8BIM" or len(block) < place + 12:
            break
        number = block[place + 4 : place + 6]
        named = place + 6 + block[place + 6] + 1
        named += (named - place) % 2
        size = int.from_bytes(block[named : named + 4], "big")
        if number == b"\x04\x04":
            return block[named + 4 : named + 4 + size]
        place = named + 4 + size + size % 2
    return b""


def read_iptc(records: bytes) -> Facts:
    """Facts of IPTC records; those before they break off, where they are damaged."""
    found: dict[int, list[bytes]] = defaultdict(list)
    for number, value in _records(records):
        found[number].append(value)

    def first(*numbers: int, most: int = 200) -> str | None:
        return next((told for number in numbers for value in found[number] if (told := text(value, most))), None)

    day, clock = (found[number][0][: 6 + 2 * (number == _DATE)] if found[number] else b"" for number in (_DATE, _TIME))
    date = b"%s-%s-%s" % (day[:4], day[4:6], day[6:8])
    timed = b"%sT%s:%s:%s" % (date, clock[:2], clock[2:4], clock[4:6]) if len(clock) == 6 else b""
    return Facts(
        taken=when(timed) or when(date),
        keywords=keywords(found[_KEYWORD]),
        title=first(_TITLE, _HEADLINE),
        description=first(_CAPTION, most=LONG_TEXT),
    )


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of each record that describes the picture."""
    place = 0
    for _ in range(_MOST_RECORDS):
        head = data[place : place + 5]
        size = int.from_bytes(head[3:], "big")
        if len(head) < 5 or head[0] != 0x1C or size >= 0x8000:
            return
        if head[1] == 2:
            yield head[2], data[place + 5 : place + 5 + size]
        place += 5 + size
