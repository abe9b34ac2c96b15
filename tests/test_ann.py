"""The engine against naive numpy: packing, every kernel in every variant, the cascade, storing."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivlp.ann import AnnIndex, SearchParams, building, layout, native, reference, whole
from hivlp.ann import learning as fit
from hivlp.ann.arrays import PACKED
from hivlp.errors import IndexFolderError
from synthetic import cloud

LIBRARY = native.load()
VARIANTS = range(len(native.VARIANTS)) if LIBRARY is not None else []
needs_kernels = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not compiled here")


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    return cloud(3000, 96, 0).astype(np.float16)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return cloud(1200, 96, 1)


@pytest.fixture(scope="module")
def engine(items, queries) -> AnnIndex:
    return AnnIndex.build(items, queries=queries, dims=64, sign_dims=48, nlist=40)


@pytest.fixture(params=VARIANTS, ids=lambda number: native.VARIANTS[number])
def variant(request):
    """Each instruction set that this processor has, in turn."""
    chosen = LIBRARY.hivlp_choose(request.param)
    if chosen != request.param:
        LIBRARY.hivlp_choose(len(native.VARIANTS))
        pytest.skip("this processor lacks it")
    yield request.param
    LIBRARY.hivlp_choose(len(native.VARIANTS))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_packing_is_undone(blocks, groups, seed):
    rng = np.random.default_rng(seed)
    signs = rng.random((blocks * 32, groups * 16)) < 0.5
    np.testing.assert_array_equal(layout.unpack_signs(layout.pack_signs(signs)), signs)
    nibbles = rng.integers(0, 16, (blocks, groups * 16), dtype=np.uint8)
    np.testing.assert_array_equal(layout.unpack_nibbles(layout.pack_nibbles(nibbles)), nibbles)
    keys = rng.integers(-128, 128, (blocks * 3, groups * 16)).astype(np.int8)
    np.testing.assert_array_equal(layout.unpack_keys(layout.pack_keys(keys))[: len(keys)], keys)
    signed = int(rng.integers(groups + 1)) * 16
    mixed = np.where(np.arange(groups * 16) < signed, nibbles, nibbles & 3)
    np.testing.assert_array_equal(layout.unpack_codes(layout.pack_codes(mixed, signed), signed), mixed)
    codes = nibbles[: blocks * 3]
    np.testing.assert_array_equal(layout.unpack_nibble_keys(layout.pack_nibble_keys(codes))[: len(codes)], codes)


@needs_kernels
@pytest.mark.parametrize("groups", [1, 3, 8, 16, 32])
def test_signs(variant, groups):
    rng = np.random.default_rng(groups)
    blocks = 3
    positive = rng.random((blocks * 32, groups * 16)) < 0.5
    packed, factors = layout.pack_signs(positive), rng.integers(0, 256, (blocks, 32), dtype=np.uint8)
    sums = rng.integers(0, 64, (groups * 4, 16), dtype=np.uint8)
    if groups == 32:
        sums[:] = 63  # the largest sum there can be
    table = np.empty((groups, 128), np.uint8)
    for g in range(groups * 4):
        at = 32 * (g % 4 // 2) + 64 * (g % 2)
        table[g // 4, at : at + 32] = np.tile(sums[g], 2)
    codes = (positive.reshape(blocks * 32, -1, 4) << np.arange(4)).sum(2)
    middle = groups * 4 * 30
    expected = (sums[np.arange(groups * 4), codes].sum(1, dtype=np.int64) - middle) * factors.ravel()
    out, masks = np.empty(blocks * 32, np.int32), np.empty(blocks, np.uint32)
    bar = int(np.median(expected))
    LIBRARY.hivlp_signs(
        packed.ctypes.data, factors.ctypes.data, blocks, table.ctypes.data, groups, middle, bar, out.ctypes.data,
        masks.ctypes.data,
    )  # fmt: skip
    np.testing.assert_array_equal(out, expected)
    above = (masks[:, None] >> np.arange(32, dtype=np.uint32) & 1).ravel().astype(bool)
    np.testing.assert_array_equal(above, expected >= bar)


@needs_kernels
@pytest.mark.parametrize("extreme", [False, True])
def test_nibbles_and_keys(variant, extreme):
    rng = np.random.default_rng(0)
    for groups in (1, 2, 3, 7, 8, 10, 12, 24):
        dims = groups * 16
        codes = np.full((7, dims), 15, np.uint8) if extreme else rng.integers(0, 16, (7, dims), np.uint8)
        # What lies beyond may be read, but must not count.
        query = rng.integers(-128, 128, dims + 64).astype(np.int8)
        if extreme:
            query[:] = -128
        for signed in range(0, dims + 1, 16):  # the others have two bits
            mixed, out = np.where(np.arange(dims) < signed, codes, codes & 3), np.empty(7, np.int32)
            packed = layout.pack_codes(mixed, signed)
            LIBRARY.hivlp_nibbles(
                packed.ctypes.data, 7, query.ctypes.data, signed // 2, (dims - signed) // 4, out.ctypes.data
            )
            np.testing.assert_array_equal(out, mixed.astype(np.int64) @ query[:dims])
            LIBRARY.hivlp_nibbles4(
                packed[1:5].ctypes.data, 4, query.ctypes.data, signed // 2, (dims - signed) // 4, out.ctypes.data
            )
            np.testing.assert_array_equal(out[:4], mixed[1:5].astype(np.int64) @ query[:dims])
        keys = rng.integers(-128, 128, (19, dims)).astype(np.int8)
        if extreme:
            keys[:] = 127
        packed, out = layout.pack_keys(keys), np.empty(32, np.int32)
        LIBRARY.hivlp_keys(packed.ctypes.data, 2, query.ctypes.data, groups * 4, out.ctypes.data)
        np.testing.assert_array_equal(out[:19], (keys.astype(np.int64) + 128) @ query[:dims])
        codes = np.concatenate([codes, codes, codes])[:19]
        packed = layout.pack_nibble_keys(codes)
        LIBRARY.hivlp_nibble_keys(packed.ctypes.data, 2, query.ctypes.data, dims // 2, out.ctypes.data)
        np.testing.assert_array_equal(out[:19], codes.astype(np.int64) @ query[:dims])


@needs_kernels
@pytest.mark.parametrize("extreme", [False, True])
def test_bytes(variant, extreme):
    rng = np.random.default_rng(1)
    for width in (16, 48, 192, 512):
        rows, query = (
            rng.integers(-128, 128, (5, width)).astype(np.int8),
            rng.integers(-128, 128, width).astype(np.int8),
        )
        if extreme:
            rows[:], query[:] = -128, -128
        out = np.empty(5, np.int32)
        LIBRARY.hivlp_bytes(rows.ctypes.data, 5, query.ctypes.data, width, out.ctypes.data)
        np.testing.assert_array_equal(out, rows.astype(np.int64) @ query)


@needs_kernels
@pytest.mark.parametrize("width", [1, 7, 16, 31, 32, 100, 768])
def test_dot(variant, width):
    rng = np.random.default_rng(width)
    rows = rng.normal(size=(5, width)).astype(np.float16)
    rows[0, 0] = np.float16(6e-8)  # a subnormal
    query, which, out = rng.normal(size=width).astype(np.float32), np.array([4, 0, 2]), np.empty(3, np.float32)
    LIBRARY.hivlp_dot(rows.ctypes.data, which.ctypes.data, 3, query.ctypes.data, width, out.ctypes.data)
    np.testing.assert_allclose(out, rows[which].astype(np.float64) @ query, rtol=1e-4, atol=1e-4)
    four = np.empty(4, np.float32)
    LIBRARY.hivlp_dot4(rows.ctypes.data, query.ctypes.data, width, four.ctypes.data)
    np.testing.assert_allclose(four, rows[:4].astype(np.float64) @ query, rtol=1e-4, atol=1e-4)
    # With the products of other queries, to the last bit.
    queries = np.stack([rng.normal(size=width).astype(np.float32), query, -query, query])
    many = np.empty((4, 4), np.float32)
    LIBRARY.hivlp_dot16(rows.ctypes.data, queries.ctypes.data, width, many.ctypes.data)
    np.testing.assert_array_equal(many[[1, 3]], [four, four])
    np.testing.assert_array_equal(many[2], -four)


@pytest.mark.slow
@needs_kernels
def test_variants_and_numpy_find_the_same(variant, engine, queries, monkeypatch):
    efforts = (
        (40, np.inf, 1.0, 50), (5, np.inf, 3.0, 20), (40, 3.0, -0.5, 30), (40, 2.0, 1.0, 20), (40, 9.0, 1.5, 25),
        (40, 9.0, 1.0, 60, 3.0), (40, 4.0, 1.0, 200, 1.0), (40, np.inf, 0.5, 30, 0.0),
    )  # fmt: skip
    for setting in (SearchParams(*effort) for effort in efforts):
        rows, scores = engine.search(queries[:40], 10, setting)
        expected, products = reference.search(engine.arrays, engine.fine, queries[:40], 10, setting, None)
        # Rounding of the last sums may swap two that are all but equal, and of the router's a list at the margin.
        same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
        assert same >= 0.995
        np.testing.assert_allclose(scores[:, 0], products[:, 0], atol=2e-3)


@needs_kernels
def test_lists_are_read_as_far_as_their_codes_are_long_enough(variant, engine, queries, monkeypatch):
    read, sign_scores = [], reference.sign_scores

    def counted(arrays, query, chosen, blocks, slack):
        read.append((chosen, blocks))
        return sign_scores(arrays, query, chosen, blocks, slack)

    monkeypatch.setattr(reference, "sign_scores", counted)
    setting, sizes, shortened, same = SearchParams(40, 4.0, 1.0, 20), np.diff(engine.arrays.starts), 0, 0
    for query in queries[:40]:
        read.clear()
        reference.search(engine.arrays, engine.fine, query[None], 10, setting, None)
        before = engine.work.codes
        engine.search(query[None], 10, setting)
        same += engine.work.codes - before == layout.SIGN_LANES * sum(int(blocks.sum()) for _, blocks in read)
        shortened += any((blocks < sizes[chosen]).any() for chosen, blocks in read[1:])
        assert all((blocks == sizes[chosen]).all() for chosen, blocks in read[:1])
    assert shortened > 10
    assert same >= 38  # rounding of the router's sums may change what lies at the margin


def exact(items, queries, k, allowed=None):
    scores = queries @ items.astype(np.float32).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, 1, kind="stable")[:, :k]


@pytest.fixture(params=["kernels", "numpy"])
def either(request, monkeypatch):
    """With the kernels, and as if they had not been compiled."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "load", lambda: None)
    elif LIBRARY is None:
        pytest.skip("the kernels are not compiled here")


