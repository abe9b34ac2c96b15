"""Damage is found and named, what can be saved is saved, and what cannot be stored is refused."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from hivlp.cli import main
from hivlp.coarse.closed import prefix
from hivlp.errors import DamagedIndexError, HivlpError, IndexFolderError, VectorError
from hivlp.index import Index
from hivlp.index.verify import verify
from hivlp.levels import Embeddings
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.store.codec import FLOAT16, FLOAT32
from hivlp.store.records import NewItem
from hivlp.store.schema import ITEM, OLD_HASHES, PART, record_crc, seal_meta
from hivlp.store.vectors import Rows
from synthetic import FakeEncoder, Stored, make_index, new_items, random_levels, write_pictures

FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path NOT NULL UNIQUE, hash BLOB NOT NULL, caption TEXT,
    metadata TEXT NOT NULL DEFAULT '{}', row INTEGER NOT NULL,
    size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL, checked INTEGER NOT NULL
);
CREATE INDEX items_row ON items (row);
CREATE INDEX items_hash ON items (hash);
CREATE TABLE dead (row INTEGER PRIMARY KEY);
"""


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures, captions={str(path): f"caption {path.stem}" for path in pictures.iterdir()})
        write_pictures(pictures, 3, start=100)
        index.add(pictures)
        index.remove([pictures / "00005.png"])
        yield index


def as_format_1(index: Index, encoder: FakeEncoder, pictures: Path) -> None:
    """Turn a closed index of clean rows into what hivlp 0.1.0 wrote."""
    levels = [(level.name, level.dim) for level in encoder.levels]
    with sqlite3.connect(index.path / "items.db") as db:
        state = dict(db.execute("SELECT key, value FROM meta"))
        items = db.execute(
            "SELECT id, path, hash, caption, metadata, row, size, mtime, ctime, checked FROM items"
        ).fetchall()
        dead = db.execute("SELECT row FROM dead").fetchall()
    db.close()
    (index.path / "items.db").unlink()
    with sqlite3.connect(index.path / "items.db") as db:
        db.executescript(FORMAT_1)
        meta = {
            key: state[key] for key in ("model", "source", "fingerprint", "levels", "rows", "generation", "commits")
        }
        db.executemany("INSERT INTO meta VALUES (?, ?)", {**meta, "format": "1"}.items())
        db.executemany("INSERT INTO items VALUES (?,?,?,?,?,?,?,?,?,?)", items)
        db.executemany("INSERT INTO dead VALUES (?)", dead)
        db.execute("UPDATE sqlite_sequence SET seq = 500")
    db.close()
    for name, dim in levels:
        half = index.path / f"{name}.0.f16"
        vectors = np.fromfile(half, "<f2").reshape(-1, dim).astype("<f4")
        (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tofile(half.with_suffix(".f32"))
        half.unlink()


def content(path: Path) -> list[str]:
    """All that an items.db says."""
    with sqlite3.connect(path / "items.db") as db:
        lines = list(db.iterdump())
    db.close()
    return lines


def test_a_sound_index_is_sound(index):
    report = index.verify()
    assert report.ok and (report.items, report.rows, report.format) == (32, 33, 2)
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert index.info().vectors == "float16"
    index.compact()
    assert index.verify().ok and index.verify().rows == 32


def test_the_check_of_an_index_tells_how_far_it_is(index):
    told: list[tuple[int, int]] = []
    report = verify(index.path, lambda done, total: told.append((done, total)))
    assert report.ok and told and told == sorted(told)
    assert all(done <= total == (1 + len(index.levels)) * report.rows for done, total in told)


@pytest.mark.slow
def test_every_flipped_bit_of_a_vector_file_is_named(index, encoder):
    index.close()
    rng = random.Random(0)
    for level in encoder.levels:
        file = index.path / f"{level.name}.0.f16"
        whole = file.read_bytes()
        for _ in range(60):
            bit = rng.randrange(8 * len(whole))
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            (damage,) = verify(index.path).damage
            row = bit // 8 // (2 * level.dim)
            assert (damage.kind, damage.file, damage.level, damage.rows) == ("vectors", file.name, level.name, (row,))
            assert [Path(path).stem for _, path in damage.items] == ([] if row == 5 else [stem_of(row)])
        file.write_bytes(whole)
    assert verify(index.path).ok


def stem_of(row: int) -> str:
    return f"{row:05}" if row < 30 else f"{row + 70:05}"


@pytest.mark.slow
def test_a_flipped_bit_of_the_catalog_is_found_or_changes_nothing(index, encoder):
    index.close()
    file = index.path / "items.db"
    whole, before = file.read_bytes(), content(index.path)
    rng = random.Random(1)
    found = 0
    for _ in range(400):
        bit = rng.randrange(8 * len(whole))
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            report = verify(index.path)
        except IndexFolderError as error:  # such as another format
            assert "items.db" in str(error) or "format" in str(error)
            found += 1
            continue
        if report.ok:
            assert content(index.path) == before, f"bit {bit}"
        else:
            found += 1
            assert {damage.file for damage in report.damage} == {"items.db"}, report
    assert found > 80
    file.write_bytes(whole)
    assert verify(index.path).ok


@pytest.mark.slow
def test_whatever_is_flipped_in_the_catalog_nothing_but_sentences_comes_of_it(index, encoder, pictures):
    index.close()
    shutil.copytree(index.path, index.path.with_name("whole"))
    whole = (index.path / "items.db").read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]
    rng = random.Random(4)
    refused = 0
    for _ in range(80):
        shutil.rmtree(index.path)
        shutil.copytree(index.path.with_name("whole"), index.path)
        data = bytearray(whole)
        data[rng.choice(used)] ^= 1 << rng.randrange(8)
        (index.path / "items.db").write_bytes(data)
        for use in (
            lambda damaged: damaged.search("words", k=99),
            lambda damaged: damaged.add(pictures),
            Index.compact,
            Index.repair,
        ):
            try:
                with Index.open(index.path, encoder) as damaged:
                    use(damaged)
            except HivlpError as error:
                assert str(error)
                refused += 1
        if verify(index.path).ok:
            with Index.open(index.path, encoder) as repaired:
                assert len(repaired.search("words", k=99)) == len(repaired)
    assert refused > 50


