"""Conditions on items, in SQL, from people that nobody vouches for."""

from __future__ import annotations

import sqlite3
import time

from hivlp.errors import QueryError

WHERE_SECONDS = 5.0
WHERE_ITEMS = 1_000_000
"""Items that a condition has :data:`WHERE_SECONDS` for; of more, as much longer. From a disk it may read them all."""
# No value that a condition makes may be longer: time limits do not reach inside a function such as zeroblob().
WHERE_BYTES = 1 << 24
WHERE_TABLES = ("items", "json_each", "json_tree")


def rows_where(db: sqlite3.Connection, condition: str) -> list[int]:
    """Rows of the items for which an SQL expression over id, path, caption and metadata holds.

    Raises:
        QueryError: if it is not such an expression, does more than read items, or takes too long.
    """
    if "\x00" in condition or not condition.strip():
        raise QueryError("--where is empty or holds a NUL character")
    (last,) = db.execute("SELECT max(row) FROM items").fetchone()
    seconds = WHERE_SECONDS * max(1.0, (last or 0) / WHERE_ITEMS)
    deadline = time.monotonic() + seconds

    def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and first in WHERE_TABLES:
            return sqlite3.SQLITE_OK
        # load_extension is off by default in this library; refused here all the same.
        if action == sqlite3.SQLITE_FUNCTION and second not in ("load_extension", "writefile", "readfile"):
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    # SQLite builds a table-valued function once, with rights that a condition does not get.
    db.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
    longest = db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, WHERE_BYTES)
    db.set_authorizer(authorize)
    db.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    try:
        # Only a whole expression fits both here and below: one that closes a bracket early to add a query of its
        # own, such as `0) UNION SELECT (1`, cannot stand inside CAST.
        db.execute(f"SELECT CAST(({condition}\n) AS INTEGER) FROM items LIMIT 0")
        return [row for (row,) in db.execute(f"SELECT row FROM items WHERE ({condition}\n)")]
    except (sqlite3.OperationalError, sqlite3.DataError) as error:
        if "interrupted" in str(error):
            raise QueryError(f"--where took longer than {seconds:.3g} s") from error
        raise QueryError(f"--where is not a condition on id, path, caption, metadata: {error}") from error
    except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
        raise QueryError(f"--where is not a condition on id, path, caption, metadata: {error}") from error
    finally:
        db.set_authorizer(None)
        db.set_progress_handler(None, 0)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
