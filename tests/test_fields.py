"""Declared fields: what they are, and columns that answer conditions on them as SQLite does."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest

from field_values import FIELDS, NOT_PLAIN, VALUES, add, add_told, by_columns, by_sql, condition
from hivlp.errors import ArgumentError, DataError, QueryError
from hivlp.index import Index, index_embeddings
from hivlp.store.derived import keep_columns
from hivlp.store.fields import commit
from hivlp.store.fields.commit import ASKED, CommitColumns
from synthetic import FakeEncoder, random_unit, write_pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Indexes with values in files, values since, and tombstones in both: of any texts, and of plain ones."""
    found = []
    for odd in (VALUES, [value for value in VALUES if value not in NOT_PLAIN]):
        index = Index.create(tmp_path_factory.mktemp("fields") / "x", model=FakeEncoder(), fields=FIELDS)
        add(index, 700, odd=odd)
        keep_columns(index.store)
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
        "json_extract(metadata, '$.any[0]') = 1", "year = 0x10", "-year < 0", "year IS 2010",
        "price IN (9007199254740993)", "year BETWEEN 1 AND 2 AND 3", "[year] = 1",
        "items.year = 1", "year IN (" + "1, " * 9000 + "1)",
    ],
)  # fmt: skip
def test_what_columns_cannot_answer_is_left_to_sqlite(index, text):
    assert by_columns(index, text) is None
    by_sql(index, text)


@pytest.mark.parametrize(
    "text",
    [
        "year >", "year = 1)", "(year = 1", "year NOT NOTNULL", "colour = 'red'", "year = 'a", "",
        "year = 5x", "year > --5", "year LIKE", "NOT", "year AND", "1 = 1; DROP TABLE items", "BETWEEN 1 AND 2",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(index, text):
    assert by_columns(index, text) is None
    with pytest.raises(QueryError):
        index.search("x", where=text)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int", [(2010, 2010), (2010.0, 2010), (-(2**63) + 1, -(2**63) + 1), (2010.5, None), (2**63, None)]),
        ("int", [(10**30, None), ("2010", None), (True, None), ("", None)]),
        ("float", [(2010, 2010.0), (0.1, 0.1), (-1e308, -1e308), (2**64, 2.0**64), ("0.1", None), (True, None)]),
        ("str", [("", ""), ("a", "a"), ("2010", "2010"), ("Müller", "Müller"), (5, None), (0.5, None), (True, None)]),
        ("bool", [(True, 1), (False, 0), (0, 0), (1, 1), (2, None), (0.5, None), ("true", None)]),
    ],
)
def test_a_value_of_another_type_is_null(tmp_path, kind, values):
    with Index.create(tmp_path / "x", model=FakeEncoder(), fields={"value": kind}) as index:
        given = [*values, (None, None), ([1, 2], None), ({"a": 1}, None)]
        add_told(index, [{"value": value} for value, _ in given])
        found = keep_columns(index.store) and index.info().fields["value"]
        assert found.values == sum(value is not None for _, value in given)
        assert found.without == len(given) - found.values
        for row, (_, value) in enumerate(given):
            text = "value IS NULL" if value is None else f"value = {value!r}"
            assert row in by_columns(index, text) and row in by_sql(index, text), text


def test_numbers_that_json_has_not_are_no_metadata(tmp_path):
    pictures = write_pictures(tmp_path / "p", 2)
    with Index.create(tmp_path / "x", model=FakeEncoder(), fields={"price": "float"}) as index:
        for value in (float("nan"), float("inf")):
            with pytest.raises(DataError, match="which JSON has no number for"):
                index.add(tmp_path / "p", metadata={pictures[0]: {"price": value}})
        assert len(index) == 0


