"""The cascade: the coarse level scans everything, each finer level decides among the few that remain."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import QueryError
from hivlp.index.scan import Rows, Scanner
from hivlp.levels import Level, Vectors

DEFAULT_SHORTLIST = 200


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
    """

    rank: int
    id: int
    path: str
    caption: str | None
    scores: dict[str, float]
    metadata: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        # A name that is no text is shown escaped: a JSON response must be UTF-8.
        path = os.fsencode(self.path).decode("utf-8", "backslashreplace")
        return {"rank": self.rank, "id": self.id, "path": path, "caption": self.caption, "scores": self.scores}


@dataclass(frozen=True)
class SearchResult(Sequence[Hit]):
    """Hits, best first, and how long each stage took."""

    hits: list[Hit]
    timings_ms: dict[str, float]

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp search --json`` prints."""
        return {"hits": [hit.to_json() for hit in self.hits], "timings_ms": self.timings_ms}

    def __str__(self) -> str:
        lines = []
        for hit in self.hits:
            scores = " ".join(f"{name} {value:.3f}" for name, value in hit.scores.items())
            caption = f"  {hit.caption}" if hit.caption else ""
            lines.append(f"{hit.rank:3}  [{hit.id}] {hit.path!r}{caption}  ({scores})")
        timings = ", ".join(f"{name} {value:.2f}" for name, value in self.timings_ms.items())
        return "\n".join([*(lines or ["nothing found"]), f"ms: {timings}"])


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


def cascade(
    scanners: Sequence[Scanner],
    query: Sequence[Vectors],
    allowed: NDArray[np.bool_] | None,
    *,
    first: int,
    count: int,
    shortlists: Sequence[int],
    watch: Stopwatch,
) -> Rows:
    """Rows ``first`` to ``first + count`` of the cascade's ranking.

    The coarsest level ranks everything; its best ``shortlists[0]`` rows go to the next level, whose best
    ``shortlists[1]`` go to the next, until the finest level orders what is left. What a level drops keeps its place
    behind what it kept, and the next ``shortlists[0]`` rows of the coarse ranking follow in the same manner: the
    ranking has no end but the collection's, and pages of it fit together.

    Args:
        scanners: one a level, coarse to fine.
        query: (dim,) a level.
        allowed: (rows,) bool, or None for all.
        first: rows to skip.
        count: rows wanted.
        shortlists: what each level but the finest hands on; raised to ``count``, so that one page is in order.
        watch: charged ``coarse`` and ``fine``.
    """
    if len(scanners) == 1:
        rows, _ = scanners[0].top(query[0], first + count, allowed)
        watch.lap("coarse")
        return rows[first : first + count]
    shortlists = [max(shortlist, count) for shortlist in shortlists]
    block = shortlists[0]
    block_first = first // block * block
    block_last = -(-(first + count) // block) * block
    coarse, _ = scanners[0].top(query[0], block_last, allowed)
    watch.lap("coarse")
    ordered = [
        _funnel(scanners[1:], query[1:], shortlists[1:], coarse[start : start + block])
        for start in range(block_first, len(coarse), block)
    ]
    watch.lap("fine")
    if not ordered:
        return np.empty(0, np.int64)
    return np.concatenate(ordered)[first - block_first : first - block_first + count]


def _funnel(scanners: Sequence[Scanner], query: Sequence[Vectors], shortlists: Sequence[int], rows: Rows) -> Rows:
    """Order one block by ever finer levels, each looking at no more rows than the one before."""
    dropped: list[Rows] = []
    for position, (scanner, vector) in enumerate(zip(scanners, query, strict=True)):
        finest = position == len(scanners) - 1
        if not finest and len(rows) <= shortlists[position]:
            continue  # nothing to drop: the finest level will order them anyway
        scores = scanner.rescore(vector, rows)
        rows = rows[np.lexsort((rows, -scores))]
        if not finest:
            dropped.insert(0, rows[shortlists[position] :])
            rows = rows[: shortlists[position]]
    return np.concatenate([rows, *dropped])


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
            vector = np.asarray(vectors[level.name], np.float32)
        except (TypeError, ValueError) as error:
            raise QueryError(f"level {level.name}: not a vector of numbers") from error
        if vector.shape == (1, level.dim):
            vector = vector[0]
        if vector.shape != (level.dim,):
            raise QueryError(f"level {level.name}: a vector of shape {vector.shape} where ({level.dim},) is needed")
        norm = float(np.linalg.norm(vector.astype(np.float64)))  # squares of float32 may not fit float32
        if not np.isfinite(norm) or norm == 0:
            raise QueryError(f"level {level.name}: the vector is {'zero' if norm == 0 else 'not finite'}")
        checked.append((vector.astype(np.float64) / norm).astype(np.float32))
    return checked
