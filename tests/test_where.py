"""Conditions from people that nobody vouches for: what they may ask, that they end, and what strangers may not add."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import unicodedata
from contextlib import closing

import pytest

from hivlp.errors import DamagedIndexError, HivlpError, QueryError
from hivlp.index import Index
from hivlp.index.photo_filter import joined
from hivlp.index.verify import verify
from hivlp.levels import Embeddings
from hivlp.store import where
from hivlp.store.folder import reading
from hivlp.store.records import NewItem, Stamp
from synthetic import FakeEncoder, random_levels, write_pictures

ITEMS = 60
LONG = "a" * 900_000


def filled(place, encoder, told) -> Index:
    """An index of items with (path, caption, metadata) each."""
    index = Index.create(place, model=encoder)
    items = [
        NewItem(path, n.to_bytes(32), caption, metadata, Stamp(10 * n, 2, 3, 4))
        for n, (path, caption, metadata) in enumerate(told)
    ]
    index.store.append(items, Embeddings(random_levels(encoder.levels, len(told))))
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    told = [(f"/p/{n}.png", LONG if n < 8 else f"a dog {n}", {"n": n, "tags": ["red", f"t{n}"]}) for n in range(ITEMS)]
    with filled(tmp_path_factory.mktemp("where") / "x", FakeEncoder(), told) as index:
        yield index


def count(index: Index, condition: str) -> int:
    return len(index.search("x", k=ITEMS, where=condition))


@pytest.mark.parametrize(
    ("condition", "passing"),
    [
        ("id <= 10 AND NOT id = 3", 9),
        ("path LIKE '/p/1_.png'", 10),
        ("path GLOB '/p/[12].png'", 2),
        ("lower(upper(path)) = '/p/5.png' OR substr(path, 4) = '6.png'", 2),
        ("length(path) = 8 AND instr(path, '9') > 0", 1),
        ("abs(round(id / 2.0 - 5)) < 1 AND coalesce(NULL, ifnull(nullif(id, 1), 0)) > 9", 1),
        ("iif(id = 4, 1, 0) AND trim(' x ') = 'x' AND trim('--x-', '-') = 'x'", 1),
        ("json_extract(metadata, '$.n') = 7", 1),
        ("metadata->>'n' IN (1, 2, 3) AND metadata->'tags'->>0 = 'red'", 3),
        ("EXISTS (SELECT 1 FROM json_each(metadata, '$.tags') WHERE value = 't9')", 1),
        ("'t9' IN (SELECT value FROM json_each(items.metadata, '$.tags'))", 1),
        ("id IN (SELECT max(id) FROM items)", 1),
        ("(SELECT count(*) FROM items other WHERE other.caption = items.caption) > 1", 8),
        ("date('now') > '2020-01-01' AND strftime('%Y', '2024-06-01') = '2024'", ITEMS),
        ("max(id, 58) = min(id, 100)", 3),
        ("id = 1 -- nothing more", 1),
        ("id = 1 /* nothing more */", 1),
        (f"id IN ({','.join(map(str, range(5_000)))})", ITEMS),
        (" OR ".join(f"path LIKE '%/{n}.png'" for n in range(50)), 50),
    ],
)
def test_a_condition_may_ask_for_what_people_look_for(index, condition, passing):
    assert count(index, condition) == passing


GROWN = "(SELECT x || x || x || x AS x FROM (SELECT substr(caption, 1, 200000) AS x FROM items LIMIT 1))"


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("instr(zeroblob(16000000), x'00') > 0", r"call zeroblob\(\)"),
        ("length(printf('%.*c', 2147483647 - id, 'a')) > 0", r"call printf\(\)"),
        ("format('%1000000d', id) > ''", r"call format\(\)|no such function"),
        ("hex(randomblob(100000000)) > ''", r"call (hex|randomblob)\(\)"),
        ("replace(caption, 'a', caption) > ''", r"call replace\(\)"),
        ("(SELECT group_concat(caption) FROM items) > ''", r"call group_concat\(\)"),
        ("(SELECT json_group_array(caption) FROM items) > ''", r"call json_group_array\(\)"),
        ("record_crc(caption, caption) > 0", "record_crc"),
        ("quote(caption) > ''", r"call quote\(\)"),
        ("caption || caption > ''", "longer than 1 MB"),
        (f"trim({GROWN}, {GROWN}) > ''", r"trim\(\) takes 64"),
        ("caption LIKE '%" + "a%" * 5_000 + "b'", "too complex"),
        ("id IN (WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c)", "may"),
        ("id IN (" + " UNION ".join(["SELECT 1"] * 400) + ")", "compound"),
        ("(" * 30_000 + "1" + ")" * 30_000, "overflow|too large"),
        (" OR ".join(["id = 1"] * 5_000), "too large"),
        (f"id IN ({','.join(map(str, range(100_000)))})", "too long"),
        ("+".join(["length(path)"] * 300), "more than 250 functions"),
        ("sqlite_log(1, 'x')", r"call sqlite_log\(\)"),
        ("load_extension('x')", r"call load_extension\(\)"),
        ("id IN (SELECT value FROM meta)", "read meta"),
        ("(SELECT count(*) FROM sqlite_schema) > 0", "read sqlite_"),
        ("id IN (SELECT cid FROM pragma_table_info('items'))", "nothing else"),
        ("id = ?", "placeholder"),
        ("id = :name", "placeholder"),
        ("1 ORDER BY id", "ORDER"),
        ("1) LIMIT (1", "bracket closes"),
        ("1; ATTACH 'x' AS y", "where is"),
        ("ATTACH 'x' AS y", "syntax"),
        ("PRAGMA writable_schema = 1", "syntax"),
        ("1) UNION SELECT (1", "where is"),
        ("(id = 1", "bracket opens"),
        ("1) OR (1", "bracket closes"),
        ("id = 0 /* ( */ ) OR (1", "bracket closes"),
        ("id = '(' ) OR (1", "bracket closes"),
        ('id = "a" -- "\n) OR (1', "bracket closes"),
        ("id = 1)", "where is"),
        ("id = 'x", "quote"),
        ("1 /* open", "comment"),
        ("1)) /*", "where is"),
        ("id = 1 /*/", "comment"),
        ('id = "open', "quote"),
        ("id = [open", "quote"),
        ("id = 1\0", "NUL"),
        (" ", "empty"),
        ("\ud800", "where is"),
    ],
)
def test_a_condition_that_does_more_is_refused_at_once_and_says_why(index, condition, reason):
    with pytest.raises(QueryError, match=reason) as refused:
        count(index, condition)
    assert "\n" not in str(refused.value)
    assert count(index, "id = 1") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition",
    [
        "(SELECT count(*) FROM items a, items b, items c, items d, items e, items f) > 0",
        "id IN (SELECT a.id * b.id + c.id FROM items a, items b, items c, items d, items e, items f)",
        "(SELECT a.id FROM items a, items b, items c, items d, items e ORDER BY random()) > 0",
        # Inside one function, and between functions, SQLite looks at no clock: such a condition is left to itself.
        "+".join(["(caption LIKE '%" + "a" * 400 + "b')"] * 30),
        f"instr({GROWN}, 'b') + (SELECT count(*) FROM items a, items b, items c, items d, items e, items f)",
        "EXISTS (SELECT 1 FROM json_tree('{0}') a, json_tree('{0}') b WHERE a.fullkey || b.fullkey = 'z')".format(
            "[" * 800 + "]" * 800
        ),
    ],
)
def test_a_condition_of_any_kind_ends_in_its_time(index, monkeypatch, condition):
    monkeypatch.setattr(where, "WHERE_SECONDS", 0.2)
    with pytest.raises(QueryError, match=r"took longer than 0\.2 s"):
        count(index, condition)
    monkeypatch.undo()
    assert count(index, "id = 1") == 1, "the index is as usable as before"


def test_a_condition_waits_for_no_writer_who_waits_for_its_search(index, tmp_path):
    """A reader whose condition needed a lock of its own would stand still as soon as a writer wants to commit."""
    place = tmp_path / "x"
    shutil.copytree(index.path, place)
    with (
        reading(place) as reader,
        closing(sqlite3.connect(place / "items.db", timeout=0, isolation_level=None)) as writer,
    ):
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE dead SET row = row")
        writer.execute("INSERT INTO dead VALUES (1000000)")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("COMMIT")  # now it holds the pending lock, which keeps new readers out
        assert len(reader.rows_where("id <= 2").rows) == 2
        # The connection of the condition is closed, the reader's lock is held all the same.
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN EXCLUSIVE')"
        other = subprocess.run([sys.executable, "-c", script, place / "items.db"], capture_output=True, text=True)
        assert "locked" in other.stderr
        writer.execute("ROLLBACK")


def test_conditions_leave_no_threads_behind(index):
    before = threading.active_count()
    for condition in ("id = 1", "nosuch", "hex(id)"):
        try:
            count(index, condition)
        except QueryError:
            continue
    assert threading.active_count() <= before


def test_a_letter_is_found_however_it_is_spelt(tmp_path, encoder):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    told = [
        (f"/p/caf{composed}.png", f"th{apart}", {"ville": f"Li{apart}ge"}),
        (f"/p/caf{apart}.png", f"th{composed}", {"ville": f"Li{composed}ge", f"cl{apart}": 1}),
        ("/p/cafe.png", "the", {}),
    ]
    with filled(tmp_path / "x", encoder, told) as index:
        for letter in (composed, apart):
            for condition in (
                f"path = '/p/caf{letter}.png'",
                f"path LIKE '%caf{letter}%'",
                f"caption = 'th{letter}'",
                f"metadata->>'ville' = 'Li{letter}ge'",
                f"id IN (SELECT id FROM items WHERE path = '/p/caf{letter}.png')",
            ):
                assert {hit.id for hit in index.search("x", where=condition)} == {1, 2}, condition
            assert [hit.id for hit in index.search("x", where=f"path NOT LIKE '%caf{letter}%'")] == [3]
            assert [hit.id for hit in index.search("x", where=f"metadata->>'cl{letter}' = 1")] == [2]


FOREIGN = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
    "view": "CREATE VIEW v AS SELECT * FROM items",
    "table": "CREATE TABLE more (x)",
    "virtual table": "CREATE VIRTUAL TABLE more USING fts5(x)",
    "index": "CREATE INDEX more ON items (caption)",
    "expression index": "CREATE INDEX more ON items (abs(size))",
    "generated column": "ALTER TABLE items ADD COLUMN g AS (length(path))",
    "default": "ALTER TABLE items ADD COLUMN g DEFAULT (1)",
    "check": "ALTER TABLE dead ADD COLUMN g CHECK (g > 0)",
    "write-ahead log": "PRAGMA journal_mode = WAL",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_strangers_put_into_the_database_is_refused_when_it_is_opened(tmp_path, encoder, what):
    with filled(tmp_path / "x", encoder, [("/p/1.png", None, {})]) as index:
        assert verify(index.path).ok
    with closing(sqlite3.connect(tmp_path / "x" / "items.db")) as db:
        db.execute(FOREIGN[what])
    with pytest.raises(DamagedIndexError, match="not as hivlp makes it") as refused:
        Index.open(tmp_path / "x", encoder)
    assert "\n" not in str(refused.value)
    assert not verify(tmp_path / "x").ok


def test_a_table_defined_otherwise_is_refused(tmp_path, encoder):
    filled(tmp_path / "x", encoder, [("/p/1.png", None, {})]).close()
    with closing(sqlite3.connect(tmp_path / "x" / "items.db", isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'caption TEXT', 'caption TEXT DEFAULT (random())')")
    with pytest.raises(DamagedIndexError, match="table 'items' is not as hivlp makes it"):
        Index.open(tmp_path / "x", encoder)


def test_an_item_in_a_row_that_there_is_not_is_told(tmp_path, encoder):
    filled(tmp_path / "x", encoder, [(f"/p/{n}.png", None, {}) for n in range(5)]).close()
    for row in (10**9, -3):
        with closing(sqlite3.connect(tmp_path / "x" / "items.db", isolation_level=None)) as db:
            db.execute("UPDATE items SET row = ? WHERE id = 2", (row,))
        with Index.open(tmp_path / "x", encoder) as index, pytest.raises(HivlpError, match=r"names row -?[0-9]+"):
            index.search("x", where="id > 0")


def test_pictures_and_conditions_go_together(tmp_path, encoder):
    write_pictures(tmp_path / "p", 4)
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(tmp_path / "p")
        assert len(index.search("x", where="metadata->>'format' = 'PNG' AND metadata->>'width' = 12")) == 4


@pytest.mark.parametrize(
    "condition",
    [
        "path LIKE '%)%' OR id = 1",
        "id = 1 -- ) (",
        "id = 1 /* ( ' */",
        'id IN (1, "id") AND [id] = 1',
        "(id) = ((1))",
        "'it''s )' <> '' AND id = 1",
    ],
)
def test_brackets_in_quotes_and_comments_are_letters(index, condition):
    assert count(index, condition) >= 1


def test_a_condition_cannot_leave_what_it_is_joined_with():
    assert joined("id = 1 -- (", "id < 3") == "(id = 1 -- (\n) AND (id < 3\n)"
    for condition in ("1) OR (1", "1 /*", "(1", "'", ""):
        for conditions in ((condition, "id = 0"), ("id = 0", condition)):
            with pytest.raises(QueryError, match="where "):
                joined(*conditions)
