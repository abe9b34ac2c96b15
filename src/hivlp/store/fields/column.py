"""Columns: the values of a field, row by row, as numbers of its distinct values in SQLite's order.

Every comparison with a constant is then a range of those numbers, found by bisection, and a mask over 100,000 rows is
one comparison of small integers.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Constant = int | float | bytes
"""A number, or a text in UTF-8."""
Ranges = list[tuple[int, int]]
"""Codes from each first to before each last, ascending and apart."""
Codes = NDArray[np.unsignedinteger[Any]]
Operator = Literal["<", "<=", "=", ">=", ">"]
FEW_RANGES = 4
"""Ranges that are compared with one by one; more are looked up in a table."""


class Values(Protocol):
    """Distinct values, ascending: numbers, then texts in the order of their bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Any: ...


class Texts:
    """Distinct texts, ascending by their bytes, which lie end to end."""

    def __init__(self, joined: memoryview, ends: NDArray[np.int64]) -> None:
        """Texts of bytes, and where each ends: (n,) int64, ascending, the last of them the length of all."""
        self.joined, self.ends = joined, ends

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Texts:
        """From texts in order."""
        return cls(memoryview(b"".join(texts)), np.cumsum([len(text) for text in texts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> bytes:
        if not 0 <= place < len(self.ends):
            raise IndexError(place)
        return bytes(self.joined[int(self.ends[place - 1]) if place else 0 : int(self.ends[place])])


class Column:
    """A column: for each row the code of its value.

    Attributes:
        codes: (rows,) of unsigned integers: 0 for NULL, or the place of the value, counted from 1.
        values: distinct ones, ascending.
        first_text: place of the first value that is a text, from 0; those before are numbers.
        affinity: class of constants that it is compared with as they are; None for both, by SQLite's order of classes.
    """

    def __init__(self, codes: Codes, values: Values, first_text: int, affinity: str | None = None) -> None:
        self.codes, self.values, self.first_text, self.affinity = codes, values, first_text, affinity

    @classmethod
    def of(cls, rows: NDArray[np.int64], count: int, given: Sequence[Constant | None], kind: str | None) -> Column:
        """A column of values as SQLite gave them.

        Args:
            rows: (n,) that have a value, from 0.
            count: of rows, in all.
            given: n values.
            kind: type of the field; None if values may be of any class.
        """
        values, first_text, places = _in_order(given, kind)
        codes = np.zeros(count, code_dtype(len(values)))
        codes[rows] = np.fromiter(map(places.__getitem__, given), codes.dtype, len(given))
        return cls(codes, values, first_text, affinity_of(kind))

    @classmethod
    def of_ids(cls, rows: NDArray[np.int64], count: int, ids: Sequence[int]) -> Column:
        """The column of the items' ids, which are their own codes."""
        last = max(ids, default=0)
        codes: Codes = np.zeros(count, id_dtype(last))
        codes[rows] = ids
        return cls(codes, range(1, last + 1), last, "number")

    @classmethod
    def joined(cls, parts: Sequence[Column], kind: str) -> Column:
        """The columns of one field, or of the ids, end to end."""
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0].values, range):
            last = max(len(part.values) for part in parts)
            codes = np.concatenate([part.codes for part in parts], dtype=id_dtype(last), casting="same_kind")
            return cls(codes, range(1, last + 1), last, "number")
        known = [[part.values[place] for place in range(len(part.values))] for part in parts]
        values, first_text, places = _in_order(chain.from_iterable(known), kind)
        new = [np.array([0, *map(places.__getitem__, each)], code_dtype(len(values))) for each in known]
        codes = np.concatenate([table[part.codes] for table, part in zip(new, parts, strict=True)])
        return cls(codes, values, first_text, affinity_of(kind))

    @cached_property
    def is_plain(self) -> bool:
        """Whether all texts are composed UTF-8 without NUL, which is as SQLite's LIKE and any condition sees them."""
        if isinstance(self.values, Texts):
            joined = bytes(self.values.joined)
        else:
            joined = b"\n".join(self.values[place] for place in range(self.first_text, len(self.values)))
        if b"\0" in joined:
            return False
        try:
            return joined.isascii() or unicodedata.is_normalized("NFC", joined.decode("utf-8"))
        except UnicodeDecodeError:
            return False

    # Codes of values.

    def compared(self, operator: Operator, constant: Constant) -> Ranges:
        """Codes of the values for which a comparison with a constant holds."""
        end, text = len(self.values), isinstance(constant, bytes)
        section = (self.first_text, end) if text else (0, self.first_text)
        left, right = (bisect(self.values, constant, *section) for bisect in (bisect_left, bisect_right))
        first, last = {
            "<": (0, left), "<=": (0, right), "=": (left, right), ">=": (left, end), ">": (right, end),
        }[operator]  # fmt: skip
        return [(first + 1, last + 1)] if first < last else []

    def beginning(self, prefix: bytes) -> Ranges:
        """Codes of the texts that begin with a prefix, in this very case."""
        bare = prefix.rstrip(b"\xff")
        first = bisect_left(self.values, prefix, self.first_text, len(self.values))
        last = len(self.values)
        if bare:
            last = bisect_left(self.values, bare[:-1] + bytes([bare[-1] + 1]), self.first_text, len(self.values))
        return [(first + 1, last + 1)] if first < last else []

    def without(self, ranges: Ranges) -> Ranges:
        """Codes of the values outside some ranges."""
        bounds = [1, *(bound for each in ranges for bound in each), len(self.values) + 1]
        return [(first, last) for first, last in zip(bounds[::2], bounds[1::2], strict=True) if first < last]

    def mask(self, ranges: Ranges) -> NDArray[np.bool_]:
        """(rows,) whether the code of each row is in one of the ranges."""
        codes = self.codes
        if len(ranges) > FEW_RANGES and len(self.values) <= 4 * len(codes):
            table: NDArray[np.bool_] = np.zeros(len(self.values) + 1, bool)
            for first, last in ranges:
                table[first:last] = True
            return np.asarray(table[codes])
        if len(ranges) > FEW_RANGES:
            bounds = np.array(ranges, codes.dtype).ravel()
            return (np.searchsorted(bounds, codes, "right") & 1).astype(bool)
        found = np.zeros(len(codes), bool)
        for number, (first, last) in enumerate(ranges):
            # One comparison for both ends: what is below the first wraps round to the largest numbers.
            inside = codes == first if last == first + 1 else codes - codes.dtype.type(first) < last - first
            found = inside if number == 0 else found | inside
        return found


def _in_order(given: Iterable[Constant | None], kind: str | None) -> tuple[Values, int, dict[Constant | None, int]]:
    """Distinct values in SQLite's order, how many are numbers, and the code of each; that of NULL is 0."""
    distinct = dict.fromkeys(given)  # equal numbers are one value, as they are to SQLite
    distinct.pop(None, None)
    numbers = sorted(value for value in distinct if isinstance(value, (int, float)))
    texts = sorted(value for value in distinct if isinstance(value, bytes))
    places: dict[Constant | None, int] = {None: 0}
    places.update(zip([*numbers, *texts], range(1, len(distinct) + 1), strict=True))
    values: Values = [*numbers, *texts]
    if kind is not None:
        # Indexing a memoryview gives Python's numbers, which compare integers and floats exactly.
        dtype = np.float64 if kind == "float" else np.int64
        values = Texts.of(texts) if kind == "str" else np.array(numbers, dtype).data
    return values, len(numbers), places


def code_dtype(values: int) -> type[np.unsignedinteger[Any]]:
    """The smallest dtype for codes of so many values, and the code after the last."""
    return next(dtype for dtype in (np.uint8, np.uint16, np.uint32) if values + 1 <= np.iinfo(dtype).max)


def id_dtype(last: int) -> type[np.unsignedinteger[Any]]:
    """The smallest dtype of ids, the last of which is this, and the number after it."""
    return np.uint32 if last < np.iinfo(np.uint32).max else np.uint64


def affinity_of(kind: str | None) -> str | None:
    """The class of constants that values of a field's type are compared with as they are."""
    return None if kind is None else "text" if kind == "str" else "number"


def merged(ranges: Ranges) -> Ranges:
    """Ranges in any order, which may overlap, as ascending ones that are apart."""
    found: Ranges = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
