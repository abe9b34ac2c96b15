"""The change counter: another one after each commit, and no danger for SQLite's locks."""

import gc
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hivlp.coarse.maps import NoCoarseLevel
from hivlp.errors import HivlpError, IndexFolderError
from hivlp.index import Index
from hivlp.store import changes
from hivlp.store.changes import ChangeCounter
from hivlp.store.database import Connections
from synthetic import FakeEncoder

WRITE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0.1, isolation_level=None)
try:
    db.execute(sys.argv[2])
    print("written")
except sqlite3.OperationalError as error:
    print(error)
"""


@pytest.fixture
def file(tmp_path):
    with sqlite3.connect(tmp_path / "items.db", isolation_level=None) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    return tmp_path / "items.db"


def write_elsewhere(file, sql="INSERT INTO t VALUES (7)") -> str:
    done = subprocess.run([sys.executable, "-c", WRITE, str(file), sql], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_commit_of_any_process_changes_it_and_nothing_else_does(file):
    counter = ChangeCounter(file)
    db = sqlite3.connect(file, isolation_level=None)
    seen = [counter.read()]
    for number in range(5):
        db.execute("INSERT INTO t VALUES (?)", (number,))
        seen.append(counter.read())
    db.execute("SELECT * FROM t").fetchall()
    db.execute("BEGIN")
    db.execute("INSERT INTO t VALUES (9)")
    db.execute("ROLLBACK")
    assert counter.read() == seen[-1]
    assert write_elsewhere(file) == "written"
    seen.append(counter.read())
    assert len(set(seen)) == len(seen)
    db.close()
    counter.close()
    counter.close()


def test_closing_one_leaves_the_locks_of_connections_alone(file):
    """POSIX lets go of all locks of a process with any handle of the file that it closes."""
    first, second = ChangeCounter(file), ChangeCounter(file)
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("BEGIN")
    db.execute("SELECT * FROM t").fetchall()
    ChangeCounter(file).close()
    second.close()
    assert write_elsewhere(file) == "database is locked"
    db.execute("COMMIT")
    assert write_elsewhere(file) == "written"
    db.close()
    first.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "items.db").write_bytes(b"short")
    with pytest.raises(ValueError):
        ChangeCounter(tmp_path / "items.db")
    with pytest.raises(OSError):
        ChangeCounter(tmp_path / "none.db")


@pytest.mark.slow
def test_a_pool_that_nobody_closes_lets_go_of_the_file(file):
    pool = Connections(file)
    with pool.borrow() as db:
        db.execute("SELECT * FROM t").fetchall()
    key = file.stat().st_dev, file.stat().st_ino
    assert changes.OPENED[key][1] == 1
    del pool, db
    gc.collect()
    assert key not in changes.OPENED


@pytest.mark.slow
def test_a_pool_that_is_collected_while_the_lock_is_held_lets_go_later(file):
    pool = Connections(file)
    key = file.stat().st_dev, file.stat().st_ino
    with changes._lock:  # the collector may come at any allocation, also there
        del pool
        gc.collect()
        assert changes.OPENED[key][1] == 1
    ChangeCounter(file).close()
    assert key not in changes.OPENED


def test_a_pool_closed_beside_a_search_says_so(file):
    pool = Connections(file)
    check = pool.check

    def closed_in_between() -> None:
        check()
        pool.close()

    pool.check = closed_in_between
    with pytest.raises(IndexFolderError, match="was closed"):
        pool.changes()


def test_a_file_in_a_lower_layer_is_opened_as_sqlite_opens_it(file, monkeypatch):
    """An overlay copies a file up when it is opened for writing: a handle for reading alone keeps the old one."""
    modes, plain = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: modes.append(mode) or plain(path, mode))
    ChangeCounter(file).close()
    assert modes == ["r+b"]


TRUNCATE = """
import sys
from hivlp.index import Index
from hivlp.errors import IndexFolderError
with Index.open(sys.argv[1]) as index:
    open(sys.argv[1] + "/items.db", "wb").close()
    try:
        index.search(vector=[1.0] * 16)
    except IndexFolderError as error:
        print(error)
"""


@pytest.fixture
def index(tmp_path):
    with Index.create_from_embeddings(tmp_path / "index", NoCoarseLevel(16), model=FakeEncoder(dims=(16,))) as made:
        np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(30, 16)).astype(np.float32))
        made.add_embeddings(tmp_path / "v.npy")
        yield made


def test_a_truncated_catalog_is_an_error_and_kills_nobody(index):
    """As `cp backup items.db` leaves it for a moment."""
    index.close()
    done = subprocess.run([sys.executable, "-c", TRUNCATE, str(index.path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is damaged" in done.stdout or "cannot be read" in done.stdout


@pytest.mark.parametrize("name", ["items.db", "link.png"])
def test_the_catalog_of_an_open_index_is_no_picture_and_keeps_its_locks(index, tmp_path, name):
    file = index.path / name
    if name != "items.db":
        file = tmp_path / name
        file.symlink_to(index.path / "items.db")
    with index.store.reading():
        with pytest.raises(HivlpError, match="the catalog of an index that is open"):
            index.search(image=file)
        assert write_elsewhere(index.path / "items.db", "INSERT INTO dead VALUES (7)") == "database is locked"


def test_adding_the_catalog_of_an_open_index_fails_in_a_line_and_keeps_its_locks(index, tmp_path):
    with Index.create(tmp_path / "pictures", model=FakeEncoder()) as other, index.store.reading():
        (failure,) = other.add(index.path / "items.db").failed
        assert failure.error == "it is the catalog of an index that is open"
        assert write_elsewhere(index.path / "items.db", "INSERT INTO dead VALUES (7)") == "database is locked"


def test_a_caption_file_that_is_the_catalog_of_an_open_index_is_none_and_keeps_its_locks(index, tmp_path, pictures):
    picture = next(path for path in sorted(pictures.rglob("*")) if path.suffix == ".png")
    os.link(index.path / "items.db", picture.with_suffix(".txt"))
    with Index.create(tmp_path / "others", model=FakeEncoder()) as other, index.store.reading():
        assert other.add(picture).added == 1 and next(iter(other.items())).caption is None
        assert write_elsewhere(index.path / "items.db", "INSERT INTO dead VALUES (7)") == "database is locked"
