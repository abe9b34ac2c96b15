"""The engine inside an index that goes on changing: what is found, what is promised, what is taken in."""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.ann import AnnIndex, native
from hivlp.ann.arrays import Arrays
from hivlp.ann.manifest import MANIFEST, manifest_check
from hivlp.cli import main
from hivlp.errors import IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.index.tuning import queries as tuning_queries
from hivlp.search import opened
from hivlp.search.approximate import Approximate
from hivlp.search.operating_points import Tuned
from synthetic import (
    FakeEncoder,
    Stored,
    cloud,
    fill,
    make_tuned_index,
    quick_tuning,
    random_levels,
    random_unit,
    unit,
    write_pictures,
)

WIDTH = 48
pytestmark = pytest.mark.skipif(native.load() is None, reason="the kernels are not compiled here")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return cloud(4000, WIDTH, 0)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return cloud(1500, WIDTH, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, vectors, queries):
    """A tuned index of the first 3,500 vectors, and the folder they come from."""
    folder = tmp_path_factory.mktemp("tuned")
    np.save(folder / "q.npy", queries[:1300])
    make_tuned_index(folder / "index", vectors[:3500], folder / "q.npy")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to change."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Few settings, timed a few times: what is tested here does not depend on them."""
    with quick_tuning():
        yield


def ids(result) -> list[int]:
    return [hit.id for hit in result]


def share(index: Index, queries: np.ndarray, **options) -> float:
    found = [
        len(set(ids(index.search(vector={"fine": query}, **options)))
            & set(ids(index.search(vector={"fine": query}, exact=True, where=options.get("where"))))) / 10
        for query in queries
    ]  # fmt: skip
    return float(np.mean(found))


@pytest.mark.slow
def test_an_int8_index_is_tuned_and_finds_what_reading_all_of_it_does(tmp_path, vectors, queries):
    np.save(tmp_path / "v.npy", vectors)
    index_embeddings(tmp_path / "x", tmp_path / "v.npy", method="none", vectors="int8")
    with Index.open(tmp_path / "x") as index:
        index.tune(queries[:1300])
        assert share(index, queries[1300:]) >= 0.97
        asked = queries[1300]
        steps = [step["stage"] for step in index.search(vector={"fine": asked}).plan]
        assert steps == ["ann"]
        truth = index.snapshot().collection.scanners[-1].top(asked / np.linalg.norm(asked), 10)
        exact = index.search(vector={"fine": asked}, exact=True)
        assert ids(exact) == (truth[0] + 1).tolist()
        assert [hit.scores["fine"] for hit in exact] == truth[1].tolist()
        near = {hit.id: hit.scores["fine"] for hit in index.search(vector={"fine": asked})}
        assert all(near[hit.id] == hit.scores["fine"] for hit in exact if hit.id in near)
        np.save(tmp_path / "more.npy", cloud(900, WIDTH, 5))
        index.add_embeddings(tmp_path / "more.npy")
        index.refresh()
        assert share(index, queries[1300:]) >= 0.97
        assert index.verify().ok


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 60))
def test_without_queries_and_model_it_learns_from_sums_of_two_different_items(seed, count):
    items = unit(np.random.default_rng(seed).normal(size=(count, 8))).astype(np.float16)
    items[1::2] = -items[: len(items[1::2])]  # whose sums may be nothing
    asked, source = tuning_queries.queries_to_learn(None, SimpleNamespace(model=None), None, items, lambda *told: None)
    assert source == "pairs of items" and asked.shape == items.shape and asked.dtype == np.float32
    assert np.linalg.norm(asked, axis=1) == pytest.approx(1, abs=1e-3)
    plain = unit(items.astype(np.float32))
    sums = (plain[:, None] + plain)[~np.eye(count, dtype=bool)]
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    allowed = np.concatenate([(sums / np.maximum(lengths, 1e-20))[lengths[:, 0] > 1e-3], plain])
    assert np.all((asked @ allowed.T).max(1) > 0.999)


