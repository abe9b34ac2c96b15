"""XMP: facts out of the RDF that programs write into pictures and sidecars, parsed without a tree or entities."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from xml.parsers import expat

from hivlp.data.pictures.facts import LONG_TEXT, Facts, camera, degrees, keywords, rating, text, when

MAX_BYTES = 1 << 20
"""Bytes of a packet that is read."""
_MOST_ELEMENTS, _MOST_DEPTH, _MOST_VALUES = 20_000, 64, 500
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMES = {
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/tiff/1.0/": "tiff",
    "http://ns.adobe.com/exif/1.0/": "exif",
    "http://ns.adobe.com/exif/1.0/aux/": "aux",
    "http://cipa.jp/exif/1.0/": "exifEX",
    "http://cipa.jp/exif/1.0/2": "exifEX",
    "http://ns.adobe.com/photoshop/1.0/": "photoshop",
}
_WANTED = frozenset(
    {
        *("dc:subject", "dc:title", "dc:description", "xmp:Rating", "xmp:CreateDate", "tiff:Make", "tiff:Model"),
        *("exif:DateTimeOriginal", "exif:GPSLatitude", "exif:GPSLongitude", "aux:Lens", "exifEX:LensModel"),
        *("photoshop:DateCreated", "photoshop:Headline"),
    }
)
_ANGLE = re.compile(r"(\d{1,3}),(\d{1,2}(?:\.\d{1,12})?)(?:,(\d{1,2}(?:\.\d{1,12})?))?\s*([NSEW])\Z")


def read_xmp(packet: bytes) -> Facts:
    """Facts of an XMP packet; those before it breaks off, where it is damaged."""
    values = _properties(packet)

    def first(*names: str, most: int = 200) -> str | None:
        return next((told for name in names for value in values[name] if (told := text(value, most))), None)

    return Facts(
        taken=next(
            (
                told
                for name in ("exif:DateTimeOriginal", "photoshop:DateCreated", "xmp:CreateDate")
                for value in values[name]
                if (told := when(value))
            ),
            None,
        ),
        camera=camera(first("tiff:Make"), first("tiff:Model")),
        lens=first("exifEX:LensModel", "aux:Lens"),
        lat=_angle(first("exif:GPSLatitude"), 90),
        lon=_angle(first("exif:GPSLongitude"), 180),
        rating=rating(first("xmp:Rating")),
        keywords=keywords(values["dc:subject"]),
        title=first("dc:title", "photoshop:Headline"),
        description=first("dc:description", most=LONG_TEXT),
    )


class _StopError(Exception):
    """The packet asks for more than it gets."""


def _properties(packet: bytes) -> dict[str, list[str]]:
    """Values of the wanted properties, whether they are written as attributes, elements or lists."""
    found: dict[str, list[str]] = defaultdict(list)
    stack: list[str] = []
    held: list[str] = []
    within: list[str] = []  # the wanted property that is open, if one is
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MOST_ELEMENTS or len(stack) > _MOST_DEPTH:
            raise _StopError
        held.clear()
        stack.append(name)
        short = _short(name)
        if short in _WANTED and not within:
            within.append(short)
        if name == f"{_RDF} Description":
            for key, value in attributes.items():
                if (short := _short(key)) in _WANTED:
                    keep(short, value)

    def end(name: str) -> None:
        if within and (told := "".join(held).strip()):
            keep(within[0], told)
        held.clear()
        stack.pop()
        if within and _short(name) == within[0]:
            within.clear()

    def characters(data: str) -> None:
        if within and sum(map(len, held)) < 4 * LONG_TEXT:
            held.append(data)

    def keep(name: str, value: str) -> None:
        if len(found[name]) < _MOST_VALUES:
            found[name].append(value[: 4 * LONG_TEXT])

    def refuse(*_: object) -> None:
        raise _StopError

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    # No XMP has one, and entities are declared in it.
    parser.StartDoctypeDeclHandler = refuse
    with suppress(_StopError, expat.ExpatError, ValueError):
        parser.Parse(packet[:MAX_BYTES].strip(b"\0 \t\r\n"), True)
    return found


def _short(name: str) -> str:
    space, _, local = name.rpartition(" ")
    return f"{_NAMES.get(space, '')}:{local}"


def _angle(told: str | None, most: int) -> float | None:
    """Degrees out of ``48,51.5N`` or ``48,51,30N``."""
    match = _ANGLE.match(told) if told else None
    if match is None:
        return None
    whole, minutes, seconds, side = match.groups()
    value = int(whole) + float(minutes) / 60 + float(seconds or 0) / 3600
    return degrees(-value if side in "SW" else value, most)