def test_everything_read_is_exact(either, engine, items, queries):
    rows, scores = engine.search(queries[:20], 10, SearchParams(40, np.inf, 0.0, 10**4))
    np.testing.assert_array_equal(rows, exact(items, queries[:20], 10))
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.slow
def test_recall_grows_with_effort(either, engine, items, queries):
    truth = exact(items, queries[:100], 10)

    def recall(setting):
        rows = engine.search(queries[:100], 10, setting)[0]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), truth.tolist(), strict=True)])

    little, much = recall(SearchParams(2, np.inf, 0.0, 15)), recall(SearchParams(40, np.inf, 2.0, 60))
    assert little < much
    assert much > 0.97


def test_as_many_rows_as_wanted_whatever_the_setting(either, engine, queries):
    """Also where several codes of a row are among the last ones."""
    for setting in (
        SearchParams(40, np.inf, 0.0, 5),
        SearchParams(40, np.inf, 2.0, 30),
        SearchParams(0, np.inf, 0.0, 5),
    ):
        rows, _ = engine.search(queries[:20], 30, setting)
        assert (rows >= 0).all()
        assert all(len(set(each)) == 30 for each in rows.tolist())


def test_filter(either, engine, items, queries):
    rng = np.random.default_rng(3)
    for share in (0.01, 0.3):
        allowed = rng.random(len(items)) < share
        bits = np.packbits(allowed, bitorder="little")
        rows, _ = engine.search(queries[:20], 10, SearchParams(40, np.inf, 0.0, 10**4), allowed=bits)
        np.testing.assert_array_equal(rows, exact(items, queries[:20], 10, allowed))
        some = np.flatnonzero(allowed).astype(np.uint32)
        found, _ = engine.search_rows(queries[0], some, 10, 10**4)
        np.testing.assert_array_equal(found, rows[0])


