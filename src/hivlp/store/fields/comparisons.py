"""Comparisons of a column with constants, and their joints under AND and OR: a condition once it is parsed.

SQL's logic has three values, but a filter asks only where a condition is true. ``NOT`` is therefore moved inwards
(:meth:`Leaf.inverse`, :meth:`Joint.inverse`) until it stands at a comparison, whose NULLs are true on neither side.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivlp.store.fields.column import Column, Constant, Operator, Ranges, merged

MOST_MATCHED = 5_000
"""Distinct texts that are looked at one by one, by LIKE."""
MOST_PATTERN = 500  # bytes, which is SQLite's limit for a condition
MOST_EXACT = 1 << 53
"""Integers up to which a float is one of them at most."""

Test = Callable[[Column], Ranges]


class NotAnsweredError(Exception):
    """A condition that columns do not answer."""


@dataclass(frozen=True)
class Leaf:
    """A comparison of a column with constants.

    Attributes:
        column: by which name it is known: of a field, ``id``, or ``$.key`` for a key of the metadata.
        test: gives the codes for which it is true; of those that it leaves out, NULL's excepted, it is false.
        negated: whether those are wanted for which it is false.
    """

    column: str
    test: Test
    negated: bool = False

    def mask(self, columns: Mapping[str, Column]) -> NDArray[np.bool_]:
        """(rows,) where it is true."""
        column = columns[self.column]
        ranges = self.test(column)
        return column.mask(column.without(ranges) if self.negated else ranges)

    def inverse(self) -> Leaf:
        """True where this is false."""
        return Leaf(self.column, self.test, not self.negated)


@dataclass(frozen=True)
class Null:
    """``IS NULL``, or ``IS NOT NULL`` if it is negated."""

    column: str
    negated: bool

    def mask(self, columns: Mapping[str, Column]) -> NDArray[np.bool_]:
        """(rows,) where it is true."""
        column = columns[self.column]
        return column.mask(column.without([]) if self.negated else [(0, 1)])

    def inverse(self) -> Null:
        """True where this is false."""
        return Null(self.column, not self.negated)


@dataclass(frozen=True)
class Joint:
    """Conditions under AND, or under OR."""

    every: bool
    parts: tuple[Tree, ...]

    def mask(self, columns: Mapping[str, Column]) -> NDArray[np.bool_]:
        """(rows,) where it is true."""
        found = self.parts[0].mask(columns)
        for part in self.parts[1:]:
            other = part.mask(columns)
            np.logical_and(found, other, out=found) if self.every else np.logical_or(found, other, out=found)
        return found

    def inverse(self) -> Joint:
        """True where this is false: De Morgan's law holds for three values, too."""
        return Joint(not self.every, tuple(part.inverse() for part in self.parts))


Tree = Leaf | Null | Joint

# Tests of a column: the codes of the values that pass.


def _comparable(column: Column, *constants: Constant) -> Column:
    """The column, if it is compared with constants of these classes as they are.

    Raises:
        NotAnsweredError: if SQLite converts one of them first.
    """
    classes = {"text" if isinstance(constant, bytes) else "number" for constant in constants}
    if column.affinity is not None and classes != {column.affinity}:
        raise NotAnsweredError
    return column


def is_true(column: Column) -> Ranges:
    """A value by itself: a number other than 0."""
    if column.first_text < len(column.values) or column.affinity == "text":
        raise NotAnsweredError
    return column.without(column.compared("=", 0))


def compared(operator: Operator, constant: Constant) -> Test:
    """Values that an operator holds for."""
    return lambda column: _comparable(column, constant).compared(operator, constant)


def between(least: Constant, most: Constant) -> Test:
    """Values from one constant to another, both included."""

    def test(column: Column) -> Ranges:
        _comparable(column, least, most)
        (above,), (below,) = column.compared(">=", least) or [(0, 0)], column.compared("<=", most) or [(0, 0)]
        first, last = max(above[0], below[0]), min(above[1], below[1])
        return [(first, last)] if first < last else []

    return test


def among(constants: Collection[Constant]) -> Test:
    """Values of a list."""

    def test(column: Column) -> Ranges:
        _comparable(column, *constants)
        # IN compares after a conversion to the field's type, = does not.
        if any(isinstance(constant, int) and abs(constant) > MOST_EXACT for constant in constants):
            raise NotAnsweredError
        return merged([each for constant in constants for each in column.compared("=", constant)])

    return test


def _matching(column: Column, matches: Callable[[bytes], bool]) -> Ranges:
    """Codes of the texts that match."""
    end = len(column.values)
    if end - column.first_text > MOST_MATCHED:
        raise NotAnsweredError
    places = range(column.first_text, end)
    return merged([(place + 1, place + 2) for place in places if matches(column.values[place])])


def _only_texts(column: Column) -> Column:
    """The column, if LIKE and GLOB see its values as they are."""
    if column.first_text or column.affinity == "number" or not column.is_plain:
        raise NotAnsweredError
    return column


def like(pattern: bytes) -> Test:
    """LIKE, which does not tell the case of ASCII letters, with % at one end, at both or at none."""
    bare = pattern.strip(b"%").lower()
    if b"%" in bare or b"_" in bare or b"\0" in bare or not bare or len(pattern) > MOST_PATTERN:
        raise NotAnsweredError
    tests: dict[tuple[bool, bool], Callable[[bytes, bytes], bool]] = {
        (False, False): bytes.__eq__,
        (False, True): bytes.startswith,
        (True, False): bytes.endswith,
        (True, True): bytes.__contains__,
    }
    holds = tests[pattern.startswith(b"%"), pattern.endswith(b"%")]
    return lambda column: _matching(_only_texts(column), lambda text: holds(text.lower(), bare))


def glob(pattern: bytes) -> Test:
    """GLOB of a prefix: texts that begin with it are neighbours."""
    prefix = pattern[:-1]
    if not pattern.endswith(b"*") or not prefix or re.search(rb"[*?\[\0]", prefix) or len(pattern) > MOST_PATTERN:
        raise NotAnsweredError
    return lambda column: _only_texts(column).beginning(prefix)
