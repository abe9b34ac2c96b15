"""The contract of every search stage: the same oracle, the same cases, whatever looks for the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from hivlp.ann import Engine, Setting, native
from hivlp.ann.bounds import Bounds
from hivlp.search.ann_scan import EngineScanner
from hivlp.search.exact_scan import ExactScanner
from hivlp.search.ranking import funnel
from hivlp.search.scan import ExhaustiveScanner
from synthetic import cloud

ROWS, BUILT, WIDTH, COARSE = 1300, 1200, 64, 24
"""Rows, how many of them an approximate index knows (the others came later), and the width of both levels."""

Answer = tuple[np.ndarray, np.ndarray]
Search = Callable[[np.ndarray, int, np.ndarray | None], list[Answer]]
"""(queries, width), how many, (rows,) bool or None -> rows and scores of each query."""


@dataclass(frozen=True)
class Stage:
    """A way to find the best rows of ``vectors``, and what it promises."""

    make: Callable[[np.ndarray], Search]
    exact: bool = True
    compiled: bool = False
    """Whether it needs the kernels, rows enough to learn from, and float16."""


def exhaustive(vectors: np.ndarray) -> Search:
    scanner = ExhaustiveScanner(vectors)
    return lambda queries, count, allowed: [scanner.top(query, count, allowed) for query in queries]


def exhaustive_batch(vectors: np.ndarray) -> Search:
    return ExhaustiveScanner(vectors).top_many


def approximate_index(vectors: np.ndarray) -> tuple[EngineScanner, Bounds]:
    if id(vectors) not in BUILT_OF:
        BUILT_OF[id(vectors)] = build(vectors)
    return BUILT_OF[id(vectors)]


BUILT_OF: dict[int, tuple[EngineScanner, Bounds]] = {}
"""Of the collections, which are kept as long: building one takes a second."""


def build(vectors: np.ndarray) -> tuple[EngineScanner, Bounds]:
    engine = Engine.build(vectors[:BUILT], queries=cloud(1100, WIDTH, 3), dims=48, signed=32, lists=20)
    bounds = Bounds.build(engine, cloud(300, WIDTH, 3))
    assert bounds is not None
    return EngineScanner(engine, BUILT, vectors), bounds


def by_bound(vectors: np.ndarray) -> Search:
    scanner = ExactScanner(*approximate_index(vectors), vectors)
    return lambda queries, count, allowed: [scanner.top(query, count, allowed) for query in queries]


def by_bound_batch(vectors: np.ndarray) -> Search:
    return ExactScanner(*approximate_index(vectors), vectors).top_many


def approximate(vectors: np.ndarray) -> Search:
    scanner, _ = approximate_index(vectors)

    def search(queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Answer]:
        near = scanner.nearest(queries, min(count, len(vectors)), Setting(12, 9.0, 1.0, 200), allowed)
        return [scanner.with_later(query, *each, allowed) for query, each in zip(queries, near, strict=True)]

    return search


def cascade(share: float) -> Callable[[np.ndarray], Search]:
    """A shortlist by the vectors' first dims, ordered by all of them."""

    def make(vectors: np.ndarray) -> Search:
        coarse, fine = ExhaustiveScanner(np.ascontiguousarray(vectors[:, :COARSE])), ExhaustiveScanner(vectors)

        def search(queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Answer]:
            size = max(count, int(share * len(vectors)), 1)
            lists = coarse.top_many(np.ascontiguousarray(queries[:, :COARSE]), size, allowed)
            found = [funnel([fine], [query], [], rows) for query, (rows, _) in zip(queries, lists, strict=True)]
            return [(rows[:count], scores[:count]) for rows, scores in found]

        return search

    return make


STAGES = {
    "exhaustive": Stage(exhaustive),
    "exhaustive, a batch": Stage(exhaustive_batch),
    "exact by bound": Stage(by_bound, compiled=True),
    "exact by bound, a batch": Stage(by_bound_batch, compiled=True),
    "approximate": Stage(approximate, exact=False, compiled=True),
    "cascade, a shortlist of all": Stage(cascade(1.0)),
    "cascade, a shortlist of a fifth": Stage(cascade(0.2), exact=False),
}
"""What the suite runs over; everything that knows how a stage is made stands above."""


