"""A tuned index that goes on changing: its inverted lists take in what comes, leave out what goes, and say how well."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hivlp.ann import AnnIndex, checks, lists, native
from hivlp.ann.arrays import ARRAYS
from hivlp.ann.manifest import MANIFEST, manifest_check
from hivlp.files import npy
from hivlp.index import Index
from hivlp.index.tuning import jobs, tuned_index
from hivlp.index.tuning.tuned_index import TunedIndex
from hivlp.search import calibration, truth
from hivlp.search.operating_points import FOLDER, Tuned
from hivlp.search.truth import Truth
from synthetic import cloud, make_tuned_index, quick_tuning

WIDTH, ITEMS, LATE = 32, 1300, 40
pytestmark = pytest.mark.skipif(native.load() is None, reason="the kernels are not compiled here")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tuned index, never changed."""
    place = tmp_path_factory.mktemp("living") / "index"
    return make_tuned_index(place, cloud(ITEMS, WIDTH, 0), cloud(1400, WIDTH, 1), dims=8)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(made, tmp_path / "index"))


@pytest.fixture(autouse=True, scope="module")
def quick():
    """A few rows are enough to be taken in, and tuning is quick."""
    with quick_tuning(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuned_index, "LATE", LATE)
        patch.setattr(jobs, "LATE", LATE)
        yield


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return cloud(1400, WIDTH, 1)[:40]


class Oracle:
    """What the index must hold, by path, as plainly as can be."""

    def __init__(self, vectors: np.ndarray, name: str) -> None:
        self.held: dict[str, np.ndarray] = {}
        self.put(vectors, name)

    def put(self, vectors: np.ndarray, name: str) -> None:
        self.held.update({f"{name}#{row}": vector for row, vector in enumerate(vectors.astype(np.float16))})

    def best(self, query: np.ndarray) -> list[tuple[str, float]]:
        unit = query / np.linalg.norm(query)
        scores = {path: float(vector.astype(np.float32) @ unit) for path, vector in self.held.items()}
        return sorted(scores.items(), key=lambda each: -each[1])[:10]

    def check(self, index: Index, queries: np.ndarray) -> None:
        """Exact answers are these, approximate ones nearly, and no hit is what it was before it changed."""
        found = []
        for query in queries:
            best = self.best(query)
            exact = index.search(vector={"fine": query}, exact=True)
            assert {hit.path.rsplit("/")[-1] for hit in exact} == {path for path, _ in best}
            np.testing.assert_allclose([hit.scores["fine"] for hit in exact], [score for _, score in best], atol=2e-3)
            near = index.search(vector={"fine": query})
            assert len(near) == 10
            for hit in near:
                vector = self.held[hit.path.rsplit("/")[-1]].astype(np.float32)
                assert abs(hit.scores["fine"] - vector @ (query / np.linalg.norm(query))) < 2e-3
            found.append(len({hit.id for hit in near} & {hit.id for hit in exact}) / 10)
        assert np.mean(found) >= 0.93
        assert len(index) == len(self.held)


def check_lists(index: Index) -> None:
    """The lists are valid, know all rows but a few, and the truth beside them is what a scan finds."""
    rows = jobs.finest(index.store)
    found = TunedIndex.load(index.path, rows)
    assert found is not None
    assert checks.fault({name: getattr(found.index.arrays, name) for name in ARRAYS}) is None
    assert 0 <= len(rows.vectors) - found.index.count < LATE
    assert found.bounds is not None and index.snapshot().collection.ann is not None
    known = slice(None, found.tuned.checked_rows)
    # Tombstones since the last check are still in the truth.
    if rows.dead == found.tuned.checked_dead:
        alive = None if rows.alive is None else rows.alive[known]
        scan = Truth.of(rows.vectors[known], tuned_index._split(found.queries)[0], alive)
        for (some, scores), (other, products) in zip(found.truth.best(200), scan.best(200), strict=True):
            np.testing.assert_array_equal(some, other)
            np.testing.assert_array_equal(scores, products)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "update", "remove", "remove", "compact", "merge", "tune"]),
        st.integers(1, 120),
        st.integers(0, 1 << 30),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHANGES)
