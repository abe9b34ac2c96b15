"""Operating points: what an index folder's approximate index was measured to find, and at what cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.ann import SearchParams
from hivlp.ann.manifest import Manifest, Number, read_manifest, read_numbers
from hivlp.ann.rows import Stored
from hivlp.errors import IndexFolderError
from hivlp.files import npy
from hivlp.files.scratch import standing
from hivlp.search.likeness import K, Likeness
from hivlp.store.folder import ENGINE

FOLDER = ENGINE
# What may stand in a manifest.
PARAMS = {
    "nprobe": Number(1, 1 << 31, whole=True),
    "margin": Number(0, 1e6, absent=math.inf),
    "slack": Number(-1e6, 1e6, absent=math.inf),
    "rerank": Number(1, 1 << 31, whole=True),
    "tolerance": Number(0, 1e6, absent=math.inf),
}
MEASURED = {"recall": Number(0, 1), "at_least": Number(-10, 1), "p50_ms": Number(0, 1e9), "p99_ms": Number(0, 1e9)}
RANKS = {"ranks": Number(K, 1 << 31, whole=True)}
KNOWN = {
    "generation": Number(0, 1 << 62, whole=True),
    "rows": Number(1, 1 << 31, whole=True),
    "learnt_rows": Number(1, 1 << 31, whole=True),
    "checked_rows": Number(0, 1 << 31, whole=True),
    "checked_dead": Number(0, 1 << 31, whole=True),
    "recall": Number(0, 1),
    "sample": Number(0, (1 << 32) - 1, whole=True, absent=-1),
}
NOT_NOTED = {"sample": None, "checked_rows": 0, "checked_dead": 0}
SUMMED = 64  # rows whose checksum tells whether an approximate index is of these vectors
MOST_POINTS = 10_000
MOST_DEPTHS = 100


@dataclass(frozen=True)
class OperatingPoint:
    """Search parameters, and what they were measured to find and to cost.

    Attributes:
        params: search parameters.
        recall: mean share of the exact ten best that it finds.
        at_least: lower end of that mean's 95% confidence (one-sided, over the held-out queries).
        p50_ms: median time of one search on one thread, in milliseconds.
        p99_ms: 99th percentile of it.
    """

    params: SearchParams
    recall: float
    at_least: float
    p50_ms: float
    p99_ms: float

    def shifted(self, change: float) -> OperatingPoint:
        """The same search parameters, where they find so much more."""
        recall = min(max(self.recall + change, 0.0), 1.0)
        return replace(self, recall=recall, at_least=min(self.at_least + change, recall))

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        numbers = {name: round(getattr(self, name), 4) for name in ("recall", "at_least", "p50_ms", "p99_ms")}
        return {**params_to_json(self.params), **numbers}

    @classmethod
    def of_json(cls, data: Any) -> OperatingPoint:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: if a number is missing, or out of its range.
        """
        return cls(params_of_json(data), **read_numbers(data, MEASURED))


def params_to_json(params: SearchParams) -> dict[str, Any]:
    """Infinite numbers become None, which JSON has."""
    return {name: None if value == math.inf else value for name, value in asdict(params).items()}


def params_of_json(data: Any) -> SearchParams:
    """The inverse of :func:`params_to_json`.

    Raises:
        ValueError: if a number is missing, or out of its range.
    """
    return SearchParams(**read_numbers(data, PARAMS))