def test_a_large_index_without_queries_and_model_learns_from_its_items():
    items = random_unit(np.random.default_rng(0), 5_000, 8).astype(np.float16)
    asked, source = tuning_queries.queries_to_learn(None, SimpleNamespace(model=None), None, items, lambda *told: None)
    assert source == "the items themselves" and asked == pytest.approx(unit(items.astype(np.float32)), abs=1e-6)


def test_the_recall_that_was_asked_for(made, queries):
    fresh = queries[1300:]
    with Index.open(made / "index") as index:
        for recall in (0.9, 0.99):
            assert share(index, fresh, recall=recall) >= recall - 0.02
        # What cannot be promised is read in full.
        assert share(index, fresh[:20], recall=1.0) == 1.0


def test_searches_use_the_engine(made, queries, monkeypatch):
    asked = []
    with Index.open(made / "index") as index:
        index.search(vector={"fine": queries[0]})
        search = AnnIndex.search
        monkeypatch.setattr(AnnIndex, "search", lambda *a, **b: asked.append(1) or search(*a, **b))
        index.search(vector={"fine": queries[0]})
        assert asked == [1]
        index.search(vector={"fine": queries[0]}, shortlist=50)
        assert asked == [1]
        index.search(vector={"fine": queries[0]}, exact=True)  # the engine says what an answer must reach
        assert asked == [1, 1]


@pytest.mark.slow
def test_pages_are_one_long_list_best_first(made, queries):
    with Index.open(made / "index") as index:
        for query in queries[1300:1330]:
            hits = index.search(vector={"fine": query}, k=1000)
            scores = [hit.scores["fine"] for hit in hits]
            assert scores == sorted(scores, reverse=True)
            assert len(set(ids(hits))) == 1000
            for step in (8, 50, 130):
                pages = [index.search(vector={"fine": query}, k=step, offset=at) for at in range(0, 260, step)]
                assert [i for page in pages for i in ids(page)] == ids(hits)[: len(pages) * step]
            for options in ({"where": "id % 3 = 0"}, {"threshold": scores[400]}, {"group": 0.9}, {"offset": 30}):
                some = [hit.scores["fine"] for hit in index.search(vector={"fine": query}, k=300, **options)]
                assert len(some) >= 100 and some == sorted(some, reverse=True)


def test_whoever_asks_for_everything_gets_the_exact_ranking(made, queries):
    with Index.open(made / "index") as index:
        query = {"fine": queries[3]}
        everything = ids(index.search(vector=query, k=10**6))
        assert everything == ids(index.search(vector=query, k=10**6, exact=True))
        assert sorted(everything) == sorted({item.id for item in Stored(index).all_items()})
        paged = [i for at in range(0, 3500, 500) for i in ids(index.search(vector=query, k=500, offset=at))]
        assert sorted(paged) == sorted(everything), "page by page, nothing is lost either"


def test_batches_groups_and_thresholds(made, queries):
    with Index.open(made / "index") as index:
        many = index.search_many(vectors={"fine": queries[:20]}, k=7)
        assert [ids(one) for one in many] == [ids(index.search(vector={"fine": q}, k=7)) for q in queries[:20]]
        top = index.search(vector={"fine": queries[0]}, k=10)
        bar = top[4].scores["fine"]
        assert ids(index.search(vector={"fine": queries[0]}, k=10, threshold=bar)) == ids(top)[:5]
        assert ids(index.search(like=top[0].id, k=5))[0] != top[0].id
        grouped = index.search(vector={"fine": queries[0]}, k=10, group=0.999)
        assert [hit.id for hit in grouped] == ids(top)


@pytest.mark.parametrize("condition", ["id % 100 = 0", "id % 7 = 0", "id % 2 = 0"])
def test_filters_starve_nobody(made, queries, monkeypatch, condition):
    monkeypatch.setattr(opened, "Approximate", partial(Approximate, few=100))
    with Index.open(made / "index") as index:
        assert share(index, queries[1440:], where=condition) >= 0.97
        hits = index.search(vector={"fine": queries[1400]}, where=condition, k=20)
        assert len(hits) == 20


