"""Lazy indexing: searchable by the coarsest level first, completed later, and then equal to an index made at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hivlp.cli import main
from hivlp.config import image_graph
from hivlp.errors import IndexFolderError, ModelError, QueryError
from hivlp.index import Index
from hivlp.index.filling import WANTED, FillReport, note_wanted, take_wanted
from hivlp.index.watching import watch
from hivlp.levels import Embeddings, Level
from hivlp.store.folder import Store, reading
from hivlp.store.making import make_store
from hivlp.store.records import About, NewItem
from hivlp.store.schema import CODEC_FORMAT, FORMAT, PENDING_FORMAT
from hivlp.store.verify import verify_store
from synthetic import STAMP, FakeEncoder, random_levels, save_tiny


def make(place: Path, pictures: Path, encoder: FakeEncoder, *, lazy: bool, vectors: str = "float16") -> Index:
    index = Index.create(place, model=encoder, vectors=vectors)
    index.add(pictures, lazy=lazy)
    return index


def assert_equal(index: Index, other: Index) -> None:
    """The same to the last bit: of every item the record and its row, and in each vector file that row's bytes and sum.

    Of a record all but the time at which the file was looked at; of the catalog all but the number of commits and
    which rows were written together. Rows of tombstones count as rows, whatever is in them.
    """
    with index.store.reading() as mine, other.store.reading() as theirs:
        assert (mine.state.format, mine.state.rows) == (theirs.state.format, theirs.state.rows)
        assert (mine.live() == theirs.live()).all() and mine.dead() == theirs.dead()
        rows = mine.live()[:, 0]
        for file, same in zip(mine.files(), theirs.files(), strict=True):
            stored = [np.array(each.map(mine.state.rows)[rows]).tobytes() for each in (file, same)]
            assert stored[0] == stored[1]
            sums = [reader.integrity.checksums(file.level.name, 0, mine.state.rows) for reader in (mine, theirs)]
            assert all(known[rows].all() for _, known in sums) and (sums[0][0][rows] == sums[1][0][rows]).all()
        pairs = zip(mine.items(limit=10**6), theirs.items(limit=10**6), strict=True)
        for item, same in pairs:
            assert item == same._replace(stamp=same.stamp._replace(checked=item.stamp.checked))


def pending(index: Index) -> int:
    return index.info().pending


@pytest.mark.parametrize("vectors", ["float16", "float32", "int8"])
def test_a_completed_index_is_bit_equal_to_one_made_at_once(tmp_path, pictures, encoder, vectors):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False, vectors=vectors)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True, vectors=vectors)
    assert pending(lazy) == 30
    with lazy.store.reading() as reader:
        assert reader.state.format == PENDING_FORMAT
    report = lazy.complete()
    assert (report.filled, report.pending, report.failed) == (30, 0, [])
    with lazy.store.reading() as reader:
        assert reader.state.format == (FORMAT if vectors == "float16" else CODEC_FORMAT)
    assert_equal(lazy, eager)
    assert lazy.verify().ok


def test_it_is_equal_whatever_was_wanted_first(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    for text in ("a red car", "two dogs", "snow"):
        lazy.search(text, fill=3, shortlist=5)
    assert 20 < pending(lazy) < 30
    lazy.complete()
    assert_equal(lazy, eager)


def test_a_search_fills_its_shortlist_and_says_so(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    found = lazy.search("a red car", k=5)
    assert found.plan[0] == {"stage": "fill", "level": "fine", "pending": 30, "filled": 30}
    assert [(hit.id, hit.scores) for hit in found] == [(hit.id, hit.scores) for hit in eager.search("a red car", k=5)]
    assert pending(lazy) == 0, "what was computed is stored"
    assert (
        "fill fine (pending 30, filled 30)" in make(tmp_path / "3", pictures, encoder, lazy=True).search("x").explain()
    )


def test_without_a_budget_the_coarsest_level_ranks(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    for budget in ({"fill": 0}, {"fill_seconds": 0}):
        found = lazy.search("a red car", k=30, **budget)
        assert found.plan[0]["left"] == 30 and "ranked by the coarsest level" in str(found)
        query = encoder.encode_text(["a red car"])["coarse"][0]
        with lazy.store.reading() as reader:
            coarse = reader.embeddings(range(30), whole=False)["coarse"]
        best = np.argsort(-(coarse @ query), kind="stable")
        assert [hit.id for hit in found] == (best + 1).tolist()
        assert {*found[0].scores} == {"coarse"} and [hit.rank for hit in found] == [*range(1, 31)]
    assert pending(lazy) == 30


def test_what_is_pending_comes_last_and_pages_are_parts_of_one_list(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    lazy.search("a red car", fill=7, shortlist=7)
    whole = lazy.search("two dogs", k=30, fill=0).ids
    assert len({*whole}) == 30 and whole == [hit.id for hit in lazy.search("two dogs", k=30, fill=0)]
    for group in (False, True):
        pages = [
            hit.id for at in range(0, 30, 4) for hit in lazy.search("two dogs", k=4, offset=at, fill=0, group=group)
        ]
        assert pages == whole
    assert len(lazy.search("two dogs", k=30, fill=0, threshold=-1.0)) == 7, "a threshold is one of the finest level"
    assert len(lazy.search("two dogs", k=30, fill=0, where="id <= 3")) == 3
    many = lazy.search_many(["two dogs", "a red car"], k=30, fill=0)
    assert [hit.id for hit in many[0]] == whole


def test_searches_for_items_and_mixes_fill_them(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    assert (lazy.vectors([4]).fine == eager.vectors([4]).fine).all() and pending(lazy) == 29
    assert [hit.id for hit in lazy.search(like=9, k=3)] == [hit.id for hit in eager.search(like=9, k=3)]
    lazy = make(tmp_path / "again", pictures, encoder, lazy=True)
    (pictures / "00003.png").unlink()
    with pytest.raises(QueryError, match="00003"):
        lazy.vectors([4])
    with pytest.raises(QueryError, match="pending"):
        lazy.to_arrow()
    assert lazy.to_arrow("coarse").num_rows == 30


def test_a_picture_that_is_gone_or_changed_is_named_and_stays_coarse(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    (pictures / "00003.png").unlink()
    (pictures / "00004.png").write_bytes((pictures / "00005.png").read_bytes())
    (pictures / "00006.png").write_bytes(b"no picture")
    report = lazy.complete()
    assert [(Path(failure.path).name, failure.error) for failure in report.failed] == [
        ("00003.png", "No such file or directory"),
        ("00004.png", "has changed since it was indexed"),
        ("00006.png", "has changed since it was indexed"),
    ]
    assert (report.filled, report.pending) == (27, 3) and lazy.verify().ok
    found = lazy.search("a red car", k=30)
    assert found.plan[0]["why"] == "3 cannot be read" and len(found) == 30
    assert {hit.id for hit in found[-3:]} == {4, 5, 7}
    report = lazy.add(pictures, lazy=True)
    assert (report.updated, report.missing, len(report.failed)) == (1, 2, 1), "what is no picture any more is missing"
    assert lazy.complete().pending == 2


def test_moves_prunes_captions_and_copies_of_pending_pictures(tmp_path, pictures, encoder):
    (pictures / "copy.png").write_bytes((pictures / "00001.png").read_bytes())
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    (pictures / "00002.png").rename(pictures / "moved.png")
    (pictures / "late.png").write_bytes((pictures / "00003.png").read_bytes())
    (pictures / "00009.png").unlink()
    for index, is_lazy in ((eager, False), (lazy, True)):
        report = index.add(pictures, lazy=is_lazy, prune=True, captions={pictures / "moved.png": "moved"})
        assert (report.moved, report.added, report.pruned) == (1, 1, 1)
    assert pending(lazy) == 31
    encoded = encoder.encoded
    assert lazy.complete().failed == []
    assert encoder.encoded - encoded == 29, "a copy is not computed again"
    assert_equal(lazy, eager)
    assert lazy.verify().ok


def test_compaction_merging_and_repair_take_pending_rows_along(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    lazy.search("a red car", fill=5, shortlist=5)
    for index in (eager, lazy):
        index.remove([2, 3])
        assert index.compact() == 2
    assert lazy.verify().ok and 20 < pending(lazy) < 28
    other = Index.create(tmp_path / "other", model=encoder)
    assert other.merge(lazy.path) == 28 and pending(other) == pending(lazy) and other.verify().ok
    with lazy.store.reading() as reader:
        (row,) = reader.integrity.pending()[:1]
        place = reader.files()[0].path
    data = bytearray(place.read_bytes())
    data[row * 32] ^= 1
    place.write_bytes(data)
    assert not lazy.verify().ok
    assert lazy.repair().restored == 1
    assert lazy.verify().ok
    other.complete()
    lazy.complete()
    assert pending(other) == pending(lazy) == 0
    assert (other.vectors(range(1, 29)).fine == eager.vectors([*range(1, 2), *range(4, 31)]).fine).all()


def test_an_index_whose_last_pending_item_is_removed_is_whole(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    lazy.search("a red car", fill=29, shortlist=29)
    with lazy.store.reading() as reader:
        (item,) = reader.in_rows(reader.integrity.pending().tolist())
    lazy.remove([item.id])
    assert lazy.complete().pending == 0 and lazy.verify().ok
    with lazy.store.reading() as reader:
        assert reader.state.format == FORMAT


def test_beside_another_writer_a_search_fills_for_itself_and_asks_for_the_rest(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lazy.store.writer():
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        for _ in range(2):  # the second one needs to compute nothing
            before = encoder.encoded
            found = lazy.search("a red car", k=5)
            assert [(hit.id, hit.scores) for hit in found] == [
                (hit.id, hit.scores) for hit in eager.search("a red car", k=5)
            ]
        assert encoder.encoded == before and pending(lazy) == 30
        best = [hit.id for hit in found]
    finally:
        done.set()
        thread.join()
    assert {*take_wanted(lazy.path)} == {*range(1, 31)}
    note_wanted(lazy.path, [10**9, -5, 0, best[0]])
    with (lazy.path / WANTED).open("ab") as file:
        file.write(b"odd")
    lazy.complete()
    assert_equal(lazy, eager)


def content_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder: its bytes, and when they were written."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_an_index_that_is_opened_read_only_fills_in_memory_and_writes_nothing(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    make(tmp_path / "lazy", pictures, encoder, lazy=True).close()
    before = content_of(tmp_path / "lazy")
    with Index.open(tmp_path / "lazy", encoder, read_only=True) as lazy:
        assert lazy.search("a red car", k=3, fill=0).plan[0]["left"] == 30
        assert lazy.search("a red car", k=3, fill=2, shortlist=4).plan[0]["left"] == 2
        assert lazy.search(like=9, k=3).ids == eager.search(like=9, k=3).ids
        assert lazy.search_many(["two dogs"], k=5)[0].ids == eager.search("two dogs", k=5).ids
        assert (lazy.vectors(4).fine == eager.vectors(4).fine).all()
        for change in (lambda: lazy.add(pictures), lazy.complete, lambda: lazy.remove(1), lazy.compact, lazy.repair):
            with pytest.raises(IndexFolderError, match="opened read-only"):
                change()
    assert content_of(tmp_path / "lazy") == before


def test_a_plan_says_that_everything_is_pending(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    assert "plan: what passes is pending: the coarsest level ranks it" in lazy.search("x", fill=0).explain()
    lazy.complete()
    assert "plan: no item passes" in lazy.search("x", where="id > 99").explain()


def test_a_watch_completes_what_is_pending_and_stops_in_between(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    stop, reports = threading.Event(), []

    def filled(report: FillReport) -> None:
        reports.append(report)
        stop.set()

    watch(lazy, [pictures], every=0.01, stop=stop, on_complete=filled, on_error=reports.append)
    assert [report.filled for report in reports] == [30] and pending(lazy) == 0
    assert_equal(lazy, eager)
    stopped = make(tmp_path / "stopped", pictures, encoder, lazy=True)
    watch(stopped, [pictures], every=0.01, stop=stop, on_report=lambda _: stop.set())
    assert stopped.verify().ok


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_lies_in_place_of_the_wanted_is_neither_followed_nor_written(tmp_path, kind):
    """An index folder is somebody else's."""
    other = tmp_path / "other"
    other.write_bytes(b"12345678")
    place = tmp_path / WANTED
    place.symlink_to(other) if kind == "link" else os.mkfifo(place) if kind == "pipe" else place.mkdir()
    note_wanted(tmp_path, [1, 2])
    assert take_wanted(tmp_path) == [] and other.read_bytes() == b"12345678"