@dataclass(frozen=True)
class Depth:
    """What search parameters find and cost where so many ranks are wanted.

    Attributes:
        ranks: hits wanted, of which the recall is.
        frontier: operating points worth using, fastest first.
        ladder: search parameters of these, and more thorough ones for queries of other kinds.
        likeness: what the scores of the measured queries look like, and what the ladder finds for others.
    """

    ranks: int
    frontier: tuple[OperatingPoint, ...]
    ladder: tuple[SearchParams, ...]
    likeness: Likeness

    def widened(self, region: int, recall: float, params: SearchParams) -> SearchParams | None:
        """Search parameters that find enough in a region of queries where ``params`` may find less than ``recall``.

        Returns:
            ``params`` themselves where they find enough, or more thorough ones; None where only an exact search does.
        """
        place = self.likeness.rung(region, recall)
        return None if place is None else self.ladder[max(place, self.ladder.index(params))]

    def point(self, recall: float) -> OperatingPoint | None:
        """The fastest operating point that finds so much at least, with 95% confidence; None if none is known to."""
        good = [point for point in self.frontier if point.at_least >= recall]
        return min(good, key=lambda point: point.p50_ms) if good else None

    def params(self, recall: float) -> SearchParams | None:
        """Search parameters of :meth:`point`."""
        point = self.point(recall)
        return None if point is None else point.params

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        return {
            "ranks": self.ranks,
            "frontier": [point.to_json() for point in self.frontier],
            "thorough": [params_to_json(each) for each in self.ladder[len(self.frontier) :]],
            "likeness": self.likeness.to_json(),
        }

    @classmethod
    def of_json(cls, data: Any) -> Depth:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: saying what is missing, or is not what it can be.
        """
        known = data if isinstance(data, dict) else {}
        points, thorough = known.get("frontier"), known.get("thorough")
        if not isinstance(points, list) or len(points) > MOST_POINTS:
            raise ValueError("it does not say what was measured")
        if not isinstance(thorough, list) or len(thorough) > MOST_POINTS:
            raise ValueError("it does not say what to do with other queries")
        ranks = int(read_numbers(known, RANKS)["ranks"])
        frontier, likeness = tuple(map(OperatingPoint.of_json, points)), Likeness.of_json(known.get("likeness"))
        ladder = (*(point.params for point in frontier), *map(params_of_json, thorough))
        if any(len(region.recalls) != len(ladder) for region in likeness.regions):
            raise ValueError("what was measured with other queries is not of these search parameters")
        return cls(ranks, frontier, ladder, likeness)


@dataclass(frozen=True)
class Tuned:
    """Operating points of an approximate index, and what they were measured with.

    Attributes:
        generation: of the vector files.
        rows: that the approximate index knows.
        learnt_rows: that there were when it was trained.
        queries: where the queries came from that it was trained and measured with.
        recall: that searches shall have which ask for no other.
        depths: what was measured, for few ranks first.
        sample: :func:`sample` of the vectors; -1 if that was not noted.
        checked_rows: that there were when the operating points which searches use were last measured.
        checked_dead: tombstones among these.
        falls_short: whether additions or removals have left no search parameters that are known to find ``recall``.
    """

    generation: int
    rows: int
    learnt_rows: int
    queries: str
    recall: float
    depths: tuple[Depth, ...]
    sample: int = -1
    checked_rows: int = 0
    checked_dead: int = 0
    falls_short: bool = False

    @classmethod
    def load(cls, folder: Path, *, older: bool = False) -> Tuned | None:
        """Operating points of an index folder; None without an approximate index that can be read, of this format.

        Args:
            folder: of the index.
            older: whether an earlier format will do, of which no operating points are read.
        """
        try:
            return cls.of_manifest(read_manifest(standing(folder / FOLDER), older=older), older=older)
        except (IndexFolderError, ValueError):
            return None

    @classmethod
    def of_manifest(cls, manifest: Manifest, *, older: bool = False) -> Tuned:
        """The inverse of :meth:`to_json`.

        Args:
            manifest: of the approximate index.
            older: whether to read no operating points.

        Raises:
            ValueError: saying what is missing, or is not what it can be.
        """
        about = manifest.about
        depths, queries = about.get("depths"), about.get("queries")
        known = read_numbers({**NOT_NOTED, **about}, KNOWN)
        known["falls_short"] = about.get("falls_short") is True
        if not isinstance(queries, str):
            raise ValueError("it does not say what was measured")
        if older:
            return cls(**known, queries=queries, depths=())
        if not isinstance(depths, list) or not 1 <= len(depths) <= MOST_DEPTHS:
            raise ValueError("it does not say what was measured")
        found = tuple(map(Depth.of_json, depths))
        if any(one.ranks >= other.ranks for one, other in pairwise(found)):
            raise ValueError("the ranks that were measured are out of order")
        return cls(**known, queries=queries, depths=found)

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        return {
            **{name: getattr(self, name) for name in ("queries", "falls_short", *KNOWN)},
            "sample": None if self.sample < 0 else self.sample,
            "depths": [depth.to_json() for depth in self.depths],
        }


def sample(vectors: Stored) -> int:
    """CRC-32 of some rows, evenly spaced: another one if the vectors are others."""
    some = np.linspace(0, len(vectors) - 1, min(len(vectors), SUMMED)).astype(np.int64)
    return npy.checksum(np.ascontiguousarray(vectors[some]).tobytes())
