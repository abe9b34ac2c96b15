"""Hits of a page of results, put together when somebody looks at them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from hivlp.errors import DamagedIndexError
from hivlp.search.collection import Collection
from hivlp.search.filters import Rows
from hivlp.search.results import Duplicate, Hit, Unmade
from hivlp.search.searcher import Page
from hivlp.search.stages import Query
from hivlp.store.lookup import Shown
from hivlp.store.payloads import Columns, Payloads


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

    def of(self, rows: Sequence[int]) -> Columns:
        """Ids, paths, captions and metadata of some rows; who asks has metadata of their own.

        Raises:
            DamagedIndexError: if what one shows is damaged.
        """
        if not self._known and self._payloads is not None:
            with suppress(ValueError):
                found = self._payloads.read(rows)
                if found is not None:
                    return found
        ids, paths, captions, metadata = zip(*map(self._one, rows), strict=True) if rows else ((),) * 4
        return ids, paths, captions, metadata

    def ids(self, rows: Sequence[int]) -> Sequence[int]:
        """Ids of the items in some rows.

        Raises:
            DamagedIndexError: if what one shows is damaged.
        """
        if not self._known and self._payloads is not None:
            with suppress(ValueError):
                found = self._payloads.ids(rows)
                if found is not None:
                    return found
        return [self._one(row)[0] for row in rows]

    def _one(self, row: int) -> tuple[int, str, str | None, dict[str, Any]]:
        shown = self._known.get(row)
        if shown is None and self._payloads is not None and row < self._payloads.rows:
            with suppress(ValueError):
                (item_id,), (path,), (caption,), (metadata,) = self._payloads.columns([self._payloads.record(row)])
                return item_id, path, caption, metadata
            shown = self._again(row)
        if shown is None:
            raise DamagedIndexError(f"what row {row} shows is damaged; run `hivlp repair`")
        try:
            return shown.id, shown.path, shown.caption, shown.metadata
        except ValueError as error:
            raise DamagedIndexError(f"what item {shown.id} shows is damaged: {error}; run `hivlp repair`") from error


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

    def ids(self) -> list[int]:
        """Ids of the hits, best first.

        Raises:
            DamagedIndexError: if what one shows is not as it was written.
        """
        return list(self._items.ids(self._page.rows.tolist()))

    def make(self) -> list[Hit]:
        """The hits, best first.

        Raises:
            DamagedIndexError: if what one shows is not as it was written.
        """
        rows, scores, duplicates, _ = self._page
        scanners, names = self._collection.scanners, [level.name for level in self._collection.levels]
        by_level = [scanner.rescore(self._query[place], rows).tolist() for place, scanner in enumerate(scanners[:-1])]
        by_level.append(scores.tolist())
        *coarser, finest = names
        if coarser:
            known = list(map(dict, map(zip, itertools.repeat(names), zip(*by_level, strict=True))))
        else:  # in a third of the time
            known = [{finest: score} for score in by_level[0]]
        ids, paths, captions, metadata = self._items.of(rows.tolist())
        same: Iterable[list[Duplicate] | None] = itertools.repeat(None)
        if duplicates is not None:
            same = [list(map(Duplicate, *self._items.of(group)[:2])) for group in duplicates]
        # Column by column: as fast again as hit by hit.
        ranks = itertools.count(self._offset + 1)
        return list(map(Hit._make, zip(ranks, ids, paths, captions, known, metadata, same, strict=False)))


class Joined:
    """Hits of one list after those of another, whose ranks go on from there."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: Unmade, rest: Unmade) -> None:
        self._first, self._rest = first, rest

    def __len__(self) -> int:
        return len(self._first) + len(self._rest)

    def ids(self) -> list[int]:
        """Their ids, best first."""
        return [*self._first.ids(), *self._rest.ids()]

    def make(self) -> list[Hit]:
        """The hits, best first."""
        return [*self._first.make(), *self._rest.make()]


def rows_of(pages: Sequence[Page], first: int = 0) -> list[int]:
    """The rows of some pages, and those folded into them, from ``first`` on; each once."""
    if not pages:
        return []
    parts: list[Rows] = [page.rows for page in pages]
    parts += [np.array(group, np.int64) for page in pages for group in page.duplicates or ()]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    late: list[int] = rows[rows >= first].tolist()
    return list({*late})
