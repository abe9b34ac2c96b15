"""Skipped parts of a data set: the first few of each kind are named in the log, all are counted."""

from __future__ import annotations

import logging

from hivlp.data.pairs import Pair, Pairs
from hivlp.errors import DataError

logger = logging.getLogger(__name__)
NAMED = 5
"""Of each kind, so many are named; the rest are counted."""


class Skips:
    """Parts of one data set that could not be used, and rows that have no caption.

    Attributes:
        damaged: what could not be read: files, row groups, samples.
        bare: rows and pictures without a caption, which say nothing to learn from.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self.bare = 0
        self._first: str | None = None

    def damage(self, problem: object) -> None:
        """Pass over something that cannot be read.

        Args:
            problem: names the file and the place.
        """
        self._first = self._first or str(problem)
        self.damaged += 1
        if self.damaged <= NAMED:
            logger.warning("skipped: %s", problem)

    def no_caption(self, where: str) -> None:
        """Pass over a row without a caption."""
        self.bare += 1
        if self.bare <= NAMED:
            logger.warning("skipped: %s: no caption", where)

    def close(self, source: object, pairs: list[Pair]) -> Pairs:
        """Say how many there were, and hand on what was read.

        Raises:
            DataError: the first of them, if something was damaged and nothing is left.
        """
        if self._first is not None and not pairs:
            raise DataError(self._first)
        for count, what in ((self.damaged, "damaged parts"), (self.bare, "entries without a caption")):
            if count > NAMED:
                logger.warning("skipped: %d %s of %s in all", count, what, source)
        return Pairs(pairs, self.damaged)