@pytest.mark.slow
def test_what_changes_after_tuning(folder, vectors, queries):
    with Index.open(folder / "index") as index:
        first = index.search(vector={"fine": vectors[10]})[0]
        index.remove([first.id])
        assert first.id not in ids(index.search(vector={"fine": vectors[10]}))
        np.save(folder / "more.npy", vectors[3500:3600])
        index.add_embeddings(folder / "more.npy")
        hit = index.search(vector={"fine": vectors[3550]})[0]
        assert hit.path.endswith("#50") and "more" in hit.path
        assert index.refresh() is False and Tuned.load(index.path).rows == 3500  # too little to be worth it
        np.save(folder / "most.npy", vectors[3600:])
        index.add_embeddings(folder / "most.npy")
        assert index.refresh() is False, "it has been taken in"
        assert Tuned.load(index.path).rows == 4000
        assert share(index, queries[1450:]) >= 0.97
        index.store.compact()
        assert share(index, queries[1480:]) >= 0.5  # by the coarse level, until the approximate index is made anew
        assert index.snapshot().collection.ann is None
        assert index.refresh() is True
        assert share(index, queries[1450:]) >= 0.97
        assert index.snapshot().collection.ann is not None


@pytest.mark.slow
def test_an_engine_of_an_earlier_format(folder, queries):
    """It is not used, and built again when the index next has reason to look at it."""
    file = folder / "index" / "engine" / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["check"]
    manifest["format"] = 1
    file.write_text(json.dumps({**manifest, "check": manifest_check(manifest)}))
    with Index.open(folder / "index") as index:
        report = index.verify()
        assert report.ok and "`hivlp tune` builds it again" in report.notes[0], "it is no damage"
        exact = ids(index.search(vector={"fine": queries[1400]}, exact=True))
        assert ids(index.search(vector={"fine": queries[1400]}, recall=0.99)) == exact
        assert index.snapshot().collection.ann is None and Tuned.load(index.path) is None
        assert index.refresh() is True
        assert share(index, queries[1450:]) >= 0.97
        assert index.snapshot().collection.ann is not None and index.refresh() is False


@pytest.mark.slow
def test_another_process_tunes(folder, queries, monkeypatch):
    """An index that is open notes an engine that comes, is replaced or goes, without a commit."""
    monkeypatch.setattr(opened, "LOOK_SECONDS", 0)
    place = folder / "index"
    shutil.rmtree(place / "engine")
    with Index.open(place) as reader, Index.open(place) as other:
        before = ids(reader.search(vector={"fine": queries[1400]}, exact=True))
        reader.search(vector={"fine": queries[1400]})
        assert reader.snapshot().collection.ann is None
        other.tune(folder / "q.npy", recall=0.9)
        assert len(set(ids(reader.search(vector={"fine": queries[1400]}, recall=0.9))) & set(before)) >= 7
        first = reader.snapshot().collection.ann
        assert first is not None and reader.snapshot().collection.ann.tuned.recall == 0.9
        other.tune(recall=0.95)
        assert first.tuned.recall == 0.9, "a snapshot stays what it is"
        reader.search(vector={"fine": queries[1400]})
        assert (
            reader.snapshot().collection.ann not in (None, first)
            and reader.snapshot().collection.ann.tuned.recall == 0.95
        )
        shutil.rmtree(place / "engine")
        assert len(reader.search(vector={"fine": queries[1400]})) == 10
        assert reader.snapshot().collection.ann is None


