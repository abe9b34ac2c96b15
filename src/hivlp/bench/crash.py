"""Whether an index survives what processes and disks do to it: kills at any moment, full disks, calls that fail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hivlp.bench.crash_child import FAULTS, NumberEncoder, Operation, outcome
from hivlp.bench.report import Report, measured
from hivlp.errors import HivlpError
from hivlp.index import Index
from hivlp.levels import Embeddings

LONGEST_LIFE = 0.2
"""Seconds after which a child is killed at the latest; twice that if it waits for a fault to strike."""

PATIENCE = 60.0
ENCODER = NumberEncoder()


@dataclass
class _Story:
    """What a child said before its end."""

    operations: list[tuple[Operation, str]] = field(default_factory=list)
    flight: Operation | None = None
    fault: str = ""
    end: str = ""


class _Expected:
    """What the index must hold: path -> number, and the id that each path was given."""

    def __init__(self) -> None:
        self.contents: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.last_id = 0


@dataclass(frozen=True, kw_only=True)
class CrashReport(Report):
    """What became of an index whose writers were killed or hit by faults; see :func:`run`."""

    rounds: int
    kills: int
    faults: dict[str, int]
    operations: dict[str, int]
    in_flight: dict[str, int]
    seed: int

    def to_text(self) -> str:
        """Tables for the terminal."""
        machine = self.machine
        faults, operations, in_flight = (
            ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
            for counts in (self.faults, self.operations, self.in_flight)
        )
        return "\n".join(
            [
                *(f"FAILED: {failure}" for failure in self.failures),
                f"{self.rounds} rounds, {self.kills} kills, {len(self.failures)} failures",
                f"injected: {faults}",
                f"confirmed: {operations}; not confirmed: {in_flight}",
                f"{self.seconds} s; {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
            ]
        )


def run(rounds: int, seed: int = 0) -> CrashReport:
    """Let ``rounds`` processes change one small index, each killed or hit by a fault, and check it after each.

    What must hold: everything that was confirmed is there, with its own vectors and its old id; an operation in flight
    happened whole or not at all; a refused one not at all; :meth:`hivlp.index.Index.verify` finds no damage; and
    searches give what sorting all vectors gives. A killed process is not a power cut: what the system has accepted it
    still writes.

    Returns:
        with ``faults`` and confirmed ``operations`` by kind, what became of those ``in_flight``, and ``failures`` as
        sentences.
    """
    started = time.perf_counter()
    rng = random.Random(seed)
    kills, failures = 0, []
    faults: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    in_flight: Counter[str] = Counter()
    expected = _Expected()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "index"
        Index.create(place, model=ENCODER).close()
        for number in tqdm(range(rounds), "rounds", unit="", leave=False, disable=None):
            fault = rng.choice(["", *FAULTS])
            story = _live_and_die(place, rng, fault)
            kills += story.end == "killed"
            faults.update([story.fault] if story.fault else [])
            operations.update(operation["op"] for operation, result in story.operations if result == "done")
            in_flight.update(["refused"] * sum(result == "refused" for _, result in story.operations))
            problems = [] if story.end == "killed" else [f"the process ended by itself: {story.end}"]
            try:
                problems += _check(place, expected, story, rng, in_flight)
            except HivlpError as error:
                problems.append(f"the index cannot be used: {error}")
            failures += [f"round {number} ({fault or 'killed'}): {problem}" for problem in problems]
            if problems:  # go on from a clean state, so that one failure is not told many times
                place = Path(scratch) / f"index{number}"
                Index.create(place, model=ENCODER).close()
                expected = _Expected()
    return CrashReport(
        rounds=rounds,
        kills=kills,
        faults={kind: faults[kind] for kind in FAULTS},
        operations=dict(sorted(operations.items())),
        in_flight=dict(sorted(in_flight.items())),
        failures=failures,
        seed=seed,
        **measured(started, "numpy", "filelock"),
    )


def _live_and_die(place: Path, rng: random.Random, fault: str) -> _Story:
    """One child's life, ended by SIGKILL at a random moment if it did not end before."""
    said, complained = place.parent / "said", place.parent / "complained"
    command = [sys.executable, "-m", "hivlp.bench.crash_child", str(place), str(rng.getrandbits(32)), fault]
    life = rng.uniform(0, LONGEST_LIFE) if not fault else rng.uniform(LONGEST_LIFE / 2, 2 * LONGEST_LIFE)
    # A file instead of a pipe: a full pipe would stop the child between operations, where nothing can go wrong.
    with said.open("wb") as out, complained.open("wb") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, env=_environment())
        try:
            deadline = time.monotonic() + PATIENCE
            while said.stat().st_size == 0 and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            child.wait(life)
        except subprocess.TimeoutExpired:
            pass
        finally:
            child.kill()
            child.wait()
    killed = child.returncode == -signal.SIGKILL
    return _listen(said, "killed" if killed else complained.read_text("utf-8", "replace")[-1000:])


