"""Hits of a page of results, put together when somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hivlp.errors import DamagedIndexError
from hivlp.search.collection import Collection
from hivlp.search.filters import Rows
from hivlp.search.results import Duplicate, Hit
from hivlp.search.searcher import Page
from hivlp.search.stages import Query
from hivlp.store.lookup import Shown
from hivlp.store.payloads import Payloads


class Items:
    """What hits show of the items in some rows of one commit."""

    __slots__ = ("_again", "_known", "_payloads")

    def __init__(
        self, known: Mapping[int, Shown], payloads: Payloads | None, again: Callable[[int], Shown | None]
    ) -> None:
        """Items of one commit.

        Args:
            known: those that were looked up.
            payloads: has the others.
            again: looks up what is damaged there; None if a commit has come since.
        """
        self._known, self._payloads, self._again = known, payloads, again

    def __getitem__(self, row: int) -> Shown:
        """What a row shows.

        Raises:
            DamagedIndexError: if that is damaged.
        """
        found = self._known.get(row)
        if found is None and self._payloads is not None and row < self._payloads.rows:
            found = self._payloads.get(row) or self._again(row)
        if found is None:
            raise DamagedIndexError(f"what row {row} shows is damaged; run `hivlp repair`")
        return found


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
        """The hits, best first.

        Raises:
            DamagedIndexError: if what one shows is not as it was written.
        """
        rows, scores, duplicates, _ = self._page
        items, scanners = self._items, self._collection.scanners
        names = [level.name for level in self._collection.levels]
        coarser = [scanner.rescore(self._query[place], rows).tolist() for place, scanner in enumerate(scanners[:-1])]
        hits = []
        for place, (row, *by_level) in enumerate(zip(rows.tolist(), *coarser, scores.tolist(), strict=True)):
            item, known, same = items[row], dict(zip(names, by_level, strict=True)), None
            if duplicates is not None:
                same = [Duplicate(items[each].id, items[each].path) for each in duplicates[place]]
            try:
                metadata = item.metadata
            except ValueError as error:
                raise DamagedIndexError(f"what item {item.id} shows is damaged: {error}; run `hivlp repair`") from error
            hits.append(Hit(self._offset + place + 1, item.id, item.path, item.caption, known, metadata, same))
        return hits


def rows_of(pages: Sequence[Page], first: int = 0) -> list[int]:
    """The rows of some pages, and those folded into them, from ``first`` on; each once."""
    if not pages:
        return []
    parts: list[Rows] = [page.rows for page in pages]
    parts += [np.array(group, np.int64) for page in pages for group in page.duplicates or ()]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    late: list[int] = rows[rows >= first].tolist()
    return list({*late})
