"""The thin path of a search finds what the plain one finds, in every combination of options and of what an index holds.

The thin path searches a snapshot without a transaction, answers conditions from columns, takes what hits show from the
payload file and shares a pass among many queries. The plain one opens the index anew, asks SQLite, and looks every item
up in the catalog, one query at a time, inside a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivlp.index import Index
from hivlp.index.tuning import jobs, tuned_index
from hivlp.levels import Embeddings
from hivlp.search import plan
from hivlp.search.options import Options
from hivlp.search.timing import Stopwatch
from hivlp.store.derived import keep_derived, keep_payloads
from hivlp.store.records import GONE, NewItem, Stamp
from synthetic import FakeEncoder, cloud, quick_tuning, random_unit

WIDTH, HEAD, TAIL = 32, 1100, 36
ENCODER = FakeEncoder(dims=(16, WIDTH))
CONDITIONS = [
    None, "year >= 2010", "year = 2003", "year < 0", "shelf IN ('a', 'b') AND NOT kept", "id % 3 = 1", "kept",
    "metadata ->> 'note' = 'x1'", "caption LIKE '%dog%'", "id > 1090", "shelf = 'ü'", "year IS NULL OR id < 9",
]  # fmt: skip
DEFAULTS = {
    "k": 10, "shortlist": None, "exact": False, "where": None, "offset": 0, "threshold": None, "group": False,
    "recall": None,
}  # fmt: skip


def items(first: int, count: int) -> list[NewItem]:
    """Items: every fifth of another one's content, every seventh without a file, every eleventh without fields."""
    return [
        NewItem(
            f"/p/{n % 7}/{n}.jpg", (n - n % 5 if n % 5 == 1 else n).to_bytes(32), (None, "a dog", "a cat")[n % 3],
            {"year": 2000 + n % 20, "shelf": "abü"[n % 3], "kept": n % 2 == 0, "note": f"x{n % 50}"} if n % 11 else {},
            Stamp(GONE if n % 7 == 0 else 1, 2, 3, 4),
        )
        for n in range(first, first + count)
    ]  # fmt: skip


def levels(first: int, count: int) -> Embeddings:
    """A cloud of fine vectors, some twice, and the first part of each as the coarse one."""
    fine = cloud(HEAD + TAIL, WIDTH, 3)[first : first + count]
    fine[2::9] = fine[1::9][: len(fine[2::9])]
    coarse = fine[:, :16]
    return Embeddings({"coarse": coarse / np.linalg.norm(coarse, axis=1, keepdims=True), "fine": fine})


@pytest.fixture(scope="module", params=["tuned", "tuned, pending", "scanned", "scanned, pending"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Rows in lists, columns and a payload file, rows that came since, tombstones, missing files, pending rows."""
    place = tmp_path_factory.mktemp("thin") / "index"
    fields = {"year": "int", "shelf": "str", "kept": "bool"}
    with pytest.MonkeyPatch.context() as patch, Index.create(place, model=ENCODER, fields=fields) as made:
        patch.setattr(tuned_index, "LATE", 2 * TAIL)
        patch.setattr(jobs, "LATE", 2 * TAIL)
        patch.setattr(plan, "FEW", 400)  # so that the coarse level is scanned, too
        made.store.append(items(0, HEAD), levels(0, HEAD))
        with made.store.changing() as writer:
            writer.note_missing(True)
        if request.param.startswith("tuned"):
            with quick_tuning():
                made.tune(cloud(300, WIDTH, 4), recall=0.9)
        keep_derived(made.store)
        assert keep_payloads(made.store, least=1)
        late = np.arange(TAIL) % 3 == 0 if request.param.endswith("pending") else None
        tail = levels(HEAD, TAIL)
        if late is not None:
            tail["fine"][late] = 0
        made.store.append(items(HEAD, TAIL), tail, pending=late)
        made.remove([3, 4, 5, 600, HEAD + 2, HEAD + 5])
        assert (made.snapshot().collection.ann is not None) == request.param.startswith("tuned")
        yield made


def plainly(place: Path, asked: dict[str, Any], options: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The hits and steps of the plain path."""
    with Index.open(place, model=ENCODER) as opened, opened.store.reading() as reader:
        answering, chosen = opened._answering, Options.of(opened.levels, **{**DEFAULTS, **options})
        object.__setattr__(answering.snapshots.of(reader), "payloads", None)
        answering.snapshots._columns.mask = lambda *_: None
        row = None
        if "like" in asked:
            row = reader.get(asked["like"]).row
            query = opened._queries.of_vectors(reader.embeddings([row]))
        else:
            query = opened._queries.of_one(None, None, asked["vector"])
        _, ((found, steps),) = answering.answer_in(reader, [query], chosen, Stopwatch(), row)
        return found.make(), [step for step in steps if step["stage"] != "fill"]


OPTIONS = st.fixed_dictionaries(
    {
        "k": st.sampled_from([1, 2, 10, 11, 60, 250, 2000]),
        "where": st.sampled_from(CONDITIONS),
        "offset": st.sampled_from([0, 0, 1, 9, 45, 199, 500, 1120, 5000]),
        "threshold": st.sampled_from([None, None, -0.5, 0.4, 0.8, 2.0]),
        "group": st.sampled_from([False, False, True, 0.7, 1.0]),
        "missing": st.booleans(),
        "fill": st.just(0),
        "how": st.sampled_from(
            [{}, {}, {"exact": True}, {"shortlist": 20}, {"shortlist": 300}]
            + [{"recall": recall} for recall in (0.5, 0.9, 0.99, 1.0)]
        ),
    }
).map(lambda all: {**{name: value for name, value in all.items() if name != "how"}, **all["how"]})  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 10_000), options=OPTIONS, like=st.booleans())
def test_the_thin_path_finds_what_the_plain_one_finds(index, seed, options, like):
    rng = np.random.default_rng(seed)
    if like:
        asked = {"like": int(rng.choice([1, 2, 6, 7, 8, 99, 1000, HEAD + 3, HEAD + 9]))}
    else:
        fine = cloud(300, WIDTH, 4)[seed % 300] if seed % 3 else random_unit(rng, 1, WIDTH)[0]
        asked = {"vector": {"coarse": fine[:16], "fine": fine}}
    hits, steps = plainly(index.path, asked, options)
    found, again = index.search(**asked, **options), index.search(**asked, **options)
    assert again.ids == [hit.id for hit in hits]
    assert found.hits == hits and again.hits == hits and len(found) == len(hits)
    assert [step for step in found.plan if step["stage"] != "fill"] == steps
    assert [hit.rank for hit in hits] == [*range(options["offset"] + 1, options["offset"] + 1 + len(hits))]
    assert found.to_json()["hits"] == again.to_json()["hits"]
    if not like:
        other = random_unit(rng, 1, WIDTH)[0]
        both = {"coarse": np.stack([other[:16], fine[:16]]), "fine": np.stack([other, fine])}
        assert index.search_many(vectors=both, **options)[1].hits == hits
