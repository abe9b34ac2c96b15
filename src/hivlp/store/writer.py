"""Changing a store: what one transaction does to items, rows and their checksums."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError, IndexFolderError, QueryError
from hivlp.levels import Embeddings, Vectors
from hivlp.store import schema
from hivlp.store.codec import BY_DTYPE, FLOAT32, Checksums, row_checksums
from hivlp.store.fields.declared import Field, joined
from hivlp.store.inserting import insert, insert_alike
from hivlp.store.names import composed, places
from hivlp.store.reader import MOST_MARKS, Reader
from hivlp.store.records import ColumnFiles, NewItem, PayloadFile, Stamp, fields_text, format_of
from hivlp.store.schema import BLOCK, ITEM, LOST, BlockRecord, ItemRecord, LostRecord, marks, seal
from hivlp.store.vectors import CHUNK, Rows, check_vectors

UPDATE = (
    "UPDATE items SET "
    + ", ".join(f"{name} = ?{at}" for at, name in enumerate(ItemRecord._fields, 1) if name not in ("id", "path"))
    + f", crc = ?{len(ItemRecord._fields) + 1} WHERE id = ?1"
)


class Writer:
    """One transaction of a store, for the thread that began it.

    Attributes:
        reader: of the commit that is changed, which sees what was written since.
    """

    def __init__(self, reader: Reader, db: sqlite3.Connection) -> None:
        self.reader, self._db = reader, db

    # Items.

    def append(
        self,
        items: Sequence[NewItem],
        embeddings: Embeddings | Mapping[str, Rows],
        *,
        new: bool,
        pending: NDArray[np.bool_] | None = None,
    ) -> int:
        """Write vectors behind those that there are, and :meth:`put` their items.

        Args:
            items: one for each row of ``embeddings``.
            embeddings: level name -> vectors; of the finer levels of ``pending`` rows zeros.
            new: see :meth:`put`.
            pending: (len(items),) whether an item has the coarsest level's vector alone; None if all are whole.

        Raises:
            IndexFolderError: if there are pending rows, and the index's format cannot have them.
        """
        paths, first, files = [item.path for item in items], self.reader.state.rows, self.reader.files()
        for file in files:
            check_vectors(file.level, embeddings.get(file.level.name), paths, None if file is files[0] else pending)
        for file in files:
            file.map(first)  # refuses to build on a damaged file
        with ThreadPoolExecutor(1, "hivlp-write") as pool:
            writes = [pool.submit(file.write, first, embeddings[file.level.name]) for file in files]
            # Meanwhile; what counts is that all vectors are on disk before the commit.
            updated = self.put(items, first, new=new)
        for file, write in zip(files, writes, strict=True):
            sums = write.result()
            if pending is not None and file is not files[0]:
                sums[pending] = 0
            self.add_block(file.level.name, first, sums)
        self.set_rows(first + len(items))
        if pending is not None and pending.any():
            self.add_pending(first, pending)
        return updated

    def fill(self, rows: NDArray[np.int64], embeddings: Mapping[str, Vectors]) -> None:
        """Give pending rows the vectors of their finer levels; the last one makes the index whole.

        Args:
            rows: (n,) pending, ascending, each once.
            embeddings: level name -> (n, dim) float unit vectors, of every level but the coarsest.

        Raises:
            OSError: if the disk is full or fails; the rows are pending still.
            VectorError: if a vector is none that can be stored.
            DamagedIndexError: if the checksums that lie beside these rows' are not what was written.
        """
        paths = [f"row {row}" for row in rows.tolist()]
        for file in self.reader.files()[1:]:
            vectors = embeddings[file.level.name]
            check_vectors(file.level, vectors, paths)
            encoded = Rows.of(vectors, file.codec)
            file.fill(rows, encoded)
            self._note_sums(file.level.name, rows, encoded.sums)
        pending = np.setdiff1d(self.reader.integrity.pending(), rows, assume_unique=True)
        for first, count, bits in self._blocks(schema.PENDING, rows):
            mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").astype(bool)
            mask[rows[(rows >= first) & (rows < first + count)] - first] = False
            self._db.execute("DELETE FROM blocks WHERE level = ? AND first = ?", (schema.PENDING, first))
            if mask.any():
                self.add_pending(first, mask)
        dead = np.array(self.reader.dead(), np.int64)
        if np.isin(pending, dead).all():
            self.end_pending(pending)

    def end_pending(self, dead: Sequence[int] | NDArray[np.int64] = ()) -> None:
        """Note that no row is pending any more.

        Args:
            dead: those that were, and are tombstones now; they get the checksums of what is there.
        """
        if not self.reader.state.has_pending:
            return
        for file in self.reader.files()[1:] if len(dead) else ():
            stored = np.asarray(file.map(self.reader.state.rows)[dead])
            self._note_sums(file.level.name, np.asarray(dead), row_checksums(stored))
        self.forget_blocks(schema.PENDING)
        whole = format_of(BY_DTYPE[self.reader.state.dtype], relative=self.reader.state.is_relative)
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(whole),))

    def _note_sums(self, level: str, rows: NDArray[np.int64], sums: Checksums) -> None:
        """Write the checksums of some rows into the blocks that they belong to."""
        for first, count, data in self._blocks(level, rows):
            inside = (rows >= first) & (rows < first + count)
            known = np.frombuffer(data, "<u4").copy()
            known[rows[inside] - first] = sums[inside]
            self.add_block(level, first, known)

    def _blocks(self, level: str, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, bytes]]:
        """First row, number of rows and data of each block of a level that holds some of ``rows``, ascending.

        Raises:
            DamagedIndexError: if one is not as it was written: a new checksum must not vouch for it.
        """
        select = f"SELECT {BLOCK}, crc FROM blocks WHERE level = ? AND first <= ? ORDER BY first DESC LIMIT 1"
        left = rows
        while len(left):
            found = self._db.execute(select, (level, int(left[0]))).fetchone()
            if found is None or found[-1] != schema.record_crc(*found[:-1]) or left[0] >= found[1] + found[2]:
                raise DamagedIndexError(
                    f"the index is damaged: the checksums of level {level}, row {left[0]}; run `hivlp repair`"
                )
            _, first, count, data, _ = found
            left = left[left >= first + count]
            yield first, count, data

    def remove(self, wanted: Iterable[int | str]) -> int:
        """Remove items by id, or by a path that a person calls them or their folder; items set aside, too.

        Returns:
            How many were removed.

        Raises:
            QueryError: if one is not there, or a path could mean several.
        """
        chosen: dict[int, int] = {}
        given_up: set[int] = set()
        set_aside = self.reader.integrity.lost()[0]
        for each in wanted:
            if isinstance(each, int):
                found = list(filter(None, [self.reader.get(each)]))
                lost = {item_id for item_id, _ in set_aside if item_id == each}
            else:
                found, spelt = self.reader.named(each), {composed(place) for place in places(each)}
                lost = {item_id for item_id, path in set_aside if composed(path) in spelt}
            if not found and not lost:
                raise QueryError(f"{self.reader.folder} has no item {each}")
            chosen.update({item.id: item.row for item in found})
            given_up.update(lost if not found else ())
        self.forget([*chosen, *given_up])
        self._db.executemany("INSERT INTO dead VALUES (?)", [(row,) for row in chosen.values()])
        return len(chosen) + len(given_up)

    def put(self, items: Sequence[NewItem], first: int, *, new: bool = False) -> int:
        """Store items in rows from ``first`` on.

        One whose path is known, or comes twice, replaces the item there, which keeps its id; the old row dies. One that
        was lost comes back with its id and what was known of it.

        Args:
            items: at least one.
            first: row of the first.
            new: the caller, who is the only writer, has seen that no item has any of these paths. If one has after all,
                SQLite refuses.

        Returns:
            How many replaced another.
        """
        given, hashes, captions, metadata, stamps = zip(*items, strict=True)
        paths = self.reader.paths.encode_all(given)
        known = {} if new else {path: (found, row) for path, found, row in self._with_paths("id, row", "items", paths)}
        lost: dict[str | bytes, LostRecord] = {}
        if self.reader.integrity.lost_count():
            found = (LostRecord._make(rest) for _, *rest in self._with_paths(LOST, "lost", paths))
            lost = {record.path: record for record in found}
        next_id = schema.last_id(self._db) + 1
        if known or lost or len(set(paths)) < len(paths):
            return self._put_over(items, paths, first, next_id, known, lost)
        alike = not any(metadata) and captions.count(None) == stamps.count(stamps[0]) == len(items)
        if alike and insert_alike(self._db, paths, hashes, stamps[0], first_id=next_id, first_row=first):
            return 0
        columns = (paths, hashes, map(_storable, captions), map(_json, metadata), itertools.count(first))
        insert(self._db, zip(itertools.count(next_id), *columns, *zip(*stamps, strict=True), strict=False))
        return 0

    def _put_over(
        self,
        items: Sequence[NewItem],
        paths: Sequence[str | bytes],
        first: int,
        next_id: int,
        known: dict[str | bytes, tuple[int, int]],
        lost: dict[str | bytes, LostRecord],
    ) -> int:
        """:meth:`put` where some of the paths are ``known`` (id and row), ``lost``, or come twice."""
        stored = set(known)
        records: dict[str | bytes, ItemRecord] = {}
        dead: list[tuple[int]] = []
        for row, (path, item) in enumerate(zip(paths, items, strict=True), start=first):
            caption, metadata = item.caption, item.metadata
            if path in known:
                item_id, before = known[path]
                dead.append((before,))
            elif path in lost:
                item_id = lost[path].id
                caption = lost[path].caption if caption is None else caption
                metadata = {**json.loads(lost[path].metadata), **metadata}
            else:
                item_id, next_id = next_id, next_id + 1
            known[path] = item_id, row
            records[path] = ItemRecord(item_id, path, item.hash, _storable(caption), _json(metadata), row, *item.stamp)
        insert(self._db, (record for path, record in records.items() if path not in stored))
        self._db.executemany(UPDATE, seal(records[path] for path in stored))
        self._db.executemany("INSERT INTO dead VALUES (?)", dead)
        self._db.executemany("DELETE FROM lost WHERE id = ?", [(record.id,) for record in lost.values()])
        return len(dead)

    def _with_paths(self, columns: str, table: str, paths: Sequence[str | bytes]) -> Iterator[Sequence[Any]]:
        for start in range(0, len(paths), MOST_MARKS):
            part = paths[start : start + MOST_MARKS]
            select = f"SELECT path, {columns} FROM {table} WHERE path IN ({marks(len(part))})"
            yield from self._db.execute(select, part).fetchall()

    def restamp(self, stamps: Iterable[tuple[int, Stamp]]) -> None:
        """Note that items' files were read again and had the same content, as (id, stamp)."""
        for item_id, stamp in stamps:
            found = self._db.execute(f"SELECT {ITEM}, crc FROM items WHERE id = ?", (item_id,)).fetchone()
            # The new checksum must not vouch for a record that was damaged before.
            if found and found[-1] == schema.record_crc(*found[:-1]):
                self._db.executemany(UPDATE, seal([ItemRecord(*found[:-1])._replace(**stamp._asdict())]))

    def move(self, moves: Iterable[tuple[int, str, Stamp]]) -> None:
        """Give items other paths, which no item has, as (id, path, stamp)."""
        moves = list(moves)
        if moves:  # what hits show of a row holds its path
            self._db.execute("DELETE FROM meta WHERE key = 'payloads'")
        for item_id, path, stamp in moves:
            found = self._db.execute(f"SELECT {ITEM}, crc FROM items WHERE id = ?", (item_id,)).fetchone()
            if found and found[-1] == schema.record_crc(*found[:-1]):
                packed = self.reader.paths.encode(path)
                record = ItemRecord(*found[:-1])._replace(path=packed, **stamp._asdict())
                self._db.execute("UPDATE items SET path = ? WHERE id = ?", (packed, item_id))
                self._db.executemany(UPDATE, seal([record]))
                self._db.execute("DELETE FROM lost WHERE path = ?", (packed,))

    def respell(self, moves: Sequence[tuple[int, str, Stamp]]) -> None:
        """Spell paths anew, as (id, path, stamp); where another item has one in its right spelling, that is kept."""
        taken = self.reader.at_paths([path for _, path, _ in moves])
        double = [item_id for item_id, path, _ in moves if path in taken]
        if double:
            self.remove(double)
        self.move(move for move in moves if move[1] not in taken)

    def note_missing(self, there_are: bool) -> None:
        """Note whether there may be items whose files are gone; only where none are told of is none looked for."""
        if there_are:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('missing', '1')")
        else:
            self._db.execute("DELETE FROM meta WHERE key = 'missing'")

    def note_disks(self, folders: Iterable[str]) -> None:
        """Note which folders of items are on other disks than what is around them: their files may be away together."""
        spelled = [os.fsdecode(self.reader.paths.encode(folder)) for folder in folders]
        if spelled:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('disks', ?)", (json.dumps(spelled),))
        else:
            self._db.execute("DELETE FROM meta WHERE key = 'disks'")

    def forget(self, ids: Iterable[int]) -> None:
        """Drop the records of items, set aside or not, whatever became of their rows."""
        for item_id in ids:
            for table in ("items", "lost"):
                self._db.execute(f"DELETE FROM {table} WHERE id = ?", (item_id,))

    def lose(self, ids: Iterable[int]) -> None:
        """Set items aside until their pictures are indexed again: their vectors are damaged."""
        for item_id in ids:
            record = self._db.execute(f"SELECT {LOST} FROM items WHERE id = ?", (item_id,)).fetchone()
            self._insert("lost", record)
            self._db.execute("DELETE FROM items WHERE id = ?", (item_id,))

    # Rows.

    def set_rows(self, rows: int, generation: int | None = None, dtype: str | None = None) -> None:
        """Declare how many vector rows exist, and in which generation of files, of what dtype."""
        for key, value in (("rows", rows), ("generation", generation), ("dtype", dtype)):
            if value is not None:
                self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (str(value), key))

    def renumber(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give items new rows, as (new, id), and forget the dead ones."""
        self._db.executemany("UPDATE items SET row = ? WHERE id = ?", moves)
        self._db.execute(f"UPDATE items SET crc = record_crc({ITEM})")
        self._db.execute("DELETE FROM dead")

    def add_block(self, level: str, first: int, crcs: Checksums) -> None:
        """Note the checksums of rows that were written together."""
        self._insert("blocks", BlockRecord(level, first, len(crcs), crcs.astype("<u4").tobytes()))

    def add_pending(self, first: int, mask: NDArray[np.bool_]) -> None:
        """Note which of the rows from ``first`` on are pending; the index then is of the format that knows such rows.

        Raises:
            IndexFolderError: if its vectors are of format 1, which has other codecs.
        """
        state = self.reader.state
        if not state.has_pending:
            codec = BY_DTYPE[state.dtype]
            if codec is FLOAT32 and state.format < schema.CODEC_FORMAT:
                raise IndexFolderError(f"{self.reader.folder} is of an old format: `hivlp compact` it first")
            known = format_of(codec, relative=state.is_relative, pending=True)
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(known),))
        bits = np.packbits(mask, bitorder="little").tobytes()
        self._insert("blocks", BlockRecord(schema.PENDING, first, len(mask), bits))

    def forget_blocks(self, level: str) -> None:
        """Drop the checksums of a level, whose file is about to be replaced."""
        self._db.execute("DELETE FROM blocks WHERE level = ?", (level,))

    # Fields.

    def declare(self, fields: Iterable[Field]) -> None:
        """Declare fields beside those that there are; one that is declared again gets its new type."""
        declared = joined(self.reader.state.fields, fields)
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('fields', ?)", (fields_text(declared),))
        self._db.execute("DELETE FROM meta WHERE key = 'columns'")
        self.reader = self.reader.again()

    def note_payloads(self, file: PayloadFile) -> None:
        """Note which file holds what hits show."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('payloads', ?)", (file.text(),))

    def note_columns(self, files: ColumnFiles) -> None:
        """Note which files hold the columns of the fields."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('columns', ?)", (files.text(),))

    # The whole.

    def upgrade(self, *, check: bool = True) -> None:
        """From format 1 to 2; the vectors stay as they are.

        Args:
            check: give them checksums, if they can be what was written.

        Raises:
            DamagedIndexError: if one cannot.
        """
        schema.upgrade_tables(self._db)
        before, self.reader = self.reader, self.reader.again()
        for file in self.reader.files() if check else ():
            vectors = file.map(before.state.rows)
            for start in range(0, before.state.rows, CHUNK):
                block = vectors[start : start + CHUNK]
                for row in file.codec.not_unit(block):
                    raise file.damaged(start + int(row))
                self.add_block(file.level.name, start, row_checksums(block))

    def rebuild_indexes(self) -> None:
        """Make SQLite's indexes anew from its tables."""
        self._db.execute("REINDEX")

    def finish(self) -> None:
        """Count the commit that is about to be made."""
        self._db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'commits'")
        schema.seal_meta(self._db)

    def _insert(self, table: str, record: tuple[Any, ...]) -> None:
        (values,) = seal([record])
        self._db.execute(f"REPLACE INTO {table} VALUES ({marks(len(values))})", values)


def _storable(text: str | None) -> str | None:
    """Text as SQLite can hold it."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _json(metadata: Mapping[str, Any]) -> str:
    if not metadata:
        return "{}"
    text = json.dumps(metadata, ensure_ascii=False)  # SQLite does not find a key that is written with escapes
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
        return json.dumps(metadata)
    return text
