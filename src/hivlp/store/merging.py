"""One index's items added to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hivlp.encode.stream import chunks
from hivlp.errors import IndexFolderError
from hivlp.store.compacting import Progress
from hivlp.store.records import Item, NewItem
from hivlp.store.vectors import CHUNK

if TYPE_CHECKING:
    from hivlp.store.folder import IndexFolder


def merge(folder: IndexFolder, source: IndexFolder, name: Path | str, on_progress: Progress | None = None) -> int:
    """The job behind :meth:`hivlp.index.Index.merge`; ``name`` is what the caller calls the source."""
    mine, theirs = folder.catalog.about, source.catalog.about
    if (mine.fingerprint, mine.levels) != (theirs.fingerprint, theirs.levels):
        raise IndexFolderError(f"{name} was made with {theirs.model}, {folder.path} with {mine.model}: not merged")
    if source.path.resolve() == folder.path.resolve():
        raise IndexFolderError(f"{name} is the same index")
    added = seen = 0
    with folder._writer(), source.catalog.reading() as state:
        source._refresh(state)
        total = source.catalog.count()
        sums = {level.name: source.catalog.integrity.checksums(level.name, state.rows) for level in folder.levels}
        for chunk in chunks(source.catalog.all_items(), CHUNK):
            new = [item for item in chunk if folder.catalog.at(item.path) is None]
            if new:
                rows = np.array([item.row for item in new])
                for level, part in zip(source.levels, source._maps, strict=True):
                    source._check_sums(state, level, rows, part[rows], sums[level.name])
                folder.append([_copy(item) for item in new], source._rows(rows))
                added += len(new)
            seen += len(chunk)
            if on_progress is not None:
                on_progress(seen, total)
    return added


def _copy(item: Item) -> NewItem:
    return NewItem(item.path, item.hash, item.caption, item.metadata, item.stamp)
