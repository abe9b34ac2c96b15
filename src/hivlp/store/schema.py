"""Layout of ``items.db``: its tables, the one spelling of their records, and the checksum that each record carries.

SQLite keeps no checksums of its pages. Its integrity check finds what breaks a tree or disagrees with an index; a bit
that flips inside a caption is found by the record's own checksum.
"""

from __future__ import annotations

import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache
from typing import Any, NamedTuple

FORMAT = 2
OLD_FORMAT = 1
"""Vectors in float32 and no checksums; read as it is, brought to :data:`FORMAT` by the first change."""
CODEC_FORMAT = 3
"""As :data:`FORMAT`, with a finest level in another codec than float16; the number makes earlier versions refuse it in
words, which would take an unknown dtype for damage."""
RELATIVE_FORMAT = 4
"""As :data:`CODEC_FORMAT`, with any codec, and with paths relative to the folder that the index lies in
(:mod:`hivlp.store.path_codec`)."""
PENDING_FORMAT, PENDING_RELATIVE_FORMAT = 5, 6
"""As those of absolute and of relative paths, with pending rows: of the coarsest level alone."""
RELATIVE_FORMATS = tuple(map(str, (RELATIVE_FORMAT, PENDING_RELATIVE_FORMAT)))
FORMATS = tuple(map(str, (OLD_FORMAT, FORMAT, CODEC_FORMAT, RELATIVE_FORMAT, PENDING_FORMAT, PENDING_RELATIVE_FORMAT)))
PENDING = "(pending)"
"""In place of a level's name in the table ``blocks``: which rows of a block are pending. No level can be called so."""


class ItemRecord(NamedTuple):
    """A record of the table ``items``, before its checksum."""

    id: int
    path: str | bytes
    hash: bytes
    caption: str | None
    metadata: str
    row: int
    size: int
    mtime: int
    ctime: int
    checked: int


class BlockRecord(NamedTuple):
    """A record of the table ``blocks``: checksums of rows written together, little-endian uint32 end to end.

    Under the level :data:`PENDING` a bitmap instead, a bit a row, least significant first.
    """

    level: str
    first: int
    rows: int
    crcs: bytes


class LostRecord(NamedTuple):
    """A record of the table ``lost``: an item whose vectors were damaged."""

    id: int
    path: str | bytes
    caption: str | None
    metadata: str


ITEM, BLOCK, LOST = (", ".join(record._fields) for record in (ItemRecord, BlockRecord, LostRecord))
"""The columns of each table that its checksum covers, in order."""
META = ("format", "model", "source", "fingerprint", "levels", "dtype", "rows", "generation", "commits")
"""Keys of the table ``meta`` that its record ``check`` vouches for, beside the last id that was given."""
META_OPTIONAL = ("columns", "fields", "payloads")
"""Keys of ``meta`` that only some indexes have, and whose record ``optional_check`` vouches for those that are there:
declared fields, and files that are derived from the tables. Earlier versions know none, and leave them alone."""

PART = 18
"""Bits of an id beyond which it belongs to the next part of ``items_hash``."""
WITH_HASH = f"""WITH RECURSIVE parts(part) AS (
    SELECT min(id) >> {PART} FROM items
    UNION SELECT (SELECT min(id) >> {PART} FROM items WHERE id >= (part + 1) << {PART}) FROM parts WHERE part NOT NULL
) SELECT {ITEM} FROM parts CROSS JOIN items
    ON id >> {PART} = part AND substr(hash, 1, 8) = substr(?1, 1, 8) AND hash = ?1"""
"""The items with a hash, part after part of those that there are."""

COMMON = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE dead (row INTEGER PRIMARY KEY)",
)
# Hashes come in no order, so that an addition rewrites most of what they are put into: that is only the last part.
HASHES = f"CREATE INDEX items_hash ON items (id >> {PART}, substr(hash, 1, 8))"
OLD_HASHES = "CREATE INDEX items_hash ON items (substr(hash, 1, 8))"  # in one part; read as it is, too
SINCE_2 = (
    """CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path NOT NULL UNIQUE,               -- TEXT; a BLOB where the file's name is not UTF-8
    hash BLOB NOT NULL,                 -- SHA-256 of the file's content
    caption TEXT,
    metadata TEXT NOT NULL DEFAULT '{}',
    row INTEGER NOT NULL,               -- in every level's vector file
    size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, checked INTEGER NOT NULL,
    crc INTEGER NOT NULL                -- of all columns before
)""",
    "CREATE INDEX items_row ON items (row)",
    HASHES,
    """CREATE TABLE blocks (              -- of vectors that were written together
    level TEXT NOT NULL, first INTEGER NOT NULL, rows INTEGER NOT NULL,
    crcs BLOB NOT NULL,                 -- CRC-32 of each row as it is on disk, little-endian
    crc INTEGER NOT NULL,               -- of all columns before
    PRIMARY KEY (level, first)
)""",
    """CREATE TABLE lost (                -- items whose vectors were damaged, until their pictures are indexed again
    id INTEGER PRIMARY KEY, path NOT NULL UNIQUE, caption TEXT, metadata TEXT NOT NULL,
    crc INTEGER NOT NULL                -- of all columns before
)""",
)
CRC = ",\n    crc INTEGER NOT NULL                -- of all columns before"
FORMAT_1 = (SINCE_2[0].replace(CRC, ""), SINCE_2[1], "CREATE INDEX items_hash ON items (hash)")

Definition = tuple[str, str, str | None]  # of a table or index: type, its table, SQL


