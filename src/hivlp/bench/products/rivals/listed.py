"""Payloads in a list beside an engine that keeps none: what its users do themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivlp.bench.products.rivals.base import Between, Hit, Payload, read_payloads, write_payloads

FILE = "payloads.jsonl"


class PayloadList:
    """A list in memory, a file of JSON lines on disk, and a column of years to filter by.

    Attributes:
        kept: (n,) whether a row was not removed.
    """

    def __init__(self, folder: Path) -> None:
        self._hits = [(row, *payload) for row, payload in enumerate(read_payloads(folder / FILE))]
        self._years = np.array([hit[3] for hit in self._hits], np.int16)
        self.kept = np.ones(len(self._hits), bool)

    @staticmethod
    def write(folder: Path, payloads: Sequence[Payload]) -> None:
        """Make the file."""
        write_payloads(folder / FILE, payloads)

    def __len__(self) -> int:
        return len(self._hits)

    def hits(self, rows: Iterable[int]) -> list[Hit]:
        """Those of rows; -1 is none."""
        return [self._hits[row] for row in rows if row >= 0]

    def passing(self, years: Between) -> NDArray[np.bool_]:
        """(n,) whether a row is of these years, and was not removed."""
        return (self._years >= years[0]) & (self._years <= years[1]) & self.kept

    def add(self, payloads: Sequence[Payload]) -> None:
        """Append."""
        self._hits += [(row, *payload) for row, payload in enumerate(payloads, len(self._hits))]
        self._years = np.array([hit[3] for hit in self._hits], np.int16)
        self.kept = np.concatenate([self.kept, np.ones(len(payloads), bool)])

    def remove(self, rows: Sequence[int]) -> None:
        """Hide rows."""
        self.kept[np.asarray(rows)] = False
