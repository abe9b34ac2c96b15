"""Bulk insertion into the table ``items``, where a statement for each record costs more than its work."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from hivlp.store.records import Stamp
from hivlp.store.schema import ITEM, ItemRecord, can_be_listed, marks, seal

HASH_BYTES = 32
DIGITS = 10  # of the largest checksum
AT_ONCE = 4096
"""Records that :func:`insert_alike` stores with one statement."""

COMING = f"CREATE TEMP TABLE IF NOT EXISTS coming ({ITEM}, crc)"
ALIKE = (
    f"INSERT INTO items ({ITEM}, crc) "
    f"SELECT ?1 + key, value, substr(?2, {HASH_BYTES} * key + 1, {HASH_BYTES}), NULL, '{{}}', ?3 + key, "
    f"?4, ?5, ?6, ?7, CAST(substr(?8, {DIGITS} * key + 1, {DIGITS}) AS INTEGER) FROM json_each(?9)"
)


def insert(db: sqlite3.Connection, records: Iterable[tuple[Any, ...]]) -> None:
    """Store records of any kind, each an :class:`ItemRecord` or a tuple like it."""
    # Through a table in memory: one statement for all of them spares `items` the fixed cost of one each.
    db.execute(COMING)
    db.executemany(f"INSERT INTO coming VALUES ({marks(len(ItemRecord._fields) + 1)})", seal(records))
    db.execute(f"INSERT INTO items ({ITEM}, crc) SELECT * FROM coming ORDER BY rowid")
    db.execute("DELETE FROM coming")


def insert_alike(
    db: sqlite3.Connection,
    paths: Sequence[str | bytes],
    hashes: Sequence[bytes],
    stamp: Stamp,
    *,
    first_id: int,
    first_row: int,
) -> bool:
    """Store records without caption and metadata, all with the same stamp, under consecutive ids and rows.

    SQLite takes them out of three values: a list of the paths, and hashes and checksums end to end. To bind eleven
    values for each record would take longer than to store it.

    Returns:
        Whether they could be handed over in this way; nothing is stored if not.
    """
    if not all(map(can_be_listed, paths)) or set(map(len, hashes)) != {HASH_BYTES}:
        return False
    size, mtime, ctime, checked = stamp
    behind = f", {size}, {mtime}, {ctime}, {checked})"
    for start in range(0, len(paths), AT_ONCE):
        part, contents = paths[start : start + AT_ONCE], hashes[start : start + AT_ONCE]
        item_id, row = first_id + start, first_row + start
        # As schema.record_crc does it, without a call and a tuple for each.
        crcs = [
            zlib.crc32(f"({item_id + at}, {path!a}, {content!a}, None, '{{}}', {row + at}{behind}".encode("ascii"))
            for at, (path, content) in enumerate(zip(part, contents, strict=True))
        ]
        digits = b"".join(b"%0*d" % (DIGITS, crc) for crc in crcs)
        names = json.dumps(part, ensure_ascii=False)
        db.execute(ALIKE, (item_id, b"".join(contents), row, *stamp, digits, names))
    return True