def test_after_any_changes_answers_are_those_of_what_is_there(made, queries, changes):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(made, Path(scratch) / "index"))
        oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
        with Index.open(folder) as index:
            for number, (what, count, seed) in enumerate(changes):
                change(index, oracle, Path(scratch), what, count, seed, number)
                oracle.check(index, queries[:8])
                check_lists(index)
            oracle.check(index, queries)
            assert index.verify().ok


def change(index: Index, oracle: Oracle, scratch: Path, what: str, count: int, seed: int, number: int) -> None:
    rng, name = np.random.default_rng(seed), f"{what}{number}.npy"
    if what == "add":
        np.save(scratch / name, cloud(count, WIDTH, seed))
        index.add_embeddings(scratch / name)
        oracle.put(cloud(count, WIDTH, seed), name)
    elif what == "update":
        for each in (cloud(count, WIDTH, seed), cloud(count, WIDTH, seed + 1)):
            np.save(scratch / name, each)
            index.add_embeddings(scratch / name)
            oracle.put(each, name)
    elif what == "remove":
        gone = rng.choice(sorted(oracle.held), min(count, len(oracle.held) - 1100), replace=False).tolist()
        ids = {item.path.rsplit("/")[-1]: item.id for item in index.items()}
        index.remove([ids[path] for path in gone])
        for path in gone:
            del oracle.held[path]
    elif what == "compact":
        index.compact()
        assert index.info().dead == 0
    elif what == "merge":
        other = scratch / f"other{number}"
        make_index_like(index, other, cloud(count, WIDTH, seed))
        index.merge(other)
        oracle.put(cloud(count, WIDTH, seed), f"other{number}.npy")
    else:
        index.tune()


def make_index_like(index: Index, place: Path, vectors: np.ndarray) -> None:
    """An index of other vectors with the same levels."""
    np.save(place.with_suffix(".npy"), vectors)
    with Index.create_from_embeddings(place, index.maps) as other:
        other.add_embeddings(place.with_suffix(".npy"))


def counted(monkeypatch) -> list[int]:
    """How many rows are encoded, each time, from now on."""
    numbers = []

    def encode(items, *given, **named):
        numbers.append(len(items))
        return lists.encode(items, *given, **named)

    monkeypatch.setattr("hivlp.ann.ann_index.encode", encode)
    return numbers


# Adding.


def test_what_is_added_is_in_the_lists_at_the_end_of_the_add(folder, tmp_path, queries, monkeypatch):
    """Nothing is learnt, and nothing is encoded twice."""
    monkeypatch.setattr(AnnIndex, "build", None)
    encoded = []
    encode = sys.modules["hivlp.ann.ann_index"].encode
    monkeypatch.setattr(
        "hivlp.ann.ann_index.encode", lambda items, *a, **b: encoded.append(len(items)) or encode(items, *a, **b)
    )
    oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
    with Index.open(folder) as index:
        for number, count in enumerate((LATE - 1, 1, LATE, 3)):
            change(index, oracle, tmp_path, "add", count, 100 + number, number)
        assert encoded == [LATE, LATE]
        tuned = Tuned.load(folder)
        assert (tuned.rows, tuned.learnt_rows) == (ITEMS + 2 * LATE, ITEMS)
        check_lists(index)
        oracle.check(index, queries)


def test_a_searcher_in_another_process_sees_old_lists_or_new_ones(folder, tmp_path, queries, monkeypatch):
    monkeypatch.setattr("hivlp.search.opened.LOOK_SECONDS", 0)
    oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
    with Index.open(folder) as reader, Index.open(folder) as writer:
        known = []
        monkeypatch.setattr(TunedIndex, "save", watching(TunedIndex.save, lambda: known.append(seen(reader))))

        def seen(index: Index) -> int:
            index.search(vector={"fine": queries[0]})
            return index.snapshot().collection.ann.count

        change(writer, oracle, tmp_path, "add", 2 * LATE, 7, 0)
        assert known == [ITEMS, ITEMS + 2 * LATE]
        oracle.check(reader, queries[:5])