def test_the_wanted_are_filled_first(tmp_path, pictures, encoder):
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    note_wanted(lazy.path, [20, 25])
    order = lazy._filler()._most_wanted()
    assert [next(order).id for _ in range(4)] == [25, 20, 1, 2]
    note_wanted(lazy.path, [29, 20])
    left = [item.id for item in order]
    assert left.index(29) <= 8 and sorted(left) == [*range(3, 20), *range(21, 25), *range(26, 31)]


def test_only_one_process_completes_at_a_time(tmp_path, pictures, encoder):
    from filelock import FileLock

    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    with FileLock(lazy.path / "lock.fill"):
        report = lazy.complete()
    assert report.busy and report.pending == 30
    assert lazy.complete().filled == 30


def test_a_model_without_a_cheaper_level_is_indexed_at_once(tmp_path, pictures):
    one = FakeEncoder(dims=(64,))
    index = make(tmp_path / "one", pictures, one, lazy=True)
    assert pending(index) == 0 and "one level" in index.why_not_lazy
    same = FakeEncoder()
    same.levels = tuple(type(level)(level.name, level.dim, 3, 3) for level in same.levels)
    index = make(tmp_path / "same", pictures, same, lazy=True)
    assert pending(index) == 0 and "the last" in index.why_not_lazy


