"""The plan of a search: chosen in one place from what there is and what is asked, carried out, and shown."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hivlp.cli import main
from hivlp.index import Index
from hivlp.levels import Level
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter
from hivlp.search.options import Options
from hivlp.search.plan import FEW, Look, cascade, choose
from hivlp.search.stages import Ann, Asked, Exact, Rerank, Scan
from hivlp.search.timing import Stopwatch

ROWS = 12_000
LEVELS = (Level("coarse", 4, 1, 1), Level("middle", 8, 2, 2), Level("fine", 16, 3, 3))


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def collection(levels=LEVELS, rows: int = ROWS, ann=None) -> Collection:
    vectors = tuple(unit(rows, level.dim, level.dim).astype(np.float16) for level in levels)
    return Collection.of(tuple(levels), vectors, ann=ann)


def asked(levels=LEVELS, **options) -> Options:
    given = {"k": 10, "shortlist": None, "exact": False, "where": None, "offset": 0, "threshold": None,
             "group": False, "recall": None}  # fmt: skip
    return Options.of(levels, **{**given, **options})


class Depth:
    """Operating points that reach 0.9 and no more."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def params(self, recall: float):
        from hivlp.ann import SearchParams

        return SearchParams(8, 5.0, 1.0, 60) if recall <= 0.9 else None


class Tuned:
    recall, rows, depths = 0.9, ROWS, (Depth(10), Depth(50))


class Approximate:
    tuned = Tuned()


def kinds(plan) -> list[list[type]]:
    return [[type(stage) for stage in look.stages] for look in plan.looks]


CASCADE = [Scan, Rerank, Rerank]


@pytest.mark.parametrize(
    ("levels", "ann", "options", "passing", "first"),
    [
        (LEVELS, None, {}, ROWS, CASCADE),
        (LEVELS, None, {"shortlist": 30}, ROWS, CASCADE),
        (LEVELS, None, {"shortlist": 30}, FEW, CASCADE),
        (LEVELS, None, {}, FEW, [Exact]),
        (LEVELS, None, {"exact": True}, ROWS, [Exact]),
        (LEVELS, None, {"recall": 0.5}, ROWS, [Exact]),
        (LEVELS, None, {"k": ROWS}, ROWS, [Exact]),
        (LEVELS, None, {"k": 7}, 7, [Exact]),
        (LEVELS[-1:], None, {}, ROWS, [Exact]),
        (LEVELS, Approximate(), {}, ROWS, [Ann]),
        (LEVELS, Approximate(), {"recall": 0.8}, ROWS, [Ann]),
        (LEVELS, Approximate(), {"recall": 0.95}, ROWS, [Exact]),
        (LEVELS, Approximate(), {"exact": True}, ROWS, [Exact]),
        (LEVELS, Approximate(), {"shortlist": [40, 20]}, ROWS, CASCADE),
        (LEVELS[-1:], Approximate(), {}, ROWS, [Ann]),
    ],
)
def test_what_there_is_and_what_is_asked_choose_the_stages(levels, ann, options, passing, first):
    plan = choose(collection(levels, ann=ann), asked(levels, **options), passing)
    assert kinds(plan)[0] == first
    assert kinds(plan)[-1] == [Exact] and plan.looks[-1].reach is None
    assert plan.why and str(plan).startswith(f"plan: {plan.why}")


def test_deeper_looks_reach_ever_further():
    reaches = [look.reach for look in choose(collection(rows=50_000), asked(), 50_000).looks]
    assert reaches == [50, 200, 800, 3200, None]
    keeps = [look.stages[0].keep for look in choose(collection(rows=50_000), asked(), 50_000).looks[:-1]]
    assert keeps == [200, 800, 3200, 12_800]
    ann = choose(collection(ann=Approximate()), asked(), ROWS)
    assert [look.reach for look in ann.looks] == [10, 50, None]


def test_a_plan_cannot_be_changed():
    plan = choose(collection(), asked(), ROWS)
    for part, name in ((plan, "looks"), (plan.looks[0], "reach"), (plan.looks[0].stages[0], "keep")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)
    assert plan == choose(collection(), asked(), ROWS)


def test_a_plan_is_json_that_names_its_stages_and_levels():
    plan = json.loads(json.dumps(choose(collection(), asked(shortlist=[30, 20]), ROWS).to_json()))
    assert plan["looks"][0]["stages"] == [
        {"stage": "scan", "level": "coarse", "keep": 30},
        {"stage": "rerank", "level": "middle", "keep": 20},
        {"stage": "rerank", "level": "fine"},
    ]
    assert plan["looks"][-1] == {"ranks": None, "stages": [{"stage": "exact", "level": "fine"}]}


@pytest.mark.parametrize("excluded", [None, 17])
@pytest.mark.parametrize("share", [None, 0.3])
def test_a_cascade_is_what_its_stages_say(excluded, share):
    """The naive way: sort by the coarse level, keep, sort by the next, keep, sort by the finest."""
    searched, queries = collection(), [[unit(1, level.dim, seed)[0] for level in LEVELS] for seed in range(5)]
    mask = None if share is None else np.random.default_rng(0).random(ROWS) < share
    allowed = None if mask is None else Filter(mask)
    look, watch = Look(cascade(LEVELS, [60, 25]), 60), Stopwatch()
    found = look.run(searched, Asked(queries, 10, allowed, excluded), watch)
    for query, (rows, scores, steps) in zip(queries, found, strict=True):
        left = np.arange(ROWS) if mask is None else np.flatnonzero(mask)
        left = left[left != excluded]
        for number, keep in enumerate((60, 25, None)):
            by = searched.scanners[number].rescore(query[number], left)
            left = left[np.lexsort((left, -by))][:keep]
        np.testing.assert_array_equal(rows, left)
        np.testing.assert_array_equal(scores, searched.scanners[-1].rescore(query[-1], left))
        assert [step["stage"] for step in steps] == ["scan", "rerank", "rerank"]
    assert watch.timings["coarse"] > 0 and watch.timings["fine"] > 0


def test_explain_says_the_plan_why_and_what_was_carried_out(tmp_path, capsys):
    np.save(tmp_path / "v.npy", unit(12_000, 32, 0))
    np.save(tmp_path / "q.npy", unit(1, 32, 1)[0])
    index, query = str(tmp_path / "index"), ["--vector", str(tmp_path / "q.npy")]
    assert main(["index", "--embeddings", str(tmp_path / "v.npy"), "-o", index, "--dims", "8", "--fit", "pca"]) == 0
    capsys.readouterr()
    assert main(["search", index, *query, "--explain"]) == 0
    text = capsys.readouterr().out
    assert "plan: there is no approximate index" in text and "carried out: scan coarse (keep 200)" in text
    assert main(["search", index, *query, "--explain", "--json", "--exact"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["plan"] == [{"stage": "exact", "level": "fine"}]
    assert result["explain"]["why"] == "the exact ranking was asked for"
    assert main(["search", index, *query, "--json"]) == 0
    assert "explain" not in json.loads(capsys.readouterr().out)
    with Index.open(index) as opened:
        found = opened.search(vector=unit(1, 32, 1)[0], offset=100)
        assert [step["stage"] for step in found.plan] == ["scan", "rerank", "scan", "rerank"], "two looks for rank 101"
        assert found.chosen is not None and found.chosen.looks[1].reach == 200
