"""A real process, a real SIGKILL, at any moment: what was reported is there, once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hivlp.bench import crash
from hivlp.bench.crash_child import NumberEncoder, store
from hivlp.errors import IndexFolderError
from hivlp.index import Index
from synthetic import FakeEncoder, Stored, write_pictures

TESTS = Path(__file__).parent

WRITER = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from synthetic import FakeEncoder
from hivlp.index import Index
from hivlp.index.adding import pictures as adding
adding.COMMIT_ITEMS = 8
encoder = FakeEncoder()
path = Path(sys.argv[3])
index = Index.open(path, encoder) if Index.exists(path) else Index.create(path, model=encoder)
print("open", flush=True)
def tell(report):
    print(report.added + report.updated + report.skipped, flush=True)
index.add(Path(sys.argv[4]), on_progress=tell, workers=2)
if sys.argv[5] == "compact":
    index.remove(range(1, 120, 2))
    print("compacting", flush=True)
    index.compact()
print("done", flush=True)
"""


def writer(index: Path, pictures: Path, job: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(TESTS), str(TESTS.parent / "src"), str(index), str(pictures), job]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check(index: Index, encoder: FakeEncoder) -> int:
    """Every item has its own vectors and is found; returns how many there are."""
    items = list(Stored(index).all_items())
    assert len({item.path for item in items}) == len(items)
    for item in items[:: max(1, len(items) // 25)]:
        expected = encoder.encode_image([Path(item.path)])
        stored = index.store.embeddings(item.row)
        for level in index.levels:
            np.testing.assert_allclose(stored[level.name], expected[level.name], rtol=1e-3, atol=1e-6)
    assert len(index.search("words", k=10**6)) == len(items)
    return len(items)


@pytest.mark.slow
def test_killed_while_adding(tmp_path):
    pictures, place, encoder = tmp_path / "pictures", tmp_path / "x", FakeEncoder()
    write_pictures(pictures, 240)
    rng = random.Random(0)
    reported = 0
    for _ in range(6):
        process = writer(place, pictures, "add")
        lines = rng.randrange(1, 7)
        for line in process.stdout:
            if line.strip().isdigit():
                reported = max(reported, int(line))
                lines -= 1
                if lines == 0:
                    break
        process.send_signal(signal.SIGKILL)
        # Lines that were already on their way count as reported too.
        reported = max([reported, *(int(line) for line in process.communicate()[0].split() if line.isdigit())])
        if Index.exists(place):
            with Index.open(place, encoder) as index:
                assert check(index, encoder) >= reported
    assert reported > 0
    process = writer(place, pictures, "add")
    out, err = process.communicate(timeout=60)
    assert out.endswith("done\n"), err
    with Index.open(place, encoder) as index:
        assert check(index, encoder) == 240
        assert index.add(pictures).skipped == 240


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.006, 0.015])
def test_killed_while_compacting(tmp_path, delay):
    pictures, place, encoder = tmp_path / "pictures", tmp_path / "x", FakeEncoder()
    write_pictures(pictures, 120)
    process = writer(place, pictures, "compact")
    for line in process.stdout:
        if line == "compacting\n":
            break
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    with Index.open(place, encoder) as index:
        assert check(index, encoder) == 60
        index.compact()
        assert check(index, encoder) == 60 == index.info().rows


def test_rows_that_were_written_but_not_committed_do_not_exist(tmp_path, encoder, pictures):
    with Index.create(tmp_path / "x", model=encoder) as index:
        index.add(pictures)
    for file in (tmp_path / "x").glob("*.f16"):
        with file.open("ab") as handle:
            handle.write(b"\xff" * 10_001)
    with Index.open(tmp_path / "x", encoder) as index:
        assert check(index, encoder) == 30
        write_pictures(pictures, 3, start=700)
        assert index.add(pictures).added == 3
        assert check(index, encoder) == 33


def test_a_create_that_was_killed_leaves_nothing_under_the_name(tmp_path, encoder, monkeypatch):
    from hivlp.store import schema

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "make_tables", die)
    with pytest.raises(KeyboardInterrupt):
        Index.create(tmp_path / "x", model=encoder)
    assert not (tmp_path / "x").exists()
    monkeypatch.undo()
    with Index.create(tmp_path / "x", model=encoder) as index:
        assert len(index) == 0
    (tmp_path / "x" / "items.db").unlink()
    with pytest.raises(IndexFolderError, match="is not an index"):
        Index.create(tmp_path / "x", model=encoder)


@pytest.mark.slow
def test_nothing_is_lost_in_a_score_of_kills_and_faults():
    result = crash.run(20, seed=5)
    assert result.failures == []
    assert result.kills == 20
    assert sum(result.operations.values()) > 20 and sum(result.faults.values()) > 3
    json.dumps(result.to_json())
    assert "20 kills, 0 failures" in result.to_text()


def test_the_bench_finds_a_write_that_is_not_finished(tmp_path):
    """The bench itself can fail: a library that trusts one pwrite loses what a short one left out."""
    story = crash._Story(end="killed")
    expected = crash._Expected()
    with Index.create(tmp_path / "x", model=NumberEncoder()) as index:
        store(index, {"/p/a": 1, "/p/b": 2})
    story.operations.append(({"op": "add", "items": {"/p/a": 1, "/p/b": 2}}, "done"))
    assert list(crash._check(tmp_path / "x", expected, story, random.Random(0), Counter())) == []
    file = tmp_path / "x" / "fine.0.f16"
    file.write_bytes(file.read_bytes()[:-20] + bytes(20))
    problems = " ".join(crash._check(tmp_path / "x", expected, crash._Story(), random.Random(0), Counter()))
    assert "fine.0.f16, row 1" in problems
