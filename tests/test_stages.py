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
from hivlp.search.operating_points import Depth, OperatingPoint, Tuned
from hivlp.search.plan import cascade as cascade_stages
from hivlp.search.stages import Ann, Asked, Exact, Scan, Stage
from hivlp.store.codec import CODECS, codec_of
from synthetic import cloud

ROWS, BUILT, WIDTH, COARSE = 1300, 1200, 64, 24
"""Rows, how many of them an approximate index knows (the others came later), and the width of both levels."""

Answer = tuple[np.ndarray, np.ndarray]
Search = Callable[[np.ndarray, int, np.ndarray | None], list[Answer]]
"""(queries, width), how many, (rows,) bool or None -> rows and scores of each query."""


PARAMS = SearchParams(12, 9.0, 1.0, 200)
LEVELS = (Level("coarse", COARSE, 1, 1), Level("fine", WIDTH, 2, 2))


@dataclass(frozen=True)
class Case:
    """Stages that find the best rows of stored vectors, and what they promise."""

    make: Callable[[np.ndarray], Search]
    exact: bool = True
    compiled: bool = False
    """Whether it needs the kernels, rows enough to learn from, and float16."""


def run(collection: Collection, stages: tuple[Stage, ...]) -> Search:
    """A search that carries the stages out; queries have a coarse vector where the collection has the level."""

    def search(queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Answer]:
        levels = [queries[:, : level.dim] for level in collection.levels]
        batch = [[np.ascontiguousarray(level[number]) for level in levels] for number in range(len(queries))]
        found = []
        for stage in stages:
            found = stage.run(collection, Asked(batch, count, None if allowed is None else Filter(allowed)), found)
        return [(rows[:count], scores[:count]) for rows, scores, _ in found]

    return search


def scan(stored: np.ndarray) -> Search:
    def search(queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Answer]:
        return run(Collection.of(LEVELS[1:], (stored,)), (Scan("fine", count),))(queries, count, allowed)

    return search


def exact(stored: np.ndarray) -> Search:
    return run(Collection.of(LEVELS[1:], (stored,)), (Exact("fine"),))


def approximate_index(stored: np.ndarray) -> Approximate:
    if id(stored) not in BUILT_OF:
        built = AnnIndex.build(stored[:BUILT], queries=cloud(1100, WIDTH, 3), dims=48, sign_dims=32, nlist=20)
        bounds = Bounds.build(built, cloud(300, WIDTH, 3))
        assert bounds is not None
        index = AnnIndex(built.arrays, stored)
        alike = Likeness(np.inf, np.inf, (1.0,), (-np.inf,), ())
        depth = Depth(50, (OperatingPoint(PARAMS, 1.0, 1.0, 0.1, 0.1),), (PARAMS,), alike)
        tuned = Tuned(0, BUILT, BUILT, "", 0.9, (depth,))
        BUILT_OF[id(stored)] = Approximate(index, tuned, bounds.over(index))
    return BUILT_OF[id(stored)]


BUILT_OF: dict[int, Approximate] = {}
"""Of the collections, which are kept as long: building one takes a second."""


def by_bound(stored: np.ndarray) -> Search:
    return run(Collection.of(LEVELS[1:], (stored,), ann=approximate_index(stored)), (Exact("fine"),))


def approximate(stored: np.ndarray) -> Search:
    ann = approximate_index(stored)
    return run(Collection.of(LEVELS[1:], (stored,), ann=ann), (Ann("fine", 0.9, PARAMS, ann.tuned.depths[0]),))


def cascade(share: float) -> Callable[[np.ndarray], Search]:
    """A shortlist by the vectors' first dims, ordered by all of them."""

    def make(stored: np.ndarray) -> Search:
        codec = codec_of(stored)
        coarse = codec.encode(np.ascontiguousarray(codec.decode(stored)[:, :COARSE]))
        collection = Collection.of(LEVELS, (coarse, stored))

        def search(queries: np.ndarray, count: int, allowed: np.ndarray | None) -> list[Answer]:
            size = max(count, int(share * len(stored)), 1)
            return run(collection, cascade_stages(LEVELS, [size]))(queries, count, allowed)

        return search

    return make


STAGES = {
    "scan": Case(scan),
    "exact": Case(exact),
    "exact by bound": Case(by_bound, compiled=True),
    "approximate": Case(approximate, exact=False, compiled=True),
    "cascade, a shortlist of all": Case(cascade(1.0)),
    "cascade, a shortlist of a fifth": Case(cascade(0.2), exact=False),
}
"""What the suite runs over; everything that knows how a stage is made stands above."""


@cache
def collection(ties: bool, codec: str) -> np.ndarray:
    """(ROWS,) stored unit vectors of WIDTH dims; with ties, every vector about four times."""
    vectors = cloud(ROWS, WIDTH, 0)
    if ties:
        vectors = vectors[np.random.default_rng(1).integers(ROWS // 4, size=ROWS)]
    return CODECS[codec].encode(vectors)


@cache
def search_of(name: str, ties: bool, codec: str) -> Search:
    return STAGES[name].make(collection(ties, codec))


CASES = [(name, codec) for name, stage in STAGES.items() for codec in (("float16",) if stage.compiled else CODECS)]


@pytest.fixture(params=CASES, ids=", ".join)
def case(request) -> tuple[str, str]:
    """A stage and the codec of the vectors: an approximate index stands on float16."""
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
    np.testing.assert_allclose(scores, codec_of(vectors).decode(vectors).astype(np.float64) @ query, atol=1e-4)
    passing = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    rows = passing[np.argsort(-scores[passing], kind="stable")][:count]
    return rows, scores[rows]


def check(name: str, codec: str, ties: bool, count: int, allowed: np.ndarray | None) -> None:
    vectors, asked = collection(ties, codec), queries()
    found = search_of(name, ties, codec)(asked, count, allowed)
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


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if not stage.compiled])
def test_an_empty_collection_has_no_best(name, codec):
    for rows, scores in STAGES[name].make(CODECS[codec].empty(0, WIDTH))(queries(), 10, None):
        assert len(rows) == len(scores) == 0
