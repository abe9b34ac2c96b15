"""Declared fields: keys of an item's metadata that a condition names like columns, each of one type.

The value of a field is one SQL expression over ``metadata``. It stands in conditions that SQLite evaluates, and it
fills the columns (:mod:`hivlp.store.fields.column`) that answer the others, so that both see the same values.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import cache
from typing import Any, NamedTuple

from hivlp.errors import ArgumentError

ID = "id"
MOST_FIELDS = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
# fmt: off
RESERVED = frozenset([
    "id", "path", "hash", "caption", "metadata", "row", "size", "mtime", "ctime", "checked", "crc", "rowid", "oid",
    "_rowid_", "items", "true", "false",
])
# fmt: on
"""What means something in a condition already."""

# A value that does not fit its type is NULL. JSON's true and false are numbers to SQLite, but no `int`; a whole float
# is one, since that is what tables with gaps make of integers. CAST gives a field the affinity of its type.
_FITS = {
    "int": "json_type({json}) IN ('integer', 'real') AND {value} = CAST({value} AS INTEGER)",
    "float": "json_type({json}) IN ('integer', 'real')",
    "str": "json_type({json}) = 'text'",
    "bool": "json_type({json}) IN ('true', 'false') OR (json_type({json}) = 'integer' AND {value} IN (0, 1))",
}
_AFFINITY = {"int": "INTEGER", "float": "REAL", "str": "TEXT", "bool": "INTEGER"}
TYPES = tuple(_FITS)


class Field(NamedTuple):
    """A declared field: the key of the metadata, and the type of its values.

    Attributes:
        name: of the key, and of the field in conditions.
        type: ``int`` (64 bits), ``float``, ``str`` or ``bool``.
    """

    name: str
    type: str

    @property
    def sql(self) -> str:
        """Its value as an SQL expression over ``metadata``: NULL where there is none, or one of another type."""
        json = f"metadata, '$.{self.name}'"
        value = f"json_extract({json})"
        fits = _FITS[self.type].format(json=json, value=value)
        # CASE evaluates one after the other: malformed JSON is asked for nothing.
        return (
            f"CAST(CASE WHEN NOT json_valid(metadata) THEN NULL WHEN {fits} THEN {value} END AS {_AFFINITY[self.type]})"
        )


class FieldCounts(NamedTuple):
    """How many items have a value of a field.

    Attributes:
        field: that is declared.
        values: items with a value.
        without: items without the key, with null, or with something of another type.
    """

    field: Field
    values: int
    without: int

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --json`` prints."""
        return {"type": self.field.type, "values": self.values, "without": self.without}

    def __str__(self) -> str:
        name, kind = self.field
        return f"field {name}: {kind}, {self.values} items with a value, {self.without} without"


def types_of(fields: Iterable[Field]) -> dict[str, str]:
    """Type of each column that there is for declared fields, the ids' among them."""
    return {ID: "int"} | {field.name: field.type for field in fields}


def checked_fields(given: Any) -> tuple[Field, ...]:
    """Fields as callers declare them.

    Args:
        given: name -> type; None for no fields.

    Raises:
        ArgumentError: if a name cannot stand in a condition, or there is no such type.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise ArgumentError(f'fields must map names to types, as {{"year": "int"}}, not be {type(given).__name__}')
    fields = [Field(name, kind) for name, kind in given.items()]
    for name, kind in fields:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ArgumentError(f"a field is named by ASCII letters, digits and _, at most 64, not {name!r:.80}")
        if name.lower() in RESERVED or not _is_free(name):
            raise ArgumentError(f"{name} means something else in a condition: no field can be called that")
        if kind not in TYPES:
            raise ArgumentError(f"the type of field {name} is {', '.join(TYPES[:-1])} or {TYPES[-1]}, not {kind!r:.40}")
    lowered: dict[str, str] = {}
    for name, _ in fields:
        if lowered.setdefault(name.lower(), name) != name:
            raise ArgumentError(
                f"{lowered[name.lower()]} and {name} are one field: a condition does not tell their case"
            )
    if len(fields) > MOST_FIELDS:
        raise ArgumentError(f"{len(fields)} fields are declared: at most {MOST_FIELDS} can be")
    return tuple(fields)


def joined(before: Iterable[Field], more: Iterable[Field]) -> tuple[Field, ...]:
    """Declared fields, and those declared later: one that was there already gets its new type.

    Raises:
        ArgumentError: if they are too many, or differ from one of those before in case alone.
    """
    return checked_fields({field.name: field.type for field in (*before, *more)})


@cache
def _is_free(name: str) -> bool:
    """Whether SQLite reads a name as one, and not as a word of its own."""
    with closing(sqlite3.connect(":memory:")) as db:
        try:
            return bool(db.execute(f"SELECT {name} = 'x' FROM (SELECT 'x' AS {name})").fetchone()[0])
        except sqlite3.Error:
            return False
