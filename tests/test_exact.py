"""Exact search by bounds: no score is above its bound, and the answer is that of reading everything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ann_oracle
from hivlp.ann import AnnIndex, SearchParams, bounds, layout, native
from hivlp.ann.bounds import Bounds
from hivlp.ann.constants import NO_NORM, NO_ROW
from hivlp.index import Index
from hivlp.levels import Level
from hivlp.search.approximate import FEW, Approximate
from hivlp.search.bounded import BoundedScanner
from hivlp.search.collection import Collection
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Filter
from hivlp.search.likeness import Likeness
from hivlp.search.operating_points import FOLDER, Depth, Tuned
from hivlp.search.stages import Asked, Exact
from synthetic import cloud, make_tuned_index

LIBRARY = native.load()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not compiled here")
VARIANTS = ("generic", "avx2", "avx512")
ROWS, BUILT, WIDTH = 2600, 2400, 96


@pytest.fixture(params=range(len(VARIANTS)), ids=lambda number: VARIANTS[number])
def variant(request):
    """Each instruction set that this processor has, in turn."""
    chosen = LIBRARY.hivlp_use_variant(request.param)
    yield request.param
    LIBRARY.hivlp_use_variant(len(native.VARIANTS))
    if chosen != request.param:
        pytest.skip("this processor lacks it")


def collection(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(ROWS, WIDTH) vectors: embeddings, twins among them, all directions alike, one direction, or wild lengths."""
    if kind == "cloud":
        vectors = cloud(ROWS, WIDTH, 0)
    elif kind == "twins":
        vectors = cloud(ROWS, WIDTH, 1)[rng.integers(40, size=ROWS)]
    elif kind == "isotropic":
        vectors = rng.normal(size=(ROWS, WIDTH)) / WIDTH**0.5
    elif kind == "line":
        vectors = rng.normal(size=(ROWS, 1)) * np.ones(WIDTH) / WIDTH**0.5
    else:
        vectors = cloud(ROWS, WIDTH, 2) * np.exp(rng.normal(size=(ROWS, 1)))
        vectors[:BUILT:50] *= 20  # far outside what a nibble can say
    return vectors.astype(np.float16)


KINDS = ("cloud", "twins", "isotropic", "line", "wild")


@dataclass(frozen=True)
class Made:
    """A collection of one kind, an approximate index over most of it, and bounds."""

    items: np.ndarray
    index: AnnIndex
    bounds: Bounds
    everything: ExhaustiveScanner

    def near(self, few: int | None = None) -> Approximate:
        nothing = Likeness(np.inf, np.inf, (1.0,), (-np.inf,), ())
        tuned = Tuned(0, BUILT, BUILT, "", 0.99, (Depth(10, (), (), nothing),))
        return Approximate(self.index, tuned, self.bounds, few=few)

    def exact(self, *, near=None, few: int = FEW, **options) -> BoundedScanner:
        tail = ExhaustiveScanner(self.items[BUILT:])
        return BoundedScanner(self.index, self.bounds, near or self.near(few).search, tail, few=few, **options)


@cache
def made(kind: str) -> Made:
    items = collection(kind, np.random.default_rng(5))
    built = AnnIndex.build(items[:BUILT], queries=cloud(1100, WIDTH, 3), dims=48, sign_dims=32, nlist=30)
    bound = Bounds.build(built, cloud(1100, WIDTH, 3))
    assert bound is not None
    index = AnnIndex(built.arrays, items)
    return Made(items, index, bound.over(index), ExhaustiveScanner(items))


