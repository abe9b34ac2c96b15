"""Snapshots: the searchable collection of the last commit, made once and shared by all threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hivlp.errors import DamagedIndexError
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter
from hivlp.search.opened import AnnFolder, Identity
from hivlp.store.reader import Reader
from hivlp.store.records import State

CONDITIONS = 8
"""SQL conditions whose filters are kept until the next commit."""


@dataclass(frozen=True)
class Snapshot:
    """A commit as searches see it.

    Attributes:
        state: of the commit.
        ann: which approximate index it is searched with.
        collection: of its rows.
        filters: of the conditions that were asked last, the least recently asked first.
    """

    state: State
    ann: Identity | None
    collection: Collection
    filters: OrderedDict[str, Filter] = field(default_factory=OrderedDict)


class Snapshots:
    """The snapshot of the last commit, for any number of threads."""

    def __init__(self, folder: Path) -> None:
        """None is made yet.

        Args:
            folder: of the index.
        """
        self._folder, self._ann = folder, AnnFolder(folder)
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._snapshot = None
            self._ann.close()

    def of(self, reader: Reader) -> Snapshot:
        """The snapshot of the commit that a reader sees."""
        snapshot = self._snapshot
        if snapshot is not None and snapshot.state == reader.state and snapshot.ann == self._ann.identity():
            return snapshot
        with self._lock:
            before, state = self._snapshot, reader.state
            vectors = reader.vectors()
            identity, ann = self._ann.open(vectors[-1], state)
            filters: OrderedDict[str, Filter] = OrderedDict()
            if before is not None and before.state == state:
                alive, filters = before.collection.alive, before.filters
            else:
                mask = reader.alive()
                alive = None if mask is None else Filter(mask)
            collection = Collection.of(reader.about.levels, vectors, alive, ann)
            snapshot = Snapshot(state, identity, collection, filters)
            # A reader may see an earlier commit than the last one, which other threads have seen by now.
            if before is None or before.state.commits <= state.commits:
                self._snapshot = snapshot
            return snapshot

    def allowed(self, snapshot: Snapshot, reader: Reader, condition: str | None) -> Filter | None:
        """The rows of a snapshot that an SQL condition lets pass, tombstones left out; None for all.

        Args:
            snapshot: of the reader's commit.
            reader: that evaluates the condition.
            condition: see :meth:`hivlp.index.Index.search`; None for no condition.
        """
        if condition is None:
            return snapshot.collection.alive
        with self._lock:
            if condition in snapshot.filters:
                snapshot.filters.move_to_end(condition)
                return snapshot.filters[condition]
        rows, changing = reader.rows_where(condition)
        mask = np.zeros(snapshot.collection.rows, bool)
        if not all(isinstance(row, int) and 0 <= row < len(mask) for row in rows):
            raise DamagedIndexError(f"{self._folder} is damaged: an item has no vectors; run `hivlp repair`")
        mask[rows] = True
        allowed = Filter(mask)
        if not changing:
            with self._lock:
                snapshot.filters[condition] = allowed
                while len(snapshot.filters) > CONDITIONS:
                    snapshot.filters.popitem(last=False)
        return allowed
