"""Parameters of conditions: values in the places of ``?``, so that nobody need quote them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hivlp.errors import QueryError

_PIECES = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | --[^\n]* | /\*.*?(?:\*/|\Z) | \?""",
    re.VERBOSE | re.DOTALL,
)
"""Strings, names and comments, in which a ``?`` is none, and ``?`` itself."""

Value = str | int | float | bool | None


def bound(condition: str, values: Sequence[Value]) -> str:
    """A condition with each ``?`` replaced by a value, as a literal of SQL.

    Raises:
        QueryError: if there are more or fewer of one than of the other, or a value has no literal.
    """
    left = list(reversed(values))

    def put(match: re.Match[str]) -> str:
        if match[0] != "?":
            return match[0]
        if not left:
            raise QueryError(f"where has more ? than its {len(values)} params")
        return literal(left.pop())

    made = _PIECES.sub(put, condition)
    if left:
        raise QueryError(f"where has {len(values) - len(left)} ? for {len(values)} params")
    return made


def literal(value: Value) -> str:
    """A value as a literal of SQL.

    Raises:
        QueryError: if there is none: a NUL, a number beyond what SQLite holds.
    """
    match value:
        case None:
            return "NULL"
        case bool():
            return str(int(value))
        case int() if -(1 << 63) < value < 1 << 63:
            return f"({value})"
        case float() if math.isfinite(value):
            return f"({value!r})"
        case str() if "\0" not in value:
            return "'" + value.replace("'", "''") + "'"
    raise QueryError(f"{value!r:.40} cannot be a value of a condition")