def watching(method, look):
    """The method, with a look before and after it."""

    def watched(*given):
        look()
        result = method(*given)
        look()
        return result

    return watched


def test_lists_that_cannot_be_written_do_not_undo_an_add(folder, tmp_path, queries, monkeypatch, caplog):
    oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    with Index.open(folder) as index:
        with monkeypatch.context() as patch:
            patch.setattr(AnnIndex, "save", full)
            change(index, oracle, tmp_path, "add", LATE, 7, 0)
            assert "has not taken in what has changed" in caplog.text and "No space left" in caplog.text
            assert Tuned.load(folder).rows == ITEMS
            oracle.check(index, queries[:5])
        assert index.refresh() is True and Tuned.load(folder).rows == ITEMS + LATE
        oracle.check(index, queries[:5])


# Compacting.


@pytest.mark.slow
def test_compaction_renumbers_the_lists_and_encodes_nothing(folder, tmp_path, queries, monkeypatch):
    oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
    with Index.open(folder) as index:
        change(index, oracle, tmp_path, "remove", 90, 5, 0)
        change(index, oracle, tmp_path, "add", 3, 6, 1)
        encoded = []
        encode = sys.modules["hivlp.ann.ann_index"].encode
        monkeypatch.setattr(
            "hivlp.ann.ann_index.encode", lambda items, *a, **b: encoded.append(len(items)) or encode(items, *a, **b)
        )
        index.compact()
        assert encoded == [3], "those that were not in the lists yet"
        assert index.snapshot().collection.ann.count == ITEMS - 90 + 3
        check_lists(index)
        oracle.check(index, queries)


@pytest.mark.slow
def test_lists_of_rows_that_nobody_renumbered_are_made_again_with_what_was_learnt(folder, queries, monkeypatch):
    oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
    with Index.open(folder) as index:
        index.remove(list(range(1, 60)))
        for row in range(59):
            del oracle.held[f"index.npy#{row}"]
        index.store.compact()  # as if killed before the lists were renumbered
        assert "other numbers" in index.info().tuned["tune_again"]
        monkeypatch.setattr(AnnIndex, "build", None)
        assert index.refresh() is True and index.info().tuned["tune_again"] is None
        check_lists(index)
        oracle.check(index, queries)


# The watch on recall.


def test_recall_is_checked_and_a_point_that_falls_short_gives_way(folder, tmp_path, queries):
    """Additions of a kind that was never seen: what is asked for is still found, by more effort."""
    with Index.open(folder) as index:
        before = Tuned.load(folder)
        oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
        change(index, oracle, tmp_path, "add", 900, 4711, 0)
        after = Tuned.load(folder)
        assert (after.rows, after.checked_rows, after.learnt_rows) == (ITEMS + 900, ITEMS + 900, ITEMS)
        found = TunedIndex.load(folder, jobs.finest(index.store))
        data = calibration._Data(
            found.index, None, tuned_index._split(found.queries)[0], found.truth, lambda what, done, total: None
        )
        for depth, old in zip(after.depths, before.depths, strict=True):
            point = depth.point(after.recall)
            if point is not None:
                recall, at_least = data.promise(point.params, depth.ranks)
                assert point.recall == pytest.approx(recall, abs=1e-4) and at_least >= after.recall - 1e-4
            assert [each.params for each in depth.frontier] == [each.params for each in old.frontier]
            assert [each.p50_ms for each in depth.frontier] == [each.p50_ms for each in old.frontier]
        oracle.check(index, queries)


@pytest.mark.slow
def test_a_recall_that_is_out_of_reach_is_said_and_tuning_again_trains_anew(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibration._Data, "promise", lambda data, params, ranks: (0.5, 0.4))
    with Index.open(folder) as index:
        assert index.info().tuned["tune_again"] is None
        change(index, Oracle(cloud(1, WIDTH, 0), "none"), tmp_path, "add", 120, 9, 0)
        said = index.info()
        assert said.tuned["at_least"] is None and "no search parameters" in said.tuned["tune_again"]
        query = {"fine": np.ones(WIDTH, np.float32)}
        assert [step["stage"] for step in index.search(vector=query).plan] == ["exact"], "the promise is kept"
        monkeypatch.undo()
        with quick_tuning():
            index.tune()
        assert index.info().tuned["tune_again"] is None
        assert index.info().tuned["learnt_rows"] == ITEMS
        assert index.info().tuned["at_least"] >= 0.99


