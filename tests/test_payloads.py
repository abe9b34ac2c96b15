"""Payload files: hits show what the catalog says, whatever is written, damaged, missing or committed beside them."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivlp.index import Index, SearchResult
from hivlp.levels import Embeddings
from hivlp.search.options import Options
from hivlp.search.timing import Stopwatch
from hivlp.store import payloads
from hivlp.store.derived import keep_payloads
from hivlp.store.lookup import Shown
from hivlp.store.path_codec import PathCodec
from hivlp.store.records import NewItem, PayloadFile, Stamp, State
from synthetic import FakeEncoder, Stored, cloud, clusters, make_tuned_index, random_levels

PATHS = ("/p/a.jpg", "/p/a\nb", "/p/Müller.jpg", "/p/日本/\U0001f600", os.fsdecode(b"/p/\xff\xfe"), "/p/" + "x" * 300)
CAPTIONS = (None, "", "a dog", "Mu\u0308ller\x00 end", "\U0001f600" * 50)
METADATA = ({}, {"n": 1}, {"a": {"b": [1, 2.5, None, "ü"]}, "t": "\ud800"}, {"long": "x" * 5000}, {"": 1e308})
OPTIONS = [
    dict(zip(("exact", "where", "offset", "threshold", "group"), values, strict=True))
    for values in itertools.product(
        (False, True), (None, "id % 3 != 0"), (0, 4), (None, 0.0), (False, True, 0.9)
    )
]  # fmt: skip


def items(count: int, first: int = 0) -> list[NewItem]:
    return [
        NewItem(
            f"{PATHS[number % len(PATHS)]}.{number}", bytes([number % 251]) * 32, CAPTIONS[number % len(CAPTIONS)],
            METADATA[number % len(METADATA)], Stamp(1, 2, 3, 4),
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def add(index: Index, count: int, first: int = 0) -> None:
    index.store.append(items(count, first), Embeddings(random_levels(index.levels, count, seed=first)))


@pytest.fixture
def index(tmp_path):
    """An index of 60 items with a payload file, and 15 that came later."""
    with Index.create(tmp_path / "index", model=FakeEncoder()) as made:
        add(made, 60)
        assert keep_payloads(made.store, least=1)
        add(made, 15, 60)
        yield made


def file_of(index: Index):
    (found,) = index.path.glob("payloads.*")
    return found


def queries(index: Index, count: int = 3) -> list[dict[str, np.ndarray]]:
    vectors = random_levels(index.levels, count, seed=99)
    return [{name: array[number] for name, array in vectors.items()} for number in range(count)]


def plain(index: Index, vector, **options):
    """The hits by a search inside a transaction that looks every item up in the catalog."""
    of_catalog = Index.open(index.path, model=FakeEncoder())
    with of_catalog, of_catalog.store.reading() as reader:
        answering = of_catalog._answering
        snapshot = answering.snapshots.of(reader)
        object.__setattr__(snapshot, "payloads", None)
        asked = Options.of(
            index.levels, **{"k": 10, "shortlist": None, "exact": False, "where": None, "offset": 0, "threshold": None,
                             "group": False, "recall": None, **options}
        )  # fmt: skip
        _, ((found, steps),) = answering.answer_in(
            reader, [of_catalog._queries.of_one(None, None, vector)], asked, Stopwatch()
        )
        return found.make(), list(steps)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hits_are_those_of_the_catalog_with_every_combination_of_options(index, options):
    for vector in queries(index):
        found = index.search(vector=vector, k=9, **options)
        hits, steps = plain(index, vector, k=9, **options)
        assert found.hits == hits and found.plan == steps and len(found) == len(hits)
        (many,) = index.search_many(vectors={name: row[None] for name, row in vector.items()}, k=9, **options)
        again = index.search(vector=vector, k=9, **options)
        assert again.ids == [hit.id for hit in hits] and again.hits == hits and again.ids == many.ids
        assert many.hits == hits
        assert [type(hit.metadata) for hit in hits] == [dict] * len(hits)


@pytest.mark.slow
def test_hits_are_those_of_the_catalog_with_an_approximate_index_and_every_recall(tmp_path):
    asked = cloud(3000, 32, 7)
    place = make_tuned_index(tmp_path / "index", clusters(3000, 32, 6), asked)
    with Index.open(place) as index:
        assert list(place.glob("payloads.*")) == []
        before = {
            (k, recall): [index.search(vector={"fine": query}, k=k, recall=recall).hits for query in asked[:20]]
            for k in (1, 10, 60) for recall in (None, 0.5, 0.9, 1.0)
        }  # fmt: skip
        assert keep_payloads(index.store, least=1)
        for (k, recall), hits in before.items():
            assert [index.search(vector={"fine": query}, k=k, recall=recall).hits for query in asked[:20]] == hits
            many = index.search_many(vectors={"fine": asked[:20]}, k=k, recall=recall)
            assert [result.hits for result in many] == hits


def test_a_result_shows_the_commit_that_was_searched_whatever_comes_after(index):
    vector = queries(index)[0]
    known, _ = plain(index, vector, k=75)
    found = index.search(vector=vector, k=75)
    with Index.open(index.path, model=FakeEncoder()) as other:
        other.remove([hit.id for hit in known[:40]])
        other.compact()
    assert found.hits == known
    index.close()
    shutil.rmtree(index.path)
    assert found[0] == known[0] and [hit.id for hit in found] == [hit.id for hit in known]


def test_each_who_looks_has_metadata_of_their_own(index):
    vector = queries(index)[0]
    for hit in index.search(vector=vector, k=75):
        hit.metadata["changed"] = True
    assert not any("changed" in hit.metadata for hit in index.search(vector=vector, k=75))


def test_results_are_compared_printed_and_pickled_by_what_they_hold(index):
    vector = queries(index)[0]
    one, other = index.search(vector=vector), index.search(vector=vector)
    assert one.hits is one.hits and one.hits == other.hits
    copy = pickle.loads(pickle.dumps(one))  # noqa: S301  (as another process gets it)
    assert isinstance(copy, SearchResult) and copy == one and copy.to_json() == one.to_json()
    assert repr(one.hits[0].path) in repr(one) and one != [*one]
    assert one.plan == other.plan


def test_it_is_written_when_many_rows_came_and_old_ones_go(index, tmp_path):
    first = file_of(index)
    assert not keep_payloads(index.store, least=1) and file_of(index) == first, "15 rows are looked up"
    add(index, payloads.LEAST_TAIL, 100)
    assert keep_payloads(index.store) and file_of(index) != first
    assert index.verify().damage == []


def test_many_rows_have_one_after_an_addition(tmp_path):
    with Index.create(tmp_path / "index", model=FakeEncoder()) as index:
        add(index, payloads.LEAST_ROWS)
        assert list(index.path.glob("payloads.*")) == []
        index.compact()
        assert file_of(index).stat().st_size == index.info().bytes - sum(
            file.stat().st_size for file in index.path.iterdir() if not file.name.startswith("payloads.")
        )
        vector = queries(index)[0]
        assert index.search(vector=vector).hits == plain(index, vector)[0]


def test_removed_and_replaced_items_are_not_shown(index):
    vector = queries(index)[0]
    best = index.search(vector=vector).hits[0]
    again = NewItem(best.path, b"y" * 32, "another", {"version": 2}, Stamp(1, 2, 3, 4))
    index.store.append([again], Embeddings({name: row[None] for name, row in vector.items()}))
    (hit,) = index.search(vector=vector, k=1)
    assert (hit.id, hit.caption, hit.metadata) == (best.id, "another", {"version": 2})
    index.remove(best.id)
    assert best.id not in [hit.id for hit in index.search(vector=vector, k=75)]


def test_a_record_in_anothers_place_is_looked_up_in_the_catalog(index):
    file, vector = file_of(index), queries(index)[0]
    known, _ = plain(index, vector, k=75)
    data = bytearray(file.read_bytes())
    data[20:28] = data[8:16]  # the second row's record begins where the first one's does
    file.write_bytes(data)
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert opened.search(vector=vector, k=75).hits == known


@pytest.mark.parametrize("where", ["first", "last", "checksum"])
def test_a_damaged_record_is_looked_up_in_the_catalog_and_repaired(index, where):
    file, vector = file_of(index), queries(index)[0]
    known, _ = plain(index, vector, k=75)
    data = bytearray(file.read_bytes())
    starts = [start for start, _ in struct.iter_unpack("<QI", data[8 : 8 + 12 * 60])]
    at = {"first": starts[0] + 20, "last": len(data) - 1, "checksum": 8 + 12 * 7 + 9}[where]
    data[at] ^= 0x55
    file.write_bytes(data)
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert opened.search(vector=vector, k=75).hits == known
        (damage,) = opened.verify().damage
        assert damage.kind == "payloads" and damage.file == file.name and damage.what.startswith("1 of")
        opened.repair()
        assert not file.exists() and opened.verify().damage == []
        assert opened.search(vector=vector, k=75).hits == known


def test_an_item_that_the_catalog_lost_is_forgotten_and_all_others_are_kept(index):
    """A record of the catalog that is damaged is no damage of the payload file, and can be repaired beside one."""
    assert file_of(index).exists()
    Stored(index).sql("UPDATE items SET caption = 'another' WHERE id = 7")
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert [damage.kind for damage in opened.verify().damage] == ["record"]
        assert [item_id for item_id, _ in opened.repair().forgotten] == [7]
        assert opened.verify().ok and 7 not in opened.search(vector=queries(index)[0], k=75).ids


@pytest.mark.parametrize("what", ["missing", "short", "long", "empty", "another", "offsets", "folder"])
def test_a_file_that_is_not_the_catalogs_is_not_used(index, what):
    file, vector = file_of(index), queries(index)[0]
    known, _ = plain(index, vector, k=75)
    data = file.read_bytes()
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what != "missing":
        short = data[:-1] if what == "short" else data + b"x" if what == "long" else b"" if what == "empty" else data
        offsets = data[:8] + b"\xff" * (12 * 60 + 8) + data[8 + 12 * 60 + 8 :]
        file.write_bytes(b"\0" * len(data) if what == "another" else offsets if what == "offsets" else short)
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert opened.search(vector=vector, k=75).hits == known
        if what != "folder":
            assert [damage.kind for damage in opened.verify().damage] == ["payloads"]


@pytest.mark.parametrize(
    "record",
    [
        b"", b"nothing", b"{}", b"[]", b"5", b'"text"', b'[1,"path",null]', b'[1,"path",null,{},5]',
        b'[1,"path",null,[]]', b'["1","path",null,{}]', b'[1,5,null,{}]', b'[1,"path",5,{}]', b'[true,"path",null,{}]',
        b'[1,"path",null,{}],[]', b'[1,"path",null,{}],[1,"path",null,{}]', b"[" * 100_000, b"\xff",
    ],
    ids=lambda record: record[:40].decode("latin-1"),
)  # fmt: skip
def test_a_record_with_a_right_checksum_that_is_none_is_looked_up_in_the_catalog(index, record):
    file, vector = file_of(index), queries(index)[0]
    known, _ = plain(index, vector, k=75)
    start = 8 + 12 * 60 + 8
    table = b"".join(
        struct.pack("<QI", start + len(record) * row, zlib.crc32(record, row)) for row in range(60)
    ) + struct.pack("<Q", start + 60 * len(record))
    file.write_bytes(payloads.MAGIC + table + record * 60)
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert opened.search(vector=vector, k=75).hits == known
        assert [damage.kind for damage in opened.verify().damage] == ["payloads"]


def test_a_file_of_the_layout_before_is_no_damage_and_is_replaced(index):
    file, vector = file_of(index), queries(index)[0]
    known, _ = plain(index, vector, k=75)
    file.write_bytes(struct.pack("<61Q", *[8 * 61] * 61))
    with Index.open(index.path, model=FakeEncoder()) as opened:
        assert opened.search(vector=vector, k=75).hits == known and opened.verify().damage == []
        assert keep_payloads(opened.store, least=1) and not file.exists()


def test_the_file_of_another_history_is_not_used(index, tmp_path):
    """Put back from a backup, the catalog names a file that is no more; rows were written over since."""
    backup = tmp_path / "items.db"
    shutil.copy(index.path / "items.db", backup)
    add(index, payloads.LEAST_TAIL, 100)
    assert keep_payloads(index.store, least=1)
    index.close()
    shutil.copy(backup, index.path / "items.db")
    with Index.open(index.path, model=FakeEncoder()) as opened:
        vector = queries(opened)[0]
        assert opened.search(vector=vector, k=75).hits == plain(opened, vector, k=75)[0]
        assert keep_payloads(opened.store, least=1) and len(list(opened.path.glob("payloads.*"))) == 1


def test_what_a_killed_writer_left_goes_and_a_full_disk_is_no_failure(index, caplog, monkeypatch):
    stray = index.path / "payloads.00000000000dead"
    stray.write_bytes(b"half")
    add(index, payloads.LEAST_TAIL, 100)
    monkeypatch.setattr(payloads.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))
    with caplog.at_level(logging.WARNING):
        assert not keep_payloads(index.store, least=1)
    monkeypatch.undo()
    assert "no space left" in caplog.text and not stray.exists()
    vector = queries(index)[0]
    assert index.search(vector=vector, k=75).hits == plain(index, vector, k=75)[0]
    assert keep_payloads(index.store, least=1)


SHOWN = st.builds(
    Shown,
    st.integers(1, 10**6) | st.integers(10**17, 2**63 - 1),
    st.text(max_size=20),
    st.none() | st.text(max_size=3000),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3).map(json.dumps),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_read_together_are_those_read_one_by_one(tmp_path, data):
    """None where one is damaged or not there."""
    shown = data.draw(st.lists(SHOWN, min_size=1, max_size=6))
    made = payloads.save(tmp_path, enumerate(shown), State(len(shown), 0, 1, 4, "float16"), PathCodec())
    file = tmp_path / made.name
    broken = data.draw(st.none() | st.integers(8, file.stat().st_size - 1))
    if broken is not None:
        content = bytearray(file.read_bytes())
        content[broken] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
    try:
        opened = payloads.Payloads(file, len(shown), PathCodec())
    except ValueError:
        return
    finally:
        file.unlink()
    rows = data.draw(st.lists(st.integers(0, len(shown) + 1), max_size=8))
    records = [opened.record(row) if row < len(shown) else b"" for row in rows]
    found, ids = opened.read(rows), opened.ids(rows)
    if not all(records):
        assert found is None and ids is None
        return
    assert found is not None and found == payloads.columns(records) and ids == list(found[0])
    known = [shown[row] for row in rows]
    assert list(found[1]) == [each.path for each in known] and list(found[3]) == [each.metadata for each in known]


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_file_gives_records_or_none(tmp_path, data):
    rows = data.draw(st.integers(0, 5))
    starts = data.draw(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), min_size=rows, max_size=rows))
    checksums = data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=rows, max_size=rows))
    rest = data.draw(st.binary(max_size=200))
    size = 8 + 12 * rows + 8 + len(rest)
    file = tmp_path / "payloads.1"
    table = b"".join(struct.pack("<QI", *entry) for entry in zip(starts, checksums, strict=True))
    file.write_bytes(payloads.MAGIC + table + struct.pack("<Q", size) + rest)
    opened = payloads.Payloads(file, rows, PathCodec())
    assert [opened.record(row) for row in range(rows)] == [b""] * rows
    assert opened.read(range(rows)) is None or rows == 0
    assert opened.ids(range(rows)) is None or rows == 0


@pytest.mark.parametrize(
    "text", ["[]", "[1,2]", "[1,2,-3]", "[1,2,3,4]", "[1,2,true]", "{}", "nothing", "[" * 9999, None]
)
def test_a_description_that_cannot_be_is_refused(text):
    with pytest.raises(ValueError, match="payload file"):
        PayloadFile.of(text)


def test_a_file_that_moves_leaves_an_index_that_opens(tmp_path, encoder, pictures):
    """What a move removes of the table ``meta`` was the last that its second checksum vouched for."""
    with Index.create(tmp_path / "index", model=encoder) as made:
        made.add(pictures)
        assert keep_payloads(made.store, least=1)
        (pictures / "00000.png").rename(pictures / "moved.png")
        assert made.add(pictures).moved == 1
    with Index.open(tmp_path / "index", encoder) as opened:
        assert opened.verify().ok and opened[pictures / "moved.png"].id == 1
    Stored(opened).sql("INSERT OR REPLACE INTO meta VALUES ('optional_check', '1')")  # as versions before left it
    with Index.open(tmp_path / "index", encoder) as opened:
        assert opened.verify().ok and opened.add(pictures).skipped == 30


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4), min_size=1, max_size=4))
def test_records_say_what_python_s_own_decoder_reads(metadata):
    records = [json.dumps([row, f"{row}.jpg", None, known]).encode() for row, known in enumerate(metadata)]
    expected = [tuple(column) for column in zip(*map(json.loads, records), strict=True)]
    assert repr([tuple(column) for column in payloads.columns(records)]) == repr(expected)  # repr: NaN is not itself


@pytest.mark.parametrize(
    "record", ["", "7", "[7]", '[true,"p",null,{}]', '["7","p",null,{}]', '[7,"p",null,[]]', '[7,"p",1,{}]', "[7],[8]"]
)
def test_what_is_no_record_is_an_error(record):
    with pytest.raises(ValueError):
        payloads.columns([record.encode()])