def test_a_tuned_index_scans_pending_rows_until_they_are_filled(tmp_path, pictures, encoder, monkeypatch):
    from hivlp.index.tuning import jobs

    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    rows = jobs.finest(lazy.store)
    assert len(rows.vectors) == 0
    with pytest.raises(IndexFolderError, match=r"has 30 pending pictures.*: `hivlp index` completes them"):
        lazy.tune()
    lazy.complete()
    assert len(jobs.finest(lazy.store).vectors) == 30


def test_a_search_fills_no_vector_file_that_is_a_link(tmp_path, pictures, encoder):
    """In an index of a stranger, to a file of mine that is long enough."""
    lazy = make(tmp_path / "lazy", pictures, encoder, lazy=True)
    mine = tmp_path / "mine"
    mine.write_bytes(bytes(30 * 64 * 2))
    (lazy.path / "fine.0.f16").unlink()
    (lazy.path / "fine.0.f16").symlink_to(mine)
    lazy.close()
    with Index.open(lazy.path, encoder) as opened:
        assert len(opened.search("a red car", fill=3, k=30)) == 30
        with pytest.raises(IndexFolderError):
            opened.complete()
    assert mine.read_bytes() == bytes(30 * 64 * 2)


def test_a_damaged_record_of_pending_rows_is_found_and_repaired(tmp_path, pictures, encoder):
    import sqlite3

    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    make(tmp_path / "lazy", pictures, encoder, lazy=True).close()
    with sqlite3.connect(tmp_path / "lazy" / "items.db") as db:
        db.execute("UPDATE blocks SET crcs = zeroblob(4) WHERE level = '(pending)'")
    db.close()
    lazy = Index.open(tmp_path / "lazy", encoder)
    assert not lazy.verify().ok
    with pytest.raises(IndexFolderError, match="repair"):
        lazy.search("a red car")
    report = lazy.repair()
    assert report.restored == 30 and lazy.verify().ok and pending(lazy) == 0
    assert (lazy.vectors(range(1, 31)).fine == eager.vectors(range(1, 31)).fine).all()


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from synthetic import FakeEncoder
from hivlp.index import Index
from hivlp.index import filling
from hivlp.index.adding import pictures
filling.COMMIT_ITEMS = pictures.COMMIT_ITEMS = 3
encoder = FakeEncoder()
index = Index.open_or_create(sys.argv[2], model=encoder)
index.add(sys.argv[3], lazy=True, on_progress=lambda report: print("added", report.added, flush=True))
index.complete(on_progress=lambda report: print("filled", report.filled, flush=True), workers=1)
print("done", flush=True)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_bit_equal(tmp_path, pictures, encoder):
    eager = make(tmp_path / "eager", pictures, encoder, lazy=False)
    place = tmp_path / "lazy"
    rng = np.random.default_rng(3)
    reported = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(place), str(pictures)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(int(rng.integers(1, 9))):
            line = child.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.004)))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        with reading(place) as reader:
            assert reader.pending_count() <= 30
        with Index.open(place, encoder) as index:
            assert verify_store(index.store).damage == []
            whole = len(index) - pending(index)
            if line.startswith("filled"):
                reported += int(line.split()[1])
            assert whole >= reported, "what was reported is stored"
            reported = whole
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(place), str(pictures)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert child.stdout.endswith("done\n")
    assert_equal(Index.open(place, encoder), eager)


