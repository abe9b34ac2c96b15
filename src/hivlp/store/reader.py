"""Reading one commit: items, their vectors, and what is known of them."""

from __future__ import annotations

import itertools
import json
import operator
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.rows import Stored
from hivlp.errors import DamagedIndexError, QueryError
from hivlp.levels import Embeddings, Vectors
from hivlp.store.codec import codec_of
from hivlp.store.database import FILE
from hivlp.store.integrity import Integrity
from hivlp.store.lookup import Shown
from hivlp.store.names import composed, places
from hivlp.store.path_codec import PathCodec, is_text
from hivlp.store.records import GONE, About, Item, Stamp, State
from hivlp.store.schema import (
    ITEM,
    WITH_HASH,
    ItemRecord,
    can_be_listed,
    last_id,
    marks,
    read_meta,
    record_crc,
)
from hivlp.store.vectors import VectorFile, vector_files
from hivlp.store.where import Passing, rows_where

T = TypeVar("T")
MOST_LENT = 20_000
"""Pending pictures that a process fills for itself, at most: some tens of megabytes."""
MOST_MARKS = 500  # placeholders in one statement

AT_LISTED = (
    f"SELECT {', '.join(f'items.{name}' for name in ItemRecord._fields)} "
    "FROM json_each(?) AS listed CROSS JOIN items ON items.path = listed.value"
)


@dataclass(frozen=True)
class View:
    """What all readers of one commit share.

    Attributes:
        state: of the commit.
        vectors: stored rows of each level, memory-mapped, coarse to fine.
        alive: (rows,) whether a row is an item's; None if all are.
        pending: (rows,) whether a row has the coarsest level's vector alone; None if all are whole.
    """

    state: State
    vectors: tuple[Stored, ...]
    alive: NDArray[np.bool_] | None
    pending: NDArray[np.bool_] | None = None


class Views:
    """Cache of the view of the newest commit that was read: made by its first reader, kept until the next commit.

    Attributes:
        lends: grows whenever pending rows were filled for this process alone; the view of a commit is another then.
    """

    def __init__(self) -> None:
        self.lends = 0
        self._newest: View | None = None
        self._lent: dict[bytes, tuple[Vectors, ...]] = {}
        self._lock = threading.Lock()

    def of(self, reader: Reader) -> View:
        """The view of a reader's commit.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
            DamagedIndexError: if an item is in a row that there is not.
        """
        view = self._newest
        if view is not None and view.state == reader.state:
            return view
        with self._lock:
            newest, state = self._newest, reader.state
            if newest is not None and newest.state == state:
                return newest
            waiting, pending = reader.integrity.pending(), None
            # Where rows are pending, those that are filled here and could not be stored are written to private maps.
            coarsest, *finer = reader.files()
            vectors = (coarsest.map(state.rows), *(file.map(state.rows, private=len(waiting) > 0) for file in finer))
            reader.integrity.check_rows()
            dead, alive = reader.dead(), None
            if dead:
                alive = np.ones(state.rows, bool)
                alive[dead] = False
            if len(waiting):
                pending = np.zeros(state.rows, bool)
                pending[waiting] = True
                self._put(reader, vectors[1:], pending)
            view = View(state, vectors, alive, pending)
            # Nothing is committed while a reader reads: this is the last commit, also where a backup was put back.
            self._newest = view
        return view

    def lend(self, finer: Sequence[str], contents: Sequence[bytes], embeddings: Embeddings) -> None:
        """Fill pending rows for this process alone, where they cannot be stored.

        Args:
            finer: names of all levels but the coarsest.
            contents: SHA-256 of each picture.
            embeddings: (n, dim) float unit vectors of every level.
        """
        with self._lock:
            if len(self._lent) + len(contents) > MOST_LENT:
                self._lent.clear()
            for place, content in enumerate(contents):
                self._lent[content] = tuple(embeddings[name][place] for name in finer)
            self._newest = None
            self.lends += 1

    def _put(self, reader: Reader, finer: Sequence[Stored], pending: NDArray[np.bool_]) -> None:
        """Write what was lent into the private maps of the finer levels, and mark those rows as whole."""
        for content, vectors in list(self._lent.items()):
            rows = [item.row for item in reader.copies(content) if pending[item.row]]
            if not rows:  # stored meanwhile, or gone
                del self._lent[content]
            for stored, vector in zip(finer, vectors, strict=True):
                stored[rows] = codec_of(stored).encode(vector[None])[0]
            pending[rows] = False

    def clear(self) -> None:
        """Let go of the files."""
        self._newest = None


