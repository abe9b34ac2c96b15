"""Tuned index: an approximate index, and all that was learnt, measured and asked beside it, as one folder holds them."""

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
from hivlp.errors import IndexFolderError, QueryError
from hivlp.files.scratch import standing
from hivlp.index.tuning_queries import split, unit
from hivlp.levels import Vectors
from hivlp.search import truth
from hivlp.search.calibration import Progress, measure, measure_again
from hivlp.search.opened import open_ann
from hivlp.search.operating_points import FOLDER, NOTHING_KNOWN, OperatingPoint, Tuned, sample
from hivlp.search.truth import Truth
from hivlp.store.folder import Store

QUERIES = "queries.npy"


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
    def build(
        cls, rows: Rows, queries: NDArray[np.float16], source: str, recall: float, tell: Progress
    ) -> TunedIndex:
        """Train on the rows and the queries, encode the rows, and measure.

        Args:
            rows: of a commit.
            queries: (m, dim), of which :func:`hivlp.index.tuning_queries.split` leaves some to measure with.
            source: where they are from.
            recall: that searches shall reach which ask for no other.
            tell: called with the step, how much of it is done, and of how much.
        """
        held_out, known = split(floats(queries))
        index = AnnIndex.build(rows.vectors, queries=known, on_progress=tell)
        bounds, count = Bounds.build(index, known, tell), len(rows.vectors)
        tuned = Tuned(
            rows.generation, count, count, source, recall, (), (), NOTHING_KNOWN, sample(rows.vectors), count
        )
        tell("truth", 0, 1)
        answers = Truth.of(rows.vectors, held_out, rows.alive)
        tell("truth", 1, 1)
        return cls(index, bounds, queries, answers, tuned).measured(rows.alive, tell)

    def measured(self, alive: NDArray[np.bool_] | None, tell: Progress) -> TunedIndex:
        """With all search parameters measured anew, and their times."""
        found = measure(self.index, alive, self.held_out, self.truth, tell)
        frontier, ladder, likeness = found
        tuned = replace(
            self.tuned, frontier=frontier, ladder=ladder, likeness=likeness, measured_rows=self.tuned.rows
        )
        return replace(self, tuned=tuned)

    @property
    def held_out(self) -> Vectors:
        """(n, dim) unit queries that recall is measured with."""
        return floats(split(self.queries)[0])

    # With other rows.

    def taking_in(self, rows: Rows, kept: NDArray[np.int64] | None, tell: Progress) -> TunedIndex:
        """Over the rows of a later commit: codes of those that stay are kept, new ones encoded; nothing is learnt.

        Args:
            rows: of the later commit: those that stay come first.
            kept: ascending rows that stay; None if all do.
            tell: as for :meth:`build`.
        """
        first = self.index.count if kept is None else len(kept)
        index = AnnIndex.extend(self.index.arrays, rows.vectors, kept, on_progress=tell)
        bounds = None if self.bounds is None else self.bounds.extend(index, kept, tell)
        answers = self.truth.renewed(rows.vectors, self.held_out, rows.alive, first, kept)
        return TunedIndex(index, bounds, self.queries, answers, _moved(self.tuned, rows))

    @classmethod
    def encoding_again(
        cls, arrays: Arrays, tuned: Tuned, queries: NDArray[np.float16], rows: Rows, tell: Progress
    ) -> TunedIndex:
        """Over rows of which nobody knows which they were: all are encoded, with the training of before."""
        index = AnnIndex.extend(arrays, rows.vectors, np.arange(0), on_progress=tell)
        held_out, known = split(floats(queries))
        answers = Truth.of(rows.vectors, held_out, rows.alive)
        return cls(index, Bounds.build(index, known, tell), queries, answers, _moved(tuned, rows))

    def measured_again(
        self, alive: NDArray[np.bool_] | None, points: tuple[OperatingPoint, ...]
    ) -> TunedIndex:
        """With the recall of some of its operating points measured anew, and their times of before."""
        again = measure_again(self.index, alive, self.held_out, self.truth, points)
        new = {point.params: point for point in again}
        frontier = tuple(new.get(point.params, point) for point in self.tuned.frontier)
        rows = self.tuned.rows if len(points) == len(frontier) else self.tuned.measured_rows
        return replace(self, tuned=replace(self.tuned, frontier=frontier, measured_rows=rows))

    # In its folder.

    @classmethod
    def load(cls, folder: Path, rows: Rows) -> TunedIndex | None:
        """The tuned index in an index folder, as it was saved; None if it is damaged, or of other rows.

        Args:
            folder: of the index.
            rows: of a commit, of which it knows the first.
        """
        place = standing(folder / FOLDER)
        try:
            manifest, found = read_manifest(place), open_ann(folder, rows.vectors, rows.generation)
            if found is None:
                return None
            tuned, index, bounds = found
            queries = load_queries(folder, dim(rows.vectors))
            if queries is None or index.arrays.damage() is not None:
                return None
            held_out = split(queries)[0]
            answers = None
            if all(name in manifest.checks for name in truth.FILES):
                answers = Truth.load(lambda name: read_array(place, name, manifest)[1], len(held_out), index.count)
            if answers is None:
                known = slice(None, index.count)
                alive = None if rows.alive is None else rows.alive[known]
                answers = Truth.of(rows.vectors[known], floats(held_out), alive)
        except (IndexFolderError, QueryError):
            return None
        return cls(index, bounds, queries, answers, tuned)

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
    fits = queries.ndim == 2 and queries.shape[1] == width and len(queries) >= 2 and queries.dtype == np.float16
    return queries if fits else None


def floats(queries: NDArray[np.float16]) -> Vectors:
    """(n, dim) float32 unit vectors of queries as they are stored."""
    return unit(queries.astype(np.float32))


def _moved(tuned: Tuned, rows: Rows) -> Tuned:
    return replace(tuned, generation=rows.generation, rows=len(rows.vectors), sample=sample(rows.vectors))
