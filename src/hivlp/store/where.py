"""Filter conditions in SQL, whoever wrote them: what they may call is listed, and they end in their time."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hivlp.errors import ArgumentError, QueryError
from hivlp.store.fields.declared import Field
from hivlp.store.names import composed
from hivlp.store.path_codec import PathCodec

WHERE_SECONDS = 5.0
WHERE_ITEMS = 1_000_000
"""Items that a condition has :data:`WHERE_SECONDS` for; for twice as many it has twice the time."""
GRACE_SECONDS = 0.5
"""What it has to stop after that, before it is left to itself: SQLite cannot be stopped inside one function."""
COLUMNS = ("id", "path", "caption", "metadata")
WHERE_TABLES = ("items", "json_each", "json_tree")
# What a condition may call: nothing here makes values much longer than those it is given, or reads anything but them.
# fmt: off
CONSTANT = frozenset([
    "->", "->>", "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "avg", "ceil", "ceiling",
    "coalesce", "composed", "cos", "cosh", "count", "degrees", "exp", "floor", "glob", "if", "ifnull", "iif", "instr",
    "json_array_length", "json_each", "json_extract", "json_tree", "json_type", "json_valid", "length", "likelihood",
    "like", "likely", "ln", "log", "log10", "log2", "lower", "ltrim", "max", "min", "mod", "nullif", "octet_length",
    "pi", "pow", "power", "radians", "round", "rtrim", "sign", "sin", "sinh", "sqrt", "substr", "substring", "sum",
    "tan", "tanh", "total", "trim", "trunc", "typeof", "unicode", "unlikely", "upper",
])
CHANGING = frozenset([
    "current_date", "current_time", "current_timestamp", "date", "datetime", "julianday", "random", "strftime",
    "time", "timediff", "unixepoch",
])
# fmt: on
"""Functions that may say one thing now and another later."""
CALLS = 250  # of functions in one condition: between two of its loops SQLite looks at no clock, and keeps values
TRIMMED = 64  # characters that trim(text, characters) takes
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1 << 20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 200_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 1000,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 250_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 32,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 500,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
PARTS = re.compile(r"""[()]|'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|(?P<open>['"`\[]|/\*)""", re.DOTALL)
"""Brackets of a condition, and what no bracket counts in: quoted parts, comments, and the beginning of an open one."""
# What a file is called, and what is said of it, may be spelt in two ways in Unicode; JSON has a third one, \\u00e9.
# And a relative index spells its paths otherwise than everybody else.
COMPOSED = """(SELECT id, composed({path}) AS path, hash, composed(caption) AS caption, unescaped(metadata) AS metadata,
    row, size, mtime, ctime, checked FROM main.items)"""
LOCATED = """(SELECT id, located(path) AS path, hash, caption, metadata, row, size, mtime, ctime, checked
    FROM main.items)"""

Value = str | bytes | int | float | None


class Passing(NamedTuple):
    """Rows for which a condition holds, and whether it may hold for others at another time (``random()``)."""

    rows: list[int]
    changing: bool


def rows_where(file: Path, condition: str, fields: Sequence[Field] = (), paths: PathCodec | None = None) -> Passing:
    """Rows of the items for which an SQL expression over id, path, caption, metadata and declared fields holds.

    A condition with letters beyond ASCII sees paths, captions and metadata in composed Unicode (NFC), as itself, so
    that a name is found however it is spelt.

    Args:
        file: ``items.db``, which the caller holds a read lock of.
        condition: the expression.
        fields: that are declared.
        paths: how the catalog spells paths; default as they are.

    Raises:
        QueryError: if it is not such an expression, does more than read items, or takes too long.
    """
    check_whole(condition)
    evaluation = _Evaluation(file, condition, fields, PathCodec() if paths is None else paths)
    try:
        seconds = WHERE_SECONDS * max(1.0, evaluation.last_row() / WHERE_ITEMS)
        evaluation.start()
        if not evaluation.ended.wait(seconds):
            evaluation.interrupt()
            raise QueryError(f"where took longer than {seconds:.3g} s")
    finally:
        evaluation.let_go()
    return evaluation.result()


