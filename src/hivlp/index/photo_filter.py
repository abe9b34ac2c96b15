"""Photo filters: words for dates, places, cameras and keywords, as conditions that searches take (``where``)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hivlp.data.kinds import PICTURE_SUFFIXES, kind_of_name
from hivlp.errors import ArgumentError, QueryError
from hivlp.index.index import Index
from hivlp.store.names import existing
from hivlp.store.where import check_whole

EARTH_KM = 6371.0
_SHAPES = ("landscape", "portrait", "square")
_SHOWN = 8


@dataclass(frozen=True)
class PhotoFilter:
    """A filter on what is known of pictures; what is None does not matter, and a picture must meet all the others.

    Attributes:
        after: taken at this time or later: ``2020``, ``2020-06``, ``2020-06-01`` or ``2020-06-01T12:00``.
        before: taken before this time.
        camera: part of the camera's name; case does not count.
        lens: part of the lens's name.
        near: latitude, longitude, and how many km from there.
        folder: a folder's path, or the name of one anywhere in the path.
        format: such as ``jpeg``, ``heic`` or ``raw``, or a suffix.
        rating: stars, at least.
        keywords: all of these.
        orientation: ``landscape``, ``portrait`` or ``square``.
    """

    after: str | None = None
    before: str | None = None
    camera: str | None = None
    lens: str | None = None
    near: tuple[float, float, float] | None = None
    folder: str | Path | None = None
    format: str | None = None
    rating: int | None = None
    keywords: tuple[str, ...] = ()
    orientation: str | None = None

    def __post_init__(self) -> None:
        for name in ("after", "before"):
            value = getattr(self, name)
            if value is not None and _when(str(value)) is None:
                raise QueryError(f"{name} is a date such as 2020, 2020-06 or 2020-06-01, not {value!r:.40}")
        if self.orientation not in (None, *_SHAPES):
            raise QueryError(f"orientation is {', '.join(_SHAPES)}, not {self.orientation!r:.40}")
        if self.near is not None:
            _check_near(self.near)
        if isinstance(self.keywords, str):
            raise ArgumentError("keywords are several texts, not one: give a tuple")

    @property
    def where(self) -> str | None:
        """The condition in SQL; None if nothing is asked."""
        parts = [condition for _, condition in self.conditions()]
        return " AND ".join(parts) if parts else None

    def conditions(self) -> list[tuple[str, str]]:
        """The field that each part is about, and the part as a condition in SQL."""
        found = []
        if self.after is not None:
            found.append(("taken", f"{_field('taken')} >= {_quoted(_when(str(self.after)) or '')}"))
        if self.before is not None:
            found.append(("taken", f"{_field('taken')} < {_quoted(_when(str(self.before)) or '')}"))
        named = [(name, getattr(self, name)) for name in ("camera", "lens")]
        found += [
            (name, f"instr(lower({_field(name)}), {_quoted(str(value).lower())}) > 0")
            for name, value in named
            if value is not None
        ]
        if self.near is not None:
            found.append(("lat", _near(*self.near)))
        if self.folder is not None:
            found.append(("path", _folder(os.fspath(self.folder))))
        if self.format is not None:
            found.append(("format", f"{_field('format')} = {_quoted(_kind(self.format))}"))
        if self.rating is not None:
            found.append(("rating", f"{_field('rating')} >= {int(self.rating)}"))
        found += [
            (
                "keywords",
                "EXISTS (SELECT 1 FROM json_each(metadata, '$.keywords') AS word "
                f"WHERE lower(word.value) = {_quoted(word.lower())})",
            )
            for word in self.keywords
        ]
        if self.orientation is not None:
            found.append(("orientation", f"{_field('orientation')} = {_quoted(self.orientation)}"))
        return found


NAMES = tuple(field.name for field in fields(PhotoFilter))
"""The words of a photo filter."""


def _when(text: str) -> str | None:
    from hivlp.data.pictures.facts import when  # which brings all that reads pictures with it

    return when(text)


def joined(*conditions: str | None) -> str | None:
    """One condition that holds where all of these do; None if there are none.

    Raises:
        QueryError: if one would not stay within its brackets.
    """
    given = [condition for condition in conditions if condition is not None]
    if len(given) > 1:
        for condition in given:
            check_whole(condition)
    return given[0] if len(given) == 1 else " AND ".join(f"({each}\n)" for each in given) if given else None


def why_nothing(index: Index, photo_filter: PhotoFilter) -> str | None:
    """Why a filter lets nothing pass: what no picture tells, and what pictures tell instead; None if it is not that."""
    with index.store.reading() as reader:
        for name, condition in photo_filter.conditions():
            if reader.rows_where(condition).rows:
                continue
            values = reader.values_of(name, _SHOWN + 1) if name != "path" else []
            if name != "path" and not values:
                what = {"taken": "when it was taken", "lat": "where it was taken (lat, lon)"}.get(name, f"its {name}")
                return f"no picture tells {what}; known are: {', '.join(reader.keys()) or 'nothing'}"
            if name in ("taken", "lat", "path", "rating"):
                return f"no picture is {_asked(photo_filter, name)}{_range(reader.range_of(name), name)}"
            more = ", …" if len(values) > _SHOWN else ""
            told = ", ".join(f"{value} ({count})" for value, count in values[:_SHOWN])
            return f"no picture has {_asked(photo_filter, name)}; there are: {told}{more}"
    return None


def _asked(photo_filter: PhotoFilter, name: str) -> str:
    match name:
        case "taken":
            sides = (("from", photo_filter.after), ("before", photo_filter.before))
            return "taken " + " and ".join(f"{word} {value}" for word, value in sides if value is not None)
        case "lat":
            lat, lon, km = photo_filter.near or (0, 0, 0)
            return f"within {km:g} km of {lat:g},{lon:g}"
        case "path":
            return f"in a folder {photo_filter.folder}"
        case "rating":
            return f"rated {photo_filter.rating} or better"
        case "keywords":
            return f"the keywords {', '.join(photo_filter.keywords)}"
    return f"{name} {getattr(photo_filter, name)!r}"


def _range(bounds: tuple[Any, Any] | None, name: str) -> str:
    if bounds is None or name in ("lat", "path"):
        return ""
    return f"; there are those from {bounds[0]} to {bounds[1]}"


def _field(name: str) -> str:
    return f"metadata ->> '$.{name}'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\0", "").replace("'", "''") + "'"


def _kind(name: str) -> str:
    """How the metadata call a format that people name by itself or by a suffix."""
    told = str(name).lower().lstrip(".")
    kinds = {(kind_of_name(suffix) or "").lower(): kind_of_name(suffix) or "" for suffix in PICTURE_SUFFIXES}
    kinds["video"] = "video"
    found = kinds.get(told) or kind_of_name(f".{told}")
    if found is None:
        raise QueryError(f"format is {', '.join(sorted(kinds))}, or a suffix, not {name!r:.40}")
    return found


def _folder(told: str) -> str:
    place = existing(told)
    if place.is_dir() or "/" in told or os.sep in told:
        inside = os.path.join(os.path.realpath(place), "")  # noqa: PTH118
        return f"instr(path, {_quoted(inside)}) = 1"
    return f"instr(lower(path), {_quoted(f'/{told.lower()}/')}) > 0"


def _check_near(near: Any) -> None:
    try:
        lat, lon, km = map(float, near)
    except (TypeError, ValueError) as error:
        raise QueryError(f"near is latitude, longitude and km, as in 48.86,2.35,10, not {near!r:.60}") from error
    if not (abs(lat) <= 90 and abs(lon) <= 180 and 0 < km < math.inf):
        raise QueryError(f"near needs a latitude up to 90, a longitude up to 180 and km above 0, not {near!r:.60}")


def _near(lat: float, lon: float, km: float) -> str:
    """Within a distance on a globe, by the haversine formula; a band of latitudes first, which is quickly told."""
    north, east, band = _field("lat"), _field("lon"), math.degrees(km / EARTH_KM) * 1.001
    half = min(1.0, math.sin(min(km / EARTH_KM / 2, math.pi / 2)) ** 2)
    haversine = (
        f"pow(sin(radians({north} - {lat!r}) / 2), 2) + {math.cos(math.radians(lat))!r} * cos(radians({north}))"
        f" * pow(sin(radians({east} - {lon!r}) / 2), 2)"
    )
    return f"{north} BETWEEN {lat - band!r} AND {lat + band!r} AND {haversine} <= {half!r}"
