"""From given vectors to items: what is new or changed is committed with its coarse level, a batch at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from hivlp.coarse.maps import FINE, CoarseMaps, NoCoarseLevel
from hivlp.data.vectors.files import Chunk
from hivlp.data.vectors.source import EmbeddingSource, unit_rows
from hivlp.errors import DataError
from hivlp.index.adding.report import AddReport, Failure
from hivlp.store.codec import VectorCodec
from hivlp.store.folder import Store
from hivlp.store.names import stored_path
from hivlp.store.records import NewItem, Stamp
from hivlp.store.vectors import PIECE, Rows, check_vectors


def add_vectors(
    store: Store,
    maps: CoarseMaps | NoCoarseLevel,
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
    width = maps.width
    if source.dim != width:
        raise DataError(f"vectors of {source.dim} dims for an index of {width}: they must come from the same model")
    report = AddReport()
    checked = time.time_ns()
    with store.reading() as reader:
        codecs = {file.level.name: file.codec for file in reader.files()}
    for batch in _read_ahead(source, maps, codecs):
        _add_batch(store, batch, checked, report)
        if on_progress is not None:
            on_progress(report)
    report.failed += [Failure(stored_path(file), why) for file, why in source.damaged.items()]
    report.items = len(store)
    report.seconds = time.perf_counter() - started
    return report


@dataclass(frozen=True)
class _Batch:
    """A chunk of the source with all that does not depend on the index's items.

    Attributes:
        chunk: as it was read.
        paths: that its rows are known by.
        hashes: of their content.
        vectors: level name -> what its file shall hold.
        refused: row -> why there is no vector in it.
    """

    chunk: Chunk
    paths: list[str]
    hashes: list[bytes]
    vectors: dict[str, Rows]
    refused: dict[int, str]


def _read_ahead(
    source: EmbeddingSource, maps: CoarseMaps | NoCoarseLevel, codecs: dict[str, VectorCodec]
) -> Iterator[_Batch]:
    """One batch is read, hashed, mapped and made ready on another core while the one before is being stored.

    A batch's vectors are good until the next one is asked for.
    """
    chunks, levels = source.chunks(), maps.levels
    # The system clears memory before it gives it: two rooms in turn cost less than a new one for each.
    rooms = [{level.name: Rows.room(0, level.dim, codecs[level.name]) for level in levels}] * 2
    scratch = np.empty((PIECE, source.dim), np.float32)

    def prepare() -> _Batch | None:
        chunk = next(chunks, None)
        if chunk is None:
            return None
        count, file = len(chunk.vectors), stored_path(chunk.file)
        rooms.reverse()
        if len(rooms[0][FINE]) < count:
            rooms[0] = {level.name: Rows.room(count, level.dim, codecs[level.name]) for level in levels}
        paths = [told.path or f"{file}#{chunk.first + row}" for row, told in enumerate(chunk.told)]
        hashes: list[bytes] = []
        refused: dict[int, str] = {}
        # In pieces that stay in the processor's cache from one step to the next.
        for start in range(0, count, PIECE):
            raw = np.ascontiguousarray(chunk.vectors[start : start + PIECE])
            hashes += [hashlib.sha256(row).digest() for row in raw]
            unit, wrong = unit_rows(raw, scratch[: len(raw)])
            refused.update({start + row: why for row, why in wrong.items()})
            embeddings, names = maps.of_items(unit), paths[start : start + PIECE]
            good = [row for row in range(len(raw)) if row not in wrong] if wrong else []
            for level in levels:
                vectors = embeddings[level.name]
                if wrong:
                    check_vectors(level, vectors[good], [names[row] for row in good])
                else:
                    check_vectors(level, vectors, names)
                rooms[0][level.name].put(start, vectors)
        ready = {name: room[:count] for name, room in rooms[0].items()}
        return _Batch(chunk, paths, hashes, ready, {**refused, **chunk.refused})

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(prepare)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(prepare)
            yield batch


def _add_batch(store: Store, batch: _Batch, checked: int, report: AddReport) -> None:
    chunk, paths = batch.chunk, batch.paths
    # The time of this run, not of this row: an item with it was stored by a row of this same run.
    stamp = Stamp(0, 0, 0, checked) if chunk.in_memory else Stamp.of(chunk.file.stat())._replace(checked=checked)
    with store.reading() as reader:
        stored = reader.at_paths(paths)
    if not stored and not batch.refused and len(set(paths)) == len(paths):
        columns = ((told.caption for told in chunk.told), (told.metadata for told in chunk.told))
        items = list(map(NewItem._make, zip(paths, batch.hashes, *columns, repeat(stamp), strict=False)))
        store.append(items, batch.vectors, new=True)
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
        rows, changed = zip(*new.values(), strict=True)
        vectors = {name: ready[list(rows)] for name, ready in batch.vectors.items()}
        updated = store.append(changed, vectors, new=not stored)
        report.updated += updated
        report.added += len(changed) - updated
