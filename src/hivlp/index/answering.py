"""Answering: from query vectors to hits, all of one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from hivlp.encode.stream import chunks
from hivlp.index.snapshots import Snapshot, Snapshots
from hivlp.search.filters import Filter
from hivlp.search.grouping import Contents
from hivlp.search.options import Options
from hivlp.search.plan import Plan
from hivlp.search.results import Duplicate, Hit
from hivlp.search.searcher import Page, search
from hivlp.search.stages import Query, Step
from hivlp.search.timing import Stopwatch
from hivlp.store.folder import Store
from hivlp.store.lookup import Shown
from hivlp.store.reader import Reader
from hivlp.store.records import Item

BATCH = 256
"""Queries that share a pass over the vectors."""
Answer = tuple[Plan, list[tuple[list[Hit], list[Step]]]]
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
            where = options.where
            allowed = snapshot.collection.alive if where is None else self.snapshots.known(snapshot, where)
        known = options.where is None or allowed is not None
        if snapshot is not None and known and options.group is not True:
            plan, pages = self._pages(snapshot, queries, options, watch, allowed)
            items = self.snapshots.shown(snapshot, _rows(pages))
            if items is not None:
                return plan, self._hits(pages, items, options.offset)
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
        allowed = self.snapshots.allowed(snapshot, reader, options.where)
        plan, pages = self._pages(snapshot, queries, options, watch, allowed, excluded, reader)
        items = {item.row: item for item in reader.in_rows(_rows(pages))}
        return plan, self._hits(pages, items, options.offset)

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

    def _hits(
        self, pages: Sequence[Page], items: Mapping[int, Item | Shown], offset: int
    ) -> list[tuple[list[Hit], list[Step]]]:
        """The hits of each page, and what was done to find them."""
        names, answers = [level.name for level in self._store.levels], []
        for page in pages:
            hits = []
            scores = zip(*(part.tolist() for part in page.scores), strict=True)
            for place, (row, by_level) in enumerate(zip(page.rows.tolist(), scores, strict=True)):
                item, same = items[row], None
                if page.duplicates is not None:
                    same = [Duplicate(items[each].id, items[each].path) for each in page.duplicates[place]]
                known = dict(zip(names, by_level, strict=True))
                hits.append(Hit(offset + place + 1, item.id, item.path, item.caption, known, _own(item.metadata), same))
            answers.append((hits, page.steps))
        return answers


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    """A copy for one caller, who may change it: what is remembered of an item is shown again."""
    nested = any(isinstance(value, (dict, list)) for value in metadata.values())
    return deepcopy(metadata) if nested else metadata.copy()


def _rows(pages: Sequence[Page]) -> list[int]:
    """The rows of each page, and those folded into them, each once."""
    rows = {row for page in pages for row in page.rows.tolist()}
    rows.update(row for page in pages for group in page.duplicates or () for row in group)
    return list(rows)
