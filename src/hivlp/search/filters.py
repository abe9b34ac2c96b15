"""Filter mask: which rows of a commit a search may return, in every form that a stage reads it in."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Filter:
    """A filter mask over the rows of one commit; immutable, shared by searches in any thread.

    Attributes:
        mask: (rows,) bool, True where a row may be returned.
        count: rows that pass.
    """

    def __init__(self, mask: Mask) -> None:
        """A filter of a (rows,) bool mask, which is not to be changed afterwards."""
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        self._forms: dict[int, IndexedFilter] = {}
        self._lock = threading.Lock()

    def passes(self, row: int) -> bool:
        """Whether a row may be returned."""
        return bool(self.mask[row])

    def head(self, rows: int) -> IndexedFilter:
        """The filter over the first rows, which an approximate index knows; worked out once."""
        with self._lock:
            if rows not in self._forms:
                self._forms[rows] = IndexedFilter(self.mask[:rows])
            return self._forms[rows]


class IndexedFilter:
    """A filter mask as an approximate index reads it.

    Attributes:
        count: rows that pass.
        share: of the rows that the index knows, how many pass (0 to 1, never 0).
        bits: (ceil(rows / 8),) uint8, a bit a row, least significant first.
        rows: (count,) uint32, ascending.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self.count = int(np.count_nonzero(mask))
        self.share = max(self.count, 1) / max(len(mask), 1)

    # Of many rows the bits are read, of few their numbers.

    @cached_property
    def bits(self) -> NDArray[np.uint8]:  # noqa: D102
        return np.packbits(self._mask, bitorder="little")

    @cached_property
    def rows(self) -> NDArray[np.uint32]:  # noqa: D102
        return np.flatnonzero(self._mask).astype(np.uint32)


def mask_of(allowed: Filter | None) -> NDArray[Any] | None:
    """(rows,) bool mask of a filter; None for all rows."""
    return None if allowed is None else allowed.mask