def _environment() -> dict[str, str]:
    """The child imports this very package."""
    source = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _listen(said: Path, end: str) -> _Story:
    story = _Story(end=end)
    for text in said.read_bytes().splitlines(keepends=True):
        line = json.loads(text) if text.endswith(b"\n") else {}
        if "begin" in line:
            story.flight = line["begin"]
        elif "fault" in line:
            story.fault = line["fault"]
        elif line and story.flight is not None:
            story.operations.append((story.flight, "done" if "done" in line else "refused"))
            story.flight = None
    return story


def _check(
    place: Path, expected: _Expected, story: _Story, rng: random.Random, in_flight: Counter[str]
) -> Iterator[str]:
    """What is wrong with the index after a child's story; afterwards ``expected`` is what it holds."""
    contents, gone = expected.contents, set[str]()
    for operation, result in story.operations:
        if result == "done":
            contents = outcome(contents, operation)
            gone.update(operation.get("paths", ()))
    either = [contents] if story.flight is None else [contents, outcome(contents, story.flight)]
    with Index.open(place) as index:
        report = index.verify()
        yield from (str(damage).splitlines()[0] for damage in report.damage)
        if not report.ok:
            return
        items = {item.path: item for item in index.items()}
        held = {path: int.from_bytes(item.hash) for path, item in items.items()}
        if held not in either:
            missing = {path for path in contents if held.get(path) != contents[path]}
            extra = {path for path in held if path not in contents}
            yield f"{len(missing)} confirmed items are missing or others, {len(extra)} are there that should not be"
        elif len(either) == 2 and either[0] != either[1]:
            in_flight["whole" if held == either[1] else "not at all"] += 1
        for path, item in items.items():
            old = None if path in gone else expected.ids.get(path)
            if old is not None and item.id != old:
                yield f"{path} had id {old}, and has {item.id}"
            if old is None and item.id <= expected.last_id:
                yield f"id {item.id} was given twice"
        vectors = ENCODER.vectors(list(held.values()))
        stored = Embeddings({name: array.astype(np.float16).astype(np.float32) for name, array in vectors.items()})
        for number, (path, item) in enumerate(items.items()):
            found = index.vectors(item.id)
            if any((found[name][0] != stored[name][number]).any() for name in found):
                yield f"{path} has the vectors of something else"
        yield from _check_search(index, held, stored, rng)
    expected.contents = held
    expected.ids = {path: item.id for path, item in items.items()}
    expected.last_id = max([expected.last_id, *expected.ids.values()])


def _check_search(index: Index, held: dict[str, int], stored: Embeddings, rng: random.Random) -> Iterator[str]:
    """Searches beside sorting everything by its dot product."""
    query = ENCODER.vectors([rng.getrandbits(32)])
    scores = (stored.fine.astype(np.float64) @ query.fine[0]).tolist()
    by_path = dict(zip(held, scores, strict=True))
    for k in (10, len(held) + 5):
        for exact in (True, False):
            hits = list(index.search(vector=query, k=k, exact=exact, shortlist=len(held) + 1))
            best = sorted(scores, reverse=True)[:k]
            if len({hit.path for hit in hits}) != len(best):
                yield f"a search gave {len(hits)} hits instead of {len(best)}"
            for hit, score in zip(hits, best, strict=False):
                if max(abs(hit.scores["fine"] - score), abs(by_path.get(hit.path, 9) - score)) > 1e-5:
                    yield f"hit {hit.rank} of a search is {hit.path}, which is not the best that is left"
                    break
