"""What an index folder's engine was built for, and what it is known to do: the manifest's part of ``hivlp tune``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.ann import Setting
from hivlp.ann.manifest import Manifest, Number, read_manifest, read_numbers
from hivlp.errors import IndexFolderError
from hivlp.files import npy
from hivlp.files.scratch import standing
from hivlp.search.likeness import Likeness
from hivlp.store.codec import Stored
from hivlp.store.folder import ENGINE

FOLDER = ENGINE
NOTHING_KNOWN = Likeness(math.inf, math.inf, (1.0,), (-math.inf,), ())
# What may stand in a manifest.
SETTING = {
    "lists": Number(0, 1 << 31, whole=True),
    "margin": Number(0, 1e6, absent=math.inf),
    "slack": Number(-1e6, 1e6),
    "last": Number(1, 1 << 31, whole=True),
    "tolerance": Number(0, 1e6, absent=math.inf),
}
MEASURED = {"recall": Number(0, 1), "at_least": Number(-10, 1), "p50_ms": Number(0, 1e9), "p99_ms": Number(0, 1e9)}
KNOWN = {
    "generation": Number(0, 1 << 62, whole=True),
    "rows": Number(1, 1 << 31, whole=True),
    "learnt_rows": Number(1, 1 << 31, whole=True),
    "recall": Number(0, 1),
    "sample": Number(0, (1 << 32) - 1, whole=True, absent=-1),
}
SUMMED = 64  # rows whose sum tells whether an engine is of these vectors
MOST_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    """One setting, measured.

    Attributes:
        setting: what was measured.
        recall: mean share of the exact ten best that it finds.
        at_least: lower end of that mean's 95% confidence (one-sided, over the held-out queries).
        p50_ms: median time of one search on one thread.
        p99_ms: 99th percentile.
    """

    setting: Setting
    recall: float
    at_least: float
    p50_ms: float
    p99_ms: float

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        numbers = {name: round(getattr(self, name), 4) for name in ("recall", "at_least", "p50_ms", "p99_ms")}
        return {**setting_to_json(self.setting), **numbers}

    @classmethod
    def of_json(cls, data: Any) -> Point:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: if a number is missing, or is none that it can be.
        """
        return cls(setting_of_json(data), **read_numbers(data, MEASURED))


def setting_to_json(setting: Setting) -> dict[str, Any]:
    """Infinite numbers become None, which JSON has."""
    return {name: None if value == math.inf else value for name, value in asdict(setting).items()}


def setting_of_json(data: Any) -> Setting:
    """The inverse of :func:`setting_to_json`.

    Raises:
        ValueError: likewise.
    """
    return Setting(**read_numbers(data, SETTING))


@dataclass(frozen=True)
class Tuned:
    """What an index folder's engine was built for, and what it is known to do.

    Attributes:
        generation: of the vector files.
        rows: that it knows.
        learnt_rows: that there were when it learnt.
        queries: where these were from.
        recall: what searches shall find that ask for nothing else.
        frontier: the settings worth using, fastest first.
        sample: :func:`sample` of the vectors; -1 if that was not noted.
    """

    generation: int
    rows: int
    learnt_rows: int
    queries: str
    recall: float
    frontier: tuple[Point, ...]
    ladder: tuple[Setting, ...]
    likeness: Likeness
    sample: int = -1

    def widened(self, region: int, recall: float, setting: Setting) -> Setting | None:
        """What to search with in a region of queries where ``setting`` may find less than ``recall``.

        Returns:
            ``setting`` itself where it finds enough, or one that finds more; None where only reading everything does.
        """
        place = self.likeness.setting(region, recall)
        if place is None:
            return None
        return self.ladder[max(place, self.ladder.index(setting))]

    def setting(self, recall: float) -> Setting | None:
        """The fastest setting that finds so much at least, with 95% confidence; None if none is known to."""
        good = [point for point in self.frontier if point.at_least >= recall]
        return min(good, key=lambda point: point.p50_ms).setting if good else None

    @classmethod
    def load(cls, folder: Path, *, older: bool = False) -> Tuned | None:
        """Of an index folder; None if it has no engine, or one that cannot be read, or is of an earlier format.

        Args:
            folder: of the index.
            older: whether one of an earlier format will do, without what it was measured to do.
        """
        try:
            return cls.of_manifest(read_manifest(standing(folder / FOLDER), older=older), older=older)
        except (IndexFolderError, ValueError):
            return None

    @classmethod
    def of_manifest(cls, manifest: Manifest, *, older: bool = False) -> Tuned:
        """The inverse of :meth:`to_json`.

        Args:
            manifest: of the engine.
            older: whether to do without what it was measured to do.

        Raises:
            ValueError: saying what is missing, or is not what it can be.
        """
        about = manifest.about
        points, queries = about.get("frontier"), about.get("queries")
        if not isinstance(points, list) or len(points) > MOST_POINTS or not isinstance(queries, str):
            raise ValueError("it does not say what was measured")
        known = read_numbers({"sample": None, **about}, KNOWN)
        if older:
            return cls(**known, queries=queries, frontier=(), ladder=(), likeness=NOTHING_KNOWN)
        frontier, likeness = tuple(Point.of_json(point) for point in points), Likeness.of_json(about.get("likeness"))
        thorough = about.get("thorough")
        if not isinstance(thorough, list) or len(thorough) > MOST_POINTS:
            raise ValueError("it does not say what to do with other queries")
        ladder = (*(point.setting for point in frontier), *map(setting_of_json, thorough))
        if any(len(region.recalls) != len(ladder) for region in likeness.regions):
            raise ValueError("what was measured with other queries is not of these settings")
        return cls(**known, queries=queries, frontier=frontier, ladder=ladder, likeness=likeness)

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        names = ("generation", "rows", "learnt_rows", "queries", "recall")
        return {
            **{name: getattr(self, name) for name in names},
            "sample": None if self.sample < 0 else self.sample,
            "frontier": [point.to_json() for point in self.frontier],
            "thorough": [setting_to_json(each) for each in self.ladder[len(self.frontier) :]],
            "likeness": self.likeness.to_json(),
        }


def sample(vectors: Stored) -> int:
    """CRC-32 of some rows, evenly spaced: another one if the vectors are others."""
    some = np.linspace(0, len(vectors) - 1, min(len(vectors), SUMMED)).astype(np.int64)
    return npy.checksum(np.ascontiguousarray(vectors[some]).tobytes())