@pytest.mark.slow
def test_every_file_that_is_cut_or_gone_is_named(index):
    index.close()
    rng = random.Random(2)
    for file in sorted(index.path.iterdir()):
        whole = file.read_bytes()
        if not whole:  # the lock, which holds nothing
            continue
        for length in [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(10))]:
            file.write_bytes(whole[:length])
            report = verify(index.path)
            assert not report.ok and {damage.file for damage in report.damage} == {file.name}, (file, length)
        file.unlink()
        if file.name == "items.db":
            with pytest.raises(IndexFolderError, match=r"no items\.db"):
                verify(index.path)
        else:
            (damage,) = verify(index.path).damage
            assert (damage.file, damage.what, len(damage.items)) == (file.name, "the file is missing", 32)
        file.write_bytes(whole)
    assert verify(index.path).ok


def flip(file: Path, row: int, dim: int, byte: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[2 * dim * row + byte] ^= 0x10
    file.write_bytes(data)


def test_repair_encodes_again_what_is_still_there_and_keeps_what_was_known(index, encoder, pictures, tmp_path):
    before = {item.path: item for item in Stored(index).all_items()}
    query = [(hit.id, hit.scores) for hit in index.search("words", k=99)]
    index.close()
    flip(index.path / "coarse.0.f16", 2, 16)
    flip(index.path / "fine.0.f16", 9, 64, byte=5)
    (pictures / "00009.png").unlink()
    with Index.open(index.path, encoder) as damaged:
        assert sorted(row for damage in damaged.verify().damage for row in damage.rows) == [2, 9]
        encoded = encoder.encoded
        report = damaged.repair()
        assert encoder.encoded == encoded + 1
        assert (report.restored, report.items, report.forgotten) == (1, 31, [])
        assert [Path(path).name for _, path in report.lost] == ["00009.png"]
        shutil.copytree(index.path, tmp_path / "given up")
        with Index.open(tmp_path / "given up") as other:
            assert other.remove([pictures / "00009.png"]) == 1 and other.info().lost == 0
        assert "not repaired" in str(report) and "00009.png" in str(report)
        assert damaged.verify().ok and damaged.info().lost == 1
        after = {item.path: item for item in Stored(damaged).all_items()}
        assert {path: (item.id, item.caption) for path, item in after.items()} == {
            path: (item.id, item.caption) for path, item in before.items() if not path.endswith("00009.png")
        }
        lost = before[str(pictures / "00009.png")]
        expected = [(item_id, scores) for item_id, scores in query if item_id != lost.id]
        assert sorted((hit.id, hit.scores) for hit in damaged.search("words", k=99)) == sorted(expected)
        # The picture is found again: so are its id and its caption.
        write_pictures(pictures, 1, start=9)
        assert damaged.repair().restored == 1
        back = Stored(damaged).at(lost.path)
        assert (back.id, back.caption) == (lost.id, "caption 00009") and damaged.info().lost == 0
        assert sorted((hit.id, hit.scores) for hit in damaged.search("words", k=99)) == sorted(query)
        assert damaged.repair().found.ok


def test_without_its_model_an_index_is_repaired_and_the_next_addition_does_the_rest(index, encoder, pictures):
    index.close()
    (index.path / "fine.0.f16").unlink()
    flip(index.path / "coarse.0.f16", 2, 16)
    with Index.open(index.path) as damaged:
        with pytest.raises(DamagedIndexError, match="missing"):
            damaged.search(like=1)
        report = damaged.repair()
        assert (report.restored, len(report.lost), report.items) == (0, 32, 0)
        assert damaged.verify().ok and len(damaged.verify().lost) == 32
    with Index.open(index.path, encoder) as healed:
        assert healed.add(pictures).added == 33, "the one that was removed, too"
        assert Stored(healed).at(str(pictures / "00002.png")).caption == "caption 00002"
        assert healed.info().lost == 0 and healed.verify().ok


def test_a_damaged_record_is_forgotten_and_never_vouched_for(index, encoder, pictures, tmp_path):
    Stored(index).sql("UPDATE items SET caption = 'a caption that nobody gave' WHERE id = 4")
    (damage,) = index.verify().damage
    assert (damage.kind, damage.file, damage.items) == ("record", "items.db", ((4, str(pictures / "00003.png")),))
    index.remove([1])
    with Index.create(tmp_path / "other", model=encoder) as other:
        for use in (lambda: index.add(pictures), index.compact, lambda: other.merge(index.path)):
            with pytest.raises(DamagedIndexError, match="item 4"):
                use()
    report = index.repair()
    assert report.forgotten == [(4, str(pictures / "00003.png"))]
    assert index.verify().ok and Stored(index).get(4) is None
    assert index.add(pictures).added == 3, "those that were removed, and the one that was forgotten"


def test_damaged_vectors_are_not_copied(index, encoder, pictures, tmp_path):
    index.close()
    flip(index.path / "fine.0.f16", 9, 64)
    shutil.copytree(pictures, tmp_path / "twins")
    with Index.open(index.path, encoder) as damaged, Index.create(tmp_path / "y", model=encoder) as other:
        for use in (damaged.compact, lambda: other.merge(index.path), lambda: damaged.add(tmp_path / "twins")):
            with pytest.raises(DamagedIndexError, match=r"fine\.0\.f16, row 9; run `hivlp repair`"):
                use()
        assert len(other) == 0 and len(damaged) == 32


def test_items_are_found_by_their_content_in_every_part(index, pictures, tmp_path):
    """Hashes are kept in parts, by ids; here the copies of three pictures come a few parts later."""
    resealed(index.path, f"UPDATE sqlite_sequence SET seq = {5 << PART}")
    for number in (1, 2, 3):
        (tmp_path / "later").mkdir(exist_ok=True)
        shutil.copy(pictures / f"{number:05}.png", tmp_path / "later")
    report = index.add(tmp_path / "later")
    assert report.added == 3
    stored = Stored(index)
    for number in (1, 2, 3):
        item = stored.at(str(pictures / f"{number:05}.png"))
        copies = stored.copies(item.hash)
        assert [copy.id >> PART for copy in copies] == [0, 5]
        assert copies[0] == item and stored.with_hash(item.hash) in copies
    assert stored.with_hash(b"0" * 32) is None
    assert verify(index.path).ok


def test_hashes_in_one_part_are_read_and_parted_by_the_first_change(index, pictures):
    with sqlite3.connect(index.path / "items.db") as db:
        db.execute("DROP INDEX items_hash")
        db.execute(OLD_HASHES)
    assert verify(index.path).ok
    item = Stored(index).get(3)
    assert Stored(index).with_hash(item.hash) == item
    index.remove([pictures / "00007.png"])
    (now,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'items_hash'").fetchone()
    assert now != OLD_HASHES and f"id >> {PART}" in now
    assert Stored(index).with_hash(item.hash) == item
    assert verify(index.path).ok
    db.close()


def test_indexes_of_the_catalog_are_rebuilt(index):
    ((root,),) = Stored(index).sql("SELECT rootpage FROM sqlite_master WHERE name = 'items_hash'")
    ((size,),) = Stored(index).sql("PRAGMA page_size")
    index.close()
    data = bytearray((index.path / "items.db").read_bytes())
    data[root * size - 20] ^= 0xFF  # inside the last hash of the index's page
    (index.path / "items.db").write_bytes(data)
    assert {damage.kind for damage in verify(index.path).damage} == {"structure"}
    with Index.open(index.path) as damaged:
        report = damaged.repair()
        assert (report.items, report.lost, report.forgotten) == (32, [], [])
        assert damaged.verify().ok


def test_a_catalog_beyond_repair_is_told_so(index, capsys):
    index.close()
    file = index.path / "items.db"
    data = bytearray(file.read_bytes())
    data[len(data) // 3 :] = b"\x5a" * (len(data) - len(data) // 3)
    file.write_bytes(data)
    assert main(["repair", str(index.path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hivlp: error: ") and "cannot be repaired: put back a copy" in error


def test_info_verify_and_repair_on_the_command_line(index, encoder, capsys, monkeypatch):
    monkeypatch.setattr("hivlp.cli.models.load_model", lambda *_: encoder)
    place = str(index.path)
    index.close()
    assert main(["info", place, "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    flip(index.path / "fine.0.f16", 9, 64)
    assert main(["info", place, "--verify", "--json"]) == 1
    out, error = capsys.readouterr()
    (damage,) = json.loads(out)["damage"]
    assert (damage["file"], damage["level"], damage["rows"]) == ("fine.0.f16", "fine", [9])
    assert damage["items"][0]["path"].endswith("00009.png")
    assert error.startswith("hivlp: error: ") and error.count("\n") == 1 and "fine.0.f16" in error
    assert main(["info", place, "--verify"]) == 1
    out, error = capsys.readouterr()
    assert "damaged: fine.0.f16, row 9: vectors are not what was written" in out and "00009.png" in out
    assert main(["repair", place, "--json"]) == 0
    repaired = json.loads(capsys.readouterr().out)
    assert (repaired["restored"], repaired["lost"], repaired["items"]) == (1, [], 32)
    assert main(["info", place, "--verify"]) == 0
    assert main(["info", place + "-nosuch", "--verify"]) == 1
    assert "is not an index" in capsys.readouterr().err


# An index of given vectors.


@pytest.fixture
def given(tmp_path):
    with make_index(tmp_path / "given", np.random.default_rng(0).normal(size=(40, 24)).astype(np.float32)) as index:
        assert len(index) == 40
        yield index


@pytest.mark.slow
def test_the_maps_of_given_vectors_are_checked(given):
    given.close()
    rng = random.Random(3)
    for name in ("item_map.npy", "query_map.npy"):
        file = given.path / name
        whole = file.read_bytes()
        found = 0
        for _ in range(60):
            bit = rng.randrange(8 * len(whole))
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            report = verify(given.path)
            if report.ok:  # in the header, where it changes nothing
                np.testing.assert_array_equal(np.load(file), prefix(24, 8).item)
            else:
                found += 1
                assert [(damage.kind, name in damage.file) for damage in report.damage] == [("maps", True)]
                with pytest.raises(DamagedIndexError):
                    Index.open(given.path)
        assert found > 30
        for length in (0, 50, len(whole) - 1):
            file.write_bytes(whole[:length])
            assert [damage.kind for damage in verify(given.path).damage] == ["maps"]
        file.unlink()
        assert [damage.kind for damage in verify(given.path).damage] == ["maps"]
        file.write_bytes(whole)
    assert verify(given.path).ok


def test_given_vectors_that_are_damaged_come_back_when_they_are_given_again(given, tmp_path):
    given.close()
    flip(given.path / "fine.0.f16", 7, 24)
    with Index.open(given.path) as index:
        (lost,) = index.repair().lost
        assert lost[1].endswith("given.npy#7") and len(index) == 39
        assert index.add_embeddings(tmp_path / "given.npy").added == 1
        assert Stored(index).get(lost[0]).path == lost[1] and index.verify().ok and not index.verify().lost


# Format 1.


def test_an_index_of_format_1_is_read_grows_and_becomes_format_2(index, encoder, pictures):
    ids = {item.path: item.id for item in Stored(index).all_items()}
    index.close()
    as_format_1(index, encoder, pictures)
    before = content(index.path)
    with Index.open(index.path, encoder) as old:
        assert (old.info().format, old.info().vectors) == (1, "float32")
        result = [(hit.id, hit.scores) for hit in old.search("words", k=99)]
        assert len(result) == 32 and old.search(like=1, k=1)
        report = old.verify()
        assert report.ok and "no checksums" in report.notes[0]
        assert content(index.path) == before, "reading changes nothing"
        write_pictures(pictures, 2, start=200)
        assert old.add(pictures).added == 3
        assert (old.info().format, old.info().vectors) == (2, "float32")
        assert Stored(old).at(str(pictures / "00201.png")).id > 500, "no id is given twice"
        assert {item.path: item.id for item in Stored(old).all_items()}.items() >= ids.items()
        again = {hit.id: hit.scores for hit in old.search("words", k=99)}
        assert all(again[item_id] == scores for item_id, scores in result)
        assert old.verify().ok and not old.verify().notes
        with Index.open(index.path, encoder) as reader:
            assert old.compact() == 1
            assert len(reader.search("words", k=99)) == 35
        assert old.info().vectors == "float16" and not list(index.path.glob("*.f32"))
        assert old.compact() == 0
        for hit in old.search("words", k=99):
            assert hit.scores == pytest.approx(again[hit.id], abs=1e-3)
        assert old.verify().ok


def test_damage_to_an_index_of_format_1(index, encoder, pictures):
    index.close()
    as_format_1(index, encoder, pictures)
    file = index.path / "fine.0.f32"
    vectors = np.fromfile(file, "<f4").reshape(-1, 64)
    vectors[7, 3] = np.nan
    vectors[:-1].tofile(file)
    damage = verify(index.path).damage
    assert sorted(row for each in damage for row in each.rows) == [7, 32]
    with Index.open(index.path, encoder) as old:
        with pytest.raises(DamagedIndexError):
            old.add(pictures)
        assert Stored(old).state().format == 1
        report = old.repair()
        assert (report.restored, report.items) == (2, 32)
        assert (old.info().format, old.info().vectors) == (2, "float16")
        assert old.verify().ok


# What cannot be stored.


def some(count: int, encoder: FakeEncoder) -> tuple[list[NewItem], dict[str, np.ndarray]]:
    return new_items(count), random_levels(encoder.levels, count)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v.__setitem__((3, 5), np.nan), r"level fine, row 3: the vector of /p/3\.png is not finite"),
        (lambda v: v.__setitem__((4, 0), -np.inf), r"row 4: the vector of /p/4\.png is not finite"),
        (lambda v: v.__setitem__((2), 0), r"row 2: the vector of /p/2\.png is zero"),
        (lambda v: v.__setitem__((6), v[6] * 3), r"row 6: the vector of /p/6\.png is of length 3, not 1"),
        (lambda v: v[:, :63], r"row 0: the vector of /p/0\.png is of shape \(63,\), not \(64,\)"),
        (lambda v: v[:, :, None], r"row 0: the vector of /p/0\.png is of shape \(64, 1\)"),
        (lambda v: [*v[:5], v[5, :9], *v[6:]], r"row 5: the vector of /p/5\.png is of shape \(9,\)"),
        (lambda v: (v * 127).astype(np.int8), r"row 0: the vector of /p/0\.png is of int8"),
        (lambda v: v.astype(complex), r"/p/0\.png is of complex128"),
        (lambda v: v.astype(str), r"/p/0\.png is of <U"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_row_and_path(tmp_path, encoder, spoil, message):
    items, vectors = some(8, encoder)
    spoiled = spoil(vectors["fine"])
    if spoiled is not None:
        vectors["fine"] = spoiled
    with Index.create(tmp_path / "x", model=encoder) as index:
        with pytest.raises(VectorError, match=message) as refused:
            index.store.append(items, Embeddings(vectors))
        assert isinstance(refused.value, HivlpError) and isinstance(refused.value, ValueError)
        assert len(index) == 0 and index.verify().ok
        items, vectors = some(8, encoder)
        index.store.append(items, Embeddings({name: array.astype(np.float64) for name, array in vectors.items()}))
        assert len(index) == 8
        with pytest.raises(VectorError, match="8 vectors for 7 items"):
            index.store.append(items[:7], Embeddings(vectors))
        with pytest.raises(VectorError, match="level fine: no vectors"):
            index.store.append(items, Embeddings({"coarse": vectors["coarse"]}))


def test_rows_that_were_made_ready_are_for_files_of_their_dtype_and_width(tmp_path, encoder):
    items, vectors = some(8, encoder)
    half = np.float16
    ready = {name: Rows.of(array, FLOAT16) for name, array in vectors.items()}
    with Index.create(tmp_path / "x", model=encoder) as index:
        with pytest.raises(VectorError, match="8 vectors for 7 items"):
            index.store.append(items[:7], ready)
        with pytest.raises(VectorError, match=r"level fine, row 0: the vector of /p/0\.png is of shape"):
            index.store.append(items, {**ready, "fine": ready["coarse"]})
        with pytest.raises(ValueError, match="rows of float32 for a file of float16"):
            index.store.append(items, {**ready, "fine": Rows.of(vectors["fine"], FLOAT32)})
        assert len(index) == 0 and index.verify().ok
        assert index.store.append(items, ready) == 0
        np.testing.assert_array_equal(index.store.embeddings(5)["fine"], vectors["fine"][5:6].astype(half))
        assert len(index) == 8 and index.verify().ok


def test_a_path_that_comes_twice_or_is_known_is_one_item(tmp_path, encoder):
    items, vectors = some(6, encoder)
    with Index.create(tmp_path / "x", model=encoder) as index:
        assert index.store.append(items[:2], Embeddings(vectors).rows(slice(0, 2))) == 0
        twice = [items[0], items[3], items[3], items[0]]
        assert index.store.append(twice, Embeddings(vectors).rows([2, 3, 4, 5])) == 3
        assert [(item.id, item.path, item.row) for item in Stored(index).all_items()] == [
            (1, "/p/0.png", 5), (2, "/p/1.png", 1), (3, "/p/3.png", 4)
        ]  # fmt: skip
        assert index.info().dead == 3 and index.verify().ok
        np.testing.assert_array_equal(index.store.embeddings(5)["fine"], vectors["fine"][5:].astype(np.float16))


# float16.


def test_widening_is_exact_for_every_finite_number():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(-1, 1)
    scores = ExhaustiveScanner(every).rescore(np.ones(1, np.float32), np.arange(len(every)))
    np.testing.assert_array_equal(scores, every[:, 0].astype(np.float32))


@pytest.mark.parametrize("dim", [5, 64, 300])
def test_scores_of_float16_rows_do_not_depend_on_where_they_lie(dim, monkeypatch):
    import hivlp.search.exhaustive as scan

    monkeypatch.setattr(scan, "WIDEN_FLOATS", 7 * dim)
    rng = np.random.default_rng(0)
    row, query = rng.normal(size=dim).astype(np.float16), rng.normal(size=dim).astype(np.float32)
    scores = ExhaustiveScanner(np.tile(row, (50, 1))).rescore(query, np.arange(50))
    assert len(set(scores.tolist())) == 1
    assert scores[0] == pytest.approx(float(row.astype(np.float64) @ query), rel=1e-4, abs=1e-4)


def resealed(path: Path, *statements: str) -> None:
    """Change a database, as somebody would who means harm: its checksum vouches for the change."""
    with sqlite3.connect(path / "items.db") as db:
        db.create_function("record_crc", -1, record_crc, deterministic=True)
        for statement in statements:
            db.execute(statement)
        seal_meta(db)
    db.close()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("rows", value) for value in ("'-1'", "'9223372036854775808'", "'x'", "'1e3'", "''", "x'35'", "2.5")),
        *(("rows", f"'{'9' * 5000}'") for _ in range(1)),
        *(("generation", value) for value in ("'-1'", "'../x'", "'4611686018427387905'")),
        ("commits", "'9223372036854775807'"),
        *(("dtype", value) for value in ("'<f8'", "'O'", "x'00'")),
        *(("levels", f"'{value}'") for value in ("", "{}", "[]", "[1]", "[[]]", '[{"name": 3}]', "[" * 100_000)),
        ("levels", """'[{"name": "a", "dim": 1e9, "image_layer": 1, "text_layer": 1}]'"""),
        ("levels", """'[{"name": "../a", "dim": 8, "image_layer": 1, "text_layer": 1}]'"""),
        ("levels", """'[{"name": "a", "dim": -8, "image_layer": 1, "text_layer": 1}]'"""),
        ("model", "x'00ff'"),
    ],
)
def test_a_meta_table_that_says_what_cannot_be_is_refused(index, encoder, key, value):
    index.close()
    resealed(index.path, f"UPDATE meta SET value = {value} WHERE key = '{key}'")
    with pytest.raises(IndexFolderError, match="damaged"), Index.open(index.path, encoder) as opened:
        opened.search("red")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE items SET row = -1 WHERE id = 3",
        "UPDATE items SET row = 1000000 WHERE id = 3",
        "UPDATE items SET row = 9223372036854775807 WHERE id = 3",
        "UPDATE items SET row = 'x' WHERE id = 3",
        "UPDATE items SET row = x'00' WHERE id = 3",
        "INSERT INTO dead VALUES (-1)",
        "INSERT INTO dead VALUES (1000000)",
    ],
)
def test_rows_that_there_are_not_are_refused(index, encoder, statement):
    index.close()
    resealed(index.path, statement, f"UPDATE items SET crc = record_crc({ITEM})")
    with pytest.raises(IndexFolderError, match="names row"), Index.open(index.path, encoder) as opened:
        opened.search("red")


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("INSERT INTO dead VALUES (-1)", "does not exist"),
        ("INSERT INTO dead VALUES (1000000)", "does not exist"),
        (f"UPDATE items SET metadata = '{'[' * 100_000}' WHERE id = 3", "what is known of an item"),
        ("UPDATE items SET metadata = x'00' WHERE id = 3", "what is known of an item"),
        ("UPDATE items SET metadata = '[1]' WHERE id = 3", "what is known of an item"),
        ("UPDATE items SET hash = 17 WHERE id = 3", "what is known of an item"),
        ("UPDATE items SET mtime = 'x' WHERE id = 3", "what is known of an item"),
    ],
)
def test_what_cannot_be_searched_is_found_by_verify_and_mended_by_repair(index, encoder, statement, what):
    index.close()
    resealed(index.path, statement, f"UPDATE items SET crc = record_crc({ITEM})")
    (damage,) = verify(index.path).damage
    assert what in damage.what
    with Index.open(index.path, encoder) as opened:
        with pytest.raises(DamagedIndexError):
            opened.search("red", k=1000, group=True)
        opened.repair()
        assert opened.verify().ok and len(opened.search("red", k=3)) == 3


@pytest.mark.parametrize("rows", [1000, 2**40, 2**62])
def test_more_rows_than_there_can_be_are_damage_in_one_line(index, encoder, rows):
    index.close()
    resealed(index.path, f"UPDATE meta SET value = '{rows}' WHERE key = 'rows'")
    (damage,) = verify(index.path).damage
    assert damage.kind == "structure" and f"{rows} rows" in damage.what
    with Index.open(index.path, encoder) as opened, pytest.raises(DamagedIndexError, match="cannot be repaired"):
        opened.repair()


def test_checksums_of_vectors_that_make_no_sense_vouch_for_nothing(index, encoder):
    index.close()
    for first, count, crcs in (
        (-1, 2, b"\0" * 8),
        (0, 2, b"\0" * 4),
        (0, -1, b""),
        ("x", 1, b"\0" * 4),
        (0, 1, "four"),
    ):
        with sqlite3.connect(index.path / "items.db") as db:
            db.execute("DELETE FROM blocks")
            record = ("fine", first, count, crcs)
            db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)", (*record, record_crc(*record)))
        db.close()
        with Index.open(index.path, encoder) as opened:
            assert len(opened.search("red", k=3).hits) == 3
        verify(index.path)
