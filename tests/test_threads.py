"""One index, many threads: searches side by side give what one thread gives, beside a writer too."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hivlp.ann import native
from hivlp.cli import main
from hivlp.errors import IndexFolderError, QueryError
from hivlp.index import Index
from hivlp.store.database import BUSY_SECONDS
from synthetic import quick_tuning

ROWS, WIDTH, THREADS = 3000, 48, 8


def unit(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, WIDTH))
    vectors = centres[rng.integers(40, size=rows)] + 0.4 * rng.normal(size=(rows, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An index, ``plain``, and a copy of it that is ``tuned``."""
    folder = tmp_path_factory.mktemp("threads")
    np.save(folder / "v.npy", unit(ROWS, 0))
    arguments = ["--embeddings", str(folder / "v.npy"), "-o", str(folder / "plain"), "--dims", "8", "--fit", "pca"]
    assert main(["index", *arguments]) == 0
    if native.load() is not None:
        with quick_tuning(), Index.open(shutil.copytree(folder / "plain", folder / "tuned")) as index:
            index.tune(unit(300, 1), recall=0.9)
    return folder


@pytest.fixture(params=["plain", pytest.param("tuned", marks=pytest.mark.skipif(
    native.load() is None, reason="the kernels are not compiled here"))])  # fmt: skip
def index(request, made, tmp_path):
    with Index.open(shutil.copytree(made / request.param, tmp_path / "index")) as opened:
        yield opened


def told(result) -> list[tuple[int, dict[str, float]]]:
    return [(hit.id, hit.scores) for hit in result]


SEARCHES = (
    {},
    {"k": 100},
    {"exact": True},
    {"where": "id % 3 = 0"},
    {"shortlist": 40},
    {"group": 0.99},
    {"offset": 60},
)


def test_searches_side_by_side_give_what_one_thread_gives(index):
    queries = unit(40, 2)
    asked = [(query, options) for query in queries for options in SEARCHES]
    alone = [told(index.search(vector=query, **options)) for query, options in asked]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda each: told(index.search(vector=each[0], **each[1])), asked))
        many = list(pool.map(lambda options: index.search_many(vectors=queries, **options), SEARCHES))
    assert together == alone
    for options, results in zip(SEARCHES, many, strict=True):
        assert [told(result) for result in results] == [
            each for each, (_, given) in zip(alone, asked, strict=True) if given is options
        ]


@pytest.mark.slow
def test_a_writer_beside_searches_changes_no_answer_within_a_commit(index, tmp_path):
    """Twins come and go in pairs: every answer holds both of a pair or neither, whichever commit it is of."""
    rng = np.random.default_rng(5)
    stop, failures, answers = threading.Event(), [], []
    pair = unit(1, 9)[0]

    def search() -> None:
        while not stop.is_set():
            try:
                paths = [hit.path for hit in index.search(vector=pair, k=4)]
                answers.append(sum("twin" in path for path in paths))
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for number in range(12):
        noise = 1e-3 * rng.normal(size=(2, WIDTH)).astype(np.float32)
        np.save(tmp_path / f"twin{number}.npy", pair + noise)
        assert index.add_embeddings(tmp_path / f"twin{number}.npy").added == 2
        index.remove([hit.id for hit in index.search(vector=pair, k=2)])
        if number == 6:
            index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    assert set(answers) == {0, 2}
    assert len(index) == ROWS and index.verify().ok


def test_a_second_writer_waits_for_the_first(index, tmp_path):
    for number in range(6):
        np.save(tmp_path / f"part{number}.npy", unit(50, 20 + number))
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(lambda n: index.add_embeddings(tmp_path / f"part{n}.npy"), range(6)))
    assert [report.added for report in reports] == [50] * 6
    assert len(index) == ROWS + 300 and index.verify().ok


def test_what_is_remembered_of_hits_is_bounded_and_forgotten_beside_searches(index, monkeypatch):
    monkeypatch.setattr("hivlp.index.snapshots.MOST_SHOWN", 25)
    queries = unit(20, 4)
    alone = [told(index.search(vector=query, where="id % 2 = 0")) for query in queries]
    conditions = ["id % 2 = 0", *(f"id % 2 = 0 AND id > {-number}" for number in range(1, 12))]
    with ThreadPoolExecutor(THREADS) as pool:
        asked = [(query, condition) for query in queries for condition in conditions]
        found = list(pool.map(lambda each: told(index.search(vector=each[0], where=each[1])), asked))
    assert found == [answer for answer in alone for _ in conditions]
    assert len(index.snapshot().shown) <= 25 + 10 * THREADS and len(index.snapshot().filters) <= 8


def test_a_closed_index_says_so_in_every_thread(index):
    index.search(vector=unit(1, 0)[0])
    index.close()
    index.close()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(index.search, vector=unit(1, 0)[0]) for _ in range(2)]:
            with pytest.raises(IndexFolderError, match="was closed"):
                future.result()


def test_a_search_inside_a_transaction_does_not_wait_for_a_writer_who_waits_for_it(index):
    index.search(vector=unit(1, 0)[0])
    with ThreadPoolExecutor(1) as pool:
        with index.store.reading():
            writer = pool.submit(index.remove, 1)
            time.sleep(0.3)
            began = time.monotonic()
            index.search(vector=unit(1, 5)[0])
            assert time.monotonic() - began < BUSY_SECONDS / 2
        assert writer.result() == 1


@pytest.mark.slow
def test_what_is_added_in_python_is_taken_in_by_the_approximate_index(index, tmp_path):
    tuned = index.snapshot().collection.ann is not None
    np.save(tmp_path / "more.npy", unit(ROWS // 5, 3))
    told_of = []
    index.add_embeddings(tmp_path / "more.npy", on_tune=lambda *what: told_of.append(what))
    ann = index.snapshot().collection.ann
    assert (ann is not None and ann.count == ROWS + ROWS // 5) == tuned == bool(told_of)
    index.remove(list(range(1, 50)))
    index.compact()
    ann = index.snapshot().collection.ann
    assert (ann is not None and ann.count == len(index)) == tuned


def test_items_are_listed_and_fetched(index):
    listed = list(index.items())
    assert [item.id for item in listed] == list(range(1, ROWS + 1))
    assert [item.id for item in index.items(after=10, limit=3)] == [11, 12, 13]
    assert list(index.items(after=ROWS)) == [] and list(index.items(limit=0)) == []
    assert index.get(7) == listed[6] and index.get(listed[6].path) == listed[6]
    assert index.get(ROWS + 1) is None and index.get("nothing.npy#3") is None
    np.testing.assert_allclose(index.vectors(7)["fine"][0], unit(ROWS, 0)[6], atol=1e-3)
    with pytest.raises(QueryError, match="no item"):
        index.vectors(ROWS + 1)
