"""The contract of every search stage: the same oracle, the same cases, whatever looks for the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from hivlp.ann import AnnIndex, SearchParams, native
from hivlp.ann.bounds import Bounds
from hivlp.levels import Level
from hivlp.search.approximate import Approximate
from hivlp.search.collection import Collection
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.search.filters import Filter
from hivlp.search.likeness import Likeness
from hivlp.search.operating_points import Tuned
from hivlp.search.plan import cascade
from hivlp.search.stages import Ann, Asked, Exact, Scan, Stage
from synthetic import cloud

ROWS, BUILT, WIDTH, COARSE = 1300, 1200, 64, 24
"""Rows, how many of them an approximate index knows (the others came later), and the width of both levels."""
LEVELS = (Level("coarse", COARSE, 1, 1), Level("fine", WIDTH, 2, 2))
PARAMS = SearchParams(12, 9.0, 1.0, 200)
TUNED = Tuned(0, BUILT, BUILT, "", 0.99, (), (), Likeness(np.inf, np.inf, (1.0,), (-np.inf,), ()))
"""Operating points of a tuning that saw queries of every kind."""


Answer = tuple[np.ndarray, np.ndarray]
"""(n,) rows and (n,) scores, best first."""


@dataclass(frozen=True)
class Contract:
    """Stages that find the best rows of the finest level, and what they promise.

    Attributes:
        stages: for so many wanted ranks among so many rows.
        ann: whether they need an approximate index; that one stands on float16 vectors, and needs rows to learn from.
        exact: whether they miss nothing.
    """

    stages: Callable[[int, int], tuple[Stage, ...]]
    ann: bool = False
    exact: bool = True


CONTRACTS = {
    "scan": Contract(lambda count, rows: (Scan("fine", count),)),
    "exact": Contract(lambda count, rows: (Exact("fine"),)),
    "exact by bounds": Contract(lambda count, rows: (Exact("fine"),), ann=True),
    "approximate": Contract(lambda count, rows: (Ann("fine", 0.9, PARAMS, TUNED),), ann=True, exact=False),
    "cascade, all of it": Contract(lambda count, rows: cascade(LEVELS, [max(rows, 1)])),
    "cascade, a fifth of it": Contract(lambda count, rows: cascade(LEVELS, [max(count, rows // 5)]), exact=False),
}
"""What the suite runs over; everything that knows how a stage is made stands above."""


@cache
def vectors_of(ties: bool, dtype: str) -> np.ndarray:
    """(ROWS, WIDTH) unit vectors; with ties, every vector about four times."""
    vectors = cloud(ROWS, WIDTH, 0)
    if ties:
        vectors = vectors[np.random.default_rng(1).integers(ROWS // 4, size=ROWS)]
    return vectors.astype(dtype)


def collection_of(vectors: np.ndarray, ann: Approximate | None = None) -> Collection:
    return Collection.of(LEVELS, (np.ascontiguousarray(vectors[:, :COARSE]), vectors), ann=ann)


@cache
def collection(ties: bool, dtype: str, ann: bool) -> Collection:
    vectors = vectors_of(ties, dtype)
    if not ann:
        return collection_of(vectors)
    built = AnnIndex.build(vectors[:BUILT], queries=cloud(1100, WIDTH, 3), dims=48, sign_dims=32, nlist=20)
    bounds = Bounds.build(built, cloud(300, WIDTH, 3))
    assert bounds is not None
    index = AnnIndex(built.arrays, vectors)
    return collection_of(vectors, Approximate(index, TUNED, bounds.over(index), few=100))


CASES = [(name, dtype) for name, each in CONTRACTS.items() for dtype in ("float16", "float32")[: 2 - each.ann]]


@pytest.fixture(params=CASES, ids=", ".join)
def case(request) -> tuple[str, str]:
    """A contract and the vectors' dtype."""
    if CONTRACTS[request.param[0]].ann and native.load() is None:
        pytest.skip("the kernels are not compiled here")
    return request.param


def queries() -> np.ndarray:
    """Some like the items, one that is an item, one like nothing."""
    rng = np.random.default_rng(2)
    return np.concatenate(
        [cloud(6, WIDTH, 4), vectors_of(False, "float32")[7:8], rng.normal(size=(1, WIDTH)).astype(np.float32)]
    )


