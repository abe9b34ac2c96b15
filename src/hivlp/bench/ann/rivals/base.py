"""What all engines share: their interface, and how vectors reach them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

Rows = NDArray[np.int64]
Ladder = list[dict[str, Any]]
BLOCK = 50_000
SAMPLE = 100_000
# Of unit vectors the nearest are those with the best inner product; libraries whose codes or graphs are made for
# distances find them sooner when asked in that way.
UNIT = "l2"


class Rival(Protocol):
    """What is measured."""

    name: ClassVar[str]

    def build(self, items: NDArray[np.float16], train_queries: Vectors) -> None:
        """Index (n, d) items; (m, d) queries like those to come may be learnt from."""

    def settings(self) -> list[Ladder]:
        """Ladders of settings, each from little effort to much; a ladder is left once its recall is high enough."""

    def search(self, queries: Vectors, k: int, setting: dict[str, Any]) -> Rows:
        """(b, d) queries: the (b, k) best rows."""


@runtime_checkable
class Product(Protocol):
    """What has an engine inside."""

    def overheads(self, queries: Vectors, k: int) -> list[dict[str, Any]]:
        """What a search takes beyond the engine inside, for each of some recalls.

        Args:
            queries: (b, d) float32, each asked alone and then all together.
            k: rows wanted.
        """


def load_faiss() -> Any:
    """The module; raises ModuleNotFoundError without it."""
    return importlib.import_module("faiss")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blocks(items: NDArray[np.floating[Any]]) -> Iterator[Vectors]:
    """All items as float32, some at a time."""
    for start in range(0, len(items), BLOCK):
        yield items[start : start + BLOCK].astype(np.float32)


def sample_of(items: NDArray[np.floating[Any]], count: int = SAMPLE) -> Vectors:
    """(count, d) random ones of (n, d) items, the same each time."""
    rows = np.random.default_rng(0).permutation(len(items))[:count]
    return items[np.sort(rows)].astype(np.float32)


def add_all(faiss: Any, index: Any, items: NDArray[np.floating[Any]]) -> None:
    """Add all items to a FAISS index with all cores, and leave it with one."""
    faiss.omp_set_num_threads(cores())
    for block in blocks(items):
        index.add(block)
    faiss.omp_set_num_threads(1)


def rows_of(found: Any, queries: int) -> Rows:
    """The rows of a pair of rows and scores in whichever order."""
    which = next(part for part in found if np.issubdtype(np.asarray(part).dtype, np.integer))
    return np.asarray(which).astype(np.int64).reshape(queries, -1)
