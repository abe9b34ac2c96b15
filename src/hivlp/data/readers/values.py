"""Conversion of table cells to text: numbers, bytes, dates and missing values; captions and columns by their names."""

from __future__ import annotations

import datetime
import decimal
import functools
import math
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from hivlp.errors import DataError

# What programs write for a value that is not there: pandas, R, SQL, MySQL's dumps, spreadsheets.
MISSING = frozenset({"nan", "<na>", "nat", "null", "none", "\\n", "n/a", "#n/a"})

EXACT = 1e16
"""From here on, not every whole number is a float, and digits say more than is known."""


def as_text(value: Any) -> str | None:
    """A cell as text; None if it holds nothing.

    Raises:
        ValueError: if it has no meaning as text, saying what it holds.
    """
    match value:
        case None:
            return None
        case str():
            return None if value.strip().casefold() in MISSING else value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return None
            if math.isinf(value):
                raise ValueError("holds an infinite number, not text")
            return str(int(value)) if value == int(value) and abs(value) < EXACT else repr(value)
        case bytes() | bytearray() | memoryview():
            try:
                return as_text(bytes(value).decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise ValueError("holds bytes that are not UTF-8 text") from None
        case decimal.Decimal():
            if not value.is_finite():
                return None
            return str(int(value)) if value == value.to_integral_value() and abs(value) < 10**38 else str(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
    raise ValueError(f"holds a {type(value).__name__}, not text")


def captions_of(value: Any, where: str) -> tuple[str, ...]:
    """The captions in a cell that holds one or a list of them, without missing ones.

    Raises:
        DataError: naming the place, if one has no meaning as text.
    """
    values: Iterable[Any] = value if isinstance(value, (list, tuple)) else [value]
    try:
        return clean_captions([as_text(each) for each in values])
    except ValueError as error:
        raise DataError(f"{where}: the caption {error}") from error


def column_named(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of some names among the columns; exactly, else but for case, spaces and hyphens."""
    return _column_named(tuple(columns), tuple(names))


@functools.lru_cache(maxsize=64)  # asked for each row of a table, whose columns are always the same
def _column_named(present: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    plain: dict[str, str] = {}
    for column in present:
        plain.setdefault("_".join(column.casefold().replace("-", " ").split()), column)
    return next((name for name in names if name in present), None) or next(
        (plain[name] for name in names if name in plain), None
    )


def clean_captions(value: object) -> tuple[str, ...]:
    """The captions in a field that holds one string or a list of them, stripped, without empty and repeated ones."""
    values: Sequence[object] = value if isinstance(value, (list, tuple)) else [value]
    texts = (" ".join(_whole(text).split()) for text in values if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if text))


def _whole(text: str) -> str:
    """A text that can be encoded: halves of characters beyond 16 bits, as JSON may hold them, are joined or marked."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
