"""Tuned index: an approximate index, and all that was learnt, measured and asked beside it, in one folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import AnnIndex
from hivlp.ann.arrays import Arrays, read_array
from hivlp.ann.bounds import Bounds
from hivlp.ann.manifest import read_manifest
from hivlp.ann.rows import Stored, dim
from hivlp.errors import IndexFolderError
from hivlp.files.scratch import standing
from hivlp.index.tuning.queries import split, unit
from hivlp.levels import Vectors
from hivlp.search import truth
from hivlp.search.calibration import Progress, check, measure
from hivlp.search.opened import open_ann
from hivlp.search.operating_points import FOLDER, Tuned, sample
from hivlp.search.truth import Truth
from hivlp.store.folder import Store

QUERIES = "queries.npy"
LATE, LATE_SHARE = 256, 1 / 500
"""Rows behind the inverted lists, which every search scans, or share of all rows: from so many on they are taken in."""
CHECKED_SHARE = 0.02
"""Share of the rows that come or go before recall is checked, if that is more than :data:`LATE`."""


class Rows(NamedTuple):
    """Rows of a commit.

    Attributes:
        vectors: as stored, of the finest level.
        alive: (rows,) bool, False for tombstones; None without any.
        generation: of the vector files.
    """

    vectors: Stored
    alive: NDArray[np.bool_] | None
    generation: int

    @property
    def dead(self) -> int:
        """Number of tombstones."""
        return 0 if self.alive is None else len(self.alive) - int(np.count_nonzero(self.alive))


@dataclass(frozen=True)
class TunedIndex:
    """Approximate index of the rows of a commit, and what belongs to it.

    Attributes:
        index: over all of the rows.
        bounds: for exact answers; None where there are none.
        queries: (m, dim) float16, that it was tuned with.
        truth: exact neighbours of those that it is measured with.
        tuned: its operating points.
    """

    index: AnnIndex
    bounds: Bounds | None
    queries: NDArray[np.float16]
    truth: Truth
    tuned: Tuned

    @classmethod
    def of(
        cls,
        index: AnnIndex,
        bounds: Bounds | None,
        queries: NDArray[np.float16],
        tuned: Tuned,
        alive: NDArray[np.bool_] | None = None,
    ) -> TunedIndex:
        """With the truth that a scan finds; ``alive`` is (rows,) bool, False for tombstones, None without any."""
        rows = index.vectors[: index.count]
        answers = Truth.of(rows, _split(queries)[0], None if alive is None else alive[: index.count])
        return cls(index, bounds, queries, answers, tuned)

    @classmethod
    def build(cls, rows: Rows, queries: NDArray[np.float16], source: str, recall: float, tell: Progress) -> TunedIndex:
        """Train on the rows and the queries, encode the rows, and measure.

        Args:
            rows: of a commit.
            queries: (m, dim), of which :func:`hivlp.index.tuning.queries.split` leaves some to measure with.
            source: where they are from.
            recall: that searches shall reach which ask for no other.
            tell: called with the step, how much of it is done, and of how much.
        """
        known, count = _split(queries)[1], len(rows.vectors)
        index = AnnIndex.build(rows.vectors, queries=known, on_progress=tell)
        bounds = Bounds.build(index, known, tell)
        tell("truth", 0, 1)
        tuned = _checked(_moved(Tuned(rows.generation, count, count, source, recall, ()), rows), rows)
        made = cls.of(index, bounds, queries, tuned, rows.alive)
        tell("truth", 1, 1)
        return made.measured(rows.alive, tell)

    def measured(self, alive: NDArray[np.bool_] | None, tell: Progress) -> TunedIndex:
        """With all search parameters measured anew, and their times."""
        depths = measure(self.index, alive, _split(self.queries)[0], self.truth, tell)
        return replace(self, tuned=replace(self.tuned, depths=depths, falls_short=False))

    def measured_again(self, rows: Rows, tell: Progress) -> TunedIndex:
        """With the truth of now, and all search parameters measured anew."""
        answers = self.truth.renewed(rows.vectors, _split(self.queries)[0], rows.alive, self.tuned.checked_rows)
        return replace(self, truth=answers, tuned=_checked(self.tuned, rows)).measured(rows.alive, tell)

    def for_recall(self, recall: float) -> TunedIndex:
        """For searches that ask for no other recall than this one."""
        return replace(self, tuned=replace(self.tuned, recall=recall))

    def taking_in(self, rows: Rows, kept: NDArray[np.int64] | None, tell: Progress) -> TunedIndex:
        """Over the rows of a later commit: codes of those that stay are kept, new ones encoded; nothing is learnt.

        Recall is checked where that many rows have come or gone since it was last (:data:`CHECKED_SHARE`).

        Args:
            rows: of the later commit: those that stay come first.
            kept: ascending rows that stay; None if all do.
            tell: as for :meth:`build`.
        """
        index = AnnIndex.extend(self.index.arrays, rows.vectors, kept, on_progress=tell)
        bounds = None if self.bounds is None else self.bounds.extend(index, kept, tell)
        made = replace(self, index=index, bounds=bounds, tuned=_moved(self.tuned, rows))
        return made.checked(rows, kept) if kept is not None or calls_for_check(self.tuned, rows) else made

    def checked(self, rows: Rows, kept: NDArray[np.int64] | None = None) -> TunedIndex:
        """With the truth of now, and the recall that those operating points have which searches use.

        Args:
            rows: that the index is over.
            kept: ascending rows of before that stay; None if all do.
        """
        first, held_out = self.tuned.checked_rows, _split(self.queries)[0]
        if kept is not None:
            kept = kept[: np.searchsorted(kept, first)]
            first = len(kept)
        answers = self.truth.renewed(rows.vectors, held_out, rows.alive, first, kept)
        depths = check(self.index, rows.alive, held_out, answers, self.tuned.depths, self.tuned.recall)
        lost = depths[0].point(self.tuned.recall) is None and self.tuned.depths[0].point(self.tuned.recall) is not None
        tuned = replace(_checked(self.tuned, rows), depths=depths, falls_short=self.tuned.falls_short or lost)
        return replace(self, truth=answers, tuned=tuned)

    @classmethod
    def encoding_again(
        cls, arrays: Arrays, tuned: Tuned, queries: NDArray[np.float16], rows: Rows, tell: Progress
    ) -> TunedIndex:
        """Over rows of which nobody knows which they were: all are encoded, with the training of before."""
        index = AnnIndex.extend(arrays, rows.vectors, np.arange(0), on_progress=tell)
        bounds = Bounds.build(index, _split(queries)[1], tell)
        return cls.of(index, bounds, queries, _checked(_moved(tuned, rows), rows), rows.alive).checked(rows)

    @classmethod
    def load(cls, folder: Path, rows: Rows) -> TunedIndex | None:
        """The tuned index in an index folder, as it was saved; None if it is damaged, or of other rows.

        Args:
            folder: of the index.
            rows: of a commit, of which it knows the first.
        """
        place = standing(folder / FOLDER)
        try:
            found = open_ann(folder, rows.vectors, rows.generation)
            queries = load_queries(folder, dim(rows.vectors))
            if found is None or queries is None or found[1].arrays.damage() is not None:
                return None
            tuned, index, bounds = found
            manifest = read_manifest(place)
            if tuned.checked_rows > index.count or not all(name in manifest.checks for name in truth.FILES):
                return None
            answers = Truth.load(
                lambda name: read_array(place, name, manifest)[1], len(split(queries)[0]), tuned.checked_rows
            )
        except IndexFolderError:
            return None
        return None if answers is None else cls(index, bounds, queries, answers, tuned)

    def save(self, store: Store) -> None:
        """Put it into its folder, whole or not at all.

        Raises:
            IndexFolderError: if it cannot be written.
        """
        bounds = {} if self.bounds is None else self.bounds.files()
        place = store.path / FOLDER
        try:
            self.index.save(place, self.tuned.to_json(), {QUERIES: self.queries, **bounds, **self.truth.files()})
        except OSError as error:
            raise IndexFolderError(f"{place} cannot be written: {error.strerror}") from error


def load_queries(folder: Path, width: int) -> NDArray[np.float16] | None:
    """(m, width) queries that an approximate index was tuned with; None if they are damaged or missing."""
    place = standing(folder / FOLDER)
    try:
        queries = read_array(place, QUERIES, read_manifest(place, older=True))[1]
    except IndexFolderError:
        return None
    if queries.ndim != 2 or queries.shape[1] != width or len(queries) < 2 or queries.dtype != np.float16:
        return None
    return queries if np.isfinite(queries).all() and queries.any(axis=1).all() else None


def load_arrays(folder: Path, width: int) -> Arrays | None:
    """Arrays of an approximate index of vectors of so many dims, whichever they are; None if they cannot be opened."""
    try:
        arrays = Arrays.load(standing(folder / FOLDER))
    except IndexFolderError:
        return None
    return arrays if len(arrays.mean) == width else None


def _split(queries: NDArray[np.float16]) -> tuple[Vectors, Vectors]:
    """float32 unit vectors of the queries to measure with, and of those to learn from."""
    held_out, known = split(queries)
    return unit(held_out.astype(np.float32)), unit(known.astype(np.float32))


def _moved(tuned: Tuned, rows: Rows) -> Tuned:
    return replace(tuned, generation=rows.generation, rows=len(rows.vectors), sample=sample(rows.vectors))


def _checked(tuned: Tuned, rows: Rows) -> Tuned:
    return replace(tuned, checked_rows=len(rows.vectors), checked_dead=rows.dead)


def calls_for_check(tuned: Tuned, rows: Rows) -> bool:
    """Whether so many rows have come or gone since recall was last checked that it may be another one."""
    changed = len(rows.vectors) - tuned.checked_rows + abs(rows.dead - tuned.checked_dead)
    return changed >= max(LATE, CHECKED_SHARE * len(rows.vectors))