def check_whole(condition: str) -> None:
    """Whether a condition is one expression, which stays within the brackets that it is put in.

    Raises:
        ArgumentError: if it is no text.
        QueryError: if it is empty, closes a bracket that it did not open, or leaves a bracket, quote or comment open.
    """
    if not isinstance(condition, str):
        raise ArgumentError(f"where must be a condition in SQL, not {condition!r:.40}")
    if "\x00" in condition or not condition.strip():
        raise QueryError("where is empty or holds a NUL character")
    depth = 0
    for part in PARTS.finditer(condition):
        if part["open"]:
            what = "comment" if part["open"] == "/*" else "quote"
            raise QueryError(f"where is not a condition: a {what} opens and never closes")
        depth += {"(": 1, ")": -1}.get(part[0], 0)
        if depth < 0:
            break
    if depth:
        what = "closes that never opened" if depth < 0 else "opens and never closes"
        raise QueryError(f"where is not a condition: a bracket {what}")


class _Evaluation(threading.Thread):
    """One condition on a thread and a connection of its own, so that it can be given up and leaves no trace.

    The connection takes no locks, so that it cannot wait for a writer who waits for its caller.
    """

    def __init__(self, file: Path, condition: str, fields: Sequence[Field], paths: PathCodec) -> None:
        super().__init__(name="hivlp-where", daemon=True)
        self.ended = threading.Event()
        self._rows: list[int] = []
        self._error: BaseException | None = None
        self._refused = ""
        self._calls: list[str] = []
        self._letting_go = threading.Lock()
        self._let_go = False
        self._condition = condition if condition.isascii() else unicodedata.normalize("NFC", condition)
        self._fields, self._paths = fields, paths
        self._items = _items(condition, fields, relative=paths.base is not None)
        place = f"{file.absolute().as_uri()}?mode=ro&immutable=1"
        self._db = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False)

    def last_row(self) -> int:
        """The largest row of an item."""
        (last,) = self._db.execute("SELECT max(row) FROM items").fetchone()
        return last if isinstance(last, int) else 0

    def run(self) -> None:
        """Work it out."""
        try:
            self._prepare()
            # Only a whole expression fits both here and below: one that closes a bracket early to add a query of its
            # own, such as `0) UNION SELECT (1`, cannot stand inside CAST.
            self._db.execute(f"{self._items} SELECT CAST(({self._condition}\n) AS INTEGER) FROM items LIMIT 0")
            self._calls.clear()
            query = f"{self._items} SELECT row FROM items WHERE ({self._condition}\n)"
            self._rows = [row for (row,) in self._db.execute(query)]
        except BaseException as error:  # told to whoever waits
            self._error = error
        finally:
            with self._letting_go:
                self.ended.set()
                if self._let_go:
                    self._db.close()

    def interrupt(self) -> None:
        """Ask it to stop, and wait for that a little."""
        for _ in range(10):
            with suppress(sqlite3.Error):
                self._db.interrupt()
            if self.ended.wait(GRACE_SECONDS / 10):
                return

    def let_go(self) -> None:
        """Close the connection, now or when the thread is done with it."""
        with self._letting_go:
            self._let_go = True
            with suppress(sqlite3.Error):
                self._db.interrupt()
            if self.ended.is_set() or not self.is_alive():
                self._db.close()

    def result(self) -> Passing:
        """What was worked out, once it has ended.

        Raises:
            QueryError: if there was nothing to work out.
        """
        if self._error is None:
            return Passing(self._rows, not CHANGING.isdisjoint(self._calls))
        if not isinstance(self._error, (sqlite3.Error, sqlite3.Warning, UnicodeError, MemoryError)):
            raise self._error
        raise QueryError(
            f"where is not a condition on {', '.join((*COLUMNS, *(field.name for field in self._fields)))}: "
            f"{self._reason()}"
        ) from self._error

    def _reason(self) -> str:
        text = str(self._error)
        if self._refused:
            return self._refused
        if "binding" in text or "variable" in text:
            return "it has a placeholder (? or :name): write the value itself"
        if "too big" in text:
            return f"a value is longer than {LIMITS[sqlite3.SQLITE_LIMIT_LENGTH] >> 20} MB"
        if "unrecognized token" in text:
            return "a quote opens and never closes, or a character means nothing there"
        if "one statement" in text:
            return "it holds more than one statement"
        return (
            "it is too long"
            if isinstance(self._error, MemoryError) or "query string" in text
            else " ".join(text.split())[:200]
        )

    def _prepare(self) -> None:
        self._db.execute("PRAGMA trusted_schema=OFF")
        self._db.execute("PRAGMA query_only=ON")
        for name, function in (("composed", composed), ("unescaped", _unescaped), ("located", self._located)):
            self._db.create_function(name, 1, function, deterministic=True)
        # SQLite's own take as many steps as the product of both lengths.
        self._db.create_function("instr", 2, _instr, deterministic=True)
        for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
            self._db.create_function(name, 2, self._stripping(strip), deterministic=True)
        # SQLite builds a table-valued function once, with rights that a condition does not get.
        self._db.execute("SELECT 1 FROM json_each('[]'), json_tree('[]')").fetchall()
        for limit, most in LIMITS.items():
            self._db.setlimit(limit, most)
        self._db.set_authorizer(self._authorize)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and first in WHERE_TABLES):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second is not None:
            name = second.lower()
            self._calls.append(name)
            if len(self._calls) > CALLS:
                self._refuse(f"it calls more than {CALLS} functions")
                return sqlite3.SQLITE_DENY
            if name in CONSTANT or name in CHANGING or (name in ("unescaped", "located") and self._items):
                return sqlite3.SQLITE_OK
            self._refuse(f"it may not call {second}()")
        elif action == sqlite3.SQLITE_READ:
            self._refuse(f"it may not read {first}")
        else:
            self._refuse("it may read items and do nothing else")
        return sqlite3.SQLITE_DENY

    def _refuse(self, reason: str) -> None:
        self._refused = self._refused or reason

    def _located(self, path: Value) -> Value:
        return self._paths.shown(path) if isinstance(path, (str, bytes)) else path

    def _stripping(self, strip: Callable[[str, str], str]) -> Callable[[Value, Value], str | None]:
        def stripped(text: Value, characters: Value) -> str | None:
            if text is None or characters is None:
                return None
            given = _text(characters)
            if len(given) > TRIMMED:
                self._refuse(f"trim() takes {TRIMMED} characters at most")
                raise ValueError(self._refused)
            return strip(_text(text), given) if given else _text(text)

        return stripped