def record_crc(*values: object) -> int:
    """CRC-32 of a record's values, in order."""
    # ascii() tells types and values apart, and is the same in every version of Python; repr() depends on Unicode's.
    return zlib.crc32(ascii(values).encode("ascii"))


def seal(records: Iterable[tuple[object, ...]]) -> Iterator[tuple[Any, ...]]:
    """Records with their :func:`record_crc` behind them."""
    return ((*record, record_crc(*record)) for record in records)


def marks(count: int) -> str:
    """So many SQL placeholders."""
    return ",".join("?" * count)


def can_be_listed(path: str | bytes) -> bool:
    """Whether a path comes out of SQLite's JSON as it went in: that knows no bytes, and ends a text at a NUL."""
    return isinstance(path, str) and "\0" not in path


def make_tables(db: sqlite3.Connection, meta: Mapping[str, object]) -> None:
    """Everything that an empty ``items.db`` needs, inside the caller's transaction."""
    for statement in (*COMMON, *SINCE_2):
        db.execute(statement)
    db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in meta.items()])
    seal_meta(db)


def read_meta(db: sqlite3.Connection) -> dict[str, Any]:
    """The table ``meta``: the index's own record."""
    return dict(db.execute("SELECT key, value FROM meta"))


def meta_is_whole(db: sqlite3.Connection) -> bool:
    """Whether the table ``meta`` is as it was written; of format 1, which has no checksum, it counts as whole."""
    meta = read_meta(db)
    optional = _optional_crc(meta)
    # Earlier versions left the check behind when they removed the last record that it vouched for.
    if optional is not None and meta.get("optional_check") != optional:
        return False
    return meta.get("format") == str(OLD_FORMAT) or meta.get("check") == _meta_crc(db)


def seal_meta(db: sqlite3.Connection) -> None:
    """Write the checksums of the table ``meta``."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('check', ?)", (_meta_crc(db),))
    check = _optional_crc(read_meta(db))
    if check is None:
        db.execute("DELETE FROM meta WHERE key = 'optional_check'")
    else:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('optional_check', ?)", (check,))


def _optional_crc(meta: Mapping[str, Any]) -> str | None:
    there = [part for key in META_OPTIONAL if key in meta for part in (key, meta[key])]
    return str(record_crc(*there)) if there else None


def _meta_crc(db: sqlite3.Connection) -> str:
    meta = read_meta(db)
    return str(record_crc(*(meta.get(key) for key in META), last_id(db)))


def last_id(db: sqlite3.Connection) -> Any:
    """The largest id that was ever given to an item."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'items'").fetchone()
    return found[0] if found else 0  # as it is stored: the checksum of meta covers it


def upgrade_tables(db: sqlite3.Connection) -> None:
    """From format 1 to 2, inside the caller's transaction; the vectors' checksums are for the caller to add."""
    last = last_id(db)
    for index in ("items_row", "items_hash"):
        db.execute(f"DROP INDEX {index}")
    db.execute("ALTER TABLE items RENAME TO old_items")
    for statement in SINCE_2:
        db.execute(statement)
    db.execute(f"INSERT INTO items SELECT {ITEM}, record_crc({ITEM}) FROM old_items")
    db.execute("DROP TABLE old_items")
    if db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'items'", (last,)).rowcount == 0:
        db.execute("INSERT INTO sqlite_sequence VALUES ('items', ?)", (last,))
    db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT),))
    db.execute("INSERT INTO meta VALUES ('dtype', '<f4')")


def part_hashes(db: sqlite3.Connection) -> None:
    """Make ``items_hash`` anew if it is still in one part, inside the caller's transaction."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'items_hash' AND sql = ?", (OLD_HASHES,)).fetchone():
        db.execute("DROP INDEX items_hash")
        db.execute(HASHES)


def differences(db: sqlite3.Connection, *, exact: bool) -> list[str]:
    """Tables and indexes that a database lacks, holds beside those of its format, or defines in another way.

    Args:
        db: of any format.
        exact: whether comments and line breaks count, in which versions of format 1 differ, and what is missing.

    Returns:
        Type and name of each, such as ``trigger 't'``: that would run with the rights of whoever opens the folder.
    """
    found = _definitions(db)
    wanted = dict(_wanted(SINCE_2 if "blocks" in found else FORMAT_1))
    if found.get("items_hash") == ("index", "items", OLD_HASHES):
        wanted["items_hash"] = found["items_hash"]
    if not exact:
        found, wanted = ({name: _meaning(each) for name, each in side.items()} for side in (found, wanted))
    names = [*found, *(wanted.keys() - found.keys() if exact else ())]
    return [f"{(found.get(name) or wanted[name])[0]} {name!r}" for name in names if found.get(name) != wanted.get(name)]


@cache
def _wanted(tables: tuple[str, ...]) -> dict[str, Definition]:
    """What SQLite makes of our statements, once a process: that takes a third of the time of opening an index."""
    with closing(sqlite3.connect(":memory:")) as model:
        for statement in (*COMMON, *tables):
            model.execute(statement)
        return _definitions(model)


def _definitions(db: sqlite3.Connection) -> dict[str, Definition]:
    rows = db.execute("SELECT name, type, tbl_name, sql FROM sqlite_master")
    return {name: (kind, table, sql) for name, kind, table, sql in rows}


def _meaning(definition: Definition) -> Definition:
    """A definition without its comments and line breaks."""
    kind, table, sql = definition
    return kind, table, sql if not isinstance(sql, str) else " ".join(re.sub(r"\s*--[^\n]*", "", sql).split())
