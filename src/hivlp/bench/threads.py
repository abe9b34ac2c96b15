"""One index searched by several threads, alone and beside a writer: throughput, and whether every answer is right."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hivlp.bench.ann.real import TESTED, TRAINED_FROM, read_real
from hivlp.bench.report import Report, measured
from hivlp.coarse.maps import FINE
from hivlp.encode import HiVLP
from hivlp.files.npy import open_npy
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.levels import Vectors

K = 10
THREADS = (1, 2, 4, 8)
WRITERS = ("none", "thread", "process")
ASKED = 200  # queries, over and over
BLOCK = 200  # vectors that the writer adds in one commit, and removes in the next
PAUSE = 0.05  # seconds between commits
HELD_BACK = 0.1  # of the vectors, for the writer
MOST_TOLD = 10  # wrong answers that are described

Answer = list[tuple[int, float]]
"""Ids and scores, best first."""


class Asked(NamedTuple):
    """A search that was answered while commits ``first`` to ``last`` were the newest."""

    query: int
    first: int
    last: int
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class ThreadsReport(Report):
    """Throughput of concurrent searches.

    Attributes:
        items: vectors in the index before anything is written.
        rows: by ``writer`` (none, a thread, a process) and ``threads``: ``qps``, queries a second of all threads;
            ``ratio``, to one thread beside the same writer; ``commits`` meanwhile; ``searches``, and how many were
            answered otherwise than one thread answers at a commit of that moment (``wrong``).
    """

    items: int
    rows: list[dict[str, Any]]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{self.items} vectors, {self.machine['cores']} cores"]
        lines.append(f"{'writer':>8s}{'threads':>9s}{'queries/s':>11s}{'ratio':>7s}{'commits':>9s}{'wrong':>7s}")
        lines += [
            f"{row['writer']:>8s}{row['threads']:9d}{row['qps']:11.0f}{row['ratio']:7.2f}{row['commits']:9d}"
            f"{row['wrong']:7d}"
            for row in self.rows
        ]
        return "\n".join([*lines, *self.failures, f"{self.seconds:.0f} s"])


class Journal:
    """The newest commits: begun ones may be visible, done ones must be."""

    def __init__(self) -> None:
        self.begun = self.done = 0


def run(
    model: Callable[[], HiVLP],
    vectors: Path | None = None,
    queries: Path | None = None,
    *,
    seconds: float = 5.0,
    threads: Sequence[int] = THREADS,
) -> ThreadsReport:
    """Search a tuned index from threads.

    Args:
        model: loads what encodes WordNet's words and glosses, unless vectors are given.
        vectors: a .npy of items instead of the words.
        queries: a .npy of queries, half of which the index is tuned with; default some of the items.
        seconds: for each number of threads and kind of writer.
        threads: how many search, 1 first.
    """
    started = time.perf_counter()
    items, asked, train = _vectors(model, vectors, queries)
    held = items[round(len(items) * (1 - HELD_BACK)) :]
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=len(WRITERS) * len(threads), disable=None) as bar:
        place, copy, blocks = (Path(scratch) / name for name in ("index", "replayed", "blocks"))
        blocks.mkdir()
        np.save(place.with_suffix(".npy"), items[: len(items) - len(held)])
        index_embeddings(place, place.with_suffix(".npy"), method="lean")
        with Index.open(place) as index:
            index.tune(train)
        shutil.copytree(place, copy)
        written = 0
        with Index.open(place) as index, Index.open(copy) as replayed:
            for writer in WRITERS:
                alone = 0.0
                for count in threads:
                    journal, operations = Journal(), list[Path]()
                    with _writing(writer, index, journal, operations, held, blocks, written):
                        found, took = _search(index, asked, count, seconds, journal)
                    written += len(operations)
                    wrong = list(wrong_answers(replayed, asked, operations, found))
                    failures += [f"{count} threads, writer {writer}: {each}" for each in wrong[:MOST_TOLD]]
                    qps = len(found) / took
                    alone = alone or qps
                    rows.append(
                        {"writer": writer, "threads": count, "qps": round(qps, 1), "ratio": round(qps / alone, 3),
                         "commits": len(operations), "searches": len(found), "wrong": len(wrong)}
                    )  # fmt: skip
                    bar.update()
    return ThreadsReport(
        items=len(items) - len(held), rows=rows, failures=failures, **measured(started, "numpy", "filelock")
    )


def _vectors(
    model: Callable[[], HiVLP], vectors: Path | None, queries: Path | None
) -> tuple[Vectors, Vectors, Vectors]:
    """Items, queries that are asked, and queries to tune with."""
    if vectors is None:
        real = read_real(model())
        asked, train = real.glosses[:TESTED], real.glosses[TRAINED_FROM:]
        return np.asarray(real.words), np.asarray(asked[:ASKED]), np.asarray(train)
    items = np.asarray(open_npy(vectors), np.float32)
    given = items[np.random.default_rng(0).permutation(len(items))[:4000]] if queries is None else open_npy(queries)
    half = len(given) // 2
    return items, np.asarray(given[: min(ASKED, half)], np.float32), np.asarray(given[half:], np.float32)


def _answer(index: Index, query: Vectors) -> Answer:
    return [(hit.id, hit.scores[FINE]) for hit in index.search(vector={FINE: query}, k=K)]


def _search(
    index: Index, queries: Vectors, threads: int, seconds: float, journal: Journal
) -> tuple[list[Asked], float]:
    """What several threads find, each from another query on, and how many seconds they took."""
    started = time.perf_counter()

    def ask(number: int) -> list[Asked]:
        found, at = [], number * len(queries) // threads
        while time.perf_counter() < started + seconds:
            at = (at + 1) % len(queries)
            first = journal.done
            answer = _answer(index, queries[at])
            found.append(Asked(at, first, journal.begun, answer))
        return found

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(ask, range(threads)))
    return [each for part in parts for each in part], time.perf_counter() - started


def write(index: Index, block: Path) -> None:
    """Add a file's vectors, or remove them if they are there: the file's name says which."""
    if block.stem.startswith("add"):
        index.add_embeddings(block)
    else:
        added = block.with_name(block.name.replace("remove", "add"))
        index.remove([f"{added}#{row}" for row in range(BLOCK)])


@cache
def _opened(place: Path) -> Index:
    return Index.open(place)


def _write_elsewhere(place: Path, block: Path) -> None:
    """:func:`write` in a process that keeps the index open."""
    write(_opened(place), block)


@contextmanager
def _writing(
    writer: str, index: Index, journal: Journal, operations: list[Path], vectors: Vectors, blocks: Path, first: int
) -> Iterator[None]:
    """A writer while the block runs, which notes its commits in the journal and what they did in ``operations``."""
    stop = threading.Event()

    def commit(block: Path) -> None:
        journal.begun += 1
        operations.append(block)
        if writer == "process":
            child.submit(_write_elsewhere, index.path, block).result()
        else:
            write(index, block)
        journal.done += 1

    def work() -> None:
        number = first
        while not stop.is_set():
            block = blocks / f"add{number}.npy"
            rows = np.random.default_rng(number).permutation(len(vectors))[:BLOCK]
            np.save(block, vectors[rows])
            commit(block)
            stop.wait(PAUSE)
            commit(block.with_name(f"remove{number}.npy"))
            stop.wait(PAUSE)
            number += 1

    with ProcessPoolExecutor(1, get_context("spawn")) as child, ThreadPoolExecutor(1) as pool:
        done = None if writer == "none" else pool.submit(work)
        try:
            yield
        finally:
            stop.set()
        if done is not None:
            done.result()


def wrong_answers(index: Index, queries: Vectors, operations: Sequence[Path], found: Sequence[Asked]) -> Iterator[str]:
    """Answers that one thread does not give at any commit of their moment.

    Args:
        index: a copy as it was before the operations, on which they are done again.
        queries: that were asked.
        operations: a commit each.
        found: what was answered.
    """
    needed = {(asked.query, commit) for asked in found for commit in range(asked.first, asked.last + 1)}
    true: dict[tuple[int, int], Answer] = {}
    for commit in range(len(operations) + 1):
        if commit:
            write(index, operations[commit - 1])
        true |= {(at, commit): _answer(index, queries[at]) for at in range(len(queries)) if (at, commit) in needed}
    for asked in found:
        if not any(true[asked.query, commit] == asked.answer for commit in range(asked.first, asked.last + 1)):
            at = f"query {asked.query} at commits {asked.first} to {asked.last}"
            yield f"{at} has an answer that one thread does not give"
