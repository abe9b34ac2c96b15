"""Searching against plain Python, over collections that were added to, changed, thinned out and compacted.

The oracle's vectors have entries of which every product and sum is exact in float32 (and float16), so that its scores
are the index's to the last bit, and equal scores are common.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hivlp.search.exhaustive as scan
from hivlp.errors import QueryError
from hivlp.index import Index
from hivlp.levels import Embeddings
from hivlp.search.exhaustive import ExhaustiveScanner
from hivlp.store.reader import Reader
from hivlp.store.records import NewItem
from synthetic import STAMP, FakeEncoder, Stored, random_unit, tuned_connections

WHERE = {
    "json_extract(metadata, '$.n') % 2 = 0": lambda item: item.n % 2 == 0,
    "id % 7 = 3": lambda item: item.id % 7 == 3,
    "1 = 0": lambda item: False,
}
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def exact_vector(rng, dim):
    """A unit vector of 1, 4 or 16 equal entries of either sign."""
    entries = rng.choice([n for n in (1, 4, 16) if n <= dim])
    vector = np.zeros(dim, np.float32)
    vector[rng.choice(dim, entries, replace=False)] = rng.choice([-1, 1], entries) / np.sqrt(entries)
    return vector


def any_vector(rng, dim):
    return random_unit(rng, 1, dim)[0]


@dataclass
class Known:
    """An item as the oracle knows it."""

    id: int
    n: int
    content: bytes
    vectors: dict[str, np.ndarray]


@dataclass
class World:
    """An index and what must be in it, in the order of its rows."""

    index: Index
    rng: np.random.Generator
    vector: object
    items: list[Known] = field(default_factory=list)

    @property
    def names(self):
        return [level.name for level in self.index.levels]

    def query(self):
        """As wide as the levels; sometimes that of an item."""
        if self.items and self.rng.random() < 0.3:
            return self.items[self.rng.integers(len(self.items))].vectors
        return {level.name: self.vector(self.rng, level.dim) for level in self.index.levels}

    def put(self, paths):
        """Add or update."""
        new = []
        for n in paths:
            if self.items and self.rng.random() < 0.4:
                twin = self.items[self.rng.integers(len(self.items))]
                # Sometimes the same file, sometimes another one that only looks the same.
                content = twin.content if self.rng.random() < 0.5 else self.rng.bytes(32)
                vectors = twin.vectors
            else:
                content = self.rng.bytes(32)
                vectors = {level.name: self.vector(self.rng, level.dim) for level in self.index.levels}
            new.append(Known(-1, n, content, vectors))
        if new:
            self.index.store.append(
                [NewItem(f"/p/{item.n}", item.content, None, {"n": item.n}, STAMP) for item in new],
                Embeddings({name: np.stack([item.vectors[name] for item in new]) for name in self.names}),
            )
        for item in new:
            item.id = Stored(self.index).at(f"/p/{item.n}").id
        replaced = {item.n for item in new}
        self.items = [item for item in self.items if item.n not in replaced] + new

    def step(self, what, some):
        if what == "add":
            start = 1 + max((item.n for item in self.items), default=0)
            self.put(range(start, start + some))
        elif what == "compact":
            self.index.compact()
        elif self.items:
            chosen = self.rng.permutation(len(self.items))[:some]
            if what == "update":
                self.put([self.items[at].n for at in chosen])
            else:
                self.index.remove([self.items[at].id for at in chosen])
                self.items = [item for at, item in enumerate(self.items) if at not in set(chosen.tolist())]


@contextmanager
def world(seed, dims, steps, vector=exact_vector):
    with (
        tempfile.TemporaryDirectory() as folder,
        tuned_connections("PRAGMA synchronous=OFF"),  # nothing here is about power cuts
        Index.create(Path(folder) / "x", model=FakeEncoder(dims=dims)) as index,
        blocks_of(37 * max(dims)),
    ):
        made = World(index, np.random.default_rng(seed), vector)
        for what, some in steps:
            made.step(what, some)
        yield made


@contextmanager
def blocks_of(floats):
    before, scan.BLOCK_FLOATS = scan.BLOCK_FLOATS, floats
    try:
        yield
    finally:
        scan.BLOCK_FLOATS = before


@dataclass
class Asked:
    """The options of a search."""

    k: int
    offset: int
    shortlists: list[int]
    exact: bool
    where: str | None
    threshold: float | None
    group: bool | float

    def call(self, levels):
        options = {**vars(self), "shortlist": self.shortlists[: levels - 1]}
        del options["shortlists"]
        return options


def tiers(passing, by, names, asked, rows, most):
    """(rank up to which it is shown, what may be shown) of each look at the collection.

    Who asks for ``most``, which is all that pass, is shown the exact ranking.
    """
    if not (asked.exact or len(names) == 1 or asked.k >= most):
        sizes = [max(size, asked.k) for size in asked.shortlists[: len(names) - 1]]
        reach = sizes[0]
        while True:
            candidates = by(names[0], passing)[: sizes[0]]
            for name, size in zip(names[1:-1], sizes[1:], strict=True):
                candidates = by(name, sorted(candidates, key=passing.index))[:size]
            yield reach, sorted(candidates, key=passing.index)
            if 16 * reach >= rows:
                break
            reach *= 4
            sizes = [max(4 * reach, size) for size in sizes]
    yield None, passing


def expected(items, query, names, asked, rows, without=None):
    """(id, scores, ids folded in) of the hits, the slow way; ``rows`` counts those of removed items too."""
    passing = [item for item in items if asked.where is None or WHERE[asked.where](item)]
    most = len(passing)
    passing = [item for item in passing if item.id != without]

    def score(item, name):
        return float(np.dot(item.vectors[name].astype(np.float64), query[name].astype(np.float64)))

    def by(name, some):
        return sorted(some, key=lambda item: -score(item, name))  # stable: equal scores in row order

    finest, ranked, row = names[-1], [], {item.id: at for at, item in enumerate(passing)}
    for reach, candidates in tiers(passing, by, names, asked, rows, most):
        edge = (score(ranked[-1], finest), row[ranked[-1].id]) if ranked else None
        new = [item for item in by(finest, candidates) if item not in ranked]
        above = [i for i in new if edge and (score(i, finest), -row[i.id]) > (edge[0], -edge[1])]
        below = [item for item in new if item not in above]
        # What was overlooked comes when all else has been shown, if it is the plain list.
        plain = asked.threshold is None and asked.group is False
        ranked += below + (above if plain else []) if reach is None else below[: max(0, reach - len(ranked))]
    size = max(asked.shortlists[0] if len(names) > 1 else 200, asked.k)
    if asked.threshold is not None:
        ranked = [item for item in ranked if score(item, finest) >= asked.threshold]
    blocks = [ranked[start : start + size] for start in range(0, len(ranked), size)]

    groups: list[tuple[Known, list[Known]]] = []
    for block in blocks:
        here = len(groups)
        for item in block:
            for at, (head, members) in enumerate(groups):
                if asked.group is True and head.content == item.content:
                    break
                if not isinstance(asked.group, bool):
                    cosine = float(np.dot(head.vectors[finest].astype(float), item.vectors[finest].astype(float)))
                    if cosine >= asked.group - 1e-6:
                        if at >= here:
                            members.append(item)
                        break
            else:
                groups.append((item, []))
    if asked.group is True:
        groups = [(head, [i for i in passing if i.content == head.content and i is not head]) for head, _ in groups]
    return [
        (head.id, {name: score(head, name) for name in names}, [item.id for item in members])
        for head, members in groups[asked.offset : asked.offset + asked.k]
    ]


def told(result, grouped):
    assert all((hit.duplicates is not None) == grouped for hit in result)
    return [(hit.id, hit.scores, [other.id for other in hit.duplicates or []]) for hit in result]


dims = st.sampled_from([(8,), (4, 16), (16, 4), (2, 4, 8), (3, 17, 33), (2, 4, 8, 16)])
steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "update", "remove", "compact"]), st.integers(1, 40)), max_size=6
).map(lambda rest: [("add", 12), *rest])
asked = st.builds(
    Asked,
    k=st.integers(1, 40),
    offset=st.one_of(st.just(0), st.integers(0, 90)),
    shortlists=st.lists(st.integers(1, 50), min_size=3, max_size=3),
    exact=st.booleans(),
    where=st.sampled_from([None, None, *WHERE]),
    threshold=st.sampled_from([None, None, -0.25, 0.0, 0.5]),
    group=st.sampled_from([False, False, True, 0.25, 0.5, 1.0]),
)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.slow
@settings(quick, max_examples=60)
@given(seed=seeds, dims=dims, steps=steps, asked=asked, like=st.booleans())
def test_any_search_is_the_oracles(seed, dims, steps, asked, like):
    with world(seed, dims, steps) as made:
        without = None
        if like and made.items:
            item = made.items[made.rng.integers(len(made.items))]
            query, without = item.vectors, item.id
            result = made.index.search(like=item.id, **asked.call(len(dims)))
        else:
            query = made.query()
            result = made.index.search(vector=query, **asked.call(len(dims)))
        found = told(result, asked.group is not False)
        assert found == expected(made.items, query, made.names, asked, Stored(made.index).state().rows, without)
        shown = [hit.scores[made.names[-1]] for hit in result]
        # The plain list of a poor shortlist ends, out of order, with what the shortlist overlooked.
        if asked.exact or asked.group is not False or asked.threshold is not None:
            assert shown == sorted(shown, reverse=True)
        assert [hit.rank for hit in result] == list(range(asked.offset + 1, asked.offset + 1 + len(result)))


@pytest.mark.slow
@quick
@given(seed=seeds, dims=dims, steps=steps, asked=asked)
def test_pages_are_one_long_list(seed, dims, steps, asked):
    with world(seed, dims, steps) as made:
        query, options = made.query(), asked.call(len(dims)) | {"offset": 0}
        pages = []
        while True:
            page = list(made.index.search(vector=query, **options | {"offset": len(pages)}))
            pages += page
            if len(page) < asked.k:
                break
        assert [hit.rank for hit in pages] == list(range(1, len(pages) + 1))
        # Two pages are one of twice the length where the shortlists, which are never less than k, are the same.
        wide = options | {"shortlist": [max(2 * asked.k, size) for size in options["shortlist"]]}
        if len(dims) > 1:
            two = [*made.index.search(vector=query, **wide)]
            two += made.index.search(vector=query, **wide | {"offset": asked.k})
            assert two == list(made.index.search(vector=query, **wide | {"k": 2 * asked.k}))
        ids = [hit.id for hit in pages]
        assert len(set(ids)) == len(ids), "nothing twice"
        if asked.threshold is None and asked.group is False:
            passing = [item.id for item in made.items if asked.where is None or WHERE[asked.where](item)]
            assert sorted(ids) == sorted(passing), "nothing lost"


@pytest.mark.slow
@quick
@given(seed=seeds, dims=dims, steps=steps, asked=asked, exact=st.booleans(), count=st.integers(0, 9))
def test_many_searches_are_each_search(seed, dims, steps, asked, exact, count):
    with world(seed, dims, steps, exact_vector if exact else any_vector) as made:
        queries = [made.query() for _ in range(count)]
        vectors = {
            level.name: np.array([query[level.name] for query in queries]).reshape(count, level.dim)
            for level in made.index.levels
        }
        options = asked.call(len(dims))
        many = made.index.search_many(vectors=vectors, **options)
        assert [result.hits for result in many] == [made.index.search(vector=q, **options).hits for q in queries]


@pytest.mark.slow
@quick
@given(seed=seeds, dims=dims, steps=steps, k=st.integers(1, 60), where=st.sampled_from([None, *WHERE]))
def test_a_shortlist_of_everything_is_exact_and_where_is_a_filter(seed, dims, steps, k, where):
    with world(seed, dims, steps, any_vector) as made:
        query, everything = made.query(), max(1, len(made.items))
        whole = made.index.search(vector=query, k=k, shortlist=everything, where=where)
        assert whole.hits == made.index.search(vector=query, k=k, exact=True, where=where).hits
        fine = [(-hit.scores[made.names[-1]]) for hit in whole]
        assert fine == sorted(fine)
        unfiltered = made.index.search(vector=query, k=everything, exact=True)
        passing = {item.id for item in made.items if where is None or WHERE[where](item)}
        assert [hit.id for hit in whole] == [hit.id for hit in unfiltered if hit.id in passing][:k]
        assert len(whole) == min(k, len(passing)), "a condition starves nobody"


@pytest.mark.slow
@quick
@given(seed=seeds, dims=dims, steps=steps, group=st.sampled_from([True, 0.3, 0.8, 1.0]), k=st.integers(1, 60))
def test_groups_hold_everything_once(seed, dims, steps, group, k):
    with world(seed, dims, steps, any_vector) as made:
        finest, known = made.names[-1], {item.id: item for item in made.items}
        query, everything = made.query(), max(1, len(made.items))
        whole = made.index.search(vector=query, k=everything, shortlist=everything, group=group)
        plain = [hit.id for hit in made.index.search(vector=query, k=everything, shortlist=everything)]
        assert sorted(i for hit in whole for i in (hit.id, *(d.id for d in hit.duplicates))) == sorted(plain)
        heads = [hit.id for hit in whole]
        assert heads == [each for each in plain if each in set(heads)]
        for hit in whole:
            for other in hit.duplicates:
                assert other.path == f"/p/{known[other.id].n}"
                assert plain.index(hit.id) < plain.index(other.id)
                if group is True:
                    assert known[other.id].content == known[hit.id].content
                else:
                    assert known[other.id].vectors[finest] @ known[hit.id].vectors[finest] >= group - 1e-3  # float16
        for at, one in enumerate(heads):
            for other in heads[:at]:
                if group is True:
                    assert known[one].content != known[other].content
                else:
                    assert known[one].vectors[finest] @ known[other].vectors[finest] < group + 1e-5
        assert [hit.id for hit in made.index.search(vector=query, k=k, shortlist=everything, group=group)] == heads[:k]


@settings(quick, max_examples=100)
@given(
    seed=seeds,
    rows=st.integers(0, 400),
    dim=st.sampled_from([1, 3, 64, 200]),
    count=st.integers(1, 450),
    queries=st.integers(0, 6),
    passing=st.sampled_from([None, 0.0, 0.02, 0.3, 0.9, 1.0]),
    dtype=st.sampled_from([np.float32, np.float16]),
    copies=st.sampled_from([1, 3, 50]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_a_scan_for_many_is_each_scan(seed, rows, dim, count, queries, passing, dtype, copies, scale):
    rng = np.random.default_rng(seed)
    # Copies, and near copies whose scores differ by less than the rounding of a matrix product.
    few = rng.normal(size=(rows // copies + 1, dim))
    near = few[rng.integers(0, len(few), rows)] * (1 + rng.choice([0, 1e-7], (rows, 1)))
    vectors, asks = (near * scale).astype(dtype), rng.normal(size=(queries, dim)).astype(np.float32)
    allowed = None if passing is None else rng.random(rows) < passing
    scanner = ExhaustiveScanner(vectors)
    with blocks_of(97 * dim):
        many = scanner.top_many(asks, count, allowed)
        each = [scanner.top(ask, count, allowed) for ask in asks]
    assert len(many) == queries
    candidates = np.arange(rows) if allowed is None else np.flatnonzero(allowed)
    for ask, (rows_many, scores_many), (rows_one, scores_one) in zip(asks, many, each, strict=True):
        np.testing.assert_array_equal(rows_many, rows_one)
        np.testing.assert_array_equal(scores_many, scores_one)
        np.testing.assert_array_equal(scores_one, scanner.rescore(ask, rows_one))
        scores = scanner.rescore(ask, candidates)
        np.testing.assert_array_equal(rows_one, candidates[np.argsort(-scores, kind="stable")][:count])
        exact = vectors[candidates].astype(np.float64) @ ask.astype(np.float64)
        np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4 * scale * dim)


def test_every_float16_is_widened_exactly(monkeypatch):
    monkeypatch.setattr(scan, "WIDEN_FLOATS", 640)
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].reshape(-1, 64)
    np.testing.assert_array_equal(scan._float32(half).view(np.uint32), half.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dim", [64, 200])
def test_that_a_matrix_product_rounds_otherwise_does_not_show(dim):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        few = rng.normal(size=(4, dim)) / np.sqrt(dim)
        # Equal vectors, and some whose scores differ by less than the rounding of a product.
        jitter = 1 + rng.choice([0, 1e-7, 3e-7], (600, 1))
        vectors = (few[rng.integers(0, 4, 600)] * jitter).astype(np.float32)
        asks = rng.normal(size=(5, dim)).astype(np.float32)
        count = int(rng.integers(1, 300))
        scanner = ExhaustiveScanner(vectors)
        with blocks_of(97 * dim):
            many = scanner.top_many(asks, count)
        for ask, (rows, scores) in zip(asks, many, strict=True):
            exact = scanner.rescore(ask, np.arange(600))
            order = np.argsort(-exact, kind="stable")[:count]
            np.testing.assert_array_equal(rows, order)
            np.testing.assert_array_equal(scores, exact[order])


@pytest.fixture
def made():
    with world(0, (4, 16), [("add", 40), ("update", 5), ("remove", 5)]) as made:
        yield made


def test_the_copies_of_a_hit_are_those_that_could_be_hits(made):
    vector = {level.name: any_vector(made.rng, level.dim) for level in made.index.levels}
    copies = [NewItem(f"/copy/{n}", bytes(32), None, {}, STAMP) for n in range(5)]
    made.index.store.append(copies, Embeddings({name: np.stack([vector[name]] * 5) for name in made.names}))
    made.index.remove(["/copy/4"])
    first, zero, one, two = (Stored(made.index).at(f"/copy/{n}").id for n in range(4))

    def best(**options):
        hit = made.index.search(**options)[0]
        return hit.id, [other.id for other in hit.duplicates]

    # Those beyond the shortlist are listed too.
    assert best(vector=vector, k=1, shortlist=1, group=True) == (first, [zero, one, two])
    assert best(vector=vector, k=1, shortlist=2, group=1.0) == (first, [zero])
    assert best(like=first, group=True) == (zero, [one, two])
    assert best(like=one, group=True) == (first, [zero, two])
    assert best(like=one, group=True, where=f"id != {first}") == (zero, [two])
    assert best(vector=vector, group=True, where=f"id IN ({zero}, {two})") == (zero, [two])


def test_a_threshold_is_compared_with_the_score_that_is_shown(made):
    query = {level.name: any_vector(made.rng, level.dim) for level in made.index.levels}
    shown = [hit.scores["fine"] for hit in made.index.search(vector=query, k=100)]
    for score in shown:
        for threshold in (score, np.nextafter(score, 2)):  # the next float64, which is the same float32
            found = made.index.search(vector=query, k=100, threshold=float(threshold))
            assert [hit.scores["fine"] for hit in found] == [each for each in shown if each >= threshold]


def test_a_condition_is_worked_out_once_a_commit(made, monkeypatch):
    asked = []
    evaluate = Reader.rows_where
    monkeypatch.setattr(Reader, "rows_where", lambda reader, text: asked.append(text) or evaluate(reader, text))

    def even():
        hits = made.index.search(vector=made.query(), k=100, where="json_extract(metadata, '$.n') % 2 = 0")
        assert sorted(hit.id for hit in hits) == sorted(item.id for item in made.items if item.n % 2 == 0)

    even(), even()
    assert len(asked) == 1
    made.step("add", 7)
    even(), even()
    assert len(asked) == 2
    for number in range(20):  # conditions that nobody asks again do not pile up
        made.index.search(vector=made.query(), where=f"id > {number}")
    assert len(made.index.snapshot().filters) <= 8
    asked.clear()
    for changing in ("random() % 2", "date('now') > '2020'", "CURRENT_TIMESTAMP > '2020'"):
        made.index.search(vector=made.query(), where=changing)
        made.index.search(vector=made.query(), where=changing)
    assert len(asked) == 6, "what may change by itself is asked each time"


def test_texts_in_a_batch_are_texts_alone(made):
    made.index.attach(FakeEncoder(dims=(4, 16)))
    texts = ["one", "two words", "one", "three more words"]
    alone = [made.index.search(text, k=5) for text in texts]
    assert [result.hits for result in made.index.search_many(texts, k=5)] == [result.hits for result in alone]
    assert made.index.search_many([]) == []


def test_all_answers_are_of_one_commit(made, monkeypatch):
    """More queries than share a pass."""
    monkeypatch.setattr("hivlp.index.answering.BATCH", 3)
    states = []
    make = Reader.__init__
    monkeypatch.setattr(Reader, "__init__", lambda *given: states.append(1) or make(*given))
    vectors = {name: np.stack([made.query()[name] for _ in range(8)]) for name in made.names}
    assert len(made.index.search_many(vectors=vectors, missing=True)) == 8
    assert len(states) == 1


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"queries": ["x", " "]},
        {"queries": ["x"], "vectors": {}},
        {"vectors": {}},
        {"vectors": {"coarse": np.ones((2, 4))}},
        {"vectors": {"coarse": np.ones((2, 4)), "fine": np.ones((3, 16))}},
        {"vectors": {"coarse": np.ones((2, 4)), "fine": np.zeros((2, 16))}},
        {"vectors": {"coarse": np.ones(4), "fine": np.ones(16)}},
        {"vectors": {"coarse": 1.0, "fine": 1.0}},
        {"vectors": {"coarse": [[1.0], [1.0, 2.0]], "fine": np.ones((2, 16))}},
        {"queries": ["x"], "k": 0},
        {"queries": ["x"], "group": 0.0},
        {"queries": ["x"], "group": 1.5},
        {"queries": ["x"], "threshold": float("nan")},
    ],
)
def test_senseless_batches_are_refused(made, call):
    made.index.attach(FakeEncoder(dims=(4, 16)))
    with pytest.raises(QueryError):
        made.index.search_many(**call)


def test_the_json_has_duplicates_only_when_grouping(made):
    for group in (True, 0.9):
        for hit in made.index.search(vector=made.query(), group=group).to_json()["hits"]:
            assert set(hit) == {"rank", "id", "path", "caption", "scores", "duplicates"}
            assert all(set(other) == {"id", "path"} for other in hit["duplicates"])
    assert "duplicates" not in made.index.search(vector=made.query()).to_json()["hits"][0]