@pytest.mark.slow
def test_tuning_again_keeps_what_still_holds(folder, tmp_path, queries, monkeypatch):
    """Training, codes and truth stay; queries are those of the last time; a change of the recall alone, too."""
    scanned, of = [], Truth.of

    def scan(cls, vectors, *given):
        scanned.append(len(vectors))
        return of(vectors, *given)

    monkeypatch.setattr(AnnIndex, "build", None)
    monkeypatch.setattr(Truth, "of", classmethod(scan))
    with Index.open(folder) as index:
        change(index, Oracle(cloud(1, WIDTH, 0), "none"), tmp_path, "add", 10, 9, 0)
        report = index.tune(recall=0.9)
        assert report.tuned.queries == "given vectors" and report.tuned.recall == 0.9
        assert (report.tuned.rows, report.tuned.learnt_rows) == (ITEMS + 10, ITEMS)
        assert scanned == [10]
        check_lists(index)


@pytest.mark.slow
def test_an_index_of_twice_the_rows_is_trained_anew(folder, tmp_path, queries):
    with Index.open(folder) as index:
        oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
        change(index, oracle, tmp_path, "add", ITEMS, 4, 0)
        assert Tuned.load(folder).learnt_rows == 2 * ITEMS
        oracle.check(index, queries[:10])


# Kills.


def kill_at(moment: int, folder: Path, job) -> None:
    """In a child: do the job, and end by SIGKILL before so many changes to the folder's files have been made."""
    try:
        left = [moment]

        def count(event: str, arguments: tuple) -> None:
            named = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")
            if named and str(folder) in str(arguments[0]):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        with Index.open(folder) as index:
            sys.addaudithook(count)
            job(index)
            left[0] = 10**9
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["add", "compact"])
def test_a_kill_at_any_moment_of_a_change_of_the_lists_does_no_harm(made, tmp_path, queries, job):
    """SIGKILL before each change of a file, from the commit on: the rows of a commit, old lists or new ones."""
    more, oracle = cloud(2 * LATE, WIDTH, 77), Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
    np.save(tmp_path / "more.npy", more)
    prepared = Path(shutil.copytree(made, tmp_path / "prepared"))
    if job == "compact":
        with Index.open(prepared) as index:
            index.remove(list(range(1, 3 * LATE + 1)))
        for row in range(3 * LATE):
            del oracle.held[f"index.npy#{row}"]
    states = set()
    for moment in itertools.count(0, 5):
        folder = Path(shutil.copytree(prepared, tmp_path / f"at{moment}"))
        child = os.fork()
        if child == 0:
            kill_at(
                moment,
                folder,
                lambda index: index.compact() if job == "compact" else index.add_embeddings(tmp_path / "more.npy"),
            )
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert finished in (0, -signal.SIGKILL)
        now = Oracle(np.zeros((0, WIDTH)), "none")
        now.held = dict(oracle.held)
        with Index.open(folder) as index:
            if job == "add" and len(index) > ITEMS:
                now.put(more, "more.npy")
            if job == "add":
                assert index.snapshot().collection.ann is not None
            now.check(index, queries[:3])
            assert index.verify().ok
            tuned = Tuned.load(folder)
            states.add((len(index), index.info().rows, tuned.rows, tuned.generation))
            index.add_embeddings(tmp_path / "more.npy")  # whoever writes next completes it
            now.put(more, "more.npy")
            now.check(index, queries[:3])
            check_lists(index)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(folder)
        if finished == 0:
            break
    assert len(states) == 3, "before the commit, between the commit and the lists, after both"


# Strangers' files.


