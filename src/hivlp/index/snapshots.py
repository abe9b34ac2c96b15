"""Snapshots: the searchable collection of the last commit, made once and shared by all threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hivlp.errors import DamagedIndexError
from hivlp.index.found import Items, rows_of
from hivlp.search.collection import Collection
from hivlp.search.filters import Filter
from hivlp.search.opened import AnnFolder, Identity
from hivlp.search.options import Options
from hivlp.search.plan import Plan, choose
from hivlp.search.searcher import Page
from hivlp.store.fields.commit import CommitColumns
from hivlp.store.folder import Store
from hivlp.store.lookup import Shown
from hivlp.store.payloads import Payloads, open_payloads
from hivlp.store.reader import Reader
from hivlp.store.records import State

MOST_SHOWN = 20_000
"""Items that are remembered of a commit: some megabytes."""
PLANS = 64
"""Plans that are kept until the next commit."""
CONDITIONS = 8
"""SQL conditions whose filters are kept until the next commit."""


Asked = tuple[str, bool]
"""A condition, and whether items whose files are gone may meet it."""


@dataclass(frozen=True)
class Snapshot:
    """A commit as searches see it.

    Attributes:
        state: of the commit.
        changes: change counter of the catalog in that commit.
        ann: which approximate index it is searched with.
        collection: of its rows; pending ones count as tombstones.
        there: filter that leaves tombstones and the items out whose files are gone; None if there are none.
        waiting: its pending rows, with the coarsest level alone; None if there are none.
        lends: of the store when it was made.
        filters: of the conditions that were asked last, the least recently asked first.
        plans: of the searches that were asked for lately, and how many rows passed.
        payloads: what hits show of the first rows; None without a payload file.
        shown: by row, what hits show of the other items, of those that were hits lately.
    """

    state: State
    changes: bytes
    ann: Identity | None
    collection: Collection
    there: Filter | None = None
    waiting: Snapshot | None = None
    lends: int = 0
    filters: OrderedDict[Asked, Filter] = field(default_factory=OrderedDict)
    plans: dict[tuple[Options, int], Plan] = field(default_factory=dict)
    payloads: Payloads | None = None
    shown: dict[int, Shown] = field(default_factory=dict)

    def passing(self, missing: bool) -> Filter | None:
        """The filter of a search without a condition; None for all rows.

        Args:
            missing: whether it finds items whose files are gone.
        """
        return self.collection.alive if missing else self.there

    def plan(self, options: Options, allowed: Filter | None) -> Plan:
        """The plan of a search, chosen once for all that ask for the same."""
        kind = options, self.collection.rows if allowed is None else allowed.count
        plan = self.plans.get(kind)
        if plan is None:
            plan = choose(self.collection, *kind)
            if self.waiting is not None and not kind[1]:
                plan = replace(plan, why="what passes is pending: the coarsest level ranks it")
            if len(self.plans) >= PLANS:
                self.plans.clear()
            self.plans[kind] = plan
        return plan


class Snapshots:
    """The snapshot of the last commit, for any number of threads."""

    def __init__(self, store: Store) -> None:
        """No snapshot is made yet."""
        self._store, self._ann = store, AnnFolder(store.path)
        self._columns = CommitColumns(store.path)
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._snapshot = None
            self._ann.close()

    def look_again(self) -> None:
        """See at the next search which approximate index is there."""
        self._ann.look_again()

    def newest(self) -> Snapshot | None:
        """The snapshot of the last commit, if there is one already; without a lock, SQL, or a transaction."""
        snapshot, changes = self._snapshot, self._store.changes()
        if snapshot is None or snapshot.changes != changes or snapshot.ann != self._ann.identity():
            return None
        return snapshot if snapshot.lends == self._store.lends else None

    def of(self, reader: Reader) -> Snapshot:
        """The snapshot of the commit that a reader sees."""
        snapshot, changes, lends = self._snapshot, self._store.changes(), self._store.lends
        if (
            snapshot is not None
            and (snapshot.state, snapshot.changes, snapshot.lends) == (reader.state, changes, lends)
            and snapshot.ann == self._ann.identity()
        ):
            return snapshot
        with self._lock:
            before, state = self._snapshot, reader.state
            vectors = reader.vectors()
            identity, ann = self._ann.open(vectors[-1], state)
            filters: OrderedDict[Asked, Filter] = OrderedDict()
            shown: dict[int, Shown] = {}
            waiting: Snapshot | None = None
            # As many commits after a backup was put back may have the same numbers: the counter tells them apart.
            if before is not None and (before.state, before.changes, before.lends) == (state, changes, lends):
                alive, there, waiting = before.collection.alive, before.there, before.waiting
                filters, shown = before.filters, before.shown
            else:
                gone, mask, pending = reader.missing_rows(), reader.alive(), reader.pending()
                if pending is not None:
                    kept = np.ones(state.rows, bool) if mask is None else mask
                    mask, late = kept & ~pending, Filter(kept & pending)
                    coarsest = Collection.of(reader.about.levels[:1], vectors[:1], late)
                    late = self._filter(state.rows, gone, late, passing=False) if gone else late
                    waiting = Snapshot(state, changes, None, coarsest, late) if late.count else None
                alive = None if mask is None else Filter(mask)
                there = self._filter(len(vectors[-1]), gone, alive, passing=False) if gone else alive
            collection = Collection.of(reader.about.levels, vectors, alive, ann)
            if before is not None and before.state.payloads == state.payloads and before.payloads is not None:
                payloads: Payloads | None = before.payloads
            else:
                payloads = open_payloads(self._store.path, state, self._store.paths)
            snapshot = Snapshot(
                state, changes, identity, collection, there, waiting, lends, filters, payloads=payloads, shown=shown
            )
            # Nothing is committed while a reader reads: this is the last commit, also where a backup was put back.
            self._snapshot = snapshot
            return snapshot

    def items(self, snapshot: Snapshot, pages: Sequence[Page], reader: Reader | None = None) -> Items | None:
        """What hits show of the items in some pages of a snapshot; None if a commit has come in between.

        Args:
            snapshot: that was searched.
            pages: of rankings.
            reader: of its commit, if there is one.
        """
        payloads, first = snapshot.payloads, 0 if snapshot.payloads is None else snapshot.payloads.rows
        rows = rows_of(pages, first) if first < snapshot.collection.rows else []
        known: Mapping[int, Shown] | None = {}
        if rows:
            known = self._shown(snapshot, rows) if reader is None else reader.shown(rows)
        return None if known is None else Items(known, payloads, partial(self._again, snapshot.state.commits))

    def _again(self, commits: int, row: int) -> Shown | None:
        found = self._store.look_up([row], commits)
        return None if found is None else found[row]

    def _shown(self, snapshot: Snapshot, rows: list[int]) -> Mapping[int, Shown] | None:
        known = snapshot.shown
        # Other threads may forget what is known at any time: it is taken out once.
        items = {row: item for row in rows if (item := known.get(row)) is not None}
        if len(items) < len(rows):
            found = self._store.look_up([row for row in rows if row not in items], snapshot.state.commits)
            if found is None:
                return None
            items.update(found)
            if len(known) + len(found) > MOST_SHOWN:
                known.clear()
            if len(found) <= MOST_SHOWN:
                known.update(found)
        return items

    def allowed(self, snapshot: Snapshot, reader: Reader, options: Options) -> Filter | None:
        """The rows of a snapshot that a search may return, tombstones left out; None for all.

        Args:
            snapshot: of the reader's commit.
            reader: that evaluates a condition.
            options: of the search.
        """
        passing = snapshot.passing(options.missing)
        if options.where is None:
            return passing
        asked = options.where, options.missing
        allowed = self.known(snapshot, asked, reader)
        if allowed is not None:
            return allowed
        rows, changing = reader.rows_where(options.where)
        allowed = self._filter(snapshot.collection.rows, rows, passing)
        return allowed if changing else self._keep(snapshot, asked, allowed)

    def _filter(self, count: int, rows: list[int], within: Filter | None, *, passing: bool = True) -> Filter:
        """A filter that lets these rows pass, or all but these, as far as another one does."""
        if not all(isinstance(row, int) and 0 <= row < count for row in rows):
            raise DamagedIndexError(f"{self._store.path} is damaged: an item has no vectors; run `hivlp repair`")
        mask = np.full(count, not passing)
        mask[rows] = passing
        return Filter(mask if within is None else mask & within.mask)

    def known(self, snapshot: Snapshot, asked: Asked, reader: Reader | None = None) -> Filter | None:
        """:meth:`allowed` where columns answer the condition, or it was asked before; None if SQLite must answer.

        Args:
            snapshot: of the last commit.
            asked: the condition, and whether items whose files are gone may meet it.
            reader: of its commit, to make columns that are not there yet; without one, no SQL is run.
        """
        with self._lock:
            if asked in snapshot.filters:
                snapshot.filters.move_to_end(asked)
                return snapshot.filters[asked]
        condition, missing = asked
        mask = self._columns.mask(condition, snapshot.state, reader)
        if mask is None:
            return None
        passing = snapshot.passing(missing)
        return self._keep(snapshot, asked, Filter(mask if passing is None else mask & passing.mask))

    def _keep(self, snapshot: Snapshot, asked: Asked, allowed: Filter) -> Filter:
        with self._lock:
            snapshot.filters[asked] = allowed
            while len(snapshot.filters) > CONDITIONS:
                snapshot.filters.popitem(last=False)
        return allowed