@pytest.mark.parametrize("codec", ["float16", "int8"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_meanwhile_a_store_keeps_what_a_naive_one_keeps(tmp_path, codec, seed):
    """Appended, replaced, removed, filled and compacted in any order: every item has its vectors, or its coarse one."""
    levels = (Level("coarse", 4, 1, 1), Level("middle", 6, 2, 2), Level("fine", 8, 3, 3))
    make_store(tmp_path / "x", About("numbers", "", "0" * 64, levels), codec=codec)
    rng = np.random.default_rng(seed)
    known: dict[str, tuple[int, bool]] = {}  # path -> content, and whether it is whole

    def vectors(contents: list[int]) -> dict[str, np.ndarray]:
        each = [random_levels(levels, 1, content) for content in contents]
        return {level.name: np.concatenate([one[level.name] for one in each]) for level in levels}

    with closing(Store(tmp_path / "x")) as store:
        for number in range(40):
            match rng.choice(["append", "append", "fill", "remove", "compact"]):
                case "append":
                    contents = rng.integers(100, size=5).tolist()
                    paths = [f"/p/{place}" for place in rng.choice(12, 5, replace=False)]
                    waiting, found = rng.random(5) < 0.6, vectors(contents)
                    for level in levels[1:]:
                        found[level.name][waiting] = 0
                    items = [NewItem(p, c.to_bytes(32), None, {}, STAMP) for p, c in zip(paths, contents, strict=True)]
                    store.append(items, found, pending=waiting)
                    known |= {p: (c, not w) for p, c, w in zip(paths, contents, waiting.tolist(), strict=True)}
                case "fill" if known:
                    contents = sorted({content for content, _ in known.values()})[: rng.integers(1, 9)]
                    store.fill([content.to_bytes(32) for content in contents], Embeddings(vectors(contents)))
                    known = {p: (c, is_whole or c in contents) for p, (c, is_whole) in known.items()}
                case "remove" if known:
                    gone = str(rng.choice([*known]))
                    store.remove([gone])
                    del known[gone]
                case "compact":
                    store.compact()
            waiting = {path for path, (_, is_whole) in known.items() if not is_whole}
            assert store.settle_pending() == len(waiting), number
            assert verify_store(store).damage == []
            with store.reading() as reader:
                items = reader.items(limit=100)
                rows = [item.row for item in items]
                assert {item.path for item in items} == {*known}
                assert {item.path for item, is_pending in zip(items, reader.are_pending(rows), strict=True)
                        if is_pending} == waiting  # fmt: skip
                assert (reader.state.format == PENDING_FORMAT) >= bool(waiting)
                found = reader.embeddings(rows, check=True, whole=False)
                wanted = vectors([known[item.path][0] for item in items]) if items else {}
                for place, item in enumerate(items):
                    assert np.allclose(found["coarse"][place], wanted["coarse"][place], atol=1e-3)
                    for name in ("middle", "fine"):
                        there = wanted[name][place] * (item.path not in waiting)
                        assert np.allclose(found[name][place], there, atol=1e-2)


@pytest.mark.train
def test_the_command_indexes_by_early_layers_and_completes(tmp_path, pictures, capsys):
    pytest.importorskip("torch")
    model = save_tiny(tmp_path / "model")
    place = tmp_path / "x"
    assert main(["index", str(pictures), "-o", str(place), "--model", str(model), "--lazy", "--json"]) == 0
    told = capsys.readouterr()
    assert "30 of 30 by the coarsest level alone" in told.err
    report = json.loads(told.out)
    assert (report["added"], report["lazy"]["filled"], report["lazy"]["pending"]) == (30, 30, 0)
    eager = Index.create(tmp_path / "eager", model=model)
    eager.add(pictures)
    assert_equal(Index.open(place), eager)
    lazy = Index.create(tmp_path / "lazy", model=model)
    lazy.add(pictures, lazy=True)
    assert main(["search", str(lazy.path), "dog", "--fill", "3", "--fill-seconds", "60", "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"][0] == {"stage": "fill", "level": "fine", "pending": 30, "filled": 3, "left": 27,
                               "why": "the budget is spent"}  # fmt: skip
    assert main(["info", str(lazy.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pending"] == 27
    assert main(["index", str(pictures), "-o", str(lazy.path)]) == 0, "a plain run goes on"
    assert "27 completed, 0 pending" in capsys.readouterr().out
    assert_equal(Index.open(lazy.path), eager)


@pytest.mark.train
def test_a_model_without_its_early_graph_or_with_anothers_says_what_to_do(tmp_path, pictures):
    pytest.importorskip("torch")
    model = save_tiny(tmp_path / "model")
    early = model / image_graph("coarse")
    early.write_bytes((save_tiny(tmp_path / "other", seed=1) / image_graph("coarse")).read_bytes())
    with pytest.raises(ModelError, match=r"does not give the vectors of image\.onnx: `hivlp export"):
        Index.create(tmp_path / "x", model=model).add(pictures, lazy=True)
    early.unlink()
    with pytest.raises(ModelError, match=r"has no image\.coarse\.onnx"):
        Index.create(tmp_path / "y", model=model).add(pictures, lazy=True)


def test_the_command_says_where_nothing_is_gained(tmp_path, pictures, capsys):
    assert main(["index", str(pictures), "-o", str(tmp_path / "x"), "--lazy", "--json"]) == 0
    told = capsys.readouterr()
    assert "--lazy gains nothing: all levels of hivlp-mini read layer 8" in told.err
    assert json.loads(told.out)["added"] == 30
    assert main(["index", "--embeddings", "x.npy", "-o", str(tmp_path / "y"), "--lazy"]) == 2
