"""Queries that are unlike those that an engine was measured with get what was promised all the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hivlp.ann import native
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.search.likeness import FAR, LIKE, MANY, NEAR, Likeness, Region, make_probes
from synthetic import clusters, queries_of_every_kind

WIDTH, ROWS = 64, 12_000
ITEMS = clusters(ROWS, WIDTH, 0)
needs_kernels = pytest.mark.skipif(native.load() is None, reason="the kernels are not compiled here")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("likeness") / "index"
    np.save(place.with_suffix(".npy"), ITEMS)
    index_embeddings(place, place.with_suffix(".npy"), dims=16, method="pca")
    with Index.open(place) as index:
        index.tune(clusters(4000, WIDTH, 1), recall=0.95)
    return place


@pytest.mark.slow
@needs_kernels
def test_the_promise_holds_for_queries_of_every_kind(made):
    with Index.open(made) as index:
        for name, asked in queries_of_every_kind(ITEMS, clusters(80, WIDTH, 2)).items():
            truth = index.search_many(vectors={"fine": asked}, exact=True)
            found = index.search_many(vectors={"fine": asked})
            shares = [len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in zip(truth, found, strict=True)]
            assert np.mean(shares) >= 0.94, name


@pytest.mark.slow
@needs_kernels
def test_what_was_done_for_an_unlike_query_is_said(made, capsys):
    with Index.open(made) as index:
        asked = queries_of_every_kind(ITEMS, clusters(80, WIDTH, 2))
        usual = [index.search(vector={"fine": query}).plan for query in asked["the sample's"]]
        assert sum("widened" in step for plan in usual for step in plan) <= 8
        assert usual[0][0]["stage"] == "ann" and usual[0][0]["recall"] == 0.95
        for query in asked["random"][:20]:
            result = index.search(vector={"fine": query})
            assert "further from all items" in result.plan[0]["widened"]
            assert "searched wider" in str(result)
            assert json.loads(json.dumps(result.to_json()))["plan"] == result.plan
        # One by one and together, the same answers by the same steps.
        some = np.concatenate([part[:5] for part in asked.values()])
        for query, result in zip(some, index.search_many(vectors={"fine": some}), strict=True):
            alone = index.search(vector={"fine": query})
            assert (alone.hits, alone.plan) == (result.hits, result.plan)


@pytest.mark.slow
@needs_kernels
def test_a_filter_that_suits_a_query_badly_does_not_hide_answers(made):
    """Only what is far from the query passes."""
    items = ITEMS
    with Index.open(made) as index:
        shares = []
        for query in clusters(12, WIDTH, 2):
            far = np.argsort(items @ query)[: ROWS // 2] + 1
            condition = f"id IN ({','.join(map(str, far))})"
            truth = index.search(vector={"fine": query}, exact=True, where=condition)
            found = index.search(vector={"fine": query}, where=condition)
            shares.append(len({hit.id for hit in truth} & {hit.id for hit in found}) / 10)
        assert np.mean(shares) >= 0.94


def known(**more: object) -> Likeness:
    near = Region(0.0, (0.8, 0.99)), Region(0.0, (0.5, 0.7))
    regions = (*near, Region(0.3, (0.9, 1.0)), Region(0.1, (0.5, 0.9)))
    return Likeness(
        **{"best": 0.9, "gap": 0.4, "shares": (0.01, 1.0), "scores": (0.5, -0.5), "regions": regions} | more
    )


@pytest.mark.parametrize(
    ("best", "tenth", "passing", "region"),
    [
        (0.7, 0.6, 1.0, LIKE),
        (0.95, 0.6, 1.0, NEAR),
        (0.89, 0.42, 1.0, FAR),  # a great gap, but first of all too far from ten
        (0.95, 0.91, 1.0, MANY),
        (0.95, 0.89, 1.0, NEAR),
        (0.6, 0.45, 1.0, FAR),
        (0.6, 0.2, 1.0, FAR + 1),
        (0.6, 0.0, 1.0, FAR + 2),
        (0.6, 0.3, 0.1, LIKE),  # a filter leaves worse ones: 0.3 is now as good as 0.8 without
        (0.6, -0.1, 0.1, FAR),
        (-np.inf, -np.inf, 1.0, FAR + 2),
    ],
)
def test_scores_tell_the_region(best, tenth, passing, region):
    assert known().at(1000, passing).region(best, tenth) == region


def test_more_is_asked_of_search_parameters_than_was_promised():
    likeness = known()
    assert likeness.rung(NEAR, 0.6) == 0
    assert likeness.rung(NEAR, 0.9) == likeness.rung(FAR, 0.9) == 1  # what just reaches it is not sure to
    assert likeness.rung(MANY, 0.9) is likeness.rung(FAR + 1, 0.9) is likeness.rung(FAR + 3, 0.1) is None


def test_it_is_read_back_as_it_was_written():
    data = json.loads(json.dumps(known().to_json()))
    assert Likeness.of_json(data) == known()
    for broken in (
        {"best": "high"}, {"gap": float("nan")}, {"shares": [1.0, 0.01]}, {"shares": [0.0, 1.0]}, {"scores": [1.0]},
        {"regions": []}, {"regions": [{"least": None, "recalls": []}]}, {"shares": []}, {"best": None},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            Likeness.of_json(data | broken)


def test_probes_are_of_many_kinds_and_of_length_one():
    items = clusters(500, WIDTH, 0)
    probes = make_probes(clusters(50, WIDTH, 1), items, 10)
    assert len(np.unique(probes.kinds)) >= 12 and len(probes.queries) == len(probes.kinds)
    np.testing.assert_allclose(np.linalg.norm(probes.queries, axis=1), 1, atol=1e-3)
    best = (probes.queries @ items.T).max(1)
    assert best.max() > 0.99 and best.min() < 0.6