def _items(condition: str, fields: Sequence[Field], *, relative: bool) -> str:
    """What a condition sees as ``items``: declared fields as columns, text composed if it is, whole paths; or ""."""
    words = {word.lower() for word in re.findall(r"\w+", condition)}
    named = [field for field in fields if field.name.lower() in words]
    located = relative and "path" in words
    if condition.isascii() and not named and not located:
        return ""
    columns = ", ".join(("id, path, hash, caption, metadata, row, size, mtime, ctime, checked", *map(_column, named)))
    source = COMPOSED.format(path="located(path)" if located else "path")
    if condition.isascii():
        source = LOCATED if located else "main.items"
    return f"WITH items AS NOT MATERIALIZED (SELECT {columns} FROM {source})"


def _column(field: Field) -> str:
    return f"{field.sql} AS {field.name}"


def _text(value: Value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _instr(text: Value, part: Value) -> int | None:
    if text is None or part is None:
        return None
    if isinstance(text, bytes) and isinstance(part, bytes):
        return text.find(part) + 1
    return _text(text).find(_text(part)) + 1


def _unescaped(metadata: Value) -> Value:
    """JSON with its letters as themselves, composed."""
    if isinstance(metadata, str) and "\\u" in metadata:
        with suppress(ValueError, RecursionError):
            metadata = json.dumps(json.loads(metadata), ensure_ascii=False)
            metadata = metadata.encode("utf-8", "replace").decode("utf-8")
    return composed(metadata)
