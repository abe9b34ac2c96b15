"""Tuning: the approximate index of an index is built, measured on its own data, and kept up with its changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import native
from hivlp.ann.ann_index import ROUTER_QUERIES
from hivlp.ann.rows import dim
from hivlp.errors import IndexFolderError, QueryError
from hivlp.index.queries import QueryEncoder
from hivlp.index.tuning.queries import GIVEN, MOST_QUERIES, queries_to_learn
from hivlp.index.tuning.report import TuneReport
from hivlp.index.tuning.tuned_index import (
    LATE,
    LATE_SHARE,
    Rows,
    TunedIndex,
    calls_for_check,
    load_arrays,
    load_queries,
)
from hivlp.levels import Vectors
from hivlp.search.calibration import Progress
from hivlp.search.operating_points import DEFAULT_RECALL, Tuned
from hivlp.store.codec import FLOAT32
from hivlp.store.folder import Store
from hivlp.store.schema import CODEC_FORMAT

OUTGROWN = 50_000
"""Items of one level up to which they are ranked exactly, in some 3 ms, unless somebody tunes the index."""
LEAST_ROWS = 1000
"""Rows below which an exhaustive scan is as fast."""
LEAST_DIMS = 16
"""Dims of the vectors that an approximate index has at least."""
ROWS_A_QUERY = 100
"""Rows of a large index for each query that is learnt from: it has more lists to teach."""
QUERIES_A_ROW, LEAST_QUERIES = 2, 4_000
"""Queries a row of a small index: more would take more room beside it than its vectors."""
RELEARN = 2.0
"""Times the rows that it was trained on, from which on an approximate index is trained anew."""


class Renumbering(NamedTuple):
    """What is known of a tuned index before its rows get other numbers.

    Attributes:
        before: the tuned index.
        kept: ascending rows of it that stay; they are the first rows afterwards, in this order.
    """

    before: TunedIndex
    kept: NDArray[np.int64]


def tune(
    store: Store,
    encoder: QueryEncoder,
    queries: Path | Sequence[str] | Vectors | None = None,
    *,
    recall: float = DEFAULT_RECALL,
    on_progress: Progress | None = None,
) -> TuneReport:
    """The job behind :meth:`hivlp.index.Index.tune`."""
    tell: Progress = on_progress or _silent
    if not 0 < recall <= 1:
        raise QueryError(f"recall must be above 0 and at most 1, not {recall}")
    native.kernels()  # raises where there are none
    started = time.perf_counter()
    with store.writer():
        rows = finest(store)
        count, width = len(rows.vectors), dim(rows.vectors)
        if count < LEAST_ROWS:
            with store.reading() as reader:
                waiting = reader.pending_count()
            if waiting:
                raise IndexFolderError(
                    f"{store.path} has {waiting} pending pictures, and fewer than {LEAST_ROWS} before the first of "
                    "them: `hivlp index` completes them, and then it can be tuned"
                )
            raise IndexFolderError(
                f"{store.path} has {count} items: below {LEAST_ROWS} all are read, and there is nothing to tune"
            )
        if width < LEAST_DIMS:
            raise IndexFolderError(f"{store.path} has vectors of {width} dims: all are read, as fast as can be")
        made = _measured_again(store, rows, recall, tell) if queries is None else None
        if made is None:
            asked, source = _asked(store, encoder, queries, rows, tell)
            made = TunedIndex.build(rows, asked, source, recall, tell)
        made.save(store)
    return TuneReport.of(store.path, made.index, made.bounds, made.tuned, time.perf_counter() - started)


def _measured_again(store: Store, rows: Rows, recall: float, tell: Progress) -> TunedIndex | None:
    """A tuned index with the training, codes and truth of before; None if they do not hold any more."""
    before = Tuned.load(store.path)
    if before is None or len(rows.vectors) >= RELEARN * before.learnt_rows:
        return None
    made = _kept_up(store, before, rows, None, tell)
    if made is None:
        return None
    made = made.measured_again(rows, tell)
    if made.tuned.depths[0].point(before.recall) is None:
        return None
    return made.for_recall(recall)


def _asked(
    store: Store,
    encoder: QueryEncoder,
    given: Path | Sequence[str] | Vectors | None,
    rows: Rows,
    tell: Progress,
) -> tuple[NDArray[np.float16], str]:
    """Queries to learn and to measure with, and where they are from: given ones, now or the last time, or others."""
    count, before = len(rows.vectors), Tuned.load(store.path, older=True)
    if given is None and before is not None and before.queries in GIVEN:
        known = load_queries(store.path, dim(rows.vectors))
        if known is not None:
            return known, before.queries
    asked, source = queries_to_learn(store, encoder, given, rows.vectors, tell)
    most = max(MOST_QUERIES, min(ROUTER_QUERIES, count // ROWS_A_QUERY))
    most = min(most, max(LEAST_QUERIES, QUERIES_A_ROW * count))
    chosen = np.random.default_rng(0).permutation(len(asked))[:most]
    return asked[chosen].astype(np.float16), source


def refresh(
    store: Store,
    on_progress: Progress | None = None,
    renumbering: Renumbering | None = None,
    *,
    mend: bool = True,
) -> bool:
    """The job behind :meth:`hivlp.index.Index.refresh`.

    Args:
        store: that has changed.
        on_progress: called with the step, how much of it is done, and of how much.
        renumbering: what :func:`before_renumbering` gave, if rows have got other numbers since.
        mend: whether to see if the files are whole, where there is nothing else to do.
    """
    before = Tuned.load(store.path) or Tuned.load(store.path, older=True)
    if before is None or native.load() is None:
        return False
    tell: Progress = on_progress or _silent
    with store.writer():
        rows = finest(store)
        if len(rows.vectors) < LEAST_ROWS:
            return False
        if not _is_behind(before, rows) and not (mend and load_arrays(store.path, dim(rows.vectors)) is None):
            return False
        made = None
        if len(rows.vectors) < RELEARN * before.learnt_rows:
            made = _kept_up(store, before, rows, renumbering, tell)
        if made is None:
            queries = load_queries(store.path, dim(rows.vectors))
            if queries is None:
                return False
            made = TunedIndex.build(rows, queries, before.queries, before.recall, tell)
        made.save(store)
    return True


def tune_first(store: Store, encoder: QueryEncoder, on_progress: Progress | None = None) -> bool:
    """Tuning of an index of one level that has outgrown the exact scan and was never tuned.

    It has no coarse level that could make its searches fast, and its model's words tell what will be asked.

    Args:
        store: that has grown.
        encoder: of the queries to learn and to measure with.
        on_progress: called with the step, how much of it is done, and of how much.

    Returns:
        Whether it was tuned now.

    Raises:
        IndexFolderError: if the approximate index cannot be written.
    """
    if len(store.levels) > 1 or len(store) <= OUTGROWN or native.load() is None or Tuned.load(store.path, older=True):
        return False
    with store.reading() as reader:
        if reader.files()[-1].codec is FLOAT32 or store.levels[-1].dim < LEAST_DIMS:
            return False
    tune(store, encoder, on_progress=on_progress)
    return True


def _is_behind(before: Tuned, rows: Rows) -> bool:
    """Whether there is enough in the rows that the approximate index does not know, or it is of no use as it is."""
    count = len(rows.vectors)
    return (
        before.generation != rows.generation
        or not before.depths
        or count < before.rows
        or count - before.rows >= max(LATE, LATE_SHARE * count)
        or calls_for_check(before, rows)
    )


def before_renumbering(store: Store) -> Renumbering | None:
    """What :func:`refresh` wants to know when rows have got other numbers; None if nothing is tuned.

    For the only writer.
    """
    if Tuned.load(store.path) is None or native.load() is None:
        return None
    rows = finest(store)
    before = TunedIndex.load(store.path, rows)
    if before is None:
        return None
    known = slice(None, before.index.count)
    kept = np.arange(before.index.count) if rows.alive is None else np.flatnonzero(rows.alive[known])
    return Renumbering(before, kept)


def _kept_up(
    store: Store, tuned: Tuned, rows: Rows, renumbering: Renumbering | None, tell: Progress
) -> TunedIndex | None:
    """A tuned index over other rows, with the training of before; None if it is damaged or of an earlier format."""
    if not tuned.depths:
        return None
    width = dim(rows.vectors)
    if renumbering is not None and tuned.generation != rows.generation:
        return renumbering.before.taking_in(rows, renumbering.kept, tell)
    before = TunedIndex.load(store.path, rows)
    if before is not None:
        return before.taking_in(rows, None, tell)
    arrays, queries = load_arrays(store.path, width), load_queries(store.path, width)
    if arrays is None or queries is None or arrays.damage() is not None:
        return None
    return TunedIndex.encoding_again(arrays, tuned, queries, rows, tell)


def finest(store: Store) -> Rows:
    """Stored vectors of the finest level up to the first pending one, which are alive, and their file's generation.

    Raises:
        IndexFolderError: if no approximate index can be built over such vectors.
    """
    with store.reading() as reader:
        vectors = np.asarray(reader.vectors()[-1])
        codec = reader.files()[-1].codec
        if codec is FLOAT32 and reader.state.format < CODEC_FORMAT:
            raise IndexFolderError(f"{store.path} is of an old format: `hivlp compact` it first")
        if codec is FLOAT32:
            raise IndexFolderError(
                f"{store.path} stores float32 vectors: an approximate index re-ranks float16 or int8 ones"
            )
        alive, pending = reader.alive(), reader.integrity.pending()
        if len(pending):  # what comes behind is scanned, as all rows are that an approximate index does not know
            vectors = vectors[: pending[0]]
            alive = None if alive is None else alive[: pending[0]]
        return Rows(vectors, alive, reader.state.generation)


def _silent(what: str, done: int, total: int) -> None:
    pass