def test_an_engine_is_opened_once(folder, vectors, queries, monkeypatch):
    """Commits beside it do not open it again, and a search looks at its manifest once."""
    opened, looks = [], []
    load, stat = Arrays.load, os.stat
    monkeypatch.setattr(Arrays, "load", lambda path, *more: opened.append(path) or load(path, *more))

    def looking(path, **more):
        if str(path).endswith(MANIFEST):
            looks.append(path)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", looking)
    with Index.open(folder / "index") as reader, Index.open(folder / "index") as writer:
        reader.search(vector={"fine": queries[0]})
        assert len(opened) == 1
        for start in (3500, 3550):
            np.save(folder / f"{start}.npy", vectors[start : start + 50])
            writer.add_embeddings(folder / f"{start}.npy")
            opened.clear()
            hit = reader.search(vector={"fine": vectors[start + 7]})[0]
            assert (hit.path.endswith(f"{start}.npy#7"), opened) == (True, [])
            writer.remove([hit.id])
            assert hit.id not in ids(reader.search(vector={"fine": vectors[start + 7]}))
        looks.clear()
        reader.search(vector={"fine": queries[0]})
        reader.search_many(vectors={"fine": queries[:300]})
        assert len(looks) <= 2 and opened == []
        assert reader.snapshot().collection.ann is not None
        writer.store.compact()
        reader.search(vector={"fine": queries[0]})
        assert reader.snapshot().collection.ann is None, "its rows have other numbers now"


def test_info_counts_the_engine(folder):
    with Index.open(folder / "index") as index:
        files = [file for file in index.path.rglob("*") if file.is_file()]
        info = index.info()
        assert info.bytes == sum(file.stat().st_size for file in files)
        engine = sum(file.stat().st_size for file in files if file.parent.name == "engine")
        assert info.engine_bytes == engine > 0
        assert f"of them the approximate index\ntuned: {index.info().rows:,} rows, trained on" in str(info)
        shutil.rmtree(index.path / "engine")
        assert (index.info().bytes, index.info().engine_bytes) == (info.bytes - engine, 0)


@pytest.mark.slow
def test_what_was_asked_is_remembered(folder, vectors):
    """An index that has grown to twice its size learns anew, from the queries that it was tuned with."""
    with Index.open(folder / "index") as index:
        before = Tuned.load(index.path)
        np.save(folder / "twice.npy", cloud(3600, WIDTH, 20))
    arguments = ["--embeddings", str(folder / "twice.npy"), "-o", str(folder / "index"), "--dims", "16"]
    assert main(["index", *arguments]) == 0  # the command itself lets the engine take them in
    after = Tuned.load(folder / "index")
    assert (after.rows, after.learnt_rows) == (7100, 7100)
    assert after.queries == before.queries == "given vectors"
    with Index.open(folder / "index") as index:
        assert index.search(vector={"fine": vectors[5]})[0].path.endswith("index.npy#5")


