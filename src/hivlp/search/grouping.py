"""Folding hits that show the same picture, or almost the same, into the best of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hivlp.search.filters import Filter, Rows
from hivlp.store.records import Item

CHUNK = 256  # rows compared with each other at once
ROUNDING = 1e-6  # equal vectors must count as equal, however their product was rounded


class Folding(Protocol):
    """A way to group one ranking, told block by block from its beginning."""

    def fold(self, rows: Rows) -> Rows:
        """Rows among the next ones that begin a group of their own."""

    def duplicates(self, row: int) -> Sequence[int]:
        """What was folded into a row that :meth:`fold` gave."""


class Contents(Protocol):
    """What is known of the content of a commit's rows; a :class:`hivlp.store.reader.Reader` is one."""

    def hashes(self, rows: Sequence[int]) -> Sequence[bytes]:
        """Content hash of the item in each row."""

    def copies(self, content: bytes) -> Sequence[Item]:
        """All items of this content, by row."""


class SameContent:
    """Groups of equal files."""

    def __init__(self, contents: Contents, allowed: Filter | None, excluded: int | None) -> None:
        self._contents, self._allowed, self._excluded = contents, allowed, excluded
        self._seen: set[bytes] = set()

    def fold(self, rows: Rows) -> Rows:
        """Rows whose content was not met before."""
        kept = []
        for row, content in zip(rows.tolist(), self._contents.hashes(rows.tolist()), strict=True):
            if content not in self._seen:
                self._seen.add(content)
                kept.append(row)
        return np.array(kept, np.int64)

    def duplicates(self, row: int) -> list[int]:
        """All other items of the same content, wherever they rank, in the order they were added."""
        return [item.row for item in self._copies(row) if item.row not in (row, self._excluded)]

    def _copies(self, row: int) -> list[Item]:
        copies = self._contents.copies(self._contents.hashes([row])[0])
        return [item for item in copies if self._allowed is None or self._allowed.passes(item.row)]


class NearDuplicates:
    """Groups of hits whose finest vectors have at least some cosine with that of the group's first hit.

    A hit goes to the best-ranked group that it fits. It is listed there if it was ranked in the same block as the
    group's first: what is listed then depends on the ranking alone, not on how far a page made it be looked at.
    """

    def __init__(self, vectors: Callable[[Rows], NDArray[np.floating[Any]]], cosine: float) -> None:
        self._vectors, self._least = vectors, cosine - ROUNDING
        self._heads = np.empty((0, 0), np.float32)
        self._members: dict[int, list[int]] = {}

    def fold(self, rows: Rows) -> Rows:
        """Rows that are near no group's first hit: they begin groups."""
        here: list[int] = []
        earlier = len(self._heads)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            vectors = self._vectors(part).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            heads = self._heads.reshape(-1, vectors.shape[1])
            near = vectors @ heads.T >= self._least
            first = near.argmax(axis=1) if len(heads) else np.zeros(len(part), np.int64)
            known = near.any(axis=1)
            for place in np.flatnonzero(known):
                if first[place] >= earlier:
                    self._members[here[first[place] - earlier]].append(int(part[place]))
            new = self._split(part[~known], vectors[~known])
            here += part[~known][new].tolist()
            self._heads = np.concatenate([heads, vectors[~known][new]])
        return np.array(here, np.int64)

    def _split(self, rows: Rows, vectors: NDArray[np.float32]) -> list[int]:
        """Places of the rows that begin groups; the others join these."""
        near = vectors @ vectors.T >= self._least
        free = np.ones(len(rows), bool)
        heads = []
        for place in range(len(rows)):
            if free[place]:
                heads.append(place)
                joining = near[place] & free
                joining[: place + 1] = False
                self._members[int(rows[place])] = rows[joining].tolist()
                free &= ~joining
        return heads

    def duplicates(self, row: int) -> list[int]:
        """Rows folded into a group, best first."""
        return self._members[row]
