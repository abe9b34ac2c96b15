"""A new generation of vector files without the rows that belong to no item any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hivlp.files.scratch import sync_folder
from hivlp.store.schema import PENDING
from hivlp.store.vectors import CHUNK, Rows, vector_files
from hivlp.store.writer import Writer

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


def rewrite(writer: Writer, on_progress: Progress | None) -> int:
    """Copy the rows of all items into a new generation of vector files, and switch to it when ``writer`` commits.

    Args:
        writer: of an index of format 2 or later.
        on_progress: called with how many vectors are written, and of how many.

    Returns:
        How many rows were left out.

    Raises:
        DamagedIndexError: if a vector is not as it was written.
    """
    reader = writer.reader
    state, (live, ids) = reader.state, reader.live().T
    after = replace(state, rows=len(live), generation=state.generation + 1, dtype=state.compacted_dtype)
    levels = reader.about.levels
    files = zip(reader.files(), vector_files(reader.folder, levels, after), strict=True)
    pending = np.isin(live, reader.integrity.pending(lenient=True))
    for number, (old, new) in enumerate(files):
        new.path.unlink(missing_ok=True)
        new.create()
        # Of a file that is damaged no more is asked than it must give; of a missing one, nothing.
        stored = old.map(int(live.max()) + 1) if len(live) else None
        blocks = []
        for start in range(0, len(live), CHUNK):
            rows = live[start : start + CHUNK]
            assert stored is not None
            part = stored[rows]
            sums = reader.integrity.check(old, rows, part)
            waiting = pending[start : start + CHUNK]
            if number and waiting.any():  # what lies there means nothing
                part[waiting] = np.zeros(1, part.dtype)
            copied = Rows(new.codec, part, sums) if old.codec is new.codec else old.codec.decode(part)
            written = new.write(start, copied)
            if number:
                written[waiting] = 0
            blocks.append((start, written))
            if on_progress is not None:
                on_progress(number * len(live) + start + len(rows), len(live) * len(levels))
        writer.forget_blocks(old.level.name)
        for start, sums in blocks:
            writer.add_block(old.level.name, start, sums)
    writer.forget_blocks(PENDING)
    for start in range(0, len(live), CHUNK):
        if pending[start : start + CHUNK].any():
            writer.add_pending(start, pending[start : start + CHUNK])
    if not pending.any():
        writer.end_pending()
    sync_folder(reader.folder)
    writer.renumber(enumerate(ids.tolist()))
    writer.set_rows(after.rows, after.generation, after.dtype)
    return state.rows - after.rows
