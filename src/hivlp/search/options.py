"""Search options: what is wanted of a search whatever its query, and the checks of what people pass."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hivlp.errors import ArgumentError, QueryError
from hivlp.levels import DEFAULT_SHORTLIST, Level

FILL, FILL_SECONDS = 200, 2.0
"""Pending pictures of a shortlist that a search computes the finer levels of, at most, and seconds that it takes."""
FARTHEST = 1 << 40  # offset; no index has so many items


@dataclass(frozen=True)
class Options:
    """Search options; see :meth:`hivlp.index.Index.search`.

    Attributes:
        k: hits wanted.
        shortlists: candidates that each level but the finest hands on, coarse to fine.
        exact: rank everything by the finest level.
        where: SQL condition that hits must meet.
        missing: find items whose files are gone, too.
        offset: hits to skip.
        threshold: least finest score of a hit.
        group: fold hits of the same content (True), or within a cosine.
        recall: share of the ten best to find, if one was asked for.
        own_shortlist: whether the caller gave the shortlists.
        fill: pending pictures of the shortlist whose finer levels are computed now, at most.
        fill_seconds: after which no other one is begun.
    """

    k: int = 10
    shortlists: tuple[int, ...] = ()
    exact: bool = False
    where: str | None = None
    offset: int = 0
    threshold: float | None = None
    group: bool | float = False
    recall: float | None = None
    own_shortlist: bool = False
    missing: bool = False
    fill: int = FILL
    fill_seconds: float = FILL_SECONDS

    def __post_init__(self) -> None:
        sizes = (("shortlist", size, 1) for size in self.shortlists)
        for name, value, least in (("k", self.k, 1), ("offset", self.offset, 0), ("fill", self.fill, 0), *sizes):
            if value < least:
                raise QueryError(f"{name} must be at least {least}, not {value}")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise QueryError(f"recall must be above 0 and at most 1, not {self.recall}")
        if not self.fill_seconds >= 0:
            raise QueryError(f"fill_seconds must be at least 0, not {self.fill_seconds}")
        if self.threshold is not None and math.isnan(self.threshold):
            raise QueryError("threshold must be a number, not NaN")
        if not isinstance(self.group, bool) and not 0 < self.group <= 1:
            raise QueryError(f"group must be a cosine above 0 and at most 1, not {self.group}")

    @property
    def plain(self) -> bool:
        """Whether a page is a slice of the ranking: no threshold ends it, nothing is folded."""
        return self.threshold is None and self.group is False

    @classmethod
    def of(
        cls,
        levels: Sequence[Level],
        *,
        k: int,
        shortlist: int | Sequence[int] | None,
        exact: bool,
        where: str | None,
        offset: int,
        threshold: float | None,
        group: bool | float,
        recall: float | None,
        missing: bool = False,
        fill: int = FILL,
        fill_seconds: float = FILL_SECONDS,
    ) -> Options:
        """The options of a search of these levels, as a caller gave them.

        Raises:
            QueryError: if a value is out of its range, or two contradict each other.
            ArgumentError: if one is of another type.
        """
        given = (k, exact, where, offset, threshold, group, recall, missing, fill, fill_seconds)
        if shortlist is None and {*map(type, given)} <= PLAIN:
            return _checked(len(levels), None, *given)
        return _check(len(levels), shortlist, *given)


PLAIN = {int, bool, float, str, type(None)}
"""Types of options that are as good as their checked selves, whose check is remembered."""


def _check(
    levels: int,
    shortlist: int | Sequence[int] | None,
    k: int,
    exact: bool,
    where: str | None,
    offset: int,
    threshold: float | None,
    group: bool | float,
    recall: float | None,
    missing: bool,
    fill: int,
    fill_seconds: float,
) -> Options:
    if recall is not None and (exact or shortlist is not None):
        raise QueryError("recall chooses how to search: it cannot be given with exact or a shortlist")
    if where is not None and not isinstance(where, str):
        raise ArgumentError(f"where must be a condition in SQL, not {where!r:.40}")
    return Options(
        k=whole_number("k", k),
        shortlists=_shortlists(shortlist, levels),
        exact=yes_or_no("exact", exact),
        where=where,
        offset=min(whole_number("offset", offset), FARTHEST),
        threshold=None if threshold is None else real_number("threshold", threshold),
        group=bool(group) if isinstance(group, (bool, np.bool_)) else real_number("group", group),
        recall=None if recall is None else real_number("recall", recall),
        own_shortlist=shortlist is not None,
        missing=yes_or_no("missing", missing),
        fill=whole_number("fill", fill),
        fill_seconds=real_number("fill_seconds", fill_seconds),
    )


_checked = lru_cache(maxsize=256, typed=True)(_check)


def _shortlists(shortlist: int | Sequence[int] | None, levels: int) -> tuple[int, ...]:
    stages = levels - 1
    if not isinstance(shortlist, Iterable) or np.ndim(shortlist) == 0:
        size = DEFAULT_SHORTLIST if shortlist is None else whole_number("shortlist", shortlist)
        return (size,) * stages
    sizes = tuple(whole_number("shortlist", size) for size in shortlist)
    if len(sizes) != stages:
        raise QueryError(f"{len(sizes)} shortlists for {levels} levels: one for each but the finest")
    return sizes


def whole_number(name: str, value: Any) -> int:
    """An option that counts something, as Python's own integer; numpy's are as good.

    Raises:
        ArgumentError: if it is none, which a float and a bool are not.
    """
    try:
        if not isinstance(value, (bool, np.bool_)) and getattr(value, "dtype", None) != np.bool_:
            return operator.index(value)
    except TypeError:
        pass
    raise ArgumentError(f"{name} must be a whole number, not {value!r:.40}")


def real_number(name: str, value: Any) -> float:
    """An option that measures something, as Python's own float.

    Raises:
        ArgumentError: if it is no number.
    """
    try:
        if not isinstance(value, (bool, np.bool_, str, bytes)):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ArgumentError(f"{name} must be a number, not {value!r:.40}")


def yes_or_no(name: str, value: Any) -> bool:
    """An option that is on or off.

    Raises:
        ArgumentError: if it is something else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ArgumentError(f"{name} must be True or False, not {value!r:.40}")
