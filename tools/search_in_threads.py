"""Searches by vector in 1, 2, 4 threads: docs/experiments/2026-11-28-free-threaded-python.md.

    OMP_NUM_THREADS=1 python tools/search_in_threads.py INDEX QUERIES.npy [--shared] [--seconds 2]

INDEX is a tuned index of given vectors, QUERIES.npy (n, dim) float32. One JSON line a kind of search and number of
threads: queries a second (best of 25 short runs, 5 for 4 threads), the share of that run's time that a thread was
queued for a core, and whether every answer was that of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.index import Index

KINDS: dict[str, dict[str, Any]] = {"tuned": {}, "cascade": {"shortlist": 200}}
REPEATS = 25


def answers(index: Index, queries: Any, options: dict[str, Any], level: str) -> list[list[tuple[int, float]]]:
    """Ids and finest scores of each query's ten best."""
    return [
        [(hit.id, hit.scores[level]) for hit in index.search(vector={level: query}, k=10, **options)]
        for query in queries
    ]


def warm(folder: Path, queries: Any, options: dict[str, Any], level: str) -> Index:
    """An index of the calling thread's own, searched before."""
    index = Index.open(folder)
    answers(index, queries[:20], options, level)
    return index


def together(
    tasks: Sequence[Callable[[Any], Any]], ready: Sequence[Callable[[], Any]]
) -> tuple[list[Any], float, float]:
    """What each task returns for what made it ready, a thread each; seconds that the slowest took, and queued at most.

    Queued is what a thread waited for a core while another program, or another thread of this one, had it.
    """
    results: list[Any] = [None] * len(tasks)
    seconds, queued = [0.0] * len(tasks), [0.0] * len(tasks)
    gate = threading.Barrier(len(tasks))

    def work(place: int) -> None:
        with ready[place]() as index:
            gate.wait()
            start, before = time.perf_counter(), _queued()
            try:
                results[place] = tasks[place](index)
            except Exception as error:
                results[place] = error
            seconds[place], queued[place] = time.perf_counter() - start, _queued() - before

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, max(seconds), max(queued)


def _queued() -> float:
    """Seconds that this thread has waited for a core so far."""
    return int(Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()[1]) * 1e-9


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--shared", action="store_true", help="one Index for all threads, not one each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run on one thread, roughly")
    given = parser.parse_args()
    queries = np.load(given.queries).astype(np.float32)[:200]
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    with Index.open(given.index) as index:
        level = index.levels[-1].name
        expected = {kind: answers(index, queries, options, level) for kind, options in KINDS.items()}
    for kind, options in KINDS.items():
        for count in (1, 2, 4):
            with Index.open(given.index) as index:
                answers(index, queries[:50], options, level)
                start = time.perf_counter()
                answers(index, queries, options, level)
                rounds = max(1, round(given.seconds / (time.perf_counter() - start)))

                def task(index: Any, place: int, options: Any = options, rounds: int = rounds) -> Any:
                    # Each thread begins elsewhere, so that they do not ask the same at the same time.
                    turned = np.roll(queries, -place * 97, axis=0)
                    return [answers(index, turned, options, level) for _ in range(rounds)]

                tasks = [partial(task, place=place) for place in range(count)]
                ready = [
                    partial(nullcontext, index) if given.shared else partial(warm, given.index, queries, options, level)
                ] * count
                best, correct, failures = (0.0, 0.0), True, set()
                for _ in range(REPEATS if count < 4 else 5):
                    results, seconds, queued = together(tasks, ready)
                    for place, result in enumerate(results):
                        if isinstance(result, Exception):
                            failures.add(f"{type(result).__name__}: {result}"[:200])
                            continue
                        wanted = (
                            expected[kind][place * 97 % len(queries) :] + expected[kind][: place * 97 % len(queries)]
                        )
                        correct &= all(each == wanted for each in result)
                    best = max(best, (count * rounds * len(queries) / seconds, queued / seconds))
                row = {
                    "kind": kind,
                    "threads": count,
                    "qps": None if failures else round(best[0]),
                    "queued": round(best[1], 2),
                    "equal": correct and not failures,
                }
                print(
                    json.dumps(
                        {
                            "python": sys.version.split()[0],
                            "gil": gil,
                            "shared": given.shared,
                            **row,
                            "failures": sorted(failures),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