def test_together_as_one_by_one(variant, engine, queries):
    """Queries that are asked at once get the same answers, to the last bit, however many they are."""
    for setting in (SearchParams(40, 4.0, 0.5, 20), SearchParams(0, np.inf, 0.0, 20)):
        alone = [engine.search(query[None], 10, setting) for query in queries[:30]]
        for count in (1, 3, 4, 7, 8, 9, 30):
            rows, scores = engine.search(queries[:count], 10, setting)
            np.testing.assert_array_equal(rows, np.concatenate([one[0] for one in alone[:count]]))
            np.testing.assert_array_equal(scores, np.concatenate([one[1] for one in alone[:count]]))


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("share", [1.0, 0.3, 0.001])
def test_list_after_list_as_query_after_query(variant, engine, items, queries, share):
    """Reading each list once for all queries that want it does not change what they find."""
    allowed = np.random.default_rng(5).random(len(items)) < share
    bits = None if share == 1 else np.packbits(allowed, bitorder="little")
    # The last one has pools so large that a group is a small one.
    for number, setting in enumerate(
        (
            SearchParams(30, np.inf, 0.3, 20),
            SearchParams(40, 5.0, 1.0, 30),
            SearchParams(3, np.inf, -1.0, 7),
            SearchParams(30, 6.0, 1.0, 60, 2.0),
            SearchParams(40, 9.0, 2.0, 6000),
        )
    ):
        asked = queries[7 * number : 7 * number + 270]
        engine.work = native.WorkStruct()
        alone = [engine.search(query[None], 5, setting, allowed=bits) for query in asked]
        work, engine.work = engine.work, native.WorkStruct()
        rows, scores = engine.search(asked, 5, setting, allowed=bits)
        np.testing.assert_array_equal(rows, np.concatenate([one[0] for one in alone]))
        np.testing.assert_array_equal(scores, np.concatenate([one[1] for one in alone]))
        for name in ("lists", "codes", "fine"):  # in which order codes come decides only how many nibbles are read
            assert getattr(work, name) == getattr(engine.work, name)


