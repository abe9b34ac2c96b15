"""From given vectors to items: what is new or changed is committed with its coarse level, a batch at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from hivlp.data.embeddings import Chunk, EmbeddingSource, unit_rows
from hivlp.errors import DataError
from hivlp.fit.maps import CoarseMaps
from hivlp.index.adding import AddReport, Failure, stored_path
from hivlp.index.records import NewItem, Stamp
from hivlp.index.vectors import PIECE
from hivlp.levels import Embeddings, Vectors

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
    for batch in _read_ahead(source, maps):
        _add_batch(index, batch, checked, report)
        if on_progress is not None:
            on_progress(report)
    report.items = len(index)
    report.seconds = time.perf_counter() - started
    return report


@dataclass(frozen=True)
class _Batch:
    """A chunk of the source with all that does not depend on the index: both levels, hashes, and refused rows."""

    chunk: Chunk
    embeddings: Embeddings
    hashes: list[bytes]
    refused: dict[int, str]


def _read_ahead(source: EmbeddingSource, maps: CoarseMaps) -> Iterator[_Batch]:
    """One batch is read, hashed and mapped on another core while the one before is being stored.

    A batch's vectors are good until the next one is asked for.
    """
    chunks = source.chunks()
    # The system clears memory before it gives it: two arrays in turn are a seventh faster than a new one for each.
    arrays: list[Vectors] = [np.empty((0, source.dim), np.float32)] * 2

    def prepare() -> _Batch | None:
        chunk = next(chunks, None)
        if chunk is None:
            return None
        arrays.reverse()
        if len(arrays[0]) < len(chunk.vectors):
            arrays[0] = np.empty(chunk.vectors.shape, np.float32)
        vectors = arrays[0][: len(chunk.vectors)]
        hashes: list[bytes] = []
        refused: dict[int, str] = {}
        for start in range(0, len(vectors), PIECE):
            raw = np.ascontiguousarray(chunk.vectors[start : start + PIECE])
            hashes += [hashlib.sha256(row).digest() for row in raw]
            _, wrong = unit_rows(raw, vectors[start : start + PIECE])
            refused.update({start + row: why for row, why in wrong.items()})
        return _Batch(chunk, maps.of_items(vectors), hashes, {**refused, **chunk.refused})

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(prepare)
            yield batch


def _add_batch(index: Index, batch: _Batch, checked: int, report: AddReport) -> None:
    chunk = batch.chunk
    file = stored_path(chunk.file)
    # The time of this run, not of this row: an item with it was stored by a row of this same run.
    stamp = Stamp.of(chunk.file.stat())._replace(checked=checked)
    paths = [told.path or f"{file}#{chunk.first + row}" for row, told in enumerate(chunk.told)]
    stored = index.catalog.at_paths(paths)
    if not stored and not batch.refused and len(set(paths)) == len(paths):
        columns = ((told.caption for told in chunk.told), (told.metadata for told in chunk.told))
        index.append(list(map(NewItem, paths, batch.hashes, *columns, repeat(stamp))), batch.embeddings, new=True)
        report.added += len(paths)
        return
    new: dict[str, tuple[int, NewItem]] = {}

    def fail(row: int, why: str) -> None:
        report.failed.append(Failure(paths[row], f"{chunk.file}, row {chunk.first + row}: {why}"))

    for row, (path, told, content) in enumerate(zip(paths, chunk.told, batch.hashes, strict=True)):
        before = stored.get(path)
        if row in batch.refused:
            fail(row, batch.refused[row])
        elif path in new or (before is not None and before.stamp.checked == checked):
            twin = new[path][1].hash if path in new else before.hash if before else b""
            if twin == content:
                report.skipped += 1
            else:
                fail(row, "another row has the same path and another vector")
        elif before and (before.hash, before.caption, before.metadata) == (content, told.caption, told.metadata):
            report.skipped += 1
        else:
            new[path] = row, NewItem(path, content, told.caption, told.metadata, stamp)
    if new:
        rows, items = zip(*new.values(), strict=True)
        embeddings = batch.embeddings if len(rows) == batch.embeddings.count else batch.embeddings.rows(list(rows))
        updated = index.append(items, embeddings, new=not stored)
        report.updated += updated
        report.added += len(items) - updated
