"""Lookup of hits: what is shown of the items in some rows, and the commit that they are of, by one statement.

A search reads vectors of a snapshot, which needs no transaction, and then asks for its hits in one statement, which is
of one commit by itself. If that is the snapshot's, the whole answer is; if not, the search is made again inside a
transaction. That spares three statements a search, and the many times that SQLite would let go of the interpreter's
lock, which is what threads searching side by side wait for.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple

from hivlp.store.path_codec import PathCodec

decode = json.JSONDecoder().raw_decode
AT_ONCE = 1000
"""Rows that one statement looks up."""

# JSON holds no bytes: a path that is not UTF-8 comes as hexadecimal digits. The one row that comes back is one step.
SELECT = """SELECT (SELECT value FROM meta WHERE key = 'commits'), (
    SELECT json_group_array(json_array(
        item.row, item.id, iif(typeof(item.path) = 'blob', hex(item.path), item.path), typeof(item.path) = 'blob',
        item.caption, item.metadata
    )) FROM json_each(?) AS wanted CROSS JOIN items AS item ON item.row = wanted.value)"""


class Shown(NamedTuple):
    """What a hit shows of its item."""

    id: int
    path: str
    caption: str | None
    text: str

    @property
    def metadata(self) -> dict[str, Any]:
        """What was stored with the item: of each who asks, their own, made from its text.

        Raises:
            ValueError: if the text is no JSON object.
        """
        if self.text == "{}":
            return {}
        try:
            known, end = decode(self.text) if self.text[:1] == "{" else (None, 0)
            if end < len(self.text):  # with white space about it, or no JSON: slower by half
                known = json.loads(self.text)
        except (TypeError, RecursionError) as error:
            raise ValueError("metadata is no JSON") from error
        if not isinstance(known, dict):
            raise ValueError("metadata is no JSON object")
        return known

    @classmethod
    def of(cls, item_id: int, path: str | bytes, caption: str | None, text: str, paths: PathCodec) -> Shown:
        """From the columns of a record, whoever wrote it, and the codec of its path.

        Raises:
            ValueError: if a value is none that it can have.
        """
        if not (isinstance(path, (str, bytes)) and isinstance(caption, (str, NoneType))):
            raise ValueError("a value is of another kind")
        shown = cls(item_id, paths.decode(path), caption, text)
        shown.metadata  # noqa: B018  (raises)
        return shown


def look_up(db: sqlite3.Connection, rows: Sequence[int], paths: PathCodec) -> tuple[str, dict[int, Shown]] | None:
    """The items in some rows, and the number of the commit that they are of.

    Args:
        db: a connection outside any transaction.
        rows: at most :data:`AT_ONCE`.
        paths: how the catalog spells paths.

    Returns:
        The commit number as the table ``meta`` spells it, and what each row shows; None if an item is missing, or not
        as it was written: a :class:`hivlp.store.reader.Reader` says what is wrong.
    """
    try:
        commits, listed = db.execute(SELECT, (json.dumps(rows),)).fetchone()
        found = {}
        for row, item_id, path, is_bytes, caption, metadata in json.loads(listed):
            spelled = bytes.fromhex(path) if is_bytes else path
            found[row] = Shown.of(item_id, spelled, caption, metadata, paths)
    except (sqlite3.OperationalError, ValueError, TypeError):
        return None
    return (commits, found) if len(found) == len(rows) else None