@cache
def collection(ties: bool, dtype: str) -> np.ndarray:
    """(ROWS, WIDTH) unit vectors; with ties, every vector about four times."""
    vectors = cloud(ROWS, WIDTH, 0)
    if ties:
        vectors = vectors[np.random.default_rng(1).integers(ROWS // 4, size=ROWS)]
    return vectors.astype(dtype)


@cache
def search_of(name: str, ties: bool, dtype: str) -> Search:
    return STAGES[name].make(collection(ties, dtype))


CASES = [(name, dtype) for name, stage in STAGES.items() for dtype in ("float16", "float32")[: 2 - stage.compiled]]


@pytest.fixture(params=CASES, ids=", ".join)
def case(request) -> tuple[str, str]:
    """A stage and the vectors' dtype: an approximate index stands on float16."""
    if STAGES[request.param[0]].compiled and native.load() is None:
        pytest.skip("the kernels are not compiled here")
    return request.param


def queries() -> np.ndarray:
    """Some like the items, one that is an item, one like nothing."""
    rng = np.random.default_rng(2)
    return np.concatenate(
        [cloud(6, WIDTH, 4), collection(False, "float32")[7:8], rng.normal(size=(1, WIDTH)).astype(np.float32)]
    )


def true_answer(vectors: np.ndarray, query: np.ndarray, count: int, allowed: np.ndarray | None) -> Answer:
    """Everything that passes, sorted by the score that its own two vectors give; equal scores in row order."""
    scores = ExhaustiveScanner(vectors).rescore(query, np.arange(len(vectors)))
    np.testing.assert_allclose(scores, vectors.astype(np.float64) @ query, atol=1e-4)
    passing = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    rows = passing[np.argsort(-scores[passing], kind="stable")][:count]
    return rows, scores[rows]


def check(name: str, dtype: str, ties: bool, count: int, allowed: np.ndarray | None) -> None:
    vectors, asked = collection(ties, dtype), queries()
    found = search_of(name, ties, dtype)(asked, count, allowed)
    assert len(found) == len(asked)
    shares = []
    for query, (rows, scores) in zip(asked, found, strict=True):
        expected, best = true_answer(vectors, query, count, allowed)
        if STAGES[name].exact:
            np.testing.assert_array_equal(rows, expected)
            np.testing.assert_array_equal(scores, best)
            continue
        # An approximate stage may miss rows; what it gives is in order, passes, and has its own score.
        assert len(set(rows.tolist())) == len(rows)
        assert allowed is None or allowed[rows].all()
        np.testing.assert_array_equal(scores, ExhaustiveScanner(vectors).rescore(query, rows))
        np.testing.assert_array_equal(np.lexsort((rows, -scores)), np.arange(len(rows)))
        first = min(10, len(expected))
        # Equal scores stand for each other: which of them a shortlist keeps is not promised.
        shares += [float((scores[:first] >= best[first - 1]).sum()) / first] if first else []
    assert not shares or np.mean(shares) >= 0.8


@pytest.mark.parametrize("ties", [False, True], ids=["all differ", "ties"])
@pytest.mark.parametrize("count", [1, 10, 49])
def test_the_best_come_first_and_ties_in_row_order(case, ties, count):
    check(*case, ties, count, None)


@pytest.mark.parametrize("share", [0.5, 0.02, 0.002])
def test_only_what_passes_a_filter_is_found(case, share):
    allowed = np.random.default_rng(3).random(ROWS) < share
    check(*case, True, 10, allowed)


def test_a_filter_that_nothing_passes_leaves_nothing(case):
    for rows, scores in search_of(case[0], True, case[1])(queries(), 10, np.zeros(ROWS, bool)):
        assert len(rows) == len(scores) == 0


def test_a_row_that_is_excluded_is_not_found(case):
    for row in (0, 700, ROWS - 1):
        allowed = np.arange(ROWS) != row
        check(*case, True, 10, allowed)


@pytest.mark.parametrize("more", [0, 1, 10_000])
def test_whoever_asks_for_more_than_there_is_gets_all(case, more):
    if STAGES[case[0]].exact:
        check(*case, False, ROWS + more, None)
    allowed = np.arange(ROWS) % 100 == 0
    check(*case, False, int(allowed.sum()) + more, allowed)


def test_a_batch_is_its_queries_one_by_one(case):
    search = search_of(case[0], True, case[1])
    for query, (rows, scores) in zip(queries(), search(queries(), 10, None), strict=True):
        ((alone, products),) = search(query[None], 10, None)
        np.testing.assert_array_equal(rows, alone)
        np.testing.assert_array_equal(scores, products)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if not stage.compiled])
def test_an_empty_collection_has_no_best(name, dtype):
    for rows, scores in STAGES[name].make(np.empty((0, WIDTH), dtype))(queries(), 10, None):
        assert len(rows) == len(scores) == 0
