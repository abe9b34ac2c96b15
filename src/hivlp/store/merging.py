"""Merging: the items of one index folder into another."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hivlp.errors import IndexFolderError
from hivlp.store.compacting import Progress
from hivlp.store.folder import Store
from hivlp.store.records import NewItem
from hivlp.store.vectors import CHUNK


def merge(store: Store, other: Path | str, on_progress: Progress | None = None) -> int:
    """Add another index's items, except those whose path is here already.

    The other index is read a few thousand items at a time, so that whoever writes to it meanwhile need not wait,
    be it somebody who merges this one into it.

    Args:
        store: that takes them in.
        other: the index folder that is read.
        on_progress: called with how many of its items are dealt with, and of how many.

    Returns:
        How many were added.

    Raises:
        IndexFolderError: if the other index was made with another model, or is this one.
        DamagedIndexError: if a vector or a record of the other is not as it was written.
    """
    with closing(Store(Path(other))) as source:
        if difference := store.about.difference(source.about):
            raise IndexFolderError(f"{other} {difference}: not merged into {store.path}")
        if source.path.resolve() == store.path.resolve():
            raise IndexFolderError(f"{other} is the same index")
        added = seen = last = 0
        total = len(source)
        with store.writer():
            store.respell()
            while True:
                with source.reading() as theirs:
                    chunk = list(theirs.all_items(after=last, limit=CHUNK))
                    with store.reading() as reader:
                        known = reader.at_paths([item.path for item in chunk])
                    new = [item for item in chunk if item.path not in known]
                    rows = [item.row for item in new]
                    vectors, pending = theirs.embeddings(rows, check=True, whole=False), theirs.are_pending(rows)
                if not chunk:
                    return added
                if new:
                    items = [NewItem(i.path, i.hash, i.caption, i.metadata, i.stamp) for i in new]
                    store.append(items, vectors, pending=pending)
                    if any(item.missing for item in new):
                        with store.changing() as writer:
                            writer.note_missing(True)
                added, seen, last = added + len(new), seen + len(chunk), chunk[-1].id
                if on_progress is not None:
                    on_progress(seen, max(seen, total))
