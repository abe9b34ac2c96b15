"""One process of :mod:`hivlp.bench.fuzz`: opens damaged indexes and searches them, a line of JSON for each case."""

from __future__ import annotations

import faulthandler
import json
import shutil
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.ann import native
from hivlp.ann.rows import Stored
from hivlp.bench.fuzz_mutations import Mutation, mutate
from hivlp.coarse.maps import FINE
from hivlp.errors import HivlpError
from hivlp.files import npy
from hivlp.index import Index, SearchResult
from hivlp.levels import Vectors
from hivlp.search import approximate
from hivlp.search.operating_points import FOLDER
from hivlp.store.vectors import VectorFile

K = 10
FILTERS = (None, "id % 2 = 0", "id % 50 = 0")
PATIENCE = 60.0  # seconds that a case may take; a thousandth of it is usual
HUNG = "Timeout ("  # what a process says that was ended for having taken longer
MANY = 12  # queries at once: enough to be read list after list
Answer = list[tuple[int, float]]


def run(folder: Path, numbers: list[int], seed: int) -> None:
    """Try these cases.

    Args:
        folder: holds the indexes that were made.
        numbers: of the cases.
        seed: of all cases.
    """
    approximate.FEW = 100  # so that filters are tried in the lists, too
    made = sorted(path for path in folder.iterdir() if path.name.startswith("index"))
    for number in numbers:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        _tell({"begin": number})
        base = made[number % len(made)]
        copy = folder / f"case{number}"
        shutil.copytree(base, copy)
        try:
            in_memory(number // len(made) % 2 == 0)
            mutation = mutate(copy, [path for path in made if path != base], seed * 1_000_003 + number)
            result = attempt(base, copy, mutation)
            said = {"what": mutation.what, "base": base.name, "forged": mutation.forged}
            _tell({"case": number, **said, **result})
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _tell(said: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def in_memory(wanted: bool) -> None:
    """Read arrays into memory of their own instead of mapping them: there a sanitizer knows where they end."""
    npy.map_file = npy.read_file if wanted else MAP_FILE  # type: ignore[assignment]
    VectorFile.map = _copied if wanted else MAP  # type: ignore[method-assign, assignment]


MAP_FILE, MAP = npy.map_file, VectorFile.map


def _copied(file: VectorFile, rows: int, *, private: bool = False) -> Stored:
    return np.array(MAP(file, rows, private=private))


def attempt(base: Path, copy: Path, mutation: Mutation) -> dict[str, Any]:
    """Open a damaged copy and search it.

    Returns:
        ``outcome``: ``accepted``, ``refused`` (searched without the engine), ``error`` (ours), ``raw`` (another);
        ``wrong``: what is wrong with the answers; ``raw``: where the error is from.
    """
    outcome, wrong = "accepted", []
    try:
        with Index.open(copy) as index:
            report = index.verify()
            wrong += list(_faults(base, index, mutation))
            if index.snapshot().collection.ann is None:
                outcome = "refused"
                if report.ok and not report.notes and (copy / FOLDER).exists():
                    wrong.append("a refused engine is called sound")
    except HivlpError as error:
        outcome = "error"
        if "\n" in str(error):
            wrong.append(f"an error of several lines: {error}")
        if not mutation.vectors:
            wrong.append(f"damage of the engine is fatal: {error}")
    except Exception:
        return {"outcome": "raw", "wrong": wrong, "raw": traceback.format_exc(limit=-6)[-2000:]}
    return {"outcome": outcome, "wrong": wrong}


def _faults(base: Path, index: Index, mutation: Mutation) -> Iterator[str]:
    asked, stored = queries(base), fine(base)
    for where in FILTERS:
        true = truth(base, where)
        for number, query in enumerate(asked[:3]):
            near = index.search(vector={FINE: query}, k=K, where=where)
            exact = index.search(vector={FINE: query}, k=K, where=where, exact=True)
            if mutation.vectors:
                continue
            yield from _unsound(near, query, stored, len(true[number]))
            if _answer(exact) != true[number]:
                yield f"exact answer {number} with {where} is not the true one"
    many = index.search_many(vectors={FINE: asked}, k=K)
    exact_many = index.search_many(vectors={FINE: asked}, k=K, exact=True)
    like = index.search(like=7, k=K)
    index.search(vector={FINE: asked[0]}, k=2**62, recall=0.9)
    if not mutation.vectors:
        for query, result in zip(asked, many, strict=True):
            yield from _unsound(result, query, stored, K)
        if list(map(_answer, exact_many)) != truth(base, None):
            yield "exact answers to many queries are not the true ones"
        if len(like) != K:
            yield f"{len(like)} items like another"


def _unsound(result: SearchResult, query: Vectors, stored: Vectors, count: int) -> Iterator[str]:
    """What may not be whatever the engine says: other scores than the items have, another order, too few hits."""
    scores = [hit.scores[FINE] for hit in result]
    if scores != sorted(scores, reverse=True):
        yield "hits are not best first"
    if len({hit.id for hit in result}) != len(result) or len(result) != count:
        yield f"{len(result)} hits instead of {count}"
    unit = query / np.linalg.norm(query)
    if any(abs(score - stored[hit.id - 1] @ unit) > 1e-3 for hit, score in zip(result, scores, strict=True)):
        yield "a hit has the score of another item"


def _answer(result: SearchResult) -> Answer:
    return [(hit.id, hit.scores[FINE]) for hit in result]


@cache
def queries(base: Path) -> Vectors:
    """(MANY, dim): an item, one near to an item, others of any direction."""
    rng, stored = np.random.default_rng(3), fine(base)
    asked = rng.normal(size=(MANY, stored.shape[1])).astype(np.float32)
    asked[0] = stored[5]
    asked[1] = stored[50] + 0.05 * asked[1]
    return asked


@cache
def fine(base: Path) -> Vectors:
    """(items, dim) the finest vectors by id, which are as they were added."""
    with Index.open(base) as index:
        return np.concatenate([index.vectors(item.id)[FINE] for item in index.items()])


@cache
def truth(base: Path, where: str | None) -> list[Answer]:
    """What an exact search without an engine finds."""
    copy = base.with_name(f"truth-{base.name}")
    if not copy.exists():
        shutil.copytree(base, copy, ignore=shutil.ignore_patterns(FOLDER))
    with Index.open(copy) as index:
        found = index.search_many(vectors={FINE: queries(base)}, k=K, exact=True, where=where)
    return [_answer(result) for result in found]


if __name__ == "__main__":
    if len(sys.argv) > 4:
        native.__file__ = sys.argv[4]
    run(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
