"""What all products hold and are asked: items, payloads, queries, filters, later changes, and exact answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.collection import write_array
from hivlp.bench.products.rivals.base import YEARS, Between, Payload, payloads_of, read_payloads, write_payloads
from hivlp.files.npy import open_npy
from hivlp.files.scratch import write_whole
from hivlp.levels import Vectors

K = 10
LATER = 11  # one item of so many comes later: a tenth of those before
REMOVED = 0.1
QUERIES = 1000  # for validation, and as many for test
FILTERED = 200  # queries of each kind that are asked with a filter
FIRST = 25  # filters of each width that are asked for once
SHARES = {0.01: 1, 0.1: 10, 0.5: 50}
"""Share of the items that pass -> years of a hundred."""
BLOCK = 100
ITEMS, VALIDATION, TEST, LEARN, REMOVE = "items", "validation", "test", "learn", "remove"
PAYLOADS = "payloads.jsonl"


@dataclass(frozen=True)
class Collection:
    """A folder of arrays and payloads.

    ``items`` (n, d), ``validation`` and ``test`` (m, d), ``learn`` (l, d): float32 unit vectors; ``remove`` (r,): rows;
    ``truth-…`` (m, K): rows of the exact best, by inner product.
    """

    folder: Path

    def read(self, name: str) -> NDArray[Any]:
        """One of its arrays, memory-mapped."""
        return open_npy(self.folder / f"{name}.npy", kinds="fi")

    def payloads(self) -> list[Payload]:
        """Of all items."""
        return read_payloads(self.folder / PAYLOADS)

    def later(self) -> int:
        """The first row that is added later."""
        return len(self.read(ITEMS)) - len(self.read(ITEMS)) // LATER

    def truth(self, queries: str, of: str = "all") -> NDArray[np.int64]:
        """Exact answers for ``validation`` or ``test`` queries, as :func:`write_collection` names them."""
        return self.read(f"truth-{queries}-{of}")


def filters(share: float) -> list[Between]:
    """Different years of which such a share of the items is: the first is asked again and again, others once."""
    width = SHARES[share]
    return [(YEARS[first], YEARS[first + width - 1]) for first in range(FIRST + 1)]


def write_collection(
    folder: Path, items: Vectors, captions: Sequence[str], queries: Vectors, learn: Vectors, seed: int = 0
) -> Collection:
    """Put a collection into a folder, exact answers included, unless it is there.

    Args:
        folder: of the collection.
        items: (n, d) unit vectors, float32.
        captions: of the items.
        queries: (2 m, d), the first half for validation.
        learn: (l, d), which products may learn from.
        seed: of payloads and of what is removed.

    Answers are called ``all``, ``added`` (with what comes later), ``removed`` (without what is removed, in the end), a
    share of :data:`SHARES` (with the first filter), and ``first-SHARE``: of query ``i`` with filter ``i + 1``.
    """
    if (folder / f"{REMOVE}.npy").is_file():  # it is written last
        return Collection(folder)
    payloads, half = payloads_of(captions, seed), len(queries) // 2

    def keep(name: str, array: NDArray[Any]) -> None:
        write_array(folder / f"{name}.npy", array)

    parts = {VALIDATION: np.asarray(queries[:half]), TEST: np.asarray(queries[half:])}
    count = len(items) - len(items) // LATER
    remove = np.sort(np.random.default_rng(seed).permutation(len(items))[: int(REMOVED * len(items))])
    write_whole(folder / PAYLOADS, lambda scratch: write_payloads(scratch, payloads))
    for name, array in {ITEMS: items, LEARN: learn, **parts}.items():
        keep(name, np.asarray(array, np.float32))
    years = np.array([payload.year for payload in payloads])
    kept = np.ones(len(items), bool)
    kept[remove] = False
    for name, asked in parts.items():
        keep(f"truth-{name}-all", best(items[:count], asked))
        for share in SHARES:
            first, *others = [(years >= low) & (years <= high) for low, high in filters(share)]
            some = asked[:FILTERED]
            keep(f"truth-{name}-{share}", best(items[:count], some, [first[:count]] * len(some)))
            once = [mask[:count] for mask in others]
            keep(f"truth-{name}-first-{share}", best(items[:count], some[: len(once)], once))
    keep(f"truth-{TEST}-added", best(items, parts[TEST]))
    keep(f"truth-{TEST}-removed", best(items, parts[TEST], [kept] * len(parts[TEST])))
    keep(REMOVE, remove)
    return Collection(folder)


def best(items: Vectors, queries: Vectors, masks: Sequence[NDArray[np.bool_]] | None = None) -> NDArray[np.int64]:
    """(m, K) rows of the best of (n, d) items by inner product, of those that a query's mask passes; -1 is none."""
    found = []
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ items.T
        for place, row in enumerate(scores):
            if masks is not None:
                row[~masks[start + place]] = -np.inf
            some = np.argpartition(row, -K)[-K:]
            some = some[np.argsort(-row[some], kind="stable")]
            found.append(np.where(np.isfinite(row[some]), some, -1))
    return np.array(found, np.int64)
