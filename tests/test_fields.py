"""Declared fields: columns that answer conditions as SQLite does, and that nothing makes stale or loses."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from hivlp.errors import ArgumentError, QueryError
from hivlp.index import Index
from hivlp.levels import Embeddings

from hivlp.store.fields import files
from hivlp.store.fields.commit import ASKED, CommitColumns
from hivlp.store.fields.declared import Field, checked_fields
from hivlp.store.folder import Store
from hivlp.store.reader import Reader
from hivlp.store.records import NewItem, Stamp
from synthetic import FakeEncoder, random_levels

FIELDS = {"year": "int", "price": "float", "camera": "str", "kept": "bool"}
VALUES = [
    None, 0, 1, -1, 2010, 2011, 2012, 2010.0, 2010.5, -0.0, 0.1, 1e308, -1e308, 5e-324, 1e15 + 0.3, 2**53, 2**53 + 1,
    2**53 + 2.0, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, True, False, "", "a", "A", "Canon", "canon eos", "Canon EOS 5D",
    "CANON", "Ca%on", "Ca_on", "2010", "1e3", " 5", "it's", "Müller", "mÜller", "Mu\u0308ller", "日本", "\U0001f600", "a\x00b",
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


def add(index: Index, count: int, seed: int = 0, odd: list = VALUES) -> None:
    """Add items with metadata of any kind."""
    rng, first = random.Random(seed), len(index)
    told = [(f"/p/{n}.png", n.to_bytes(32), None, metadata(rng, odd)) for n in range(first, first + count)]
    vectors = Embeddings(random_levels(index.levels, count, seed))
    index.store.append([NewItem(*each, Stamp(1, 2, 3, 4)) for each in told], vectors)


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Indexes with values in files, values since, and tombstones in both: of any texts, and of plain ones."""
    found = []
    for odd in (VALUES, [value for value in VALUES if value not in NOT_PLAIN]):
        index = Index.create(tmp_path_factory.mktemp("fields") / "x", model=FakeEncoder(), fields=FIELDS)
        add(index, 700, odd=odd)
        index.store.keep_columns()
        add(index, 300, seed=1, odd=odd)
        index.remove([5, 6, 900])
        found.append(index)
    yield found
    for index in found:
        index.close()


@pytest.fixture
def index(made):
    return made[1]


@pytest.mark.parametrize("seed", range(20))
def test_columns_answer_every_condition_as_sqlite_does(made, seed):
    rng, answered = random.Random(seed), 0
    index = made[seed % 2]
    columns = CommitColumns(index.path)
    for _ in range(150):
        text = condition(rng)
        found = by_columns(index, text, columns)
        if found is not None:
            assert found == by_sql(index, text), text
            answered += 1
    assert answered > 25


@pytest.mark.parametrize(
    "text",
    [
        "year >= 2010 AND year < 2020", "camera = 'Canon' OR NOT kept", "id IN (1, 2, 3)", "price BETWEEN .5 AND 2",
        "camera LIKE '%eos%' and YEAR is not null", "kept", "metadata ->> 'any' > 5", "camera GLOB 'Canon*'",
        "((2010 <= year))", "camera IN ('a', 'Canon')", "camera = 'Müller'", "year != -5", "camera LIKE '%ü%'",
    ],
)  # fmt: skip
def test_what_people_ask_is_answered_by_columns(index, text):
    found = by_columns(index, text)
    assert found and found == by_sql(index, text)


@pytest.mark.parametrize(
    "text",
    [
        "year = '2010'", "camera = 5", "year + 1 > 2010", "year > id", "(year = 1) = 0", "camera = 'a' COLLATE NOCASE",
        "year = NULL", "year IN (1, NULL)", "year = 1 -- a note", "year IN (SELECT 2010)", "camera LIKE 'C_non'",
        "camera LIKE 'a' ESCAPE 'x'", "year = 9223372036854775808", "path = '/p/1.png'", "'a' = 'a'", "camera",
        "json_extract(metadata, '$.any[0]') = 1", "year = 0x10", "-year < 0", "year IS 2010", "year BETWEEN 1 AND 2 AND 3",
    ],
)  # fmt: skip
def test_what_columns_cannot_answer_is_left_to_sqlite(index, text):
    assert by_columns(index, text) is None
    by_sql(index, text)
