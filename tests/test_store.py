"""What every store keeps, whatever its codec, from whatever thread it is asked."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hivlp.errors import ArgumentError, DamagedIndexError, IndexFolderError, QueryError
from hivlp.levels import Embeddings, Level
from hivlp.store import folder as folder_module
from hivlp.store.codec import CODECS, FLOAT16, FLOAT32, INT8, not_unit
from hivlp.store.folder import Store, reading
from hivlp.store.making import make_store
from hivlp.store.merging import merge
from hivlp.store.records import About, NewItem, Stamp
from hivlp.store.repair import repair_store
from hivlp.store.verify import verify_store

LEVELS = (Level("coarse", 8, 1, 1), Level("fine", 40, 2, 2))
ABOUT = About("numbers", "numbers", "0" * 64, LEVELS)
STAMP = Stamp(1, 2, 3, 4)
TOLERANCE = {"float16": 1e-3, "float32": 1e-7, "int8": 1e-2}


def item(number: int, version: int = 0) -> NewItem:
    return NewItem(f"/p/{number}", number.to_bytes(32), f"version {version}", {"n": number}, STAMP)


def vectors(numbers, version: int = 0) -> Embeddings:
    """Unit vectors that tell the number and the version of their item."""
    drawn = {}
    for level in LEVELS:
        rows = [np.random.default_rng([number, version]).normal(size=level.dim) for number in numbers]
        drawn[level.name] = np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(-1, level.dim)
    return Embeddings(drawn)


def append(store: Store, numbers, version: int = 0) -> int:
    return store.append([item(number, version) for number in numbers], vectors(numbers, version))


@pytest.fixture(params=sorted(CODECS))
def codec(request) -> str:
    return request.param


@pytest.fixture
def store(tmp_path, codec):
    make_store(tmp_path / "x", ABOUT, codec=codec)
    with closing(Store(tmp_path / "x")) as store:
        append(store, range(30))
        yield store


def check(store: Store, expected: dict[int, int], codec: str) -> None:
    """The store holds these numbers at these versions, each with its own vectors, and is sound."""
    assert verify_store(store).ok
    with store.reading() as reader:
        items = list(reader.all_items())
        held = {each.metadata["n"]: each.caption for each in items}
        assert held == {number: f"version {version}" for number, version in expected.items()}
        found = reader.embeddings([each.row for each in items], check=True)
        for at, each in enumerate(items):
            number = each.metadata["n"]
            for name, array in vectors([number], expected[number]).items():
                tolerance = TOLERANCE[codec if name == "fine" else "float16"]
                np.testing.assert_allclose(found[name][at], array[0], atol=tolerance)


# One contract for every codec.


def test_what_is_appended_is_there_and_sound(store, codec):
    check(store, dict.fromkeys(range(30), 0), codec)
    info = store.info()
    assert (info["vectors"], info["items"], info["rows"], info["dead"]) == (codec, 30, 30, 0)
    assert info["format"] == (2 if codec == "float16" else 3)
    fine, coarse = (store.path / f"fine.0.{CODECS[codec].suffix}", store.path / "coarse.0.f16")
    assert coarse.stat().st_size == 30 * 16
    assert fine.stat().st_size == 30 * {"float16": 80, "float32": 160, "int8": 44}[codec]


def test_replacing_removing_and_compacting_keep_every_vector_as_stored(store, codec):
    assert append(store, range(5, 12), version=1) == 7
    assert store.remove(["/p/0", "/p/29"]) == 2
    expected = {number: int(5 <= number < 12) for number in range(1, 29)}
    check(store, expected, codec)
    with store.reading() as reader:
        before = {each.id: reader.vectors()[-1][each.row].tobytes() for each in reader.all_items()}
    assert store.compact() == 9 and store.compact() == 0
    check(store, expected, codec)
    with store.reading() as reader:
        assert {each.id: reader.vectors()[-1][each.row].tobytes() for each in reader.all_items()} == before
    assert sorted(file.name for file in store.path.glob("*.*.*")) == [
        "coarse.1.f16", f"fine.1.{CODECS[codec].suffix}"
    ]  # fmt: skip


def test_every_flipped_bit_of_a_vector_is_named_and_repaired(store, codec):
    rng = random.Random(0)
    file = next(store.path.glob("fine.0.*"))
    whole = file.read_bytes()
    for _ in range(60):
        bit = rng.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        (damage,) = verify_store(store).damage
        row = bit // 8 // (len(whole) // 30)
        assert (damage.kind, damage.level, damage.rows) == ("vectors", "fine", (row,))
        with pytest.raises(DamagedIndexError, match=f"row {row}; run `hivlp repair`"):
            store.embeddings(row)
    with pytest.raises(DamagedIndexError):
        store.remove([1 + (row + 1) % 30]), store.compact()
    with store.writer():
        assert repair_store(store, verify_store(store)) == []
    report = verify_store(store)
    assert report.ok and [path for _, path in report.lost] == [f"/p/{row}"]
    append(store, [row])
    expected = dict.fromkeys(set(range(30)) - {(row + 1) % 30}, 0)
    check(store, expected, codec)


def test_vectors_cut_off_or_gone_are_named_and_the_rest_is_kept(store, codec):
    file = next(store.path.glob("fine.0.*"))
    file.write_bytes(file.read_bytes()[: 20 * store.info()["levels"]["fine"]])
    held = len(file.read_bytes()) // CODECS[codec].row(40).itemsize
    (damage,) = verify_store(store).damage
    assert damage.rows == tuple(range(held, 30))
    with store.writer():
        assert repair_store(store, verify_store(store)) == []
    assert len(verify_store(store).lost) == 30 - held
    check(store, dict.fromkeys(range(held), 0), codec)


@pytest.mark.parametrize("other", sorted(CODECS))
def test_stores_of_different_codecs_merge(store, codec, other, tmp_path):
    make_store(tmp_path / "y", ABOUT, codec=other)
    with closing(Store(tmp_path / "y")) as second:
        append(second, range(20, 50), version=2)
        assert merge(store, second.path) == 20
    loose = max(codec, other, key=lambda name: TOLERANCE[name])
    check(store, dict.fromkeys(range(30), 0) | dict.fromkeys(range(30, 50), 2), loose)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_every_reported_commit_whole(tmp_path, codec, seed):
    make_store(tmp_path / "x", ABOUT, codec=codec)
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with closing(Store(tmp_path / "x")) as store:
                for number in range(1000):
                    append(store, range(10 * number, 10 * number + 10))
                    append(store, [10 * number], version=1)
                    store.compact()
                    os.write(into, b".")
        finally:
            os._exit(1)
    os.close(into)
    for _ in range(3):
        assert os.read(out, 1) == b"."
    time.sleep(random.Random(seed).random() / 30)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reported = 3
    with os.fdopen(out, "rb") as rest:
        reported += len(rest.read())
    with closing(Store(tmp_path / "x")) as store:
        items = len(store)
        assert items // 10 >= reported and items % 10 == 0
        expected = {number: int(number % 10 == 0) for number in range(items)}
        with store.reading() as reader:
            last = reader.at(f"/p/{items - 10}")
        if last.caption == "version 0":  # killed between the two commits of its turn
            expected[items - 10] = 0
        check(store, expected, codec)
        append(store, range(items))
        store.compact()
        check(store, dict.fromkeys(range(items), 0), codec)


# Codecs.


def test_int8_keeps_length_and_direction():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(500, 96))
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    stored = INT8.encode(unit)
    decoded = INT8.decode(stored)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
    assert np.einsum("ij,ij->i", decoded, unit).min() > 0.9999
    assert INT8.row(96).itemsize == 100 and INT8.dim(stored) == 96
    assert not len(INT8.not_unit(stored))
    peak = np.full((1, 5000), 0.4 / 127, np.float32)  # a vector whose small numbers all round to nothing
    peak[0, 7] = 1
    np.testing.assert_allclose(np.linalg.norm(INT8.decode(INT8.encode(peak))), np.linalg.norm(peak), rtol=1e-4)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_rows_that_no_unit_vector_can_be_are_found(codec):
    unit = np.eye(9, 12, dtype=np.float32)
    stored = codec.encode(np.concatenate([unit, np.zeros((1, 12), np.float32), 2 * unit[:1]]))
    assert codec.not_unit(stored).tolist() == [9, 10]
    spoilt = stored.copy()
    (spoilt["scale"] if codec is INT8 else spoilt)[3] = np.nan
    assert codec.not_unit(spoilt).tolist() == [3, 9, 10]
    room = codec.empty(4, 12)
    assert codec.encode(unit[:2], room[1:3]).base is room
    np.testing.assert_array_equal(codec.decode(room[1:3]), unit[:2])


def test_a_dtype_that_its_format_cannot_have_is_refused(tmp_path):
    make_store(tmp_path / "x", ABOUT)
    with closing(Store(tmp_path / "x")) as store, store.changing() as writer:
        writer.set_rows(0, dtype=INT8.dtype)
    with pytest.raises(DamagedIndexError, match="dtype is 'int8'"), reading(tmp_path / "x"):
        pass


def test_records_are_spelt_and_sealed_as_in_every_version(tmp_path):
    """The checksum of all that ``items.db`` says, as the version that introduced format 2 wrote it."""
    names = ("/p/a.png", "/p/café 🦊.png", "not UTF-8 \udce9", 'it\'s "so"\n')
    levels = (Level("coarse", 4, 1, 1), Level("fine", 8, 2, 2))
    make_store(tmp_path / "x", About("m", "s", "f" * 64, levels))
    with closing(Store(tmp_path / "x")) as store:
        for turn in range(3):
            told = (None, {}) if turn == 0 else ("a caption é", {"n": turn, "ké": [1, None]})
            items = [NewItem(name, digest(name), *told, Stamp(turn, 2**60, 3, 4)) for name in names[turn:]]
            unit = {level.name: np.eye(level.dim, dtype=np.float32)[: len(items)] for level in levels}
            store.append(items, Embeddings(unit), restamp=[(1, Stamp(9, 9, 9, turn))])
        store.remove([2]), store.compact()
    with closing(sqlite3.connect(tmp_path / "x" / "items.db")) as db:
        tables = ("items", "blocks", "lost", "meta")
        said = [(name, sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=ascii)) for name in tables]
        said.append(("sql", sorted(db.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL").fetchall())))
    found = hashlib.sha256(ascii(said).encode()).hexdigest()
    assert found == "45561538496d3ecbcbecc95149fa854220f97a92605478d22ba6ec296d8e7e1e"


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


# Reading.


def test_items_are_listed_by_id_page_by_page(store):
    store.remove([4])
    with store.reading() as reader:
        assert [each.id for each in reader.items(limit=5)] == [1, 2, 3, 5, 6]
        assert [each.id for each in reader.items(after=28)] == [29, 30]
        assert reader.items(after=30) == []
        found, shown = reader.get(5), reader.shown([4])[4]
        assert found is not None and found == reader.at("/p/4")
        assert shown[:3] == (5, "/p/4", found.caption) and shown.metadata == found.metadata == {"n": 4}
        assert reader.alive().tolist() == [row != 3 for row in range(30)] and reader.dead() == [3]


def test_the_vectors_of_a_commit_are_the_same_objects_until_the_next(store):
    with store.reading() as reader:
        first = reader.vectors()
    with ThreadPoolExecutor(4) as pool:
        for other in pool.map(lambda _: look(store), range(20)):
            assert other is first
    append(store, [99])
    assert look(store) is not first and len(look(store)[0]) == 31


def look(store: Store):
    with store.reading() as reader:
        return reader.vectors()


# Threads and processes.


@pytest.mark.slow
def test_threads_read_whole_commits_while_one_writes(tmp_path, codec):
    """Each commit replaces all items, and at times compacts: a reader sees one version alone, with its vectors."""
    make_store(tmp_path / "x", ABOUT, codec=codec)
    numbers, stop = list(range(12)), threading.Event()
    known = [vectors(numbers, version)["fine"] for version in range(16)]

    def read(store: Store) -> tuple[list[int], int]:
        seen, looks = [], 0
        while not stop.is_set() or looks == 0:
            with store.reading() as reader:
                items = reader.items(limit=100)
                (version,) = {int(each.caption.split()[1]) for each in items}
                found = reader.embeddings([each.row for each in items])["fine"]
                alive = reader.alive()
                assert len(items) == 12 == (reader.state.rows if alive is None else np.count_nonzero(alive))
            order = [each.metadata["n"] for each in items]
            np.testing.assert_allclose(found, known[version][order], atol=1e-2)
            seen.append(version)
            looks += 1
        return seen, looks

    with closing(Store(tmp_path / "x")) as store:
        append(store, numbers)
        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, store) for _ in range(4)]
            try:
                for version in range(1, 16):
                    append(store, numbers, version)
                    if version % 5 == 0:
                        assert store.compact() == 60
            finally:
                stop.set()
            reports = [reader.result(timeout=60) for reader in readers]
        assert all(seen == sorted(seen) and looks > 1 for seen, looks in reports)
        check(store, dict.fromkeys(numbers, 15), codec)
        # One of them is the mapping of the change counter.
        assert open_databases(tmp_path) <= 6, "connections are given back and lent again"
    assert open_databases(tmp_path) == 0


def open_databases(folder: Path) -> int:
    handles = Path("/proc/self/fd")
    if not handles.exists():
        return 0
    links = [str(handle.readlink()) for handle in handles.iterdir() if os.path.lexists(handle)]
    return sum(link == str(folder / "x" / "items.db") for link in links)


def test_a_thread_that_reads_twice_reads_one_commit(store):
    with ThreadPoolExecutor(1) as pool, store.reading() as outer:
        adding = pool.submit(append, store, [77])
        time.sleep(0.05)  # long enough for it to want its commit
        with store.reading() as inner:
            assert inner is outer and len(store) == 30 and not adding.done()
    assert adding.result() == 0 and len(store) == 31


def test_a_thread_waits_for_the_thread_that_writes(store):
    done = []
    with ThreadPoolExecutor(1) as pool:
        with store.writer():
            waiting = pool.submit(lambda: (append(store, [77]), done.append("appended")))
            time.sleep(0.05)
            assert append(store, [78]) == 0  # nests
            done.append("first")
        waiting.result(timeout=30)
    assert done == ["first", "appended"] and len(store) == 32


def test_a_thread_that_reads_is_told_that_it_cannot_commit_meanwhile(store):
    with store.reading(), pytest.raises(AssertionError, match="wait for its own thread"):
        append(store, [1])
    assert append(store, [1]) == 1


def uses(store: Store):
    return [
        lambda: len(store),
        store.info,
        lambda: append(store, [1]),
        lambda: store.remove(1),
        store.compact,
        lambda: verify_store(store),
        lambda: store.writer().__enter__(),
    ]


def test_a_closed_store_says_so_in_every_thread(store):
    store.close(), store.close()
    with ThreadPoolExecutor(1) as pool:
        for use in uses(store):
            with pytest.raises(IndexFolderError, match="was closed: open it again"):
                pool.submit(use).result()


def test_a_store_that_is_closed_while_threads_read_lets_them_end(store):
    reader = store.reading()
    found = reader.__enter__()
    store.close()
    assert found.count() == 30
    reader.__exit__(None, None, None)
    assert open_databases(store.path.parent) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_open_its_own(store):
    out, into = os.pipe()
    with store.reading():  # what the parent's thread is in the middle of is not the child's either
        if (child := os.fork()) == 0:
            found = []
            try:
                for use in uses(store):
                    with pytest.raises(IndexFolderError, match="another process: open it once in each process"):
                        use()
                    found.append(True)
            finally:
                os.write(into, bytes(found))
                os._exit(0)
    os.waitpid(child, 0)
    assert os.read(out, 99) == bytes([True] * len(uses(store))) and len(store) == 30
    os.close(out), os.close(into)


def test_a_refused_change_leaves_the_store_and_its_lock_free(store, monkeypatch):
    with pytest.raises(QueryError):
        store.remove(["/p/1", "/p/nowhere"])

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.Writer, "finish", fail)
        with pytest.raises(IndexFolderError, match="no space left"):
            append(store, [50])
    assert len(store) == 30 and append(store, [50]) == 0 and len(store) == 31


def test_only_the_wide_codecs_of_old_formats_are_upgraded(tmp_path):
    """A float32 that was asked for stays float32; that of format 1 was not."""
    make_store(tmp_path / "x", ABOUT, codec=FLOAT32.name)
    with closing(Store(tmp_path / "x")) as store:
        append(store, range(4))
        store.remove([1]), store.compact()
        with store.reading() as reader:
            assert [file.codec for file in reader.files()] == [FLOAT16, FLOAT32]


def test_not_unit_knows_every_float_type():
    for dtype in ("<f2", "<f4", "<f8", ">f4"):
        assert not_unit(np.eye(3, dtype=dtype) * [[1], [1.2], [0]]).tolist() == [1, 2]


def test_a_codec_that_there_is_not_is_refused_by_name(tmp_path):
    with pytest.raises(ArgumentError, match="a codec is float16, float32, int8, not 'int4'"):
        make_store(tmp_path / "x", ABOUT, codec="int4")
    assert not (tmp_path / "x").exists()
