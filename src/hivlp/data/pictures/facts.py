"""Facts of a picture: what people filter by, out of its header, EXIF, XMP and IPTC data.

All of it is written by strangers. Whatever is read is cut to a size, a number of values and a length of text, and what
makes no sense is left out; no fact is worth losing a picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime

KEYWORDS = 100
"""Keywords of one picture that are kept."""
TEXT, LONG_TEXT = 200, 2000
"""Characters of a fact, and of a description."""

_WHEN = re.compile(
    r"(\d{4})(?:[:-](\d{2})(?:[:-](\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2}))?)?)?)?"
    r"(?:[.,]\d+)?\s*(?:Z|[+-]\d\d:?\d\d)?\Z"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True)
class Facts:
    """Facts that one source knows; None, or no keywords, where it is silent.

    Attributes:
        taken: local time of the camera, ``2024-06-01T12:30:00``, or as much of it as is known.
        camera: make and model.
        lens: its name.
        lat: degrees north.
        lon: degrees east.
        rating: stars, 1 to 5; 0 for none, -1 for a reject.
        keywords: tags that people gave it.
        title: a short name.
        description: a longer text.
    """

    taken: str | None = None
    camera: str | None = None
    lens: str | None = None
    lat: float | None = None
    lon: float | None = None
    rating: int | None = None
    keywords: tuple[str, ...] = ()
    title: str | None = None
    description: str | None = None

    def over(self, other: Facts) -> Facts:
        """These facts, and those of another source where this one is silent."""
        place = (self.lat, self.lon) if self.lat is not None and self.lon is not None else (other.lat, other.lon)
        merged = {
            name: value if value not in (None, ()) else getattr(other, name) for name, value in vars(self).items()
        }
        return replace(Facts(**merged), lat=place[0], lon=place[1])

    def to_metadata(self) -> dict[str, object]:
        """What is known, as JSON has it."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        if len({"lat", "lon"} & known.keys()) == 1:
            known = {name: value for name, value in known.items() if name not in ("lat", "lon")}
        return {**known, "keywords": list(self.keywords)} if self.keywords else known


TECHNICAL = ("taken", "camera", "lens", "lat", "lon")
"""Facts that a camera knows better than whoever tags its pictures."""
OF_HEADER = ("format", "width", "height", "orientation")
FACTS = (*OF_HEADER, *Facts.__dataclass_fields__, "sidecar")
"""Keys of an item's metadata that are read from its file and its sidecar, and told anew when these change."""


def merged(exif: Facts, xmp: Facts, iptc: Facts) -> Facts:
    """Facts of one file: what its camera wrote, what programs wrote, and what newsrooms did."""
    camera_first, people_first = exif.over(xmp).over(iptc), xmp.over(iptc).over(exif)
    return replace(people_first, **{name: getattr(camera_first, name) for name in TECHNICAL})


def shape_of(width: int, height: int) -> str:
    """``landscape``, ``portrait`` or ``square``."""
    return "square" if width == height else "landscape" if width > height else "portrait"


def text(value: bytes | str, most: int = TEXT) -> str | None:
    """One line of text without control characters; None if nothing is left."""
    told = value if isinstance(value, str) else _decoded(value, 4 * most)
    return _CONTROL.sub(" ", told[: 2 * most]).strip()[:most] or None


def _decoded(raw: bytes, most: int) -> str:
    try:
        return raw[:most].decode("utf-8")
    except UnicodeDecodeError as error:
        cut = len(raw) > most and error.start > most - 4  # within a letter
        return raw[:most].decode("utf-8", "ignore") if cut else raw[:most].decode("latin-1")


def keywords(values: Iterable[bytes | str]) -> tuple[str, ...]:
    """Different keywords in their order."""
    found: dict[str, None] = {}
    for value in values:
        if (word := text(value)) is not None:
            found[word] = None
        if len(found) >= KEYWORDS:
            break
    return tuple(found)


def when(value: bytes | str | None) -> str | None:
    """A time as EXIF (``2024:06:01 12:30:00``) or ISO 8601 has it, in ISO 8601 without a zone; None if it is none."""
    told = text(value) if value else None
    match = _WHEN.match(told) if told else None
    if match is None:
        return None
    year, month, day, hour, minute, second = match.groups()
    try:
        datetime(int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), min(59, int(second or 0)))
    except ValueError:
        return None
    if int(year) < 1800:
        return None
    date = "-".join(part for part in (year, month, day) if part)
    return date if hour is None else f"{date}T{hour}:{minute}:{second or '00'}"


def camera(make: str | None, model: str | None) -> str | None:
    """Make and model as people call a camera: ``Canon EOS 5D``, not ``Canon Canon EOS 5D``."""
    if not make or not model:
        return model or make
    first = make.split()[0]
    return model if model.casefold().startswith(first.casefold()) else f"{first.capitalize()} {model}"[:TEXT]


def rating(value: object) -> int | None:
    """Stars, -1 to 5."""
    try:
        stars = round(float(str(value)))
    except (ValueError, OverflowError):
        return None
    return stars if -1 <= stars <= 5 else None


def degrees(value: float | None, most: int) -> float | None:
    """A latitude (up to 90) or longitude (up to 180), to a tenth of a metre or so."""
    return round(value, 6) if value is not None and math.isfinite(value) and abs(value) <= most else None