def of_all(engine, query, k, last, allowed):
    """What reading the codes of all rows gives: the best ``last`` by them, ties in row order, and of these ``k``."""
    codes = whole.codes(engine.arrays.learnt, engine.fine).astype(np.int64)
    scores = codes @ reference.Query(engine.arrays, query).small
    rows = np.flatnonzero(allowed)
    rows = np.sort(rows[np.lexsort((rows, -scores[rows]))[:last]])
    products = np.einsum("rd,d->r", engine.fine[rows].astype(np.float32), query)  # the same for rows that are the same
    return rows[np.lexsort((rows, -products))[:k]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 30), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.data())
def test_all_rows(engine, queries, count, last, k, share, data):
    """Every row's codes, with a filter or without, and of any number of rows: also where codes are all the same."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    fine = engine.fine[:count].copy()
    if data.draw(st.booleans()):
        fine[:] = fine[0]
    small = AnnIndex(replace(engine.arrays, held=np.array([count, 2])), fine)
    allowed = rng.random(count) < share
    bits = None if share == 1 else np.packbits(allowed, bitorder="little")
    asked = queries[rng.integers(len(queries), size=5)]
    rows, scores = small.search(asked, k, SearchParams(0, np.inf, 0.0, last), allowed=bits)
    assert rows.shape == scores.shape == (5, k)
    for query, found, score in zip(asked, rows, scores, strict=True):
        expected = of_all(small, query, k, max(last, k), allowed)
        there = found[: len(expected)]
        assert (found[len(expected) :] == -1).all() and np.isneginf(score[len(expected) :]).all()
        assert allowed[there].all() and len(set(there.tolist())) == len(there)
        assert (np.diff(score[: len(expected)]) <= 0).all()
        # The rounding of a query may differ by a step from numpy's, and with it a row at the edge.
        assert len(set(there.tolist()) & set(expected.tolist())) >= 0.8 * len(expected) - 1


def test_all_rows_are_those_of_numpy(either, engine, items, queries):
    for last in (10, 25, 10**4):
        rows, scores = engine.search(queries[:9], 10, SearchParams(0, np.inf, 0.0, last))
        setting = SearchParams(0, np.inf, 0.0, last)
        expected, products = reference.search(engine.arrays, engine.fine, queries[:9], 10, setting, None)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(scores, products, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rows, exact(items, queries[:9], 10))


def test_small_collections_may_be_read_whole(engine, monkeypatch):
    assert any(setting.nprobe == 0 for setting in engine.params_grid())
    held = engine.bytes_per_vector
    monkeypatch.setattr(whole, "MOST", 100)
    assert all(setting.nprobe > 0 for setting in engine.params_grid())
    assert engine.bytes_per_vector == pytest.approx(held - engine.dims)


def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "old.c").write_text("int hivlp_choose(int most) { return most; }")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(tmp_path / native.LIBRARY), str(tmp_path / "old.c")], check=True
    )
    monkeypatch.delenv("HIVLP_KERNELS", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    with pytest.warns(UserWarning, match="install hivlp again"):
        assert native.load.__wrapped__() is None


@needs_kernels
def test_a_library_with_another_idea_of_an_engine_is_not_used(monkeypatch):
    class Longer(native.EngineStruct):
        _fields_ = (("more", ctypes.c_void_p),)

    monkeypatch.setattr(native, "EngineStruct", Longer)
    with pytest.warns(UserWarning, match="install hivlp again"):
        assert native.load.__wrapped__() is None


@pytest.mark.slow
@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 40), st.sampled_from([-1.0, 0.0, 0.7, 3.0, np.inf]),
    st.sampled_from([0.0, 0.4, 2.0, np.inf]), st.sampled_from([1, 3, 1000]), st.integers(0, 1000),
)  # fmt: skip
def test_what_is_kept_is_the_best_of_all_codes(engine, queries, last, lists, slack, tolerance, kinds, seed):
    """What is kept while codes are read is what sorting all of them gives, also where a great many score the same."""
    rng = np.random.default_rng(seed)
    changed = {name: getattr(engine.arrays, name).copy() for name in ("signs", "factors", "nibbles")}
    if kinds < 1000:
        few = rng.integers(len(changed["signs"]), size=kinds)
        alike = few[rng.integers(kinds, size=len(changed["signs"]))]
        changed = {name: array[alike] for name, array in changed.items()}
        changed["factors"][:] = changed["factors"][0, 0]
        changed["nibbles"][:] = changed["nibbles"][:, :1]
    other = AnnIndex(replace(engine.arrays, **changed), engine.fine)
    k, setting = min(10, last), SearchParams(lists, np.inf, slack, last, tolerance)
    asked = replace(setting, rerank=other.min_rerank(setting, k))
    for number in rng.integers(len(queries), size=3):
        query = queries[number : number + 1]
        expected = reference.search(other.arrays, other.fine, query, k, asked, None)
        np.testing.assert_array_equal(other.search(query, k, setting)[0], expected[0])


def test_little_slack_reads_fewer_nibbles_and_much_finds_all_that_they_would(engine, queries):
    """With enough of it, what is kept is the best of all codes by their nibbles alone."""
    reads = []
    for slack in (0.0, 1.0, 4.0):
        engine.work = native.WorkStruct()
        engine.search(queries[:50], 10, SearchParams(40, np.inf, slack, 20))
        reads.append(engine.work.nibbles)
    assert reads[0] < reads[1] < reads[2] <= 50 * len(engine.arrays.places) * 2
    for vector in queries[:20]:
        query = reference.Query(engine.arrays, vector)
        rows = engine.arrays.rows.ravel()
        places = np.flatnonzero(rows != layout.EMPTY)
        scores = reference.nibble_scores(engine.arrays, query, places)
        best = np.unique(rows[places[np.lexsort((places, -scores))[:20]]]).astype(np.int64)
        found, _ = engine.search(vector[None], 10, SearchParams(40, np.inf, np.inf, 20))
        np.testing.assert_array_equal(found[0], reference.decide(engine.fine, vector, best, 10)[0])


@pytest.mark.slow
def test_what_is_further_from_the_last_wanted_one_than_nibbles_err_is_not_handed_on(either, engine, items, queries):
    """Fewer fine vectors are read, and of some queries fewer than of others."""
    read = []
    for tolerance in (np.inf, 4.0, 1.0, 0.0):
        fine = []
        for vector in queries[:30]:
            query, setting = reference.Query(engine.arrays, vector), SearchParams(40, np.inf, np.inf, 60, tolerance)
            wanted = 5 * int(engine.arrays.held[1])
            rows = reference._last(engine.arrays, query, setting, wanted, None)
            fine.append(len(rows))
            found, _ = engine.search(vector[None], 5, setting)
            np.testing.assert_array_equal(found[0], reference.decide(engine.fine, vector, rows, 5)[0])
            places = np.flatnonzero(engine.arrays.rows.ravel() != layout.EMPTY)
            scores = np.sort(reference.nibble_scores(engine.arrays, query, places))[::-1]
            near = np.count_nonzero(scores >= scores[wanted - 1] - tolerance * query.error)
            assert len(rows) <= min(near + 1, 60)
        read.append(fine)
    means = np.mean(read, 1)
    assert means[0] > means[1] > means[2] > means[3] >= 5
    assert np.std(read[2]) > 1


def test_the_error_is_what_codes_leave_out(engine, items, queries):
    arrays, off = engine.arrays, []
    for vector in queries[:20]:
        query = reference.Query(arrays, vector)
        unit = float(query.small_scale) * float(arrays.scales[0]) / float(query.centre_unit)
        said = reference.nibble_scores(arrays, query, arrays.places.astype(np.int64)) * unit
        off.append(said - (items.astype(np.float32) - arrays.mean) @ vector)
    measured = float(np.sqrt(np.mean(np.square(off))) / np.linalg.norm(queries[:20], axis=1).mean())
    assert float(arrays.scales[4]) == pytest.approx(measured, rel=0.1)


def test_at_least_one_row_is_wanted(either, engine, queries):
    for search in (
        lambda: engine.search(queries[:2], 0, SearchParams(4, np.inf, 0.0, 5)),
        lambda: engine.search_rows(queries[0], np.arange(9), 0, 5),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            search()


def test_fewer_rows_than_wanted(either, items):
    small = AnnIndex.build(items[:5], nlist=1, dims=16)
    rows, scores = small.search(items[:2].astype(np.float32), 8, SearchParams(1, np.inf, 0.0, 8))
    assert sorted(rows[0][:5].tolist()) == list(range(5))
    assert (rows[:, 5:] == -1).all() and np.isneginf(scores[:, 5:]).all()


@pytest.mark.slow
def test_the_router_learns(items, queries):
    """Fewer lists hold the best items once keys were learnt from queries than with the lists' centres as keys."""
    rng = np.random.default_rng(0)
    centres = fit.partition(items.astype(np.float32), 30, rng)
    shift = rng.normal(size=96).astype(np.float32) * 0.15  # queries from elsewhere
    asked = queries + shift
    best = exact(items, asked, 10)
    lists = fit.assign(centres, items.astype(np.float32), 1)[:, 0]
    weights, bias = fit.learn_router(centres, asked[:1000], lists[best[:1000]], steps=300)

    def found(scores):
        first = np.argsort(-scores, 1)[:, :3]
        return np.mean([np.isin(lists[best[1000 + row]], first[row]).mean() for row in range(200)])

    assert found(asked[1000:] @ weights.T + bias) > found(asked[1000:] @ centres.T) + 0.02


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 1000))
def test_every_item_lies_in_its_lists(lists, copies, seed):
    rng = np.random.default_rng(seed)
    members = np.stack([rng.permutation(lists)[: min(copies, lists)] for _ in range(200)]).astype(np.int32)
    lengths = rng.integers(256, size=members.shape).astype(np.uint8)
    starts, places = building.place(members, lengths, lists)
    assert len(set(places.ravel().tolist())) == places.size
    assert (places // layout.SIGN_LANES >= starts[members]).all()
    assert (places // layout.SIGN_LANES < starts[members + 1]).all()
    order = np.argsort(places, axis=None)
    of_list, length = members.ravel()[order], lengths.ravel()[order].astype(int)
    assert (np.diff(length)[np.diff(of_list) == 0] <= 0).all()
    np.testing.assert_array_equal(np.diff(of_list) < 0, False)


def test_extended(engine, items):
    """More items under what was learnt from fewer: as if the codes had been packed with them from the start."""
    half = AnnIndex.extend(engine.arrays, items[:1500])
    whole = AnnIndex.extend(half.arrays, items)
    for name in PACKED:
        np.testing.assert_array_equal(getattr(whole.arrays, name), getattr(engine.arrays, name))


def test_saved_and_loaded(tmp_path, engine, items, queries):
    engine.save(tmp_path / "engine", {"rows": 3000})
    again = AnnIndex.load(tmp_path / "engine", items)
    setting = SearchParams(10, np.inf, 1.0, 30)
    np.testing.assert_array_equal(again.search(queries[:9], 5, setting)[0], engine.search(queries[:9], 5, setting)[0])
    (tmp_path / "engine" / "signs.npy").unlink()
    with pytest.raises(IndexFolderError, match="hivlp tune"):
        AnnIndex.load(tmp_path / "engine", items)


COMPILERS = {
    "native": (["cc"], []),
    "arm64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", COMPILERS)
def test_variants_compiled_for(machine, tmp_path):
    """All variants say the same, also on Arm, which is emulated where the tools for it are installed."""
    compiler, emulator = COMPILERS[machine]
    for tool in (compiler[0], *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    source, program = Path(__file__).with_name("kernels_variants.c"), tmp_path / "variants"
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, *flags, str(source), "-o", str(program), "-lm"], check=True)
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    if machine == "arm64":
        assert "widest variant 3" in done.stdout


def test_many_items_get_codes_that_fit_into_memory():
    assert building.affordable_dims(128, 512, 1_000_000, 2) == 512
    assert building.affordable_dims(128, 256, 8_000_000, 1) == 256
    assert building.affordable_dims(128, 256, 10_000_000, 1) == 224
    assert building.affordable_dims(128, 256, 10_000_000, 2) == 64
    assert building.affordable_dims(96, 96, 10_000_000, 1) == 96
    assert building.affordable_dims(128, 512, 10**10, 1) == 224
