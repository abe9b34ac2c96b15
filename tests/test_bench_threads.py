"""Threads that search one index beside a writer, and the check of what they find."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hivlp.ann import native
from hivlp.bench import threads
from hivlp.bench.threads import Asked
from synthetic import cloud, make_index, quick_tuning

pytestmark = pytest.mark.skipif(native.load() is None, reason="the kernels are not compiled here")


def no_model():
    raise AssertionError("vectors are given")


@pytest.mark.slow
def test_threads_find_what_one_thread_finds_beside_every_writer(tmp_path):
    np.save(tmp_path / "v.npy", cloud(3000, 96, 0))
    np.save(tmp_path / "q.npy", cloud(900, 96, 1))
    with quick_tuning():
        report = threads.run(no_model, tmp_path / "v.npy", tmp_path / "q.npy", seconds=0.3, threads=(1, 2))
    assert [(row["writer"], row["threads"]) for row in report.rows] == [
        (writer, count) for writer in ("none", "thread", "process") for count in (1, 2)
    ]
    assert report.failures == [] and all(row["wrong"] == 0 and row["searches"] > 10 for row in report.rows)
    assert all((row["commits"] > 0) == (row["writer"] != "none") for row in report.rows)
    assert {"machine", "command", "seconds", "items"} <= json.loads(json.dumps(report.to_json())).keys()
    assert "2 threads" not in report.to_text() and "process" in report.to_text()


def test_an_answer_of_another_commit_is_wrong(tmp_path):
    vectors, asked = cloud(300, 24, 0), cloud(5, 24, 1)
    np.save(tmp_path / "add0.npy", asked.repeat(threads.BLOCK // 5, axis=0))  # they are the best from then on
    with make_index(tmp_path / "x", vectors) as index, make_index(tmp_path / "y", vectors) as replayed:
        before = [(hit.id, hit.scores["fine"]) for hit in index.search(vector={"fine": asked[2]}, k=threads.K)]
        threads.write(index, tmp_path / "add0.npy")
        after = [(hit.id, hit.scores["fine"]) for hit in index.search(vector={"fine": asked[2]}, k=threads.K)]
        found = [Asked(2, 0, 0, before), Asked(2, 1, 1, after), Asked(2, 0, 1, before), Asked(2, 1, 1, before)]
        (wrong,) = threads.wrong_answers(replayed, asked, [tmp_path / "add0.npy"], found)
        assert "query 2 at commits 1 to 1" in wrong