def test_metadata_that_sqlite_cannot_read_have_no_fields(tmp_path):
    with Index.create(tmp_path / "x", model=FakeEncoder(), fields=FIELDS) as index:
        add_told(index, [{"year": 2010}, {"year": 2010, "price": float("nan")}])
        keep_columns(index.store)
        assert by_columns(index, "year = 2010") == by_sql(index, "year = 2010")
        for text in ["metadata ->> 'year' = 2010", "NOT metadata ->> 'year' = 2010"] * (ASKED + 1):
            answers = []
            for ask in (lambda: by_columns(index, text), lambda: by_sql(index, text)):  # noqa: B023
                with suppress(QueryError):  # in some versions of SQLite
                    answers.append(ask())
            assert answers in ([None], [answers[-1], answers[-1]])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"year": "date"}, "int, float, str or bool"),
        ({"two words": "int"}, "ASCII letters"),
        ({"j\u00e4hr": "int"}, "ASCII letters"),
        ({"a.b": "int"}, "ASCII letters"),
        ({"": "int"}, "ASCII letters"),
        ({"a" * 65: "int"}, "ASCII letters"),
        ({3: "int"}, "ASCII letters"),
        ({"path": "str"}, "means something else"),
        ({"ID": "int"}, "means something else"),
        ({"select": "int"}, "means something else"),
        ({"year": "int", "Year": "int"}, "are one field"),
        ({"year": 5}, "int, float, str or bool"),
        (["year"], "must map names to types"),
        ({f"f{number}": "int" for number in range(65)}, "at most 64"),
    ],
)
def test_what_cannot_be_declared_is_refused_and_leaves_everything_as_it_was(tmp_path, index, given, why):
    with pytest.raises(ArgumentError, match=why):
        Index.create(tmp_path / "x", model=FakeEncoder(), fields=given)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ArgumentError, match=why):
        index.declare(given)
    assert index.fields == FIELDS


def test_fields_are_declared_later_and_with_another_type(tmp_path):
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        add(index, 100)
        assert index.fields == {} and not list(index.path.glob("fields.*"))
        assert by_columns(index, "year > 2010") is None
        with pytest.raises(QueryError, match="no such column: year"):
            index.search("x", where="year > 2010")
        index.declare({"year": "int"})
        assert by_columns(index, "year > 2010") == by_sql(index, "year > 2010") != []
        index.declare({"year": "str", "price": "float"})
        assert index.fields == {"year": "str", "price": "float"}
        assert by_columns(index, "year > '2010'") == by_sql(index, "year > '2010'") != []
        assert len(list(index.path.glob("fields.*"))) == 1
        with pytest.raises(ArgumentError, match="year and YEAR are one field"):
            index.declare({"YEAR": "int"})


def test_a_key_is_learnt_once_it_was_asked_for_often(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "MOST_LEARNT", 2)
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        add(index, 100)
        columns = CommitColumns(index.path)
        with index.store.reading() as reader:

            def answered(key: str, year: int) -> bool:
                return columns.mask(f"metadata ->> '{key}' >= {year}", reader.state, reader) is not None

            assert [answered("year", 2000 + number) for number in range(ASKED + 2)] == [False] * ASKED + [True, True]
            assert columns.mask("metadata ->> 'year' < 5", reader.state) is not None, "without a reader"
            for key in ("price", "camera"):
                assert [answered(key, number) for number in range(ASKED + 1)] == [False] * ASKED + [True]
            assert columns.mask("metadata ->> 'year' < 6", reader.state) is None, "the oldest is forgotten"
        for where in ("metadata ->> 'year' >= 2010", "metadata ->> 'year' >= 2015") * (ASKED + 1):
            assert {hit.id - 1 for hit in index.search("x", k=100, where=where)} == {*by_sql(index, where)}


def test_columns_stop_where_texts_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "MOST_TEXT", 1000)
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        add_told(index, [{"note": f"{number}" * 600} for number in range(3)])
        assert by_columns(index, "metadata ->> 'note' > '1'") is None


@pytest.mark.parametrize("later", [False, True])
def test_fields_of_given_vectors(tmp_path, later):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = {"year": [2010, None, 2012, 2013], "price": [0.5, float("nan"), float("inf"), 2.0]}
    table = {"embedding": random_unit(np.random.default_rng(0), 4, 16).tolist(), **values}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    for fields in ({}, {"year": "int", "price": "float"}) if later else ({"year": "int", "price": "float"},):
        index_embeddings(tmp_path / "x", tmp_path / "v.parquet", method="none", fields=fields)
    with Index.open(tmp_path / "x") as index:
        counts = {name: (count.values, count.without) for name, count in index.info().fields.items()}
        assert counts == {"year": (3, 1), "price": (2, 2)}
        query = np.eye(16, dtype=np.float32)[0]
        assert {hit.id for hit in index.search(vector=query, where="year > 2010 AND price = 2")} == {4}
