"""The approximate index against naive numpy: packing, every kernel in every variant, search, storing."""

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

import ann_oracle
from hivlp.ann import AnnIndex, SearchParams, checks, interface, kmeans, layout, native, training
from hivlp.ann.arrays import ARRAYS, ENCODED
from hivlp.ann.constants import CODE_LANES, HEADER, NO_ROW
from hivlp.ann.lists import codes_of, place
from hivlp.ann.router import train_router
from hivlp.ann.rows import floats
from hivlp.errors import IndexFolderError
from hivlp.store.codec import INT8
from synthetic import cloud

LIBRARY = native.load()
VARIANTS = range(len(native.VARIANTS)) if LIBRARY is not None else []
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not compiled here")
KERNELS = Path(__file__).with_name("kernels_variants.c")


@pytest.fixture(scope="module")
def items() -> np.ndarray:
    return cloud(3000, 96, 0).astype(np.float16)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return cloud(1200, 96, 1)


@pytest.fixture(scope="module")
def index(items, queries) -> AnnIndex:
    return AnnIndex.build(items, queries=queries, dims=64, sign_dims=48, nlist=40)


@pytest.fixture(params=VARIANTS, ids=lambda number: native.VARIANTS[number])
def variant(request):
    """Each instruction set that this processor has, in turn."""
    chosen = LIBRARY.hivlp_use_variant(request.param)
    if chosen != request.param:
        LIBRARY.hivlp_use_variant(len(native.VARIANTS))
        pytest.skip("this processor lacks it")
    yield request.param
    LIBRARY.hivlp_use_variant(len(native.VARIANTS))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> ctypes.CDLL:
    """The kernels with functions that call them one by one."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-O1", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-fvisibility=hidden"]
    subprocess.run(["cc", *flags, str(KERNELS), "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture
def each(kernels, variant) -> ctypes.CDLL:
    """These with each instruction set in turn."""
    kernels.hivlp_use_variant(variant)
    return kernels


def pointers(*arguments):
    """Arrays as addresses, numbers as they are."""
    return [each if isinstance(each, int) else ctypes.c_void_p(each.ctypes.data) for each in arguments]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_packing_is_undone(blocks, groups, seed):
    rng = np.random.default_rng(seed)
    signs = rng.random((blocks * 32, groups * 16)) < 0.5
    np.testing.assert_array_equal(ann_oracle.unpack_sign_codes(ann_oracle.pack_sign_codes(signs)), signs)
    nibbles = rng.integers(0, 16, (blocks, groups * 16), dtype=np.uint8)
    np.testing.assert_array_equal(layout.unpack_nibbles(layout.pack_nibbles(nibbles)), nibbles)
    keys = rng.integers(-128, 128, (blocks * 3, groups * 16)).astype(np.int8)
    np.testing.assert_array_equal(ann_oracle.unpack_int8_keys(layout.pack_int8_keys(keys))[: len(keys)], keys)
    signed = int(rng.integers(groups + 1)) * 16
    mixed = np.where(np.arange(groups * 16) < signed, nibbles, nibbles & 3)
    np.testing.assert_array_equal(layout.unpack_refine_codes(layout.pack_refine_codes(mixed, signed), signed), mixed)
    codes = nibbles[: blocks * 3]
    np.testing.assert_array_equal(ann_oracle.unpack_router_keys(layout.pack_router_keys(codes))[: len(codes)], codes)


@pytest.mark.parametrize("groups", [1, 3, 8, 16, 32])
def test_sign_scores(each, groups):
    rng = np.random.default_rng(groups)
    blocks = 3
    positive = rng.random((blocks * 32, groups * 16)) < 0.5
    packed, factors = ann_oracle.pack_sign_codes(positive), rng.integers(0, 256, (blocks, 32), dtype=np.uint8)
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
    each.test_sign_scores(*pointers(
        packed, factors, blocks, table, groups, middle, bar, out,
        masks,
    ))  # fmt: skip
    np.testing.assert_array_equal(out, expected)
    above = (masks[:, None] >> np.arange(32, dtype=np.uint32) & 1).ravel().astype(bool)
    np.testing.assert_array_equal(above, expected >= bar)


@pytest.mark.parametrize("extreme", [False, True])
def test_products_of_refinement_codes_and_keys(each, extreme):
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
            packed = layout.pack_refine_codes(mixed, signed)
            each.test_refine_dot(*pointers(packed, 7, query, signed // 2, (dims - signed) // 4, out))
            np.testing.assert_array_equal(out, mixed.astype(np.int64) @ query[:dims])
            each.test_refine_dot4(*pointers(packed[1:5], query, signed // 2, (dims - signed) // 4, out))
            np.testing.assert_array_equal(out[:4], mixed[1:5].astype(np.int64) @ query[:dims])
        keys = rng.integers(-128, 128, (19, dims)).astype(np.int8)
        if extreme:
            keys[:] = 127
        packed, out = layout.pack_int8_keys(keys), np.empty(32, np.int32)
        each.test_key_dots(*pointers(packed, 2, query, groups * 4, out))
        np.testing.assert_array_equal(out[:19], (keys.astype(np.int64) + 128) @ query[:dims])
        codes = np.concatenate([codes, codes, codes])[:19]
        packed = layout.pack_router_keys(codes)
        each.test_router_dots(*pointers(packed, 2, query, dims // 2, out))
        np.testing.assert_array_equal(out[:19], codes.astype(np.int64) @ query[:dims])


@pytest.mark.parametrize("extreme", [False, True])
def test_products_of_int8_vectors(each, extreme):
    rng = np.random.default_rng(1)
    for width in (16, 48, 192, 512):
        rows, query = (
            rng.integers(-128, 128, (5, width)).astype(np.int8),
            rng.integers(-128, 128, width).astype(np.int8),
        )
        if extreme:
            rows[:], query[:] = -128, -128
        out = np.empty(5, np.int32)
        each.test_int8_dot(*pointers(rows, 5, query, width, out))
        np.testing.assert_array_equal(out, rows.astype(np.int64) @ query)


@pytest.mark.parametrize("width", [1, 7, 16, 31, 32, 100, 768])
def test_products_of_float16_vectors(each, width):
    rng = np.random.default_rng(width)
    rows = rng.normal(size=(5, width)).astype(np.float16)
    rows[0, 0] = np.float16(6e-8)  # a subnormal
    query, which, out = rng.normal(size=width).astype(np.float32), np.array([4, 0, 2]), np.empty(3, np.float32)
    each.hivlp_dot(
        *pointers(rows), ctypes.c_int64(2 * width), 0, *pointers(which), ctypes.c_int64(3), *pointers(query, width, out)
    )
    np.testing.assert_allclose(out, rows[which].astype(np.float64) @ query, rtol=1e-4, atol=1e-4)
    four = np.empty(4, np.float32)
    each.test_fp16_dot4(*pointers(rows, query, width, four))
    np.testing.assert_allclose(four, rows[:4].astype(np.float64) @ query, rtol=1e-4, atol=1e-4)
    # With the products of other queries, to the last bit.
    queries = np.stack([rng.normal(size=width).astype(np.float32), query, -query, query])
    many = np.empty((4, 4), np.float32)
    each.test_fp16_dot16(*pointers(rows, queries, width, many))
    np.testing.assert_array_equal(many[[1, 3]], [four, four])
    np.testing.assert_array_equal(many[2], -four)


@pytest.mark.parametrize("width", [1, 7, 16, 31, 32, 100, 768])
def test_products_of_int8_vectors_with_a_scale(each, width):
    rng = np.random.default_rng(width)
    rows = INT8.encode(rng.normal(size=(5, width)).astype(np.float32))
    rows["codes"][0] = -128
    query, which, out = rng.normal(size=width).astype(np.float32), np.array([4, 0, 2]), np.empty(3, np.float32)
    each.hivlp_dot(
        *pointers(rows), ctypes.c_int64(width + 4), 1, *pointers(which), ctypes.c_int64(3), *pointers(query, width, out)
    )
    np.testing.assert_allclose(out, floats(rows)[which].astype(np.float64) @ query, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_int8_vectors_rerank(variant, items, queries):
    """What is found and its scores are those of the decoded vectors, alone, in a batch, and among given rows."""
    stored = INT8.encode(items.astype(np.float32))
    index = AnnIndex.build(stored, queries=queries, dims=64, sign_dims=48, nlist=40)
    setting = SearchParams(40, np.inf, 3.0, 60)
    rows, scores = index.search(queries[:40], 10, setting)
    expected, products = ann_oracle.search(index.arrays, stored, queries[:40], 10, setting, None)
    assert np.mean(rows == expected) > 0.98  # rounding may swap two that are all but equal
    np.testing.assert_allclose(scores, products, atol=2e-3)
    alone = [index.search(query[None], 10, setting) for query in queries[:9]]
    np.testing.assert_array_equal(rows[:9], np.concatenate([one[0] for one in alone]))
    every = np.arange(len(items), dtype=np.uint32)
    found, _ = index.search_rows(queries[0], every, 10, len(items))
    assert np.mean(found == exact(floats(stored), queries[:1], 10)[0]) > 0.8


@pytest.mark.slow
def test_variants_and_numpy_find_the_same(variant, index, queries, monkeypatch):
    efforts = (
        (40, np.inf, 1.0, 50), (5, np.inf, 3.0, 20), (40, 3.0, -0.5, 30), (40, 2.0, 1.0, 20), (40, 9.0, 1.5, 25),
        (40, 9.0, 1.0, 60, 3.0), (40, 4.0, 1.0, 200, 1.0), (40, np.inf, 0.5, 30, 0.0),
    )  # fmt: skip
    for setting in (SearchParams(*effort) for effort in efforts):
        rows, scores = index.search(queries[:40], 10, setting)
        expected, products = ann_oracle.search(index.arrays, index.vectors, queries[:40], 10, setting, None)
        # Rounding of the last sums may swap two that are all but equal, and of the router's a list at the margin.
        same = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist(), strict=True)])
        assert same >= 0.995
        np.testing.assert_allclose(scores[:, 0], products[:, 0], atol=2e-3)


def test_lists_are_scanned_as_far_as_their_sign_scales_can_reach_the_threshold(variant, index, queries, monkeypatch):
    read, sign_scores = [], ann_oracle.sign_scores

    def counted(arrays, query, chosen, blocks, slack):
        read.append((chosen, blocks))
        return sign_scores(arrays, query, chosen, blocks, slack)

    monkeypatch.setattr(ann_oracle, "sign_scores", counted)
    setting, sizes, shortened, same = SearchParams(40, 4.0, 1.0, 20), np.diff(index.arrays.list_offsets), 0, 0
    for query in queries[:40]:
        read.clear()
        ann_oracle.search(index.arrays, index.vectors, query[None], 10, setting, None)
        before = index.stats.sign_codes
        index.search(query[None], 10, setting)
        same += index.stats.sign_codes - before == CODE_LANES * sum(int(blocks.sum()) for _, blocks in read)
        shortened += any((blocks < sizes[chosen]).any() for chosen, blocks in read[1:])
        assert all((blocks == sizes[chosen]).all() for chosen, blocks in read[:1])
    assert shortened > 10
    assert same >= 38  # rounding of the router's sums may change what lies at the margin


def exact(items, queries, k, allowed=None):
    scores = queries @ items.astype(np.float32).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return np.argsort(-scores, 1, kind="stable")[:, :k]


def test_everything_read_is_exact(index, items, queries):
    rows, scores = index.search(queries[:20], 10, SearchParams(40, np.inf, 0.0, 10**4))
    np.testing.assert_array_equal(rows, exact(items, queries[:20], 10))
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.slow
def test_recall_grows_with_effort(index, items, queries):
    truth = exact(items, queries[:100], 10)

    def recall(setting):
        rows = index.search(queries[:100], 10, setting)[0]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), truth.tolist(), strict=True)])

    little, much = recall(SearchParams(2, np.inf, 0.0, 15)), recall(SearchParams(40, np.inf, 2.0, 60))
    assert little < much
    assert much > 0.97


def test_as_many_rows_as_wanted_whatever_the_search_parameters(index, queries):
    """Also where several codes of a row are among the last ones."""
    for setting in (
        SearchParams(40, np.inf, 0.0, 5),
        SearchParams(40, np.inf, 2.0, 30),
    ):
        rows, _ = index.search(queries[:20], 30, setting)
        assert (rows >= 0).all()
        assert all(len(set(each)) == 30 for each in rows.tolist())


def test_filter(index, items, queries):
    rng = np.random.default_rng(3)
    for share in (0.01, 0.3):
        allowed = rng.random(len(items)) < share
        bits = np.packbits(allowed, bitorder="little")
        rows, _ = index.search(queries[:20], 10, SearchParams(40, np.inf, 0.0, 10**4), allowed=bits)
        np.testing.assert_array_equal(rows, exact(items, queries[:20], 10, allowed))
        some = np.flatnonzero(allowed).astype(np.uint32)
        found, _ = index.search_rows(queries[0], some, 10, 10**4)
        np.testing.assert_array_equal(found, rows[0])


def test_queries_of_a_batch_are_answered_as_one_by_one(variant, index, queries):
    """Queries that are asked at once get the same answers, to the last bit, however many they are."""
    for setting in (SearchParams(40, 4.0, 0.5, 20), SearchParams(9, np.inf, 0.0, 20)):
        alone = [index.search(query[None], 10, setting) for query in queries[:30]]
        for count in (1, 3, 4, 7, 8, 9, 30):
            rows, scores = index.search(queries[:count], 10, setting)
            np.testing.assert_array_equal(rows, np.concatenate([one[0] for one in alone[:count]]))
            np.testing.assert_array_equal(scores, np.concatenate([one[1] for one in alone[:count]]))


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.3, 0.001])
def test_a_batch_search_reads_and_finds_what_its_queries_do_alone(variant, index, items, queries, share):
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
        index.stats = interface.SearchStats()
        alone = [index.search(query[None], 5, setting, allowed=bits) for query in asked]
        work, index.stats = index.stats, interface.SearchStats()
        rows, scores = index.search(asked, 5, setting, allowed=bits)
        np.testing.assert_array_equal(rows, np.concatenate([one[0] for one in alone]))
        np.testing.assert_array_equal(scores, np.concatenate([one[1] for one in alone]))
        for name in ("lists", "sign_codes", "vectors"):  # the order of codes decides only how many are refined
            assert getattr(work, name) == getattr(index.stats, name)


def test_a_library_of_other_sources_is_not_used(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "old.c").write_text("int hivlp_use_variant(int most) { return most; }")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(tmp_path / native.LIBRARY), str(tmp_path / "old.c")], check=True
    )
    monkeypatch.delenv("HIVLP_KERNELS", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    with pytest.warns(UserWarning, match="install hivlp again"):
        assert native.load.__wrapped__() is None


def changed_structs() -> dict[str, tuple[str, list]]:
    fields = list(interface.IvfIndex._fields_)
    names = [name for name, _ in fields]
    one, other = names.index("sign_codes"), names.index("refine_codes")
    swapped = fields.copy()
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return {
        "two fields swapped": ("IvfIndex", swapped),
        "a field missing": ("IvfIndex", fields[:-1]),
        "a field more": ("IvfIndex", [*fields, ("more", ctypes.c_float)]),
        "a field narrower": ("IvfParams", [("nprobe", ctypes.c_int32), *interface.IvfParams._fields_[1:]]),
        "a field of another name": ("SearchStats", [("probes", ctypes.c_int64), *interface.SearchStats._fields_[1:]]),
    }


@pytest.mark.parametrize("change", changed_structs())
def test_a_library_with_other_structs_is_not_used(monkeypatch, change):
    name, fields = changed_structs()[change]
    struct = type(name, (ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(interface, name, struct)
    with pytest.warns(UserWarning, match="install hivlp again"):
        assert native.load.__wrapped__() is None


@pytest.mark.slow
def test_a_library_with_other_constants_is_not_used(monkeypatch):
    monkeypatch.setitem(interface.CONSTANTS, "REFINE_STEP", "0.336")
    with pytest.warns(UserWarning, match="install hivlp again"):
        assert native.load.__wrapped__() is None


@pytest.mark.parametrize("header", sorted(HEADER.parent.glob("*.h")), ids=lambda path: path.name)
def test_every_header_compiles_alone(tmp_path, header):
    (tmp_path / "alone.c").write_text(f'#include "{header}"\n')
    command = [
        "cc",
        "-fsyntax-only",
        "-std=gnu11",
        "-Wall",
        "-Wno-unused-function",
        "-Werror",
        str(tmp_path / "alone.c"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 40), st.sampled_from([-1.0, 0.0, 0.7, 3.0, np.inf]),
    st.sampled_from([0.0, 0.4, 2.0, np.inf]), st.sampled_from([1, 3, 1000]), st.integers(0, 1000),
)  # fmt: skip
def test_what_is_kept_is_the_best_of_all_codes(index, queries, last, lists, slack, tolerance, kinds, seed):
    """What is kept while codes are read is what sorting all of them gives, also where a great many score the same."""
    rng = np.random.default_rng(seed)
    changed = {name: getattr(index.arrays, name).copy() for name in ("sign_codes", "sign_scales", "refine_codes")}
    if kinds < 1000:
        few = rng.integers(len(changed["sign_codes"]), size=kinds)
        alike = few[rng.integers(kinds, size=len(changed["sign_codes"]))]
        changed = {name: array[alike] for name, array in changed.items()}
        changed["sign_scales"][:] = changed["sign_scales"][0, 0]
        changed["refine_codes"][:] = changed["refine_codes"][:, :1]
    other = AnnIndex(replace(index.arrays, **changed), index.vectors)
    k, setting = min(10, last), SearchParams(lists, np.inf, slack, last, tolerance)
    asked = replace(setting, rerank=other.min_rerank(setting, k))
    for number in rng.integers(len(queries), size=3):
        query = queries[number : number + 1]
        expected = ann_oracle.search(other.arrays, other.vectors, query, k, asked, None)
        np.testing.assert_array_equal(other.search(query, k, setting)[0], expected[0])


def test_little_slack_reads_fewer_refinement_codes_and_much_finds_all_that_they_would(index, queries):
    """With enough of it, what is kept is the best of all codes by their refinement codes alone."""
    reads = []
    for slack in (0.0, 1.0, 4.0):
        index.stats = interface.SearchStats()
        index.search(queries[:50], 10, SearchParams(40, np.inf, slack, 20))
        reads.append(index.stats.refine_codes)
    assert reads[0] < reads[1] < reads[2] <= 50 * len(index.arrays.positions) * 2
    for vector in queries[:20]:
        query = ann_oracle.Query(index.arrays, vector)
        rows = index.arrays.row_ids.ravel()
        places = np.flatnonzero(rows != NO_ROW)
        scores = ann_oracle.refine_scores(index.arrays, query, places)
        best = np.unique(rows[places[np.lexsort((places, -scores))[:20]]]).astype(np.int64)
        found, _ = index.search(vector[None], 10, SearchParams(40, np.inf, np.inf, 20))
        np.testing.assert_array_equal(found[0], ann_oracle.rerank(index.vectors, vector, best, 10)[0])


@pytest.mark.slow
def test_codes_beyond_the_tolerance_are_not_reranked(index, items, queries):
    """Fewer float16 vectors are read, and of some queries fewer than of others."""
    read = []
    for tolerance in (np.inf, 4.0, 1.0, 0.0):
        fine = []
        for vector in queries[:30]:
            query, setting = ann_oracle.Query(index.arrays, vector), SearchParams(40, np.inf, np.inf, 60, tolerance)
            wanted = 5 * index.arrays.assignments
            rows = ann_oracle.kept_rows(index.arrays, query, setting, wanted, None)
            fine.append(len(rows))
            found, _ = index.search(vector[None], 5, setting)
            np.testing.assert_array_equal(found[0], ann_oracle.rerank(index.vectors, vector, rows, 5)[0])
            places = np.flatnonzero(index.arrays.row_ids.ravel() != NO_ROW)
            scores = np.sort(ann_oracle.refine_scores(index.arrays, query, places))[::-1]
            near = np.count_nonzero(scores >= scores[wanted - 1] - tolerance * query.error)
            assert len(rows) <= min(near + 1, 60)
        read.append(fine)
    means = np.mean(read, 1)
    assert means[0] > means[1] > means[2] > means[3] >= 5
    assert np.std(read[2]) > 1


def test_the_refine_error_is_what_codes_leave_out(index, items, queries):
    arrays, off = index.arrays, []
    for vector in queries[:20]:
        query = ann_oracle.Query(arrays, vector)
        unit = float(query.int8_scale) * float(arrays.scales["centroid_scale"][0]) / float(query.centroid_unit)
        said = ann_oracle.refine_scores(arrays, query, arrays.positions.astype(np.int64)) * unit
        off.append(said - (items.astype(np.float32) - arrays.mean) @ vector)
    measured = float(np.sqrt(np.mean(np.square(off))) / np.linalg.norm(queries[:20], axis=1).mean())
    assert float(arrays.scales["refine_error"][0]) == pytest.approx(measured, rel=0.1)


def test_at_least_one_row_is_wanted(index, queries):
    for search in (
        lambda: index.search(queries[:2], 0, SearchParams(4, np.inf, 0.0, 5)),
        lambda: index.search_rows(queries[0], np.arange(9), 0, 5),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            search()


def test_fewer_rows_than_wanted(items):
    small = AnnIndex.build(items[:5], nlist=1, dims=16)
    rows, scores = small.search(items[:2].astype(np.float32), 8, SearchParams(1, np.inf, 0.0, 8))
    assert sorted(rows[0][:5].tolist()) == list(range(5))
    assert (rows[:, 5:] == -1).all() and np.isneginf(scores[:, 5:]).all()


@pytest.mark.slow
def test_the_router_learns(items, queries):
    """Fewer lists hold the best items once keys were learnt from queries than with the lists' centres as keys."""
    rng = np.random.default_rng(0)
    centres = kmeans.k_means(items.astype(np.float32), 30, rng)
    shift = rng.normal(size=96).astype(np.float32) * 0.15  # queries from elsewhere
    asked = queries + shift
    best = exact(items, asked, 10)
    lists = kmeans.assign(centres, items.astype(np.float32), 1)[:, 0]
    weights, bias = train_router(centres, asked[:1000], lists[best[:1000]], steps=300)

    def found(scores):
        first = np.argsort(-scores, 1)[:, :3]
        return np.mean([np.isin(lists[best[1000 + row]], first[row]).mean() for row in range(200)])

    assert found(asked[1000:] @ weights.T + bias) > found(asked[1000:] @ centres.T) + 0.02


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 1000))
def test_every_row_lies_in_its_lists(lists, copies, seed):
    rng = np.random.default_rng(seed)
    members = np.stack([rng.permutation(lists)[: min(copies, lists)] for _ in range(200)]).astype(np.int32)
    lengths = rng.integers(256, size=members.shape).astype(np.uint8)
    rows = np.repeat(np.arange(200, dtype=np.uint32), members.shape[1])
    starts, places = place(members.ravel(), lengths.ravel(), rows, lists)
    members, lengths = members.ravel(), lengths.ravel()
    assert len(set(places.tolist())) == len(places)
    assert (places // CODE_LANES >= starts[members]).all()
    assert (places // CODE_LANES < starts[members + 1]).all()
    order = np.argsort(places)
    of_list, length = members[order], lengths[order].astype(int)
    assert (np.diff(length)[np.diff(of_list) == 0] <= 0).all()
    np.testing.assert_array_equal(np.diff(of_list) < 0, False)


def same_lists(one: AnnIndex, other: AnnIndex) -> None:
    for name in ENCODED:
        np.testing.assert_array_equal(getattr(one.arrays, name), getattr(other.arrays, name), err_msg=name)


def test_an_extended_index_is_one_built_of_all_items(index, items):
    """More items under what was learnt from fewer: as if the codes had been packed with them from the start."""
    half = AnnIndex.extend(index.arrays, items[:1504], np.arange(1504))
    assert half.count == 1504
    same_lists(AnnIndex.extend(half.arrays, items), index)
    same_lists(AnnIndex.extend(half.arrays, items, np.arange(0)), index)  # encoded again


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1), st.integers(0, 300))
def test_lists_of_renumbered_rows_are_those_of_the_rows_that_stay(index, items, seed, share, more):
    """Dropped rows are in no list, the others under their new numbers, and new ones beside them."""
    rng = np.random.default_rng(seed)
    stay = np.flatnonzero(rng.random(len(items)) < share)
    added = items[rng.integers(len(items), size=more + (len(stay) == 0))]
    renewed = AnnIndex.extend(index.arrays, np.concatenate([items[stay], added]), stay)
    arrays = {name: getattr(renewed.arrays, name) for name in ARRAYS}
    assert checks.fault(arrays) is None and renewed.count == len(stay) + len(added)
    anew = AnnIndex.extend(index.arrays, renewed.vectors, np.arange(0))
    one, other = (codes_of(each.arrays.inverted_lists) for each in (renewed, anew))
    by_row, of_other = (np.lexsort((each.lists, each.rows)) for each in (one, other))
    for name in ("lists", "rows", "sign_scales", "sign_codes", "refine_codes"):
        same = getattr(one, name)[by_row] == getattr(other, name)[of_other]
        assert same.mean() > 0.98, name  # a matrix product may be rounded otherwise among other rows


def test_saved_and_loaded(tmp_path, index, items, queries):
    index.save(tmp_path / "engine", {"rows": 3000})
    again = AnnIndex.load(tmp_path / "engine", items)
    setting = SearchParams(10, np.inf, 1.0, 30)
    np.testing.assert_array_equal(again.search(queries[:9], 5, setting)[0], index.search(queries[:9], 5, setting)[0])
    (tmp_path / "engine" / "sign_codes.npy").unlink()
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
    program = tmp_path / "variants"
    flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, *flags, str(KERNELS), "-o", str(program), "-lm"], check=True)
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    if machine == "arm64":
        assert "widest variant 3" in done.stdout


def test_many_items_get_codes_that_fit_into_memory():
    assert training.affordable_dims(128, 512, 1_000_000, 2) == 512
    assert training.affordable_dims(128, 256, 8_000_000, 1) == 256
    assert training.affordable_dims(128, 256, 10_000_000, 1) == 224
    assert training.affordable_dims(128, 256, 10_000_000, 2) == 64
    assert training.affordable_dims(96, 96, 10_000_000, 1) == 96
    assert training.affordable_dims(128, 512, 10**10, 1) == 224
