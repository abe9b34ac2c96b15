"""One writer and many readers, each a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hivlp.bench.crash_child import NumberEncoder, store
from hivlp.errors import IndexFolderError
from hivlp.index import Index
from hivlp.store.folder import Store
from synthetic import Stored

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
BASE, READERS, VERSIONS = 20, 3, 25

READER = """
import json, sys
from pathlib import Path
import numpy as np
from hivlp.bench.crash_child import NumberEncoder
from hivlp.index import Index
place, stop = Path(sys.argv[1]), Path(sys.argv[2])
encoder = NumberEncoder()
query = encoder.vectors([int(sys.argv[3])])
seen, problems, searches, last = [], [], 0, False
with Index.open(place) as index:
    print("ready", flush=True)
    while not last and not problems:
        last = stop.exists()  # and look once more: all that was confirmed must be there
        hits = list(index.search(vector=query, k=999, shortlist=999))
        searches += 1
        numbers = [hit.metadata["n"] for hit in hits]
        base = [n for n in numbers if n % 1000 < 500]
        versions = {n // 1000 for n in base}
        if len(versions) != 1 or len(base) != 20:
            problems.append(f"parts of several commits: {sorted(base)}")
        if len({hit.path for hit in hits}) != len(hits):
            problems.append("an item twice")
        if any(n // 1000 > max(versions) for n in numbers) or seen and max(versions) < seen[-1]:
            problems.append(f"out of order: {sorted(numbers)} after {seen}")
        stored = {name: array.astype(np.float16).astype(np.float64) for name, array in encoder.vectors(numbers).items()}
        for name, array in stored.items():
            found = np.array([hit.scores[name] for hit in hits])
            if np.abs(array @ query[name][0] - found).max() > 1e-5:
                problems.append(f"vectors of other items at level {name}")
        seen += sorted(versions - set(seen))
print(json.dumps({"seen": seen, "problems": problems, "searches": searches, "last": sorted(numbers)}))
"""

WRITER = """
import sys
from hivlp.bench.crash_child import NumberEncoder, store
from hivlp.errors import IndexFolderError
from hivlp.index import Index
with Index.open(sys.argv[1], NumberEncoder()) as index:
    for use in (lambda: store(index, {"/p/x": 1}), lambda: index.remove(["/p/0"]), index.compact, index.repair):
        try:
            use()
        except IndexFolderError as error:
            print(error, flush=True)
    print(len(index.search(vector=NumberEncoder().vectors([1]))))
"""


def start(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def version(number: int) -> dict[str, int]:
    """Every base item anew, and one item more."""
    return {f"/p/{n}": number * 1000 + n for n in range(BASE)} | {f"/p/extra{number}": number * 1000 + 500}


@pytest.fixture
def place(tmp_path) -> Path:
    with Index.create(tmp_path / "x", model=NumberEncoder()) as index:
        store(index, version(1))
    return tmp_path / "x"


@pytest.mark.slow
def test_readers_see_one_commit_whole_while_a_writer_adds_removes_and_compacts(place, tmp_path):
    stop = tmp_path / "stop"
    readers = [start(READER, place, stop, seed) for seed in range(READERS)]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "ready\n", reader.communicate()[1]
        with Index.open(place, NumberEncoder()) as index:
            for number in range(2, VERSIONS):
                store(index, version(number))
                if number % 3 == 0:
                    index.remove([f"/p/extra{number - 1}"])
                if number % 4 == 0:
                    assert index.compact() > 0
            held = sorted(int.from_bytes(item.hash) for item in Stored(index).all_items())
            assert index.verify().ok
        stop.touch()
        reports = []
        for reader in readers:
            out, error = reader.communicate(timeout=60)
            assert reader.returncode == 0, error
            reports.append(json.loads(out))
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    for report in reports:
        assert report["problems"] == []
        assert report["last"] == held
        assert report["seen"][-1] == VERSIONS - 1 and len(report["seen"]) > 2, report


@pytest.mark.slow
def test_a_second_writing_process_is_refused_whatever_it_wants(place):
    with Index.open(place, NumberEncoder()) as index:
        with closing(Store(place)) as store, store.writer():
            out, error = start(WRITER, place).communicate(timeout=60)
        lines = out.splitlines()
        assert len(lines) == 5, error
        assert all("is being written by another process: try again when it is done" in line for line in lines[:4])
        assert lines[4] == "10", "reading goes on"
        out, _ = start(WRITER, place).communicate(timeout=60)
        assert out == "10\n", "nobody writes any more"
        assert Stored(index).at("/p/x") is not None and Stored(index).at("/p/0") is None


def test_the_lock_of_a_process_that_was_killed_is_free(place):
    script = (
        "import sys, time; from pathlib import Path; from hivlp.store.folder import Store\n"
        "with Store(Path(sys.argv[1])).writer(): print('locked', flush=True); time.sleep(20)"
    )
    with start(script, place) as holder, Index.open(place, NumberEncoder()) as index:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(IndexFolderError, match="another process"):
            index.compact()
        holder.kill()
        holder.wait()
        store(index, {"/p/new": 7})
        assert index.verify().ok
