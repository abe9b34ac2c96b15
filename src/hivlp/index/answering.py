"""Answering: from query vectors to hits, all of one commit."""

from __future__ import annotations

from collections.abc import Sequence

from hivlp.encode.stream import chunks
from hivlp.index.found import Found, Items
from hivlp.index.snapshots import Snapshot, Snapshots
from hivlp.search.filters import Filter
from hivlp.search.grouping import Contents
from hivlp.search.options import Options
from hivlp.search.plan import Plan
from hivlp.search.searcher import Page, search
from hivlp.search.stages import Query, Step
from hivlp.search.timing import Stopwatch
from hivlp.store.folder import Store
from hivlp.store.reader import Reader

BATCH = 1024
"""Queries that share a pass over the vectors."""
Answer = tuple[Plan, list[tuple[Found, Sequence[Step]]]]
"""The plan of a search, and of each query its hits and what was done to find them."""


class Answering:
    """What answers queries by a store's last commit, for any number of threads.

    Attributes:
        snapshots: of its commits.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is searched yet."""
        self._store, self.snapshots = store, Snapshots(store)

    def answer(self, queries: Sequence[Query], options: Options, watch: Stopwatch) -> Answer:
        """The answer to queries, all of one commit.

        The last snapshot is searched without a transaction. If a commit comes in between, the lookup of the hits tells,
        and the search is made again inside one.
        """
        snapshot = self.snapshots.newest()
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
    ) -> Answer:
        """The answer to queries in the commit that a reader sees."""
        snapshot = self.snapshots.of(reader)
        allowed = self.snapshots.allowed(snapshot, reader, options)
        plan, pages = self._pages(snapshot, queries, options, watch, allowed, excluded, reader)
        items = self.snapshots.items(snapshot, pages, reader)
        assert items is not None
        return plan, _answers(snapshot, queries, pages, items, options)

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
) -> list[tuple[Found, Sequence[Step]]]:
    return [
        (Found(page, query, snapshot.collection, options.offset, items), page.steps)
        for page, query in zip(pages, queries, strict=True)
    ]
