"""Many records stored at once are stored as each of them would be, whatever is in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from hashlib import sha256

import numpy as np
import pytest

from hivlp.index import Index
from hivlp.levels import Embeddings
from hivlp.store import inserting, writer
from hivlp.store.records import NewItem
from synthetic import STAMP, Stored

ODD_NAMES = ('it\'s "so"', "a\\b\n\t\x01\x7f", "ключ/🦊\u2028.png", "", "[1, null]", "e" * 5000, "a%sb{0}?1")


def stored(folder, encoder, names):
    """Every column of every item, appended in two commits."""
    items = [NewItem(name, sha256(name.encode("utf-8", "replace")).digest(), None, {}, STAMP) for name in names]
    vectors = Embeddings({level.name: np.eye(len(items), level.dim, dtype="<f4") for level in encoder.levels})
    with Index.create(folder, model=encoder) as index:
        index.store.append(items[:2], vectors.rows(slice(0, 2)))
        index.store.append(items[2:], vectors.rows(slice(2, None)), new=True)
        found = [(item.path, item.hash, item.stamp) for item in Stored(index).all_items()]
        assert found == [(item.path, item.hash, item.stamp) for item in items]
        assert index.verify().ok and Stored(index).at(names[4]).row == 4
        there = Stored(index).at_paths(["elsewhere", *names, "not UTF-8 \udcea", *names])
        assert {path: item.row for path, item in there.items()} == {path: row for row, path in enumerate(names)}
    with closing(sqlite3.connect(folder / "items.db")) as db:
        return db.execute("SELECT *, typeof(path), typeof(hash), typeof(crc) FROM items ORDER BY id").fetchall()


@pytest.mark.parametrize("names", [ODD_NAMES, (*ODD_NAMES, "not UTF-8 \udce9"), (*ODD_NAMES, "a\0b")])
def test_items_that_are_alike_are_stored_as_any_others(tmp_path, encoder, names, monkeypatch):
    monkeypatch.setattr(inserting, "AT_ONCE", 3)
    could = []

    def follow(*given, **more):
        could.append(inserting.insert_alike(*given, **more))
        return could[-1]

    monkeypatch.setattr(writer, "insert_alike", follow)
    records = stored(tmp_path / "alike", encoder, names)
    assert could == [True, names == ODD_NAMES]
    monkeypatch.setattr(writer, "insert_alike", lambda *_, **__: False)
    assert stored(tmp_path / "one by one", encoder, names) == records


def test_items_with_something_of_their_own_keep_it(tmp_path, encoder):
    content = bytes(31) + b"\1"
    alike = [NewItem(f"/p/{n}", content, None, {}, STAMP) for n in range(4)]
    own = [
        alike[0]._replace(caption=""),
        alike[1]._replace(metadata={"a": None}),
        alike[2]._replace(stamp=STAMP._replace(size=9)),
        alike[3]._replace(hash=b"short"),
    ]
    with Index.create(tmp_path / "index", model=encoder) as index:
        vectors = Embeddings({level.name: np.eye(4, level.dim, dtype="<f4") for level in encoder.levels})
        for place, item in enumerate(own):
            index.store.append([*alike[:place], item, *alike[place + 1 :]], vectors)
            found = Stored(index).at(item.path)
            assert NewItem(found.path, found.hash, found.caption, found.metadata, found.stamp) == item
            index.remove([each.path for each in alike])
        assert index.verify().ok
