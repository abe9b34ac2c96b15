"""Conditions that columns answer: a part of SQL, parsed once and evaluated over codes, without SQLite.

Understood are comparisons of a field, of ``id`` or of a key of the metadata (``metadata ->> 'year'``,
``json_extract(metadata, '$.year')``) with a number or text, ``BETWEEN``, ``IN (…)``, ``IS [NOT] NULL``, ``LIKE`` with
``%`` at the ends, ``GLOB 'prefix*'``, a number by itself, and all of these under ``NOT``, ``AND``, ``OR`` and brackets.
Anything else is SQLite's to answer (:mod:`hivlp.store.where`), with the same result where both can.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.store.fields import comparisons
from hivlp.store.fields.column import Column, Constant, Operator
from hivlp.store.fields.comparisons import Joint, Leaf, NotAnsweredError, Null, Tree
from hivlp.store.fields.declared import ID, Field

MOST_CHARACTERS = 20_000
"""Of a condition that is parsed here; SQLite is as fast with a longer one."""
MOST_DEPTH = 50
MOST_LEAVES = 200
"""Comparisons in one condition: so many take as long as SQLite does for the whole."""

_TOKEN = re.compile(
    r"""[\x20\t\n\r\f]*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<real>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
    |(?P<int>\d+)|(?P<text>'(?:[^']|'')*')|(?P<sign>->>|<=|>=|<>|!=|==|[-+<>=(),]))""",
    re.VERBOSE | re.ASCII,
)
_KEY = re.compile(r"(?:\$\.)?([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
# fmt: off
_WORDS = frozenset([
    "and", "or", "not", "in", "between", "like", "glob", "is", "null", "isnull", "notnull", "true", "false", "escape",
    "collate",
])
# fmt: on
_OPERATORS: dict[str, tuple[Operator, bool]] = {
    "<": ("<", False),
    "<=": ("<=", False),
    "=": ("=", False),
    "==": ("=", False),
    ">=": (">=", False),
    ">": (">", False),
    "<>": ("=", True),
    "!=": ("=", True),
}  # fmt: skip
_FLIPPED: dict[Operator, Operator] = {"<": ">", "<=": ">=", "=": "=", ">=": "<=", ">": "<"}


class Condition(NamedTuple):
    """A parsed condition.

    Attributes:
        tree: of comparisons.
        columns: names of those that it needs.
        ascii: whether it has no letters beyond ASCII; one that has sees texts composed (NFC).
    """

    tree: Tree
    columns: frozenset[str]
    ascii: bool

    def mask(self, columns: Mapping[str, Column]) -> NDArray[np.bool_]:
        """(rows,) where it is true.

        Args:
            columns: of these rows, by name; at least :attr:`columns`.

        Raises:
            NotAnsweredError: if SQLite must answer, because of what the columns hold.
        """
        if not self.ascii and not all(columns[name].is_plain for name in self.columns):
            raise NotAnsweredError
        return self.tree.mask(columns)


@lru_cache(maxsize=256)
def parse(text: str, fields: tuple[Field, ...]) -> Condition | None:
    """A condition that columns answer; None for any other."""
    if len(text) > MOST_CHARACTERS or "\0" in text:
        return None
    try:
        spelt = text if text.isascii() else unicodedata.normalize("NFC", text)
        parser = _Parser(spelt, {field.name.lower(): field.name for field in fields})
        return Condition(parser.whole(), frozenset(parser.columns), text.isascii())
    except (NotAnsweredError, UnicodeEncodeError):
        return None


class _Token(NamedTuple):
    kind: str
    text: str


class _Parser:
    """Recursive descent: OR over AND over NOT over comparisons, as SQL's precedence has it."""

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self._names, self.columns, self._leaves = names, set[str](), 0
        self._tokens, self._at = [*_tokens(text), _Token("end", "")], 0

    def whole(self) -> Tree:
        found = self._any(0)
        self._expect(self._next().kind == "end")
        return found

    def _any(self, depth: int) -> Tree:
        self._expect(depth < MOST_DEPTH)
        return self._joint("or", lambda: self._joint("and", lambda: self._one(depth)))

    def _joint(self, word: str, part: Callable[[], Tree]) -> Tree:
        parts = [part()]
        while self._took(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joint(word == "and", tuple(parts))

    def _one(self, depth: int) -> Tree:
        self._expect(depth < MOST_DEPTH)
        if self._took("not"):
            return self._one(depth + 1).inverse()
        if self._took("("):
            found = self._any(depth + 1)
            self._expect(self._took(")"))
        else:
            self._leaves += 1
            self._expect(self._leaves <= MOST_LEAVES)
            found = self._comparison()
        # What goes on from here, such as `(a = 1) = 0` or `a = 1 COLLATE NOCASE`, is SQLite's.
        self._expect(self._peek() in ("and", "or", ")", ""))
        return found

    def _comparison(self) -> Tree:
        if self._is_constant():
            constant = self._constant()
            operator, negated = self._operator()
            return Leaf(self._operand(), comparisons.compared(_FLIPPED[operator], constant), negated)
        column = self._operand()
        if self._peek() in ("and", "or", ")", ""):
            return Leaf(column, comparisons.is_true)
        if self._took("is"):
            negated = self._took("not")
            self._expect(self._took("null"))
            return Null(column, negated)
        if self._took("isnull"):
            return Null(column, negated=False)
        negated = self._took("not")
        if self._took("null" if negated else "notnull"):
            return Null(column, negated=True)
        if self._took("between"):
            least = self._constant()
            self._expect(self._took("and"))
            return Leaf(column, comparisons.between(least, self._constant()), negated)
        if self._took("in"):
            return Leaf(column, comparisons.among(self._list()), negated)
        if self._took("like"):
            return Leaf(column, comparisons.like(self._text()), negated)
        if self._took("glob"):
            return Leaf(column, comparisons.glob(self._text()), negated)
        self._expect(not negated)
        operator, negated = self._operator()
        return Leaf(column, comparisons.compared(operator, self._constant()), negated)

    # Parts of a comparison.

    def _operand(self) -> str:
        token = self._next()
        name = token.text.lower()
        self._expect(token.kind == "name" and name not in _WORDS)
        if name == "metadata":
            self._expect(self._took("->>"))
            column = self._key()
        elif name == "json_extract":
            self._expect(self._took("(") and self._took("metadata") and self._took(","))
            self._expect(self._tokens[self._at].text.startswith("'$."))
            column = self._key()
            self._expect(self._took(")"))
        else:
            self._expect(name == ID or name in self._names)
            column = self._names.get(name, ID)
        self.columns.add(column)
        return column

    def _key(self) -> str:
        token = self._next()
        self._expect(token.kind == "text")
        match = _KEY.fullmatch(token.text[1:-1])
        if match is None:
            raise NotAnsweredError
        return f"$.{match[1]}"

    def _operator(self) -> tuple[Operator, bool]:
        token = self._next()
        self._expect(token.text in _OPERATORS)
        return _OPERATORS[token.text]

    def _is_constant(self) -> bool:
        token = self._tokens[self._at]
        return token.kind in ("int", "real", "text") or token.text.lower() in ("-", "+", "true", "false")

    def _constant(self) -> Constant:
        token = self._next()
        if token.kind == "text":
            return token.text[1:-1].replace("''", "'").encode("utf-8")
        if token.text.lower() in ("true", "false"):
            return int(token.text.lower() == "true")
        minus = token.text == "-"
        if token.text in ("-", "+"):
            token = self._next()
        self._expect(token.kind in ("int", "real"))
        if token.kind == "real":
            return -_real(token.text) if minus else _real(token.text)
        number = int(token.text)
        self._expect(number < 1 << 63)  # SQLite makes a float of a larger one
        return -number if minus else number

    def _list(self) -> list[Constant]:
        self._expect(self._took("("))
        found = [self._constant()]
        while self._took(","):
            found.append(self._constant())
        self._expect(self._took(")"))
        return found

    def _text(self) -> bytes:
        token = self._next()
        self._expect(token.kind == "text")
        return token.text[1:-1].replace("''", "'").encode("utf-8")

    # Tokens.

    def _peek(self) -> str:
        token = self._tokens[self._at]
        return "'" if token.kind == "text" else token.text.lower()

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _took(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self._at += 1
        return True

    def _expect(self, holds: bool) -> None:
        if not holds:
            raise NotAnsweredError


def _tokens(text: str) -> Iterator[_Token]:
    at, end = 0, len(text.rstrip(" \t\n\r\f"))
    while at < end:
        match = _TOKEN.match(text, at, end)
        # A number that goes on in letters is SQLite's to refuse.
        if match is None or (match.lastgroup in ("int", "real") and re.match(r"[\w.$]", text[match.end() :])):
            raise NotAnsweredError
        at, kind = match.end(), match.lastgroup or ""
        yield _Token(kind, match[kind])


@lru_cache(maxsize=1024)
def _real(text: str) -> float:
    """A number as SQLite reads it, whose last bit may be another than Python's."""
    with _database_lock:
        (value,) = _database.execute(f"SELECT {text}").fetchone()
    return float(value)


_database = sqlite3.connect(":memory:", check_same_thread=False)
_database_lock = threading.Lock()
