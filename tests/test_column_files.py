"""Files of columns: derived, so that none that is stale, damaged or forged changes an answer, and none is missed."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from field_values import FIELDS, VALUES, add, by_sql
from hivlp.errors import DamagedIndexError
from hivlp.files import npy
from hivlp.index import Index
from hivlp.index.verify import verify
from hivlp.store.derived import keep_columns
from hivlp.store.fields import files
from hivlp.store.fields.commit import CommitColumns
from hivlp.store.reader import Reader
from hivlp.store.records import ColumnFiles
from synthetic import FakeEncoder

ASKED = (
    "year >= 2010 AND year < 2020", "price < 25.5 OR NOT kept", "camera = 'Canon'", "id BETWEEN 20 AND 90",
    "camera IS NULL", "kept", "camera LIKE 'canon%' AND price IS NOT NULL",
)  # fmt: skip
PLACES = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent / "src")])
PLAIN = [value for value in VALUES if isinstance(value, (int, float)) or value in (None, "", "Canon", "CANON")]


def check(index: Index, asked=ASKED) -> None:
    """Whether an index that is open, and one opened anew, answer as SQLite does."""
    with Index.open(index.path, model=FakeEncoder()) as other:
        for text in asked:
            rows = by_sql(index, text)
            with index.store.reading() as reader:
                ids = {item.id for item in reader.shown(rows).values()}
            for each in (index, other):
                assert {hit.id for hit in each.search("x", k=10_000, where=text)} == ids, text


def columns_are_used(index: Index) -> bool:
    """Whether files alone, and no SQL, answer what is asked of all rows."""
    with index.store.reading() as reader:
        state = reader.state
    return CommitColumns(index.path).mask(ASKED[0], state) is not None


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    with Index.create(tmp_path_factory.mktemp("columns") / "x", model=FakeEncoder(), fields=FIELDS) as index:
        add(index, 120, odd=PLAIN)
        keep_columns(index.store)
        return index.path


@pytest.fixture
def always(monkeypatch):
    """Files are due whenever a row came since."""
    monkeypatch.setattr(files, "LEAST_TAIL", 0)
    monkeypatch.setattr(files, "GROWTH", 1 << 40)


@pytest.fixture
def index(base, tmp_path):
    shutil.copytree(base, tmp_path / "x")
    with Index.open(tmp_path / "x", model=FakeEncoder()) as index:
        yield index


def folder(index: Index) -> Path:
    (found,) = index.path.glob("fields.*")
    return found


# What changes.


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_to_an_index_its_columns_follow(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(files, "LEAST_TAIL", 30)
    rng = random.Random(seed)
    with Index.create(tmp_path / "other", model=FakeEncoder(), fields={"year": "str"}) as other:
        add(other, 40, seed=99, odd=PLAIN, first=10_000)
    with Index.create(tmp_path / "x", model=FakeEncoder(), fields=FIELDS) as index:
        add(index, 50, seed, PLAIN)
        merged = False
        for step in range(12):
            match rng.randrange(7):
                case 0 | 1:
                    add(index, rng.randrange(1, 40), rng.random(), PLAIN, first=1000 * (step + 1))
                case 2:
                    add(index, rng.randrange(1, 10), rng.random(), PLAIN, first=rng.randrange(40))  # replaced
                case 3:
                    with index.store.reading() as reader:
                        ids = [item.id for item in reader.all_items()]
                    index.remove(rng.sample(ids, rng.randrange(1, 10)))
                case 4:
                    index.compact()
                case 5:
                    keep_columns(index.store)
                case 6 if not merged:
                    merged = index.merge(tmp_path / "other") > 0
            check(index, rng.sample(ASKED, 3))
        monkeypatch.setattr(files, "LEAST_TAIL", 0)
        monkeypatch.setattr(files, "GROWTH", 1 << 40)
        keep_columns(index.store)
        assert columns_are_used(index)
        counts = index.info().fields
        assert {name: count.values for name, count in counts.items()} == {
            name: len(by_sql(index, f"{name} IS NOT NULL")) for name in FIELDS
        }
        assert all(count.values + count.without == len(index) for count in counts.values())


def test_another_process_adds_and_declares(index):
    code = """if True:
        import sys
        from field_values import add
        from hivlp.index import Index
        from synthetic import FakeEncoder
        with Index.open(sys.argv[1], model=FakeEncoder()) as index:
            add(index, 30, 5, [None, 1], first=500)
            index.declare({"any": "float"})
            index.remove([3])
            index.compact()
    """
    check(index)
    subprocess.run([sys.executable, "-c", code, str(index.path)], check=True, env={**os.environ, "PYTHONPATH": PLACES})
    assert index.fields == {**FIELDS, "any": "float"} and columns_are_used(index)
    check(index, [*ASKED, "any >= 1", "any IS NULL"])


def test_files_are_written_again_when_a_hundredth_came_since(index, monkeypatch):
    monkeypatch.setattr(files, "LEAST_TAIL", 10)
    before = folder(index)
    add(index, 10, first=200)
    assert not keep_columns(index.store) and folder(index) == before
    add(index, 1, first=300)
    check(index)
    assert keep_columns(index.store) and folder(index) != before and columns_are_used(index)
    assert not keep_columns(index.store), "nothing is due any more"


def test_the_first_condition_after_opening_runs_no_scan(base, monkeypatch):
    with Index.open(base, model=FakeEncoder()) as index:
        index.search("x")

        def refuse(*_):
            raise AssertionError("SQLite was asked")

        for name in ("rows_where", "column_values"):
            monkeypatch.setattr(Reader, name, refuse)
        for text in ASKED:
            assert index.search("x", where=text, k=200)


def test_threads_ask_while_one_adds(index, always):
    def ask(number: int) -> int:
        low = 2000 + number % 20
        with index.store.reading() as reader:
            rows = reader.rows_where(f"year >= {low}").rows
            items = {item.id for item in reader.shown(rows).values()}
            found = {hit.id for hit in index.search("x", k=1000, where=f"year >= {low}")}
        return len(items ^ found)

    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(ask, number) for number in range(100)]
        for number in range(8):
            add(index, 4, number, PLAIN, first=1000 + 10 * number)
            keep_columns(index.store)
        assert [answer.result() for answer in answers] == [0] * 100
    check(index)


def test_a_backup_that_was_put_back_is_answered_as_it_is(index, always):
    kept = (index.path / "items.db").read_bytes()
    add(index, 30, 7, first=0)
    keep_columns(index.store)
    check(index)
    index.close()
    (index.path / "items.db").write_bytes(kept)  # names files that are gone
    with Index.open(index.path, model=FakeEncoder()) as again:
        check(again)
        assert not columns_are_used(again)
        add(again, 1, first=700)
        keep_columns(again.store)
        assert columns_are_used(again)
        check(again)


def test_a_full_disk_loses_no_item(index, always, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save", full)
    add(index, 5, first=900)
    assert not keep_columns(index.store)
    assert "columns of fields are not written" in caplog.text and len(index) == 125
    check(index)


def test_what_a_killed_process_left_is_swept(index):
    (index.path / "fields.000000000000123").mkdir()
    (index.path / "fields.000000000000123" / "year.codes.npy").write_bytes(b"half")
    check(index)
    keep_columns(index.store)
    assert len(list(index.path.glob("fields.*"))) == 1


@pytest.mark.slow
def test_killed_while_writing_columns_an_index_answers_as_before(index, always):
    code = """if True:
        import itertools, sys
        from field_values import add
        from hivlp.index import Index
        from hivlp.store.fields import files
        from synthetic import FakeEncoder
        files.LEAST_TAIL, files.GROWTH = 0, 1 << 40
        with Index.open(sys.argv[1], model=FakeEncoder()) as index:
            print("ready", flush=True)
            for number in itertools.count():
                add(index, 1, number, [None, 1, 2.5], first=5000 + number % 7)
                keep_columns(index.store)
    """
    rng = random.Random(1)
    for _ in range(6):
        command = [sys.executable, "-c", code, str(index.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PLACES}) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.random() / 10)
            process.kill()
        check(index)
    add(index, 1, first=6000)
    keep_columns(index.store)
    assert columns_are_used(index) and verify(index.path).ok
    assert len(list(index.path.glob("*fields.*"))) == 1, "what was left is swept"
    check(index)


def test_a_folder_that_cannot_be_written_is_searched(index, monkeypatch):
    shutil.rmtree(folder(index))
    for path in [index.path, *index.path.iterdir()]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        check(index)
    finally:
        index.path.chmod(0o755)


def test_an_index_without_fields_is_as_before(tmp_path):
    with Index.create(tmp_path / "x", model=FakeEncoder()) as index:
        add(index, 5)
        assert not keep_columns(index.store) and index.info().fields == {}
    with closing(sqlite3.connect(tmp_path / "x" / "items.db")) as db:
        assert not {"fields", "columns", "optional_check"} & {key for (key,) in db.execute("SELECT key FROM meta")}


# What is damaged, or forged.


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


DAMAGE = {
    "missing": None,
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-3],
    "too long": lambda data: data + b"\0",
    "half its header": lambda data: data[:40],
    "a bit flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a lying length": lambda data: re.sub(rb"\(\d+,\)", b"(7,)", data),
    "another dtype": lambda data: saved(np.load(io.BytesIO(data)).astype(np.float32)),
    "pickled": lambda data: re.sub(rb"'[<|]([iu]\d)'", rb"'|O' ", data),
    "other values": lambda data: saved(np.load(io.BytesIO(data)) + 1),
    "noise": lambda data: b"\x93NUMPY" + bytes(range(200)),
}


@pytest.mark.parametrize("name", ["year.codes", "year.values", "camera.ends", "camera.values", "id.codes"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_noticed_told_and_mended(index, name, damage, caplog):
    file = folder(index) / f"{name}.npy"
    if DAMAGE[damage] is None:
        file.unlink()
    else:
        before = file.read_bytes()
        file.write_bytes(DAMAGE[damage](before))
        assert file.read_bytes() != before
    check(index)
    assert f"the column file {name}.npy is not what was written" in caplog.text
    report = verify(index.path)
    assert [found.kind for found in report.damage] == ["fields"] and name.split(".")[0] in report.damage[0].file
    index.repair()
    assert verify(index.path).ok and columns_are_used(index)
    check(index)


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link to nowhere"])
def test_what_is_no_file_is_not_read(index, what):
    file = folder(index) / "year.codes.npy"
    file.unlink()
    {"a folder": file.mkdir, "a pipe": lambda: os.mkfifo(file), "a link to nowhere": lambda: file.symlink_to("none")}[
        what
    ]()
    check(index)


FORGED = {
    "year.codes": [
        np.zeros(119, np.uint8),
        np.zeros(121, np.uint8),
        np.zeros(120, np.int8),
        np.zeros((120, 1), np.uint8),
        np.full(120, 255, np.uint8),
        np.zeros(120, np.uint64),
        np.zeros(120, np.float64),
        np.array(5, np.uint8),
    ],
    "year.values": [np.zeros(0, np.int64), np.zeros(9, np.int32), np.zeros(9, np.float64), np.zeros((3, 3), np.int64)],
    "camera.ends": [
        np.zeros(0, np.int64),
        np.array([5, 3], np.int64),
        np.array([-5, 9], np.int64),
        np.zeros(3, np.int32),
        np.array([2**62], np.int64),
    ],
    "camera.values": [np.zeros(0, np.uint8), np.zeros(9, np.int8), np.zeros((2, 2), np.uint8)],
    "id.codes": [np.zeros(120, np.uint8), np.full(120, 2**32 - 1, np.uint32), np.zeros(7, np.uint32)],
}


@pytest.mark.parametrize(("name", "array"), [(name, array) for name, arrays in FORGED.items() for array in arrays])
def test_a_forged_file_whose_checksum_is_right_is_refused(index, name, array):
    with index.store.reading() as reader:
        noted = reader.state.columns
    data = saved(array)
    (folder(index) / f"{name}.npy").write_bytes(data)
    forged = noted._replace(checks={**noted.checks, f"{name}.npy": npy.checksum(data)})
    with pytest.raises(DamagedIndexError, match=r"the column file .* is not what was written"):
        field = name.split(".")[0]
        files.load(index.path, forged, field, FIELDS.get(field, "int"))
    with index.store.changing() as writer:
        writer.note_columns(forged)
    check(index)


NOTES = ["", "5", "null", "[]", "[0, 120, 5]", "[0, -1, 5, {}]", '[0, 120, 5, {"../../etc/passwd": 5}]', "[" * 10_000]
NOTES += ["[0, 120, 1e99, {}]", '["a", 120, 5, {}]', "[0, 999999, 5, {}]"]


@pytest.mark.parametrize("noted", NOTES)
def test_what_the_catalog_says_of_them_may_be_anything(index, noted):
    with index.store.changing() as writer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ColumnFiles, "text", lambda _: noted)
        writer.note_columns(ColumnFiles(0, 0, 0, {}))
    path = index.path
    index.close()
    try:
        with Index.open(path, model=FakeEncoder()) as again:
            check(again)
    except DamagedIndexError as error:
        assert "columns" in str(error)


@pytest.mark.parametrize(
    "told", ['{"year": "int"}', '{"path": "str"}', '{"year": "date"}', "[]", "5", "{", '{"a b": "int"}']
)
def test_fields_that_were_tampered_with_are_noticed(index, told):
    path = index.path
    index.close()
    with closing(sqlite3.connect(path / "items.db")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'fields'", (told,))
    with pytest.raises(DamagedIndexError, match="the table meta is not as it was written"):
        Index.open(path)
