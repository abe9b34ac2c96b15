"""Answering: from query vectors to hits, all of one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from hivlp.encode.stream import chunks
from hivlp.index.found import Found, Items, Joined
from hivlp.index.snapshots import Snapshot, Snapshots
from hivlp.levels import DEFAULT_SHORTLIST
from hivlp.search.filters import Filter
from hivlp.search.grouping import Contents
from hivlp.search.options import Options
from hivlp.search.plan import Plan
from hivlp.search.results import Unmade
from hivlp.search.searcher import Page, search
from hivlp.search.stages import Query, Step
from hivlp.search.timing import Stopwatch
from hivlp.store.folder import Store
from hivlp.store.reader import Reader

if TYPE_CHECKING:
    from hivlp.index.filling import Filler

BATCH = 1024
"""Queries that share a pass over the vectors."""
Answer = tuple[Plan, list[tuple[Unmade, Sequence[Step]]]]
"""The plan of a search, and of each query its hits and what was done to find them."""


class Answering:
    """What answers queries by a store's last commit, for any number of threads.

    Attributes:
        snapshots: of its commits.
    """

    def __init__(self, store: Store, filler: Callable[[], Filler]) -> None:
        """Nothing is searched yet.

        Args:
            store: of the index.
            filler: gives what computes the finer levels of pending pictures, made when it is first needed.
        """
        self._store, self._filler, self.snapshots = store, filler, Snapshots(store)

    def answer(self, queries: Sequence[Query], options: Options, watch: Stopwatch) -> Answer:
        """The answer to queries, all of one commit.

        The last snapshot is searched without a transaction. If a commit comes in between, the lookup of the hits tells,
        and the search is made again inside one.
        """
        snapshot = self.snapshots.newest()
        if snapshot is None or snapshot.waiting is not None:
            filled = self.fill(queries, options, watch)
            if filled is not None:
                with self._store.reading() as reader:
                    return self.answer_in(reader, queries, options, watch, filled=filled)
            snapshot = self.snapshots.newest()  # nothing is pending
        allowed = None
        if snapshot is not None:
            where, missing = options.where, options.missing
            allowed = snapshot.passing(missing) if where is None else self.snapshots.known(snapshot, (where, missing))
        known = options.where is None or allowed is not None
        if snapshot is not None and known and options.group is not True:
            plan, pages = self._pages(snapshot, queries, options, watch, allowed)
            items = self.snapshots.items(snapshot, pages)
            if items is not None:
                return plan, _answers(snapshot, queries, pages, items, options)
        with self._store.reading() as reader:
            return self.answer_in(reader, queries, options, watch)

    def answer_in(
        self,
        reader: Reader,
        queries: Sequence[Query],
        options: Options,
        watch: Stopwatch,
        excluded: int | None = None,
        filled: Sequence[Step] = (),
    ) -> Answer:
        """The answer to queries in the commit that a reader sees.

        Args:
            reader: of the commit.
            queries: (dim,) a level.
            options: of the search.
            watch: that stages are charged to.
            excluded: a row that is left out.
            filled: what :meth:`fill` did before.
        """
        snapshot = self.snapshots.of(reader)
        allowed = self.snapshots.allowed(snapshot, reader, options)
        plan, pages = self._pages(snapshot, queries, options, watch, allowed, excluded, reader)
        items = self.snapshots.items(snapshot, pages, reader)
        assert items is not None
        answers = _answers(snapshot, queries, pages, items, options)
        if snapshot.waiting is not None and options.threshold is None:
            rest = self._rest(snapshot, queries, options, watch, allowed, excluded, reader, pages)
            for place, late in enumerate(rest):
                if late is not None:
                    hits, steps = answers[place]
                    answers[place] = Joined(hits, late[0]), [*steps, *late[1]]
        return plan, [(hits, [*filled, *steps]) for hits, steps in answers]

    def fill(self, queries: Sequence[Query], options: Options, watch: Stopwatch) -> Sequence[Step] | None:
        """Compute the finer levels of pending pictures that the coarsest level puts on the shortlist, within a budget.

        Called outside :meth:`hivlp.store.folder.Store.reading`, as it may write.

        Returns:
            What was done; None where nothing is pending.
        """
        with self._store.reading() as reader:
            snapshot = self.snapshots.of(reader)
            if snapshot.waiting is None:
                return None
            late = self.snapshots.allowed(snapshot.waiting, reader, options)
            whole = self.snapshots.allowed(snapshot, reader, options)
            assert late is not None and whole is not None
            size = max([*(options.shortlists or [DEFAULT_SHORTLIST])[:1], options.k])
            coarse = np.stack([query[0] for query in queries])
            found = snapshot.collection.scanners[0].search(coarse, size, late.mask | whole.mask)
            # By rank, whichever query it is of.
            ranked = [row for same in zip_longest(*(rows.tolist() for rows, _ in found)) for row in same]
            rows = [row for row in dict.fromkeys(ranked) if row is not None and late.passes(row)]
            items = reader.in_rows(rows)
        step = self._filler().for_search(items, options.fill, options.fill_seconds)
        watch.lap("fill")
        return [step] if items else []

    def _rest(
        self,
        snapshot: Snapshot,
        queries: Sequence[Query],
        options: Options,
        watch: Stopwatch,
        allowed: Filter | None,
        excluded: int | None,
        reader: Reader,
        pages: Sequence[Page],
    ) -> list[tuple[Found, Sequence[Step]] | None]:
        """For each query whose page is not full the pending items, in the order of the coarsest level."""
        waiting = snapshot.waiting
        assert waiting is not None
        late = self.snapshots.allowed(waiting, reader, options)
        rest: list[tuple[Found, Sequence[Step]] | None] = []
        for query, page in zip(queries, pages, strict=True):
            before, left = len(page.rows), options.k - len(page.rows)
            if not left:
                rest.append(None)
                continue
            offset = 0
            if not before and options.offset:  # how many whole ones there are decides where this page begins
                first = replace(options, k=options.offset, offset=0)
                (whole,) = self._pages(snapshot, [query], first, watch, allowed, excluded, reader)[1]
                offset = options.offset - len(whole.rows)
            group = options.group is True
            asked = Options(k=left, offset=offset, where=options.where, group=group, missing=options.missing)
            (found,) = self._pages(waiting, [query[:1]], asked, watch, late, excluded, reader)[1]
            items = self.snapshots.items(waiting, [found], reader)
            assert items is not None
            step = {"stage": "scan", "level": snapshot.collection.levels[0].name, "pending": len(found.rows)}
            hits = Found(found, query[:1], waiting.collection, options.offset + before, items)
            rest.append((hits, [step]) if len(found.rows) else None)
        return rest

    def _pages(
        self,
        snapshot: Snapshot,
        queries: Sequence[Query],
        options: Options,
        watch: Stopwatch,
        allowed: Filter | None,
        excluded: int | None = None,
        contents: Contents | None = None,
    ) -> tuple[Plan, list[Page]]:
        """The plan of a search in a snapshot, and a page of each query's ranking."""
        plan = snapshot.plan(options, allowed)
        pages: list[Page] = []
        for chunk in chunks(queries, BATCH):
            pages += search(
                snapshot.collection, plan, chunk, options, watch, contents=contents, allowed=allowed, excluded=excluded
            )
        return plan, pages


def _answers(
    snapshot: Snapshot, queries: Sequence[Query], pages: Sequence[Page], items: Items, options: Options
) -> list[tuple[Unmade, Sequence[Step]]]:
    return [
        (Found(page, query, snapshot.collection, options.offset, items), page.steps)
        for page, query in zip(pages, queries, strict=True)
    ]