def true_answer(vectors: np.ndarray, query: np.ndarray, count: int, allowed: np.ndarray | None) -> Answer:
    """Everything that passes, sorted by the score that its own two vectors give; equal scores in row order."""
    scores = ExhaustiveScanner(vectors).rescore(query, np.arange(len(vectors)))
    np.testing.assert_allclose(scores, vectors.astype(np.float64) @ query, atol=1e-4)
    passing = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    rows = passing[np.argsort(-scores[passing], kind="stable")][:count]
    return rows, scores[rows]


def run(
    name: str,
    collection: Collection,
    asked: np.ndarray,
    count: int,
    mask: np.ndarray | None,
    excluded: int | None = None,
) -> list[Answer]:
    """The first ``count`` rows and scores of each query, without the excluded one."""
    batch = [[np.ascontiguousarray(query[:COARSE]), query] for query in asked]
    given = Asked(batch, count, None if mask is None else Filter(mask), excluded)
    found = []
    for stage in CONTRACTS[name].stages(count, collection.rows):
        found = stage.run(collection, given, found)
        assert stage.to_json()["stage"]
    wanted = [each.rows != excluded for each in found]
    return [(each.rows[some][:count], each.scores[some][:count]) for each, some in zip(found, wanted, strict=True)]


def check(
    name: str, dtype: str, ties: bool, count: int, mask: np.ndarray | None = None, excluded: int | None = None
) -> None:
    vectors, asked = vectors_of(ties, dtype), queries()
    found = run(name, collection(ties, dtype, CONTRACTS[name].ann), asked, count, mask, excluded)
    assert len(found) == len(asked)
    passing = np.ones(ROWS, bool) if mask is None else mask.copy()
    passing[[] if excluded is None else excluded] = False
    shares = []
    for query, (rows, scores) in zip(asked, found, strict=True):
        expected, best = true_answer(vectors, query, count, passing)
        if CONTRACTS[name].exact:
            np.testing.assert_array_equal(rows, expected)
            np.testing.assert_array_equal(scores, best)
            continue
        # An approximate stage may miss rows; what it gives is in order, passes, and has its own score.
        assert len(set(rows.tolist())) == len(rows) and passing[rows].all()
        np.testing.assert_array_equal(scores, ExhaustiveScanner(vectors).rescore(query, rows))
        np.testing.assert_array_equal(np.lexsort((rows, -scores)), np.arange(len(rows)))
        first = min(10, len(expected))
        # Equal scores stand for each other: which of them a shortlist keeps is not promised.
        shares += [float((scores[:first] >= best[first - 1]).sum()) / first] if first else []
    assert not shares or np.mean(shares) >= 0.8


@pytest.mark.parametrize("ties", [False, True], ids=["all differ", "ties"])
@pytest.mark.parametrize("count", [1, 10, 49])
def test_the_best_come_first_and_ties_in_row_order(case, ties, count):
    check(*case, ties, count)


@pytest.mark.parametrize("share", [0.5, 0.02, 0.002])
def test_only_what_passes_a_filter_is_found(case, share):
    check(*case, True, 10, np.random.default_rng(3).random(ROWS) < share)


def test_a_filter_that_nothing_passes_leaves_nothing(case):
    check(*case, True, 10, np.zeros(ROWS, bool))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_a_row_that_is_excluded_costs_no_other_its_place(case, share):
    for row in (0, 7, ROWS - 1):
        check(*case, False, 10, None if share == 1 else np.random.default_rng(4).random(ROWS) < share, row)


@pytest.mark.parametrize("more", [0, 1, 10_000])
def test_whoever_asks_for_more_than_there_is_gets_all(case, more):
    if CONTRACTS[case[0]].exact:
        check(*case, False, ROWS + more)
    mask = np.arange(ROWS) % 100 == 0
    check(*case, False, int(mask.sum()) + more, mask)


def test_a_batch_is_its_queries_one_by_one(case):
    name, dtype = case
    searched = collection(True, dtype, CONTRACTS[name].ann)
    for query, (rows, scores) in zip(queries(), run(name, searched, queries(), 10, None), strict=True):
        ((alone, products),) = run(name, searched, query[None], 10, None)
        np.testing.assert_array_equal(rows, alone)
        np.testing.assert_array_equal(scores, products)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", [name for name, each in CONTRACTS.items() if not each.ann])
def test_an_empty_collection_has_no_best(name, dtype):
    for rows, scores in run(name, collection_of(np.empty((0, WIDTH), dtype)), queries(), 10, None):
        assert len(rows) == len(scores) == 0