@pytest.mark.slow
def test_damage_is_found_and_does_no_harm(folder, queries):
    path = folder / "index" / "engine"
    with Index.open(folder / "index") as index:
        assert index.verify().ok
    for name in sorted(file.name for file in path.iterdir()):
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 0xFF
        (path / name).write_bytes(data)
        with Index.open(folder / "index") as index:
            assert any(name in str(damage.file) for damage in index.verify().damage), name
            assert len(index.search(vector={"fine": queries[0]}, k=5)) == 5
        data[len(data) // 2] ^= 0xFF
        (path / name).write_bytes(data[: len(data) // 2])
        with Index.open(folder / "index") as index:
            assert not index.verify().ok
            assert len(index.search(vector={"fine": queries[0]}, k=5)) == 5
        (path / name).write_bytes(data)
    (path / "sign_codes.npy").unlink()
    with Index.open(folder / "index") as index:
        generation = Stored(index).state().generation
        index.repair()
        assert index.verify().ok
        assert Stored(index).state().generation == generation  # the vectors were whole and are left alone
        assert Tuned.load(index.path) is None


def test_refusals(folder, tmp_path):
    np.save(tmp_path / "few.npy", cloud(50, WIDTH, 0))
    assert main(["index", "--embeddings", str(tmp_path / "few.npy"), "-o", str(tmp_path / "few"), "--dims", "8"]) == 0
    with Index.open(tmp_path / "few") as index, pytest.raises(IndexFolderError, match="nothing to tune"):
        index.tune()
    with Index.open(folder / "index") as index:
        for bad in (np.zeros((3, WIDTH), np.float32), np.ones((3, 5), np.float32), np.ones((1, WIDTH), np.float32)):
            with pytest.raises(QueryError):
                index.tune(bad)
        for options in (
            {"recall": 0},
            {"recall": 1.5},
            {"recall": 0.9, "exact": True},
            {"recall": 0.9, "shortlist": 9},
        ):
            with pytest.raises(QueryError, match="recall"):
                index.search(vector={"fine": np.ones(WIDTH)}, **options)


def test_without_kernels(made, queries, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: None)
    with Index.open(made / "index") as index:
        assert len(index.search(vector={"fine": queries[0]}, k=5)) == 5
        assert index.snapshot().collection.ann is None
        assert share(index, queries[1490:], recall=0.9) == 1.0
        with pytest.raises(IndexFolderError, match="C compiler"):
            index.tune()


@pytest.mark.slow
def test_command_line(folder, capsys):
    pytest.importorskip("matplotlib")
    picture = folder / "tune.png"
    capsys.readouterr()
    assert main(["tune", str(folder / "index"), "--recall", "0.95", "--plot", str(picture), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chosen"]["at_least"] >= 0.95
    assert report["queries"] == "given vectors", "those of the last time"
    assert [point["p50_ms"] for point in report["frontier"]] == sorted(point["p50_ms"] for point in report["frontier"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["tune", str(folder / "index"), "--queries", str(folder / "q.npy")]) == 0
    assert "chosen" in capsys.readouterr().out


def test_texts_come_from_the_vocabulary():
    class Model:
        def vocabulary(self):
            return ["red", "##ness", "[CLS]", "car", "1999", "ox", "beach"]

    words = tuning_queries.vocabulary(Model())
    assert {"red", "car", "beach"} < set(words) and not {"ox", "1999"} & set(words)

    class Marked(Model):
        def vocabulary(self):
            return ["red</w>", "car</w>", "ness", "▁"]

    assert {"red", "car"} <= set(tuning_queries.vocabulary(Marked())) and "ness" not in tuning_queries.vocabulary(
        Marked()
    )


def test_vectors_of_a_few_dims_need_no_engine(tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32))
    index_embeddings(tmp_path / "index", tmp_path / "few.npy", dims=4, method="prefix")
    with Index.open(tmp_path / "index") as index, pytest.raises(IndexFolderError, match="8 dims"):
        index.tune()


@pytest.mark.parametrize(("asked", "held_out"), [(2, 1), (300, 100), (1500, 400), (6000, 600), (60_000, 1000)])
def test_the_more_queries_there_are_the_more_measure(asked, held_out):
    one, other = tuning_queries.split(np.arange(asked, dtype=np.float32)[:, None])
    assert len(one) == held_out
    np.testing.assert_array_equal(np.concatenate([one, other])[:, 0], np.arange(asked))


def test_a_picture_without_matplotlib_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["tune", str(tmp_path / "none"), "--plot", str(tmp_path / "x.png")]) == 1
    assert "matplotlib, which is not installed: pip install matplotlib" in capsys.readouterr().err


@pytest.mark.slow
def test_an_index_of_one_level_is_tuned_once_it_outgrows_the_exact_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("hivlp.index.tuning.jobs.OUTGROWN", 1_100)
    model = FakeEncoder(dims=(32,))
    (first, second) = write_pictures(tmp_path / "pictures", 2)
    with Index.create(tmp_path / "i", model=model) as index, quick_tuning():
        fill(index, random_levels(index.levels, 1_099))
        index.add(first)
        assert index.info().tuned is None
        index.add(second)
        assert index.info().tuned is not None
        chosen = index.search("a dog").chosen
        assert "tuned on 1101 rows" in chosen.why


def test_an_index_with_a_coarse_level_is_not_tuned_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("hivlp.index.tuning.jobs.OUTGROWN", 1_000)
    (picture,) = write_pictures(tmp_path / "pictures", 1)
    with Index.create(tmp_path / "i", model=FakeEncoder()) as index:
        fill(index, random_levels(index.levels, 1_100))
        index.add(picture)
        assert index.info().tuned is None
