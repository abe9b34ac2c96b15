"""Metadata of every kind, conditions of every kind about them, and what columns and SQLite say to these."""

from __future__ import annotations

import random

import numpy as np

from hivlp.index import Index
from hivlp.levels import Embeddings
from hivlp.store.fields.commit import ASKED, CommitColumns
from hivlp.store.records import NewItem, Stamp
from synthetic import random_levels

FIELDS = {"year": "int", "price": "float", "camera": "str", "kept": "bool"}
VALUES = [
    None, 0, 1, -1, 2010, 2011, 2012, 2010.0, 2010.5, -0.0, 0.1, 1e308, -1e308, 5e-324, 1e15 + 0.3, 2**53, 2**53 + 1,
    2**53 + 2.0, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, True, False, "", "a", "A", "Canon", "canon eos",
    "Canon EOS 5D", "CANON", "Ca%on", "Ca_on", "2010", "1e3", " 5", "it's", "Müller", "mÜller", "Mu\u0308ller", "日本",
    "\U0001f600", "a\x00b",
    "z" * 300, "[1]", [1, 2], {"a": 1}, [], "\ud800",
]  # fmt: skip
"""What metadata may hold under any key."""
NOT_PLAIN = ("Mu\u0308ller", "a\x00b", "\ud800")
"""Texts that LIKE, or a condition with letters beyond ASCII, sees otherwise than they are."""
NUMBERS = [
    "0", "1", "-1", "+1", "2010", "2010.0", "2010.5", "1e3", "0.1", ".5", "5.", "1e308", "-1e308", "1e999", "5e-324",
    "9007199254740992", "9007199254740993", "9007199254740992.0", "9007199254740993.0", "9223372036854775807",
    "-9223372036854775807", "9223372036854775808", "1000000000000000.3", "0.30000000000000004", "true", "FALSE", "007",
]  # fmt: skip
TEXTS = [
    "''",
    "'a'",
    "'A'",
    "'Canon'",
    "'canon'",
    "'2010'",
    "'it''s'",
    "'Müller'",
    "'Mu\u0308ller'",
    "'日'",
    "'z'",
    "'[1,2]'",
]
LIKES = [
    "'canon%'", "'%EOS%'", "'%5d'", "'CANON'", "'Ca_on'", "'%'", "''", "'m%'", "'Müller'", "'%ü%'", "'ca%n'", "'%a%b%'",
]  # fmt: skip
GLOBS = ["'Canon*'", "'*'", "'C?non'", "'[Cc]anon'", "'M*'", "'Mü*'", "'日*'", "'a'", "'2*'"]
OPERANDS = [*FIELDS, "id", "YEAR", "metadata ->> 'any'", "metadata->>'$.any'", "json_extract(metadata, '$.year')"]


def metadata(rng: random.Random, odd: list) -> dict:
    """Metadata of any kind: usual values of each field, and odd ones."""
    usual = {
        "year": rng.randrange(2000, 2030), "price": round(rng.random() * 50, rng.randrange(18)),
        "camera": rng.choice(["Canon", "Canon EOS", "Nikon", "Müller"]), "kept": rng.random() < 0.5,
        "any": rng.choice(odd),
    }  # fmt: skip
    return {key: rng.choice(odd) if rng.random() < 0.3 else value for key, value in usual.items() if rng.random() < 0.9}


def condition(rng: random.Random, depth: int = 0) -> str:
    """A condition of any kind that people write, and some that columns do not answer."""
    if depth < 3 and rng.random() < 0.45:
        kind = rng.randrange(4)
        if kind == 0:
            return f"NOT {condition(rng, depth + 1)}"
        if kind == 1:
            return f"({condition(rng, depth + 1)})"
        return f" {('AND', 'or')[kind - 2]} ".join(condition(rng, depth + 1) for _ in range(rng.randrange(2, 4)))
    operand, constant = rng.choice(OPERANDS), rng.choice(NUMBERS + TEXTS)
    operator = rng.choice(["<", "<=", "=", "==", ">=", ">", "<>", "!="])
    negation = rng.choice(["", " NOT"])
    match rng.randrange(9):
        case 0:
            return f"{operand}{negation} BETWEEN {rng.choice(NUMBERS + TEXTS)} AND {constant}"
        case 1:
            listed = ", ".join(rng.choices(rng.choice([NUMBERS, TEXTS, NUMBERS + TEXTS]), k=rng.randrange(1, 9)))
            return f"{operand}{negation} IN ({listed})"
        case 2:
            return operand + rng.choice([" IS NULL", " IS NOT NULL", " ISNULL", " NOTNULL", " NOT NULL"])
        case 3:
            return f"{operand}{negation} LIKE {rng.choice(LIKES)}"
        case 4:
            return f"{operand}{negation} GLOB {rng.choice(GLOBS)}"
        case 5:
            return f"{constant} {operator} {operand}"
        case 6:
            return rng.choice([operand, f"{operand} % 2 = 0", f"length({operand}) > 3", f"{operand} IS {constant}"])
    return f"{operand} {operator} {constant}"


def add(index: Index, count: int, seed: int = 0, odd: list = VALUES, first: int | None = None) -> None:
    """Add items with metadata of any kind; those whose number in paths is there already are replaced."""
    rng = random.Random(seed)
    add_told(index, [metadata(rng, odd) for _ in range(count)], len(index) if first is None else first)


def add_told(index: Index, told: list[dict], first: int = 0) -> None:
    """Add items with these metadata, numbered in paths from ``first`` on."""
    items = [
        NewItem(f"/p/{n}.png", n.to_bytes(32), None, each, Stamp(1, 2, 3, 4)) for n, each in enumerate(told, first)
    ]
    index.store.append(items, Embeddings(random_levels(index.levels, len(told), first)))


def by_columns(index: Index, text: str, columns: CommitColumns | None = None) -> list[int] | None:
    """Rows of items for which columns say that a condition holds; None if they do not answer it."""
    columns = CommitColumns(index.path) if columns is None else columns
    with index.store.reading() as reader:
        masks = [columns.mask(text, reader.state, reader) for _ in range(ASKED + 1)]
        mask, alive = masks[-1], reader.alive()
    if mask is None:
        return None
    return np.flatnonzero(mask if alive is None else mask & alive).tolist()


def by_sql(index: Index, text: str) -> list[int]:
    with index.store.reading() as reader:
        return sorted(reader.rows_where(text).rows)
