"""A new generation of vector files without the rows that belong to no item any more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.files.scratch import sync_folder
from hivlp.store.records import State
from hivlp.store.vectors import CHUNK, HALF, SUFFIXES, VectorFile

if TYPE_CHECKING:
    from hivlp.store.folder import IndexFolder

Progress = Callable[[int, int], None]


def compact(folder: IndexFolder, on_progress: Progress | None = None) -> int:
    """The job behind :meth:`hivlp.index.Index.compact`."""
    with folder._writer():
        with folder._changing() as state:
            damaged = folder.catalog.integrity.damaged_item()
            if damaged is not None:
                raise DamagedIndexError(f"{folder.path}: the record of item {damaged} is damaged; run `hivlp repair`")
            live = folder.catalog.live()
            freed = state.rows - len(live)
            if freed or state.dtype != HALF.str:
                rewrite(folder, state, live, on_progress)
        drop_old_files(folder, folder.catalog.state())
    return freed


def rewrite(folder: IndexFolder, state: State, live: NDArray[np.int64], on_progress: Progress | None) -> None:
    """Write a new generation of files that holds these items alone, given as (row, id), and switch to it."""
    live, ids = live.T
    generation = state.generation + 1
    for number, level in enumerate(folder.levels):
        sums = folder.catalog.integrity.checksums(level.name, state.rows)
        folder.catalog.integrity.forget_blocks(level.name)
        # Of a file that is damaged no more is asked than it must give; of a missing one, nothing.
        old = folder._file(level, state).map(int(live.max()) + 1) if len(live) else None
        new = VectorFile.of(folder.path, level, generation)
        new.path.unlink(missing_ok=True)
        new.create()
        for start in range(0, len(live), CHUNK):
            rows = live[start : start + CHUNK]
            assert old is not None
            vectors = old[rows]
            folder._check_sums(state, level, rows, vectors, sums)
            folder.catalog.integrity.add_block(level.name, start, new.write(start, vectors))
            if on_progress is not None:
                on_progress(number * len(live) + start + len(rows), len(live) * len(folder.levels))
    sync_folder(folder.path)
    folder.catalog.renumber(enumerate(ids.tolist()))
    folder.catalog.set_rows(len(live), generation, HALF.str)


def drop_old_files(folder: IndexFolder, state: State) -> None:
    """Remove the files of other generations than the one that counts."""
    for level in folder.levels:
        for suffix in SUFFIXES.values():
            for path in folder.path.glob(f"{level.name}.*.{suffix}"):
                if path != folder._file(level, state).path:
                    with suppress(OSError):
                        path.unlink()
