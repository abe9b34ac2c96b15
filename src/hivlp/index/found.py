"""Hits of a page of results, put together when somebody looks at them."""

from __future__ import annotations

from typing import Protocol

from hivlp.search.collection import Collection
from hivlp.search.results import Duplicate, Hit
from hivlp.search.searcher import Page
from hivlp.search.stages import Query
from hivlp.store.lookup import Shown


class Items(Protocol):
    """What hits show of the items in the rows of one commit, or in some of them."""

    def __getitem__(self, row: int, /) -> Shown: ...


class Found:
    """Hits of one page of a ranking.

    It holds the snapshot that was searched: what its hits will be does not depend on when they are made.
    """

    __slots__ = ("_collection", "_items", "_offset", "_page", "_query")

    def __init__(self, page: Page, query: Query, collection: Collection, offset: int, items: Items) -> None:
        """Hits that nobody has looked at yet.

        Args:
            page: of the ranking.
            query: whose scores by the coarser levels are shown, too.
            collection: that was searched.
            offset: ranks before the page.
            items: of the commit, those in the page's rows at least.
        """
        self._page, self._query, self._collection, self._offset, self._items = page, query, collection, offset, items

    def __len__(self) -> int:
        return len(self._page.rows)

    def make(self) -> list[Hit]:
        """The hits, best first."""
        rows, scores, duplicates, _ = self._page
        items, scanners = self._items, self._collection.scanners
        names = [level.name for level in self._collection.levels]
        coarser = [scanner.rescore(self._query[place], rows).tolist() for place, scanner in enumerate(scanners[:-1])]
        hits = []
        for place, (row, *by_level) in enumerate(zip(rows.tolist(), *coarser, scores.tolist(), strict=True)):
            item, known, same = items[row], dict(zip(names, by_level, strict=True)), None
            if duplicates is not None:
                same = [Duplicate(items[each].id, items[each].path) for each in duplicates[place]]
            hits.append(Hit(self._offset + place + 1, item.id, item.path, item.caption, known, item.metadata, same))
        return hits


def rows_of(page: Page) -> list[int]:
    """The rows of a page, and those folded into them."""
    return [*page.rows.tolist(), *(row for group in page.duplicates or () for row in group)]
