"""From given vectors to items: what is new or changed gets a coarse level, and is committed a batch at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hivlp.data.embeddings import Chunk, EmbeddingSource, unit_rows
from hivlp.errors import DataError
from hivlp.fit.maps import CoarseMaps
from hivlp.index.adding import AddReport, Failure, stored_path
from hivlp.index.catalog import NewItem, Stamp

if TYPE_CHECKING:
    from hivlp.index.index import Index


def add_vectors(
    index: Index,
    maps: CoarseMaps,
    source: EmbeddingSource,
    *,
    on_progress: Callable[[AddReport], None] | None = None,
) -> AddReport:
    """The job behind :meth:`hivlp.index.Index.add_embeddings`.

    A row is known by its path, or else by its file and number, and its content by the SHA-256 of its bytes as stored.
    Rows that are no vectors, and rows whose path another row of this run has with other content, are reported as
    failed.
    """
    started = time.perf_counter()
    width = maps.item.shape[1]
    if source.dim != width:
        raise DataError(f"vectors of {source.dim} dims for an index of {width}: they must come from the same model")
    report = AddReport()
    checked = time.time_ns()
    for chunk in source.chunks():
        _add_chunk(index, maps, chunk, checked, report)
        if on_progress is not None:
            on_progress(report)
    report.items = len(index)
    report.seconds = time.perf_counter() - started
    return report


def _add_chunk(index: Index, maps: CoarseMaps, chunk: Chunk, checked: int, report: AddReport) -> None:
    file = stored_path(chunk.file)
    # The time of this run, not of this row: an item with it was stored by a row of this same run.
    stamp = replace(Stamp.of(chunk.file.stat()), checked=checked)
    vectors, refused = unit_rows(chunk.vectors)
    refused.update(chunk.refused)
    paths = [told.path or f"{file}#{chunk.first + row}" for row, told in enumerate(chunk.told)]
    stored = index.catalog.at_paths(paths)
    new: dict[str, tuple[int, NewItem]] = {}

    def fail(row: int, why: str) -> None:
        report.failed.append(Failure(paths[row], f"{chunk.file}, row {chunk.first + row}: {why}"))

    for row, (path, told, raw) in enumerate(zip(paths, chunk.told, np.ascontiguousarray(chunk.vectors), strict=True)):
        if row in refused:
            fail(row, refused[row])
            continue
        content = hashlib.sha256(raw).digest()
        item = NewItem(path, content, told.caption, told.metadata, stamp)
        before = stored.get(path)
        twin = new[path][1] if path in new else before if before and before.stamp.checked == checked else None
        if twin is not None and twin.hash != content:
            fail(row, "another row has the same path and another vector")
        elif twin is not None or (
            before is not None
            and (before.hash, before.caption, before.metadata) == (content, told.caption, told.metadata)
        ):
            report.skipped += 1
        else:
            new[path] = row, item
    if new:
        rows, items = zip(*new.values(), strict=True)
        updated = index.append(items, maps.of_items(vectors[list(rows)]))
        report.updated += updated
        report.added += len(items) - updated
