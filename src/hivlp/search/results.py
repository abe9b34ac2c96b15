"""What a search is asked, and what it answers."""

from __future__ import annotations

import math
import operator
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hivlp.errors import ArgumentError, QueryError
from hivlp.levels import Level, Vectors

Plan = list[dict[str, Any]]
"""Looks at the collection in their order: each a ``stage`` and its numbers, and why one was ``widened``."""


@dataclass(frozen=True)
class Duplicate:
    """An item that is shown with another one instead of by itself."""

    id: int
    path: str

    def to_json(self) -> dict[str, Any]:
        """As in the ``duplicates`` of a hit."""
        return {"id": self.id, "path": _printable(self.path)}


@dataclass(frozen=True)
class Hit:
    """One found item.

    Attributes:
        rank: from 1, counted over all pages.
        id: of the item.
        path: of the picture.
        caption: what is known of it in words, if anything.
        scores: cosine with the query at each level.
        metadata: what was stored with it.
        duplicates: what was folded into it; None unless the search was asked to group.
    """

    rank: int
    id: int
    path: str
    caption: str | None
    scores: dict[str, float]
    metadata: dict[str, Any]
    duplicates: list[Duplicate] | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        path = _printable(self.path)
        data = {"rank": self.rank, "id": self.id, "path": path, "caption": self.caption, "scores": self.scores}
        if self.duplicates is not None:
            data["duplicates"] = [duplicate.to_json() for duplicate in self.duplicates]
        return data


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """Hits, best first, how long each stage took, and how they were found."""

    hits: list[Hit]
    timings_ms: dict[str, float]
    plan: Plan = field(default_factory=list)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        return {"hits": [hit.to_json() for hit in self.hits], "timings_ms": self.timings_ms, "plan": self.plan}

    def __str__(self) -> str:
        lines = []
        for hit in self.hits:
            scores = " ".join(f"{name} {value:.3f}" for name, value in hit.scores.items())
            caption = f"  {hit.caption}" if hit.caption else ""
            lines.append(f"{hit.rank:3}  [{hit.id}] {hit.path!r}{caption}  ({scores})")
            lines += [f"     = [{duplicate.id}] {duplicate.path!r}" for duplicate in hit.duplicates or []]
        timings = ", ".join(f"{name} {value:.2f}" for name, value in self.timings_ms.items())
        notes = [f"searched wider: the query is {step['widened']}" for step in self.plan if "widened" in step]
        return "\n".join([*(lines or ["nothing found"]), *notes, f"ms: {timings}"])


class Stopwatch:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self.timings: dict[str, float] = {"encode": 0.0, "coarse": 0.0, "fine": 0.0}

    def lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage."""
        now = time.perf_counter()
        self.timings[stage] = self.timings.get(stage, 0.0) + (now - self._last) * 1000
        self._last = now

    def finish(self) -> dict[str, float]:
        """All stages, and the total since the watch was made."""
        total = (time.perf_counter() - self._started) * 1000
        return {name: round(value, 3) for name, value in {**self.timings, "total": total}.items()}


@dataclass(frozen=True)
class Options:
    """What is wanted of a search, whatever the query; see :meth:`hivlp.index.Index.search`."""

    k: int
    shortlists: Sequence[int]
    exact: bool
    where: str | None
    offset: int
    threshold: float | None
    group: bool | float
    recall: float | None = None
    tuned: bool = False  # whether the engine may choose how to look

    def __post_init__(self) -> None:
        sizes = (("shortlist", size, 1) for size in self.shortlists)
        for name, value, least in (("k", self.k, 1), ("offset", self.offset, 0), *sizes):
            if value < least:
                raise QueryError(f"{name} must be at least {least}, not {value}")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise QueryError(f"recall must be above 0 and at most 1, not {self.recall}")
        if self.threshold is not None and math.isnan(self.threshold):
            raise QueryError("threshold must be a number, not NaN")
        if not isinstance(self.group, bool) and not 0 < self.group <= 1:
            raise QueryError(f"group must be a cosine above 0 and at most 1, not {self.group}")


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


def check_vector(vectors: Mapping[str, Any], levels: Sequence[Level]) -> list[Vectors]:
    """The (dim,) unit vector of each level, coarse to fine.

    Raises:
        QueryError: if a level is missing, or its vector has the wrong length, is zero or is not finite.
    """
    checked = []
    for level in levels:
        if level.name not in vectors:
            raise QueryError(f"the query has no vector for level {level.name}")
        try:
            given = np.asarray(vectors[level.name])
            if given.dtype.kind not in "fiu":
                raise TypeError(given.dtype)
            vector = given
            if given.dtype != np.float32:
                with np.errstate(over="ignore"):
                    vector = given.astype(np.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # the last from a tensor with a gradient
            raise QueryError(f"level {level.name}: not a vector of numbers") from error
        if vector.shape == (1, level.dim):
            vector = vector[0]
        if vector.shape != (level.dim,):
            raise QueryError(f"level {level.name}: a vector of shape {vector.shape} where ({level.dim},) is needed")
        wide = vector.astype(np.float64)  # squares of float32 may not fit float32
        norm = math.sqrt(wide @ wide)
        if not math.isfinite(norm) or norm == 0:
            raise QueryError(f"level {level.name}: the vector is {'zero' if norm == 0 else 'not finite'}")
        checked.append((wide / norm).astype(np.float32))
    return checked


def _printable(path: str) -> str:
    """A name that is no text is shown escaped: a JSON response must be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
