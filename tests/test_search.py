"""The cascade against numpy, and every way a query can be wrong."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hivlp.errors import HivlpError, PictureError, QueryError
from hivlp.index import Index
from hivlp.search.exhaustive import ExhaustiveScanner
from synthetic import FakeEncoder, Stored, fill, random_levels, random_unit, stored_unit, write_pictures


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 60),
    dims=st.sampled_from([(8,), (4, 16), (2, 4, 8), (2, 4, 8, 16)]),
    removed=st.sets(st.integers(1, 60), max_size=10),
    k=st.integers(1, 70),
    page=st.integers(1, 17),
    filtered=st.booleans(),
)
def test_the_cascade_equals_the_oracle(seed, rows, dims, removed, k, page, filtered):
    rng = np.random.default_rng(seed)
    encoder = FakeEncoder(dims=dims)
    vectors = {level.name: stored_unit(rng, rows, level.dim) for level in encoder.levels}
    query = {level.name: random_unit(rng, 1, level.dim)[0] for level in encoder.levels}
    with tempfile.TemporaryDirectory() as folder, Index.create(Path(folder) / "x", model=encoder) as index:
        fill(index, vectors)
        index.remove([n for n in removed if n <= rows])
        where = "json_extract(metadata, '$.n') % 2 = 0" if filtered else None
        alive = [n for n in range(rows) if n + 1 not in removed and not (filtered and n % 2)]
        finest = encoder.levels[-1].name
        fine = {n: float(vectors[finest][n] @ query[finest]) for n in alive}
        order = sorted(alive, key=lambda n: (-fine[n], n))

        exact = index.search(vector=query, k=k, exact=True, where=where)
        whole = index.search(vector=query, k=k, shortlist=max(1, rows), where=where)
        for result in (exact, whole):
            assert [hit.id - 1 for hit in result] == order[:k]
            assert [hit.rank for hit in result] == list(range(1, len(result) + 1))
            for hit in result:
                for level in encoder.levels:
                    expected = vectors[level.name][hit.id - 1] @ query[level.name]
                    assert hit.scores[level.name] == pytest.approx(float(expected), abs=1e-5)

        # A small shortlist: pages fit together, nothing twice, nothing lost; best first, but for what was overlooked.
        small = max(1, rows // 4)
        seen, scores = [], []
        for offset in range(0, rows + page, page):
            hits = index.search(vector=query, k=page, offset=offset, shortlist=small, where=where)
            scores += [hit.scores[finest] for hit in hits]
            assert [hit.rank for hit in hits] == list(range(offset + 1, offset + 1 + len(hits)))
            seen += [hit.id - 1 for hit in hits]
        assert sorted(seen) == sorted(alive)
        assert len(set(seen)) == len(seen)
        falls = next((at for at in range(1, len(scores)) if scores[at] > scores[at - 1]), len(scores))
        assert scores[falls:] == sorted(scores[falls:], reverse=True), "what was overlooked comes last"
        if not removed and not filtered and len(dims) > 1 and rows:
            largest = index.search(vector=query, k=rows, shortlist=small)
            assert [hit.id - 1 for hit in largest] == order, "who asks for all gets the exact ranking"


@pytest.mark.slow
def test_whoever_asks_for_all_that_passes_a_filter_gets_the_exact_ranking(tmp_path):
    rng = np.random.default_rng(3)
    encoder = FakeEncoder(dims=(2, 16))
    vectors = {level.name: stored_unit(rng, 6000, level.dim) for level in encoder.levels}
    query = {level.name: random_unit(rng, 1, level.dim)[0] for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, vectors)
        for where in ("id % 2 = 0", "id > 10", "id < 100", "id = 7", "id < 0"):
            exact = index.search(vector=query, k=6000, exact=True, where=where).hits
            assert index.search(vector=query, k=len(exact) + 1, where=where).hits == exact
            assert index.search(vector=query, k=max(1, len(exact)), where=where).hits == exact


@pytest.mark.parametrize("where", [None, "id % 3 > 0"])
def test_few_items_are_ranked_exactly_so_that_pages_of_any_size_fit_together(tmp_path, where):
    rng = np.random.default_rng(3)
    encoder = FakeEncoder(dims=(2, 16))  # a coarse level that overlooks nearly everything
    vectors = {level.name: stored_unit(rng, 1500, level.dim) for level in encoder.levels}
    query = {level.name: random_unit(rng, 1, level.dim)[0] for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, vectors)
        whole = index.search(vector=query, k=1500, where=where).hits
        for size in (70, 999):
            pages = [index.search(vector=query, k=size, offset=at, where=where) for at in range(0, 1500, size)]
            assert [hit for page in pages for hit in page] == whole


def test_two_levels_are_a_shortlist_then_an_order(tmp_path):
    rng = np.random.default_rng(0)
    encoder = FakeEncoder()
    vectors = {level.name: stored_unit(rng, 500, level.dim) for level in encoder.levels}
    query = {level.name: random_unit(rng, 1, level.dim)[0] for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, vectors)
        shortlist = np.argsort(-(vectors["coarse"] @ query["coarse"]), kind="stable")[:40]
        expected = shortlist[np.argsort(-(vectors["fine"][shortlist] @ query["fine"]), kind="stable")][:10]
        assert [hit.id - 1 for hit in index.search(vector=query, shortlist=40)] == expected.tolist()


def test_a_funnel_of_three_levels(tmp_path):
    rng = np.random.default_rng(1)
    encoder = FakeEncoder(dims=(4, 8, 16))
    vectors = {level.name: stored_unit(rng, 400, level.dim) for level in encoder.levels}
    query = {level.name: random_unit(rng, 1, level.dim)[0] for level in encoder.levels}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, vectors)
        rows = np.arange(400)
        for name, keep in (("level0", 100), ("level1", 30), ("level2", 10)):
            rows = rows[np.argsort(-(vectors[name][rows] @ query[name]), kind="stable")][:keep]
        assert [hit.id - 1 for hit in index.search(vector=query, shortlist=[100, 30])] == rows.tolist()
        with pytest.raises(QueryError, match="3 levels"):
            index.search(vector=query, shortlist=[100])


def test_equal_scores_come_in_the_order_they_were_added(tmp_path):
    encoder = FakeEncoder()
    same = {name: np.repeat(one, 300, axis=0) for name, one in random_levels(encoder.levels, 1).items()}
    with Index.create(tmp_path / "x", model=encoder) as index:
        fill(index, same)
        hits = index.search(vector={name: array[0] for name, array in same.items()}, k=20, shortlist=50)
        assert [hit.id for hit in hits] == list(range(1, 21))


@given(seed=st.integers(0, 1000), rows=st.integers(0, 300), count=st.integers(1, 320), masked=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_scanner_equals_a_sort_whatever_its_block(seed, rows, count, masked):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (rows, 4)).astype(np.float32)  # many equal scores
    query = rng.integers(-2, 3, 4).astype(np.float32)
    allowed = rng.random(rows) < 0.3 if masked else None
    import hivlp.search.exhaustive as scan

    before, scan.BLOCK_FLOATS = scan.BLOCK_FLOATS, 4 * 37
    try:
        got, scores = ExhaustiveScanner(vectors).top(query, count, allowed)
    finally:
        scan.BLOCK_FLOATS = before
    all_scores = vectors @ query
    expected = sorted((n for n in range(rows) if allowed is None or allowed[n]), key=lambda n: (-all_scores[n], n))[
        :count
    ]
    assert got.tolist() == expected
    np.testing.assert_array_equal(scores, all_scores[expected])


@pytest.fixture
def index(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures)
        yield index


def test_search_by_text_picture_item_and_vector_agree(index, encoder, pictures):
    path = pictures / "00004.png"
    item = Stored(index).at(str(path))
    by_file = index.search(image=path, k=5)
    assert by_file[0].id == item.id and by_file[0].scores["fine"] == pytest.approx(1, abs=1e-3)
    ids = [hit.id for hit in by_file]
    assert [hit.id for hit in index.search(image=str(path), k=5)] == ids
    assert [hit.id for hit in index.search(image=path.read_bytes(), k=5)] == ids
    assert [hit.id for hit in index.search(vector=encoder.encode_image([path]), k=5)] == ids
    assert [hit.id for hit in index.search(like=item.id, k=4)] == ids[1:], "an item is not like itself"
    with Index.open(index.path) as modelless:
        assert [hit.id for hit in modelless.search(like=item.id, k=4)] == ids[1:]
        with pytest.raises(QueryError, match="cannot be loaded: no model 'fake'"):
            modelless.search("text")


def test_the_json_has_the_contracts_shape(index):
    data = json.loads(json.dumps(index.search("two words", k=3, shortlist=20).to_json()))
    assert set(data) == {"hits", "timings_ms", "plan"}
    assert data["plan"] == [{"stage": "scan", "level": "coarse", "keep": 20}, {"stage": "rerank", "level": "fine"}]
    assert set(data["timings_ms"]) == {"encode", "coarse", "fine", "total"}
    for rank, hit in enumerate(data["hits"], start=1):
        assert set(hit) == {"rank", "id", "path", "caption", "scores"} and hit["rank"] == rank
        assert set(hit["scores"]) == {"coarse", "fine"}


def test_k_larger_than_the_index_gives_everything(index):
    assert len(index.search("x", k=10**9)) == 30
    assert len(index.search("x", k=10, offset=25)) == 5
    assert len(index.search("x", k=10, offset=10**6)) == 0


def test_a_very_long_query_is_answered(index):
    assert len(index.search("word " * 2000)) == 10


def test_threshold_drops_the_tail(index, pictures):
    path = pictures / "00004.png"
    assert len(index.search(image=path, k=30, threshold=0.999)) == 1
    assert len(index.search(image=path, k=30, threshold=-1.0)) == 30


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"query": ""},
        {"query": "  \n\t"},
        {"query": "x", "like": 1},
        {"query": "x", "k": 0},
        {"query": "x", "k": -1},
        {"query": "x", "offset": -1},
        {"query": "x", "shortlist": 0},
        {"like": 12345},
        {"vector": {"coarse": np.ones(16)}},
        {"vector": {"coarse": np.ones(16), "fine": np.ones(63)}},
        {"vector": {"coarse": np.ones(16), "fine": np.zeros(64)}},
        {"vector": {"coarse": np.ones(16), "fine": np.full(64, np.nan)}},
        {"vector": {"coarse": np.ones(16), "fine": np.full(64, np.inf)}},
        {"vector": {"coarse": np.ones(16), "fine": ["a"] * 64}},
        {"vector": {"coarse": np.ones(16), "fine": np.ones((2, 64))}},
    ],
)
def test_senseless_queries_are_refused(index, call):
    with pytest.raises(QueryError):
        index.search(**call)


def test_a_broken_query_picture_is_refused(index, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for image in (tmp_path / "broken.png", tmp_path / "nosuch.png", b""):
        with pytest.raises(PictureError):
            index.search(image=image)
    assert len(index.search(image=_png())) == 10


def _png() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_where_limits_and_cannot_do_more(tmp_path, encoder):
    folder = tmp_path / "p"
    for number, path in enumerate(write_pictures(folder, 20)):
        path.with_suffix(".txt").write_text("a dog" if number % 4 == 0 else "a cat")
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(folder)
        dogs = index.search("x", k=50, where="caption LIKE '%dog%'")
        assert len(dogs) == 5 and {hit.caption for hit in dogs} == {"a dog"}
        assert len(index.search("x", k=50, where="caption = 'a cat' AND id > 10 -- comment")) == 8
        assert len(index.search("x", where="1 = 0")) == 0
        for bad in (
            "",
            "nosuch = 1",
            "1; DELETE FROM items",
            "id IN (SELECT value FROM meta)",
            "(SELECT count(*) FROM sqlite_master) > 0",
            "load_extension('x')",
            "caption = 'unclosed",
            "id = \x00",
            "\ud800",
        ):
            with pytest.raises(QueryError):
                index.search("x", where=bad)
        assert len(index) == 20
        assert len(index.search("x", k=50)) == 20, "the limits on --where end with it"


@pytest.mark.slow
def test_a_where_that_never_ends_is_stopped(index, monkeypatch):
    import hivlp.store.where as where

    monkeypatch.setattr(where, "WHERE_SECONDS", 0.1)
    endless = "(SELECT count(*) FROM items a, items b, items c, items d, items e, items f) > 0"
    with pytest.raises(HivlpError, match="took longer"):
        index.search("x", where=endless)
    assert len(index.search("x")) == 10
    monkeypatch.setattr(where, "WHERE_ITEMS", 5)  # a larger index has more time
    with pytest.raises(HivlpError, match=r"took longer than 0\.58 s"):
        index.search("x", where=endless)