def hostile(folder: Path, name: str, array: np.ndarray) -> None:
    """Another array in a file, with the checksums that belong to it."""
    place = folder / FOLDER
    np.save(place / name, array, allow_pickle=False)
    said = json.loads((place / MANIFEST).read_text())
    said["checks"][name] = npy.checksum((place / name).read_bytes())
    del said["check"]
    (place / MANIFEST).write_text(json.dumps({**said, "check": manifest_check(said)}))


def bad_truths(rows: np.ndarray, scores: np.ndarray) -> list[tuple[str, np.ndarray]]:
    beyond, below, nothing = rows.copy(), rows.copy(), scores.copy()
    beyond[3, 5], below[3, 5], nothing[3, 5] = ITEMS, -2, np.nan
    return [
        (truth.FILES[0], beyond), (truth.FILES[0], below), (truth.FILES[0], rows[:-1]), (truth.FILES[0], rows[:, :7]),
        (truth.FILES[0], rows.astype(np.int64)), (truth.FILES[0], np.int32(3)),
        (truth.FILES[1], nothing), (truth.FILES[1], scores.astype(np.float64)), (truth.FILES[1], scores[:0]),
        (tuned_index.QUERIES, np.full((1400, WIDTH), np.nan, np.float16)),
        (tuned_index.QUERIES, np.zeros((1400, WIDTH), np.float16)),
        (tuned_index.QUERIES, np.ones((1, WIDTH), np.float16)),
        (tuned_index.QUERIES, np.ones((1400, WIDTH + 1), np.float16)),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_truth_that_is_none_is_not_believed(made, tmp_path, queries):
    with Index.open(made) as index:
        found = TunedIndex.load(made, jobs.finest(index.store))
    for number, (name, array) in enumerate(bad_truths(found.truth.rows, found.truth.scores)):
        folder = Path(shutil.copytree(made, tmp_path / str(number)))
        hostile(folder, name, array)
        oracle = Oracle(cloud(ITEMS, WIDTH, 0), "index.npy")
        with Index.open(folder) as index:
            assert TunedIndex.load(folder, jobs.finest(index.store)) is None, (name, array.shape)
            change(index, oracle, tmp_path, "add", LATE, 7, 1000 + number)
            oracle.check(index, queries[:2])
            if name != tuned_index.QUERIES:  # without queries, nothing can be measured: the lists stay as they are
                check_lists(index)


def test_a_manifest_of_more_checked_rows_than_there_are_is_not_believed(folder, queries):
    with Index.open(folder) as index:
        rows = jobs.finest(index.store)
        found = TunedIndex.load(folder, rows)
        with index.store.writer():
            replace(found, tuned=replace(found.tuned, checked_rows=ITEMS + 1)).save(index.store)
        assert TunedIndex.load(folder, rows) is None
        assert len(index.search(vector={"fine": queries[0]})) == 10


# The truth by itself.


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30), st.integers(0, 500), st.integers(0, 300), st.floats(0, 1), st.floats(0, 0.5), st.booleans()
)
def test_a_renewed_truth_is_what_a_scan_finds(seed, before, more, share, dead, renumbered):
    """Also of equal vectors, few ones, none."""
    rng = np.random.default_rng(seed)
    vectors = (rng.integers(-2, 3, size=(before + more, 4)) / 4).astype(np.float16)
    queries = rng.integers(-3, 4, size=(5, 4)).astype(np.float32)
    first = Truth.of(vectors[:before], queries, None)
    if renumbered:
        kept = np.flatnonzero(rng.random(before) < share)
        rows = np.concatenate([vectors[:before][kept], vectors[before:]])
    else:
        kept, rows = None, vectors
    assume(len(rows) > 0)
    alive = rng.random(len(rows)) >= dead
    start = before if kept is None else len(kept)
    renewed = first.renewed(rows, queries, alive, start, kept)
    for (some, scores), (other, products) in zip(
        renewed.best(truth.RANKS), Truth.of(rows, queries, alive).best(truth.RANKS), strict=True
    ):
        np.testing.assert_array_equal(scores, products)
        np.testing.assert_array_equal(some, other)
    again = Truth.load(dict(renewed.files()).__getitem__, 5, len(rows))
    assert again is not None
    np.testing.assert_array_equal(again.rows, renewed.rows)