def asked(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Like an item, like a training query, or like nothing that was seen."""
    choice = rng.integers(3)
    if choice == 0:
        return made(kind).items[rng.integers(ROWS)].astype(np.float32)
    return cloud(50, WIDTH, 4)[rng.integers(50)] if choice == 1 else rng.normal(size=WIDTH).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("params", [SearchParams(6, 5.0, 1.0, 60), SearchParams(9, np.inf, 0.0, 60)])
@pytest.mark.parametrize("passing", [1.0, 0.5, 0.01])
def test_a_batch_is_answered_as_its_queries_one_by_one(params, passing):
    """Also with rows that the index does not know."""
    near, everything = made("cloud").near(few=100), made("cloud").everything
    allowed = None if passing == 1 else Filter(np.random.default_rng(1).random(ROWS) < passing)
    queries = cloud(11, WIDTH, 6)
    for k in (1, 7, 50):
        together = near.search(queries, k, params, allowed)
        for query, (rows, scores) in zip(queries, together, strict=True):
            ((alone, products),) = near.search(query[None], k, params, allowed)
            np.testing.assert_array_equal(rows, alone)
            np.testing.assert_array_equal(scores, products)
            ((rows, scores),) = near.with_tail(query[None], [(rows, scores)], 50, allowed)
            assert scores.tolist() == sorted(scores.tolist(), reverse=True)
            np.testing.assert_array_equal(scores, everything.rescore(query, rows))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_score_is_above_its_bound(variant, kind):
    everything, bound, rng = made(kind).everything, made(kind).bounds, np.random.default_rng(0)
    for number in range(12):
        query = asked(kind, rng)
        scores, most = everything.rescore(query, np.arange(BUILT)), ann_oracle.bounds_of(bound, query)
        assert (scores.astype(np.float64) <= most).all()
        bar, allowed = float(np.quantile(most, rng.random())), None if number % 2 else rng.random(BUILT) < 0.5
        expected = most >= bar if allowed is None else (most >= bar) & allowed
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        found = bound.reaching(query, bar, BUILT, bits)
        assert found is not None
        # The kernel's doubles may be rounded otherwise, which is far less than what the bound leaves for it.
        edge = np.abs(most - bar) <= 1e-12 * np.abs(most).max()
        reached = np.zeros(BUILT, bool)
        reached[found[0]] = True
        np.testing.assert_array_equal(reached[~edge], expected[~edge])
        np.testing.assert_allclose(found[1], most[found[0]], rtol=1e-12, atol=1e-12 * np.abs(most).max())
        if len(found[0]):
            assert bound.reaching(query, bar, len(found[0]) - 1, bits) is None


@pytest.mark.parametrize("signed", [8192, 4112, 0])
def test_the_largest_sums(variant, signed):
    """All codes at their highest, and a query at both ends of what it is rounded to: the integers do not overflow."""
    nibbles = np.zeros(32, layout.refine_dtype(8192, signed))
    nibbles["codes"], nibbles["scale"] = 255, 2
    rows_of, homes = np.full(32, NO_ROW, np.uint32), np.array([1], np.uint32)
    rows_of[:4] = [5, 3, 3, 9]
    lists, most_of_all = np.array([0.0, 3.0]), 15 * signed + 3 * (8192 - signed)
    lengths = np.zeros(32, np.uint16)
    lengths[:4] = [0, 1, NO_NORM, NO_NORM - 1]
    rows, most = np.empty(32, np.int64), np.empty(32)
    for high in (127, -127):
        query = np.full(64 * 128 + 64, high, np.int8)
        low = np.zeros(64 * 128 + 64, np.int8)
        found = LIBRARY.hivlp_bounds(
            nibbles.ctypes.data, rows_of.ctypes.data, lengths.ctypes.data, homes.ctypes.data,
            0, 1, signed // 2, (8192 - signed) // 4, query.ctypes.data, low.ctypes.data, lists.ctypes.data,
            10, 1.0, 1.0, 0.5, 2.0, -np.inf, None, rows.ctypes.data, most.ctypes.data,
        )  # fmt: skip
        assert rows[:found].tolist() == [5, 3, 9]
        said = 4 + 2.0 * (high * 128 * most_of_all + 0.5)
        np.testing.assert_array_equal(most[:found], said + 2.0 * lengths[[0, 1, 3]])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 24),
    st.sampled_from([None, 0.0, 0.05, 0.5, 0.95, 1.0]),
    st.sampled_from([0, 50, 5000]),
    st.sampled_from([0.25, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_it_is_the_ranking_of_everything(kind, count, share, few, reaching, seed):
    rng = np.random.default_rng(seed)
    items, everything = made(kind).items, made(kind).everything
    query = asked(kind, rng)
    allowed = None if share is None else rng.random(ROWS) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "CHUNK", int(rng.integers(1, 100)))
        exact = made(kind).exact(few=few, most_reaching=reaching)
        best = exact.top(query, count, None if allowed is None else Filter(allowed))
    rows, scores = everything.top(query, count, allowed) if best is None else best
    # A naive ranking, by the same float32 scores, and these against float64.
    every = everything.rescore(query, np.arange(ROWS))
    np.testing.assert_allclose(
        every, items.astype(np.float64) @ query, rtol=1e-4, atol=1e-4 * float(np.abs(every).max())
    )
    passing = np.arange(ROWS) if allowed is None else np.flatnonzero(allowed)
    expected = passing[np.argsort(-every[passing], kind="stable")][:count]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, every[expected])


@pytest.mark.slow
def test_most_rows_are_left_out_where_there_is_something_to_know():
    for query in made("cloud").items[:10].astype(np.float32):
        threshold = made("cloud").everything.top(query, 10)[1].min()
        found = made("cloud").bounds.reaching(query, float(threshold), BUILT)
        assert found is not None and len(found[0]) < 0.1 * BUILT
    query = np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    threshold = float(made("isotropic").everything.top(query, 10)[1].min())
    assert made("isotropic").bounds.reaching(query, threshold, BUILT // 4) is None


def test_the_approximate_search_may_be_wrong():
    """Rows that are far from the best make a low threshold, not a wrong answer."""
    everything = made("cloud").everything
    for query in cloud(10, WIDTH, 4):
        poor = everything.top(query, 1200)[0][-10:]
        poor = poor[poor < BUILT]
        exact = made("cloud").exact(near=lambda *asked, poor=poor: [(poor, None)], most_reaching=1.0)
        rows, scores = exact.top(query, len(poor), None)
        expected = everything.top(query, len(poor))
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_array_equal(scores, expected[1])


def test_an_exact_stage_answers_some_by_bounds_and_scans_for_the_others():
    exact, everything = made("cloud").exact(), made("cloud").everything
    queries = np.concatenate([made("cloud").items[:6].astype(np.float32), cloud(6, WIDTH, 4)])
    assert {exact.top(query, 10, None) is None for query in queries} == {True, False}
    levels = (Level("fine", WIDTH, 1, 1),)
    searched = Collection.of(levels, (made("cloud").items,), ann=made("cloud").near())
    found = Exact("fine").run(searched, Asked([[query] for query in queries], 10), ())
    for (rows, scores, _), query in zip(found, queries, strict=True):
        expected = everything.top(query, 10)
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_array_equal(scores, expected[1])


def test_no_bounds_where_there_can_be_none():
    items = cloud(400, 32, 0).astype(np.float16)
    engine = AnnIndex.build(items, dims=16, nlist=4)
    items[7, 3] = np.inf
    assert Bounds.build(engine, cloud(50, 32, 1)) is None
    items[7, 3] = np.nan
    assert Bounds.build(engine, cloud(50, 32, 1)) is None


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned index of 3,000 vectors, to copy."""
    place = tmp_path_factory.mktemp("exact") / "index"
    return make_tuned_index(place, cloud(3000, WIDTH, 0), cloud(300, WIDTH, 3))


def answers(folder, where=None) -> tuple[list, bool]:
    """What exact searches say, and whether there were bounds."""
    with Index.open(folder) as index:
        results = [index.search(vector={"fine": query}, exact=True, where=where) for query in cloud(3000, WIDTH, 0)[:8]]
        snapshot = index.snapshot()
        bounded = snapshot.collection.ann is not None and snapshot.collection.ann.bounded() is not None
        return [[(hit.id, hit.scores) for hit in result] for result in results], bounded


@pytest.mark.parametrize("damage", ["none", *bounds.FILES, "old"])
def test_an_index_with_bounds_and_without(tuned, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(tuned, folder)
    places = [folder / FOLDER / name for name in bounds.FILES]
    kept = [place.read_bytes() for place in places]
    for place in places:
        place.unlink()
    expected, bounded = answers(folder, "id % 3")
    assert not bounded
    if damage != "old":
        for place, data in zip(places, kept, strict=True):
            flipped = data[:-1] + bytes([data[-1] ^ 64])
            place.write_bytes(flipped if place.name == damage else data)
    found, bounded = answers(folder, "id % 3")
    assert bounded == (damage == "none")
    assert found == expected


def test_a_filter_is_packed_once():
    allowed = Filter(np.ones(ROWS, bool))
    assert allowed.head(BUILT) is allowed.head(BUILT)
    assert allowed.head(BUILT).count == BUILT
