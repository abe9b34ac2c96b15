"""What all products share: their interface, and the payloads that are kept with vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.ann.rivals.base import Ladder
from hivlp.levels import Vectors

PIECE = 5_000
CAMERAS = ("Leica M3", "Nikon F2", "Canon AE-1", "Olympus OM-1", "Pentax K1000")
YEARS = range(1926, 2026)


class Payload(NamedTuple):
    """What is kept with a vector: two texts, and metadata of which the year is filtered by."""

    path: str
    caption: str
    year: int
    camera: str


Hit = tuple[int, str, str, int, str]
"""Row, path, caption, year and camera of a found item, read out of whatever a product answers."""

Between = tuple[int, int]
"""A filter: the first and the last year that pass."""

Effort = dict[str, Any]
"""Search parameters by name, numbers and texts."""


class Product(Protocol):
    """A product that is measured; the methods raise what its library raises.

    Attributes:
        name: shown in tables.
        packages: distributions that it needs, of which the first gives it its version.
        keeps_payloads: whether payloads are in its own files, as in a database, or in a list beside it.
        how: its settings, in words.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    keeps_payloads: ClassVar[bool]
    how: ClassVar[str]

    def load(self) -> None:
        """Import the library; raises ModuleNotFoundError without it."""

    def build(self, folder: Path, items: Vectors, payloads: Sequence[Payload], queries: Vectors) -> None:
        """Index (n, d) items in an empty folder, and close; (m, d) queries like those to come may be learnt from."""

    def open(self, folder: Path) -> None:
        """Open what was built."""

    def efforts(self) -> list[Ladder]:
        """Ladders of search parameters, each from little effort to much."""

    def search(self, query: Vectors, k: int, effort: Effort, years: Between | None = None) -> list[Hit]:
        """(d,) query: the k best items, best first, among those of some years."""

    def search_many(self, queries: Vectors, k: int, effort: Effort) -> Sequence[Sequence[Hit]]:
        """(b, d) queries: the k best items of each."""

    def add(self, items: Vectors, payloads: Sequence[Payload]) -> None:
        """Append items, whose rows follow the last, with the maintenance that the documentation asks for."""

    def remove(self, rows: Sequence[int]) -> None:
        """Remove items by their rows."""

    def close(self) -> None:
        """Let go of the files."""


def write_payloads(path: Path, payloads: Sequence[Payload]) -> None:
    """A line of JSON for each."""
    path.write_text("".join(json.dumps(payload) + "\n" for payload in payloads))


def read_payloads(path: Path) -> list[Payload]:
    """What :func:`write_payloads` wrote."""
    with path.open() as lines:
        return [Payload(*json.loads(line)) for line in lines]


def payloads_of(captions: Sequence[str], seed: int = 0) -> list[Payload]:
    """Payloads with these captions, and paths, years and cameras drawn at random."""
    rng = np.random.default_rng(seed)
    years = rng.choice(YEARS, len(captions)).tolist()
    cameras = rng.choice(len(CAMERAS), len(captions)).tolist()
    return [
        Payload(f"/photos/{year}/{row:07d}.jpg", caption, year, CAMERAS[camera])
        for row, (caption, year, camera) in enumerate(zip(captions, years, cameras, strict=True))
    ]


def pieces(items: Vectors, payloads: Sequence[Payload]) -> Iterator[tuple[int, Vectors, Sequence[Payload]]]:
    """First row, vectors and payloads, some thousands at a time."""
    for start in range(0, len(items), PIECE):
        yield start, np.asarray(items[start : start + PIECE]), payloads[start : start + PIECE]


def geometric(first: int, last: int, step: float = 1.25) -> list[int]:
    """Whole numbers from ``first`` to at most ``last``, each ``step`` times the one before."""
    values, value = [first], float(first)
    while round(value := value * step) <= last:
        if round(value) > values[-1]:
            values.append(round(value))
    return values


def rows_of(hits: Sequence[Hit], k: int) -> NDArray[np.int64]:
    """(k,) rows of hits, -1 where there are fewer."""
    rows = np.full(k, -1, np.int64)
    rows[: len(hits)] = [hit[0] for hit in hits]
    return rows