class Reader:
    """One commit of a store, for the thread that asked for it, until its ``with`` block ends.

    Attributes:
        folder: of the store.
        about: what the index was made with.
        paths: how the catalog spells paths.
        state: of the commit.
        integrity: its checksums.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, about: About, paths: PathCodec, views: Views) -> None:
        """Called inside a transaction.

        Raises:
            DamagedIndexError: if the table ``meta`` makes no sense.
        """
        self.folder, self.about = folder, about
        self._db, self.paths, self._views = db, paths, views
        try:
            self.state = State.of(read_meta(db))
        except ValueError as error:
            raise DamagedIndexError(f"{folder / FILE} is damaged: the table meta makes no sense ({error})") from error
        self.integrity = Integrity(db, self.state, paths)

    def again(self) -> Reader:
        """A reader of the same transaction, which sees what was declared in it since."""
        return Reader(self.folder, self._db, self.about, self.paths, self._views)

    # Vectors.

    def files(self) -> tuple[VectorFile, ...]:
        """Vector file of each level, coarse to fine."""
        return vector_files(self.folder, self.about.levels, self.state)

    def vectors(self) -> tuple[Stored, ...]:
        """Memory-mapped stored rows of each level, coarse to fine; the same objects until the next commit.

        Each is as the codec of its file has it: (rows, dim) float16 or float32, or (rows,) records of int8. Errors are
        those of :meth:`Views.of`.
        """
        return self._views.of(self).vectors

    def alive(self) -> NDArray[np.bool_] | None:
        """(rows,) whether a row belongs to an item; None if all do. Errors are those of :meth:`Views.of`."""
        return self._views.of(self).alive

    def pending(self) -> NDArray[np.bool_] | None:
        """(rows,) whether a row has the coarsest level's vector alone; None if all are whole; see :class:`Views`."""
        return self._views.of(self).pending

    def are_pending(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether each of some rows has the coarsest level's vector alone."""
        pending = self.pending()
        return np.zeros(len(rows), bool) if pending is None else pending[np.asarray(rows, np.int64)]

    def pending_count(self) -> int:
        """How many items have the coarsest level's vector alone."""
        pending = self.integrity.pending()
        return len(pending) - int(np.isin(pending, self.dead()).sum()) if len(pending) else 0

    def embeddings(
        self, rows: Sequence[int] | NDArray[np.int64], *, check: bool = False, whole: bool = True
    ) -> Embeddings:
        """The vectors of some rows, (n, dim) float32 a level.

        Args:
            rows: of any order.
            check: compare them with their checksums first.
            whole: refuse pending rows, instead of giving zeros for their finer levels.

        Raises:
            DamagedIndexError: if one is not as it was written.
            QueryError: if one is pending.
        """
        chosen = np.asarray(rows, np.int64)
        pending = self.are_pending(chosen)
        if whole and pending.any():
            raise QueryError(
                f"{pending.sum()} of {len(chosen)} pictures are pending, of the coarsest level alone: "
                f"`hivlp index` computes the others of {self.folder}"
            )
        found = {}
        for file, stored in zip(self.files(), self.vectors(), strict=True):
            part = stored[chosen]
            if check:
                self.integrity.check(file, chosen, part)
            found[file.level.name] = file.codec.decode(part)
            if pending.any() and len(found) > 1:
                found[file.level.name][pending] = 0
        return Embeddings(found)

    # Items.

    def count(self) -> int:
        """Number of items."""
        return int(self._db.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def dead(self) -> list[int]:
        """Rows that belong to no item any more, ascending."""
        return [row for (row,) in self._db.execute("SELECT row FROM dead ORDER BY row")]

    def get(self, item_id: int) -> Item | None:
        """The item of an id."""
        return self._one(f"SELECT {ITEM} FROM items WHERE id = ?", item_id) if 0 < item_id < 1 << 63 else None

    def at(self, path: str) -> Item | None:
        """The item at a path.

        Raises:
            DamagedIndexError: if its record is not as it was written.
        """
        return next(self._checked("WHERE path = ?", self.paths.encode(path)), None)

    def at_paths(self, paths: Sequence[str]) -> dict[str, Item]:
        """The items that there are at these paths, by path."""
        packed = self.paths.encode_all(paths)
        listed = [path for path in packed if can_be_listed(path)]
        # In one statement: each of several would wait anew for whatever else Python does meanwhile.
        records = self._db.execute(AT_LISTED, (json.dumps(listed, ensure_ascii=False),)).fetchall()
        if len(listed) < len(packed):
            for path in packed:
                if not can_be_listed(path):
                    records += self._db.execute(f"SELECT {ITEM} FROM items WHERE path = ?", (path,)).fetchall()
        return {item.path: item for item in map(self._item, records)}

    def with_hash(self, content: bytes) -> Item | None:
        """Any item with this content hash."""
        return self._one(WITH_HASH, content)

    def copies(self, content: bytes, most: int = -1) -> list[Item]:
        """All items with this content hash, by row, or at most so many of them."""
        found = self._db.execute(f"{WITH_HASH} ORDER BY row LIMIT ?2", (content, most))
        return [self._item(record) for record in found]

    def shown(self, rows: Sequence[int]) -> dict[int, Shown]:
        """What hits show of the items in these rows.

        Raises:
            DamagedIndexError: if there is none, or a value is none that it can have.
        """
        found = {}
        for row, item_id, path, caption, text in self._by_row("row, id, path, caption, metadata", rows):
            try:
                found[row] = Shown.of(item_id, path, caption, text, self.paths)
            except ValueError as error:
                raise self._damaged(item_id) from error
        return dict(zip(rows, self._each(found, rows), strict=True))

    def all_shown(self) -> Iterator[tuple[int, Shown]]:
        """Row, and what hits show of it, of every item, by row.

        Raises:
            DamagedIndexError: if a record is not as it was written.
        """
        for record in self._records("ORDER BY row"):
            known = ItemRecord._make(record)
            try:
                yield known.row, Shown.of(known.id, known.path, known.caption, known.metadata, self.paths)
            except ValueError as error:
                raise self._damaged(known.id) from error

    def in_rows(self, rows: Sequence[int]) -> list[Item]:
        """The items in these rows, in this order.

        Raises:
            DamagedIndexError: if there is none, or a value is none that it can have.
        """
        found = {item.row: item for item in map(self._item, self._by_row(ITEM, rows))}
        return self._each(found, rows)

    def hashes(self, rows: Sequence[int]) -> list[bytes]:
        """The content hashes of the items in these rows, in this order."""
        return self._each(dict(self._by_row("row, hash", rows)), rows)

    def items(self, after: int = 0, limit: int = 100) -> list[Item]:
        """A page of the items, by id.

        Args:
            after: the id that the page begins behind.
            limit: how many.
        """
        select = f"SELECT {ITEM} FROM items WHERE id > ? ORDER BY id LIMIT ?"
        return [self._item(record) for record in self._db.execute(select, (after, limit))]

    def all_items(self, after: int = 0, limit: int = -1) -> Iterator[Item]:
        """Every item, by id, its record compared with its checksum; as :meth:`items`, a page of them.

        Raises:
            DamagedIndexError: if a record is not as it was written.
        """
        return self._checked("WHERE id > ? ORDER BY id LIMIT ?", after, limit)

    def info(self) -> dict[str, Any]:
        """What the index holds, and whether its files are as long as they must be.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        self.vectors()
        state, about = self.state, self.about
        return {
            "path": str(self.folder),
            "format": state.format,
            "relative": state.is_relative,
            "vectors": self.files()[-1].codec.name,
            "items": self.count(),
            "missing": self.missing(),
            "pending": self.pending_count(),
            "lost": self.integrity.lost_count(),
            "rows": state.rows,
            "dead": len(self.dead()),
            "model": about.model,
            "source": about.source,
            "fingerprint": about.fingerprint,
            "levels": {level.name: level.dim for level in about.levels},
            "bytes": sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file()),
        }

    def live(self) -> NDArray[np.int64]:
        """(items, 2) of row and id, by row."""
        pairs = self._db.execute("SELECT row, id FROM items ORDER BY row")
        try:
            return np.fromiter(pairs, np.dtype((np.int64, 2)))
        except (TypeError, ValueError) as error:
            raise DamagedIndexError(f"{self.folder / FILE} is damaged: {error}; run `hivlp repair`") from error

    def last_id(self) -> int:
        """The largest id that was ever given."""
        return int(last_id(self._db))

    def may_miss(self) -> bool:
        """Whether there may be items whose files were not there when their folders were last walked."""
        return self._db.execute("SELECT 1 FROM meta WHERE key = 'missing'").fetchone() is not None

    def missing(self) -> int:
        """How many items' files were not there when their folders were last walked."""
        if not self.may_miss():
            return 0
        return int(self._db.execute("SELECT COUNT(*) FROM items WHERE size = ?", (GONE,)).fetchone()[0])

    def missing_rows(self) -> list[int]:
        """Rows of the items whose files were not there when their folders were last walked."""
        if not self.may_miss():
            return []
        return [row for (row,) in self._db.execute("SELECT row FROM items WHERE size = ?", (GONE,))]

    def disks(self) -> list[str]:
        """Folders that were on other disks than what is around them when they were last walked, and held items."""
        found = self._db.execute("SELECT value FROM meta WHERE key = 'disks'").fetchone()
        try:
            return [] if found is None else [self.paths.decode(str(place)) for place in json.loads(found[0])]
        except (ValueError, TypeError, AttributeError, RecursionError):  # nothing else depends on it
            return []

    def paths_under(self, folder: str) -> Iterator[tuple[int, str, Stamp]]:
        """Id, path and stamp of the item at a path, and of all items in the folder of that name."""
        select = "SELECT id, path, size, mtime, ctime, checked FROM items WHERE"
        for condition, bounds in self.paths.ranges(folder):
            for item_id, path, *stamp in self._db.execute(f"{select} {condition}", bounds):
                yield item_id, self._path(item_id, path), Stamp(*stamp)

    def misspelled(self) -> list[tuple[int, str, Stamp]]:
        """Id, path and stamp of the items that a relative index spells by absolute paths, though they lie beside it."""
        found = []
        for condition, bounds in self.paths.misspelled():
            select = f"SELECT id, path, size, mtime, ctime, checked FROM items WHERE {condition}"
            for item_id, spelled, *stamp in self._db.execute(select, bounds):
                path = self._path(item_id, spelled)
                if self.paths.encode(path) != spelled:
                    found.append((item_id, path, Stamp(*stamp)))
        return found

    def keys(self, most: int = 100) -> list[str]:
        """Keys of the items' metadata, by name."""
        select = "SELECT DISTINCT key FROM items, json_each(metadata) LIMIT ?"
        return sorted(str(key) for (key,) in self._db.execute(select, (most,)))

    def values_of(self, key: str, most: int) -> list[tuple[Any, int]]:
        """The most frequent values of a key of the items' metadata, each of a list by itself, and how often."""
        select = """SELECT each.atom, count(*) FROM items, json_tree(metadata, '$."' || ?1 || '"') AS each
            WHERE each.atom NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?2"""
        return list(self._db.execute(select, (key, most)))

    def range_of(self, key: str) -> tuple[Any, Any] | None:
        """The least and greatest value of a key of the items' metadata; None if no item has one."""
        value = """json_extract(metadata, '$."' || ?1 || '"')"""
        least, greatest = self._db.execute(f"SELECT min({value}), max({value}) FROM items", (key,)).fetchone()
        return None if least is None else (least, greatest)

    def captions(self, limit: int) -> list[str]:
        """Different captions of items, as many as wanted or there are."""
        select = "SELECT DISTINCT caption FROM items WHERE caption IS NOT NULL AND TRIM(caption) != '' LIMIT ?"
        return [caption for (caption,) in self._db.execute(select, (limit,))]

    def rows_where(self, condition: str) -> Passing:
        """Rows of the items for which an SQL condition holds; see :func:`hivlp.store.where.rows_where`."""
        return rows_where(self.folder / FILE, condition, self.state.fields, self.paths)

    def column_values(self, expressions: Sequence[str], first: int, last: int) -> tuple[NDArray[np.int64], list[Any]]:
        """Values of SQL expressions over the items in rows from ``first`` to before ``last``; texts as bytes.

        Returns:
            (n,) their rows, in no order, and n values of each expression.
        """
        # A few rows are found by their index; for all of them the table is read as it lies.
        row = "+row" if first == 0 else "row"
        select = f"SELECT row, {', '.join(expressions)} FROM items WHERE {row} >= ? AND {row} < ?"
        self._db.text_factory = bytes
        try:
            found = self._db.execute(select, (first, last)).fetchall()
        finally:
            self._db.text_factory = str
        rows, *values = zip(*found, strict=True) if found else ((),) * (1 + len(expressions))
        return np.array(rows, np.int64), values

    # Items by names that people type.

    def named(self, path: str) -> list[Item]:
        """The item that a person calls by this path, or the items in the folder of that name.

        Raises:
            QueryError: if it could mean several.
        """
        tried = places(path)
        exact = (self.under(place) for place in tried)
        # SQLite holds a path that is no text as bytes, of which there is no other spelling.
        alike = (self.alike(place) for place in tried if not place.isascii() and is_text(place))
        return next(filter(None, itertools.chain(exact, alike)), [])

    def under(self, path: str) -> list[Item]:
        """The item at a path, and all items in the folder of that name, by id."""
        select = f"SELECT {ITEM} FROM items WHERE"
        found: list[Any] = []
        for condition, bounds in self.paths.ranges(path):
            found += self._db.execute(f"{select} {condition}", bounds).fetchall()
        return [self._item(record) for record in sorted(found, key=operator.itemgetter(0))]

    def alike(self, path: str) -> list[Item]:
        """The items that :meth:`under` gives of another spelling of a path in Unicode.

        Raises:
            QueryError: if there are several such spellings.
        """
        wanted = composed(path.rstrip("/"))
        self._db.create_function("located", 1, self.paths.shown, deterministic=True)
        select = f"SELECT {ITEM} FROM items WHERE typeof(path) = 'text' AND substr(composed(located(path)), 1, ?) = ?"
        depth = wanted.count("/") + 1
        spelt: dict[str, list[Item]] = {}
        for record in self._db.execute(select, (len(wanted), wanted)):
            item = self._item(record)
            beginning = "/".join(item.path.split("/")[:depth])
            if composed(beginning) == wanted:
                spelt.setdefault(beginning, []).append(item)
        if len(spelt) > 1:
            ids = ", ".join(str(items[0].id) for items in spelt.values())
            raise QueryError(f"{path} is spelt in {len(spelt)} ways in {self.folder}: say which by an id ({ids}, …)")
        return next(iter(spelt.values()), [])

    # Inside.

    def _one(self, select: str, value: object) -> Item | None:
        found = self._db.execute(f"{select} LIMIT 1", (value,)).fetchone()
        return self._item(found) if found else None

    def _item(self, record: Sequence[Any]) -> Item:
        try:
            return Item.of(record, self.paths)
        except ValueError as error:
            raise self._damaged(record[0]) from error

    def _path(self, item_id: int, spelled: Any) -> str:
        try:
            return self.paths.decode(spelled)
        except ValueError as error:
            raise self._damaged(item_id) from error

    def _checked(self, which: str, *values: object) -> Iterator[Item]:
        """Items whose records are compared with their checksums, of which format 1 has none."""
        return map(self._item, self._records(which, *values))

    def _records(self, which: str, *values: object) -> Iterator[Sequence[Any]]:
        column = "crc" if self.state.has_checksums else "NULL"
        for *record, crc in self._db.execute(f"SELECT {ITEM}, {column} FROM items {which}", values):
            if self.state.has_checksums and crc != record_crc(*record):
                raise self._damaged(record[0])
            yield record

    def _damaged(self, item_id: int) -> DamagedIndexError:
        return DamagedIndexError(f"{self.folder / FILE} is damaged: the record of item {item_id}; run `hivlp repair`")

    def _by_row(self, columns: str, rows: Sequence[int]) -> Iterable[Any]:
        for start in range(0, len(rows), MOST_MARKS):
            part = rows[start : start + MOST_MARKS]
            select = f"SELECT {columns} FROM items WHERE row IN ({marks(len(part))})"
            yield from self._db.execute(select, part).fetchall()

    def _each(self, found: Mapping[int, T], rows: Sequence[int]) -> list[T]:
        try:
            return [found[row] for row in rows]
        except KeyError as error:
            raise DamagedIndexError(
                f"{self.folder / FILE} is damaged: row {error} belongs to no item; run `hivlp repair`"
            ) from error
