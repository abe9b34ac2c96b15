"""Times of searching a pool: exhaustively, by LightningDOT's HNSW, and by an index of this project."""

from __future__ import annotations

import importlib
import shutil
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hivlp.bench.paper.pools import Pool
from hivlp.bench.paper.systems import BATCH, BEST, FEW
from hivlp.bench.report import milliseconds
from hivlp.errors import IndexFolderError
from hivlp.files.scratch import scratch_folder
from hivlp.index import Index
from hivlp.levels import Vectors
from hivlp.systems.lightningdot import as_cosine

TUNE_FROM = 10_000
"""Items from which an index is tuned; fewer are ranked exactly in a third of a millisecond."""
BLOCKS, BLOCK = 5, 20
"""Turns that each search takes, and queries of a turn, of an exhaustive search a fifth as many."""
PART = 50_000
"""Vectors that are made float32 at once."""

Ids = list[list[int]]
Search = Callable[[Vectors, int], Ids]
"""(b, dim) float32 queries and how many items are wanted -> their numbers from 0, best first."""


@dataclass
class Searched:
    """How long a search takes, and what it finds.

    Attributes:
        item_bytes: that an item takes on disk.
        times: (queries at once, items wanted) -> milliseconds a query.
        found: items wanted -> share of the exhaustive search's items; empty for an exhaustive one.
    """

    item_bytes: int
    times: dict[tuple[int, int], float] = field(default_factory=dict)
    found: dict[int, float] = field(default_factory=dict)


def measure(searches: dict[str, tuple[Search, int]], queries: Vectors, truth: str) -> dict[str, Searched]:
    """Times of some searches of a pool, one query at a time in turns of :data:`BLOCK`, and of a batch.

    Args:
        searches: by name, with bytes an item.
        queries: (at least :data:`BATCH`, dim) float32.
        truth: name of the exhaustive one that the others' items are held against.
    """
    found = {name: Searched(item_bytes) for name, (_, item_bytes) in searches.items()}
    for best in (BEST, FEW):
        times: dict[str, list[float]] = {name: [] for name in searches}
        exact = searches[truth][0](queries[: BLOCKS * BLOCK], best)
        for name, (search, _) in searches.items():
            if name != truth:
                answers = search(queries[: BLOCKS * BLOCK], best)
                kept = [len(set(one) & set(other)) / len(one) for one, other in zip(exact, answers, strict=True)]
                found[name].found[best] = round(float(np.mean(kept)), 4)
        for block in range(BLOCKS):
            for name, (search, _) in searches.items():
                start = block * BLOCK
                for at in range(start, start + (BLOCK // 5 if name == truth else BLOCK)):
                    times[name].append(milliseconds(partial(search, queries[at : at + 1], best)))
        for name, each in times.items():
            found[name].times[1, best] = statistics.median(each)
    for name, (search, _) in searches.items():
        found[name].times[BATCH, BEST] = milliseconds(partial(search, queries[:BATCH], BEST)) / BATCH
    return found


class Flat:
    """Exhaustive search by FAISS's ``IndexFlatIP``, or by torch where FAISS is not installed.

    Attributes:
        name: of what searches.
        faiss: the module, or None.
    """

    def __init__(self) -> None:
        """Look for FAISS, and let it use one thread."""
        try:
            self.faiss: Any = importlib.import_module("faiss")
            self.faiss.omp_set_num_threads(1)
            self.name = f"FAISS {metadata.version('faiss-cpu')}"
        except ImportError:
            self.faiss, self.name = None, "torch (FAISS is not installed)"

    def over(self, items: Vectors | NDArray[np.float16], dim: int) -> tuple[Search, int]:
        """A search of the first ``dim`` values of (N, at least dim) items, held in float32; and bytes an item."""
        parts = (np.ascontiguousarray(items[at : at + PART, :dim], np.float32) for at in range(0, len(items), PART))
        if self.faiss is not None:
            index = self.faiss.IndexFlatIP(dim)
            for part in parts:
                index.add(part)
            return lambda asked, best: index.search(_narrow(asked, dim), best)[1].tolist(), 4 * dim
        held = torch.empty(len(items), dim)
        for at, part in zip(range(0, len(items), PART), parts, strict=True):
            held[at : at + PART] = torch.from_numpy(part)
        return (
            lambda asked, best: (torch.from_numpy(_narrow(asked, dim)) @ held.T).topk(best, dim=1).indices.tolist(),
            4 * dim,
        )

    def graph(self, place: Path, pool: Pool, build: bool) -> tuple[Search, int] | None:
        """LightningDOT's HNSW, and bytes an item; None without FAISS or an index.

        As its script has it: 512 links, 200 candidates in building, 128 in searching, and inner products as distances
        by one more coordinate.

        Args:
            place: where the index is kept.
            pool: what it holds.
            build: whether it is built where it is not there.
        """
        if self.faiss is None or not (build or place.is_file()):
            return None
        if place.is_file():
            index = self.faiss.read_index(str(place))
        else:
            items, _ = as_cosine(np.asarray(pool.items, np.float32), pool.queries)
            index = self.faiss.IndexHNSWFlat(items.shape[1], 512)
            index.hnsw.efConstruction = 200
            index.add(items)
            self.faiss.write_index(index, str(place))
        index.hnsw.efSearch = 128

        def search(asked: Vectors, best: int) -> Ids:
            ids: Ids = index.search(np.pad(asked, ((0, 0), (0, 1))), best)[1].tolist()
            return ids

        return search, place.stat().st_size // len(pool.items)


def is_index(place: Path) -> bool:
    """Whether there is an index that this version of hivlp reads."""
    try:
        Index.open(place).close()
    except IndexFolderError:
        return False
    return True


@contextmanager
def own_index(place: Path, pool: Pool) -> Iterator[tuple[Search, int]]:
    """A search of an index in a user's hands, hits with their paths included; and bytes an item.

    Args:
        place: where the index is kept; made where it is not there.
        pool: what it holds.
    """
    if not is_index(place):
        shutil.rmtree(place, ignore_errors=True)
        with scratch_folder(place) as scratch:
            Index.from_vectors(pool.items, scratch / "index", fit="none").close()
            if len(pool.items) >= TUNE_FROM:
                with Index.open(scratch / "index") as index:
                    index.tune(pool.train)
            (scratch / "index").replace(place)
    size = sum(each.stat().st_size for each in place.rglob("*") if each.is_file())
    with Index.open(place) as index:
        level = index.levels[-1].name

        def search(asked: Vectors, best: int) -> Ids:
            if len(asked) == 1:
                answers = [index.search(vector={level: asked}, k=best)]
            else:
                answers = list(index.search_many(vectors={level: asked}, k=best))
            return [[hit.id - 1 for hit in hits if hit.path] for hits in answers]

        yield search, size // len(pool.items)


def _narrow(asked: Vectors, dim: int) -> Vectors:
    return np.ascontiguousarray(asked[:, :dim])
