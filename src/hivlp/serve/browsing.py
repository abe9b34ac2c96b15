"""Browsing: all items that a condition lets pass, by their dates, a page at a time."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.index import Index
from hivlp.search.results import Hit, SearchResult
from hivlp.store.reader import Reader

KEPT = 8
"""Orders that are kept until the next commit."""


class Browsed(NamedTuple):
    """A page of items by date, and how many there are in all."""

    result: SearchResult
    total: int


class Browsing:
    """Pages of an index's items by their dates; the order is worked out once a commit, for any number of threads."""

    def __init__(self) -> None:
        """Nothing is in order yet."""
        self._orders: OrderedDict[tuple[Any, ...], tuple[NDArray[np.int64], int]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, index: Index, condition: str | None, *, oldest: bool, offset: int, k: int, missing: bool) -> Browsed:
        """A page of the items that a condition lets pass, by date, newest first unless ``oldest``.

        Items without a date come last either way. Those whose files have gone since the folder was last walked are left
        out, so that a page may have fewer than ``k``.
        """
        started = time.perf_counter()
        given = index.maps is not None
        with index.store.reading() as reader:
            order, dated = self._order(index, reader, condition, missing or given)
            # From the newest to the oldest; where the oldest come first, each half is turned round.
            places = np.arange(offset, min(offset + k, len(order)))
            if oldest:
                places = np.where(places < dated, dated - 1 - places, len(order) - 1 + dated - places)
            rows = order[places].tolist()
            shown = reader.shown(rows)
            hits = [
                Hit(offset + place, item.id, item.path, item.caption, {}, item.metadata)
                for place, row in enumerate(rows, start=1)
                if (item := shown[row]) and (missing or given or os.path.lexists(item.path))
            ]
        return Browsed(SearchResult(hits, {"total": round(1000 * (time.perf_counter() - started), 3)}), len(order))

    def _order(
        self, index: Index, reader: Reader, condition: str | None, missing: bool
    ) -> tuple[NDArray[np.int64], int]:
        """Rows that pass, newest first and those without a date last; and how many have one."""
        key = (index.path, index.store.changes(), condition, missing)
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        passing, changing = reader.rows_where("1" if condition is None else condition)
        rows, (taken, ids) = reader.column_values(["metadata ->> '$.taken'", "id"], 0, reader.state.rows)
        wanted = np.isin(rows, np.array(passing, np.int64))
        if not missing:
            wanted &= ~np.isin(rows, np.array(reader.missing_rows(), np.int64))
        dates = np.array([date if isinstance(date, bytes) else b"" for date in taken], "S32")[wanted]
        rows, numbers = rows[wanted], np.array(ids, np.int64)[wanted]
        made = rows[np.lexsort((numbers, dates))[::-1]], int((dates != b"").sum())
        with self._lock:
            if not changing:
                self._orders[key] = made
            while len(self._orders) > KEPT:
                self._orders.popitem(last=False)
        return made
