"""The items of an index: which there are, where their vectors lie, and what is known of them. The source of truth."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError, IndexFolderError, QueryError
from hivlp.store import schema
from hivlp.store.database import Database
from hivlp.store.inserting import insert, insert_alike
from hivlp.store.names import composed
from hivlp.store.records import Item, NewItem, Stamp
from hivlp.store.schema import COLUMNS, WITH_HASH, can_be_listed, pack_path, pack_paths, record_crc, unpack_path
from hivlp.store.where import Passing, rows_where

T = TypeVar("T")

AT_LISTED = (
    f"SELECT {', '.join(f'items.{name}' for name in COLUMNS.split(', '))} "
    "FROM json_each(?) AS listed CROSS JOIN items ON items.path = listed.value"
)


class Catalog(Database):
    """The tables ``items``, ``dead`` and ``lost`` of ``items.db``."""

    def count(self) -> int:
        """Number of items."""
        try:
            return int(self._db.execute("SELECT COUNT(*) FROM items").fetchone()[0])
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"{self._path} cannot be read: {error}") from error

    def dead(self) -> list[int]:
        """Rows that belong to no item any more, ascending."""
        return [row for (row,) in self._db.execute("SELECT row FROM dead ORDER BY row")]

    def get(self, item_id: int) -> Item | None:
        """An item by its id."""
        return self._one(f"SELECT {COLUMNS} FROM items WHERE id = ?", item_id) if 0 < item_id < 1 << 63 else None

    def at(self, path: str) -> Item | None:
        """An item by its path.

        Raises:
            DamagedIndexError: if its record is not as it was written.
        """
        found = self._db.execute("SELECT * FROM items WHERE path = ?", (pack_path(path),)).fetchone()
        return self._checked(found) if found else None

    def at_paths(self, paths: Sequence[str]) -> dict[str, Item]:
        """The items that there are at these paths, by path."""
        packed = pack_paths(paths)
        listed = [path for path in packed if can_be_listed(path)]
        # In one statement: each of several would wait anew for whatever else Python does meanwhile.
        records = self._db.execute(AT_LISTED, (json.dumps(listed, ensure_ascii=False),)).fetchall()
        if len(listed) < len(packed):
            for path in packed:
                if not can_be_listed(path):
                    records += self._db.execute(f"SELECT {COLUMNS} FROM items WHERE path = ?", (path,)).fetchall()
        items = map(self._item, records)
        return {item.path: item for item in items}

    def with_hash(self, content: bytes) -> Item | None:
        """Any item with this content."""
        return self._one(WITH_HASH, content)

    def _one(self, select: str, value: object) -> Item | None:
        found = self._db.execute(f"{select} LIMIT 1", (value,)).fetchone()
        return self._item(found) if found else None

    def makes_sense(self, values: Sequence[Any]) -> bool:
        """Whether a record's columns are of the kinds that they must be, whoever wrote them."""
        try:
            self._item(values)
        except DamagedIndexError:
            return False
        return True

    def _item(self, values: Sequence[Any]) -> Item:
        item_id, path, content, caption, metadata, row, *stamp = values
        try:
            known = json.loads(metadata)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(item_id) from error
        if not (isinstance(known, dict) and isinstance(path, (str, bytes)) and isinstance(caption, (str, NoneType))):
            raise self._damaged(item_id)
        if not isinstance(content, bytes) or any(type(value) is not int for value in stamp):
            raise self._damaged(item_id)
        return Item(item_id, unpack_path(path), content, caption, known, row, Stamp(*stamp))

    def _damaged(self, item_id: int) -> DamagedIndexError:
        return DamagedIndexError(f"{self._path} is damaged: the record of item {item_id}; run `hivlp repair`")

    def _checked(self, values: Sequence[Any]) -> Item:
        """An item from all its columns, of which format 1 has no checksum."""
        *record, crc = values if len(values) > len(COLUMNS.split(",")) else (*values, None)
        if crc is not None and crc != record_crc(*record):
            raise self._damaged(values[0])
        return self._item(record)

    def in_rows(self, rows: Sequence[int]) -> list[Item]:
        """The items in these rows, in this order."""
        found = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            marks = ",".join("?" * len(part))
            for values in self._db.execute(f"SELECT {COLUMNS} FROM items WHERE row IN ({marks})", part):
                item = self._item(values)
                found[item.row] = item
        return self._each(found, rows)

    def _each(self, found: Mapping[int, T], rows: Sequence[int]) -> list[T]:
        for row in rows:
            if row not in found:
                raise DamagedIndexError(f"{self._path} is damaged: row {row} belongs to no item; run `hivlp repair`")
        return [found[row] for row in rows]

    def captions(self, limit: int) -> list[str]:
        """Different captions of items, as many as wanted or there are."""
        select = "SELECT DISTINCT caption FROM items WHERE caption IS NOT NULL AND TRIM(caption) != '' LIMIT ?"
        return [caption for (caption,) in self._db.execute(select, (limit,))]

    def hashes(self, rows: Sequence[int]) -> list[bytes]:
        """The content hashes of the items in these rows, in this order."""
        found: dict[int, bytes] = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT row, hash FROM items WHERE row IN ({marks})", part))
        return self._each(found, rows)

    def copies(self, content: bytes) -> list[Item]:
        """All items with this content, by row."""
        return [self._item(values) for values in self._db.execute(f"{WITH_HASH} ORDER BY row", (content,))]

    def live(self) -> NDArray[np.int64]:
        """(items, 2) of row and id, by row."""
        pairs = self._db.execute("SELECT row, id FROM items ORDER BY row")
        try:
            return np.fromiter(pairs, np.dtype((np.int64, 2)))
        except (TypeError, ValueError) as error:
            raise DamagedIndexError(f"{self._path} is damaged: {error}; run `hivlp repair`") from error

    def all_items(self) -> Iterator[Item]:
        """Every item, by row; do not write while this runs.

        Raises:
            DamagedIndexError: if a record is not as it was written.
        """
        for values in self._db.execute("SELECT * FROM items ORDER BY row"):
            yield self._checked(values)

    def under(self, path: str) -> list[Item]:
        """The item at a path, and all items in the folder of that name."""
        folder = path.rstrip("/")
        # "0" is the character after "/". Text sorts before blobs, so each kind has a range of its own in the index; a
        # folder whose own name is not UTF-8 holds blobs alone.
        first, last = os.fsencode(folder) + b"/", os.fsencode(folder) + b"0"
        ranges: list[tuple[str | bytes, str | bytes]] = [(first, last)]
        if isinstance(pack_path(folder), str):
            ranges.append((folder + "/", folder + "0"))
        select = f"SELECT {COLUMNS} FROM items WHERE"
        found = self._db.execute(f"{select} path = ?", (pack_path(path),)).fetchall()
        for bounds in ranges:
            found += self._db.execute(f"{select} path >= ? AND path < ?", bounds).fetchall()
        return [self._item(values) for values in found]

    def alike(self, path: str) -> list[Item]:
        """The items that :meth:`under` gives of another spelling of a path in Unicode.

        Raises:
            QueryError: if there are several such spellings.
        """
        wanted = composed(path.rstrip("/"))
        select = f"SELECT {COLUMNS} FROM items WHERE typeof(path) = 'text' AND substr(composed(path), 1, ?) = ?"
        depth = wanted.count("/") + 1
        spelt: dict[str, list[Item]] = {}
        for values in self._db.execute(select, (len(wanted), wanted)):
            item = self._item(values)
            beginning = "/".join(item.path.split("/")[:depth])
            if composed(beginning) == wanted:
                spelt.setdefault(beginning, []).append(item)
        if len(spelt) > 1:
            ids = ", ".join(str(items[0].id) for items in spelt.values())
            raise QueryError(
                f"{path} is spelt in {len(spelt)} ways in {self._path.parent}: say which by an id ({ids}, …)"
            )
        return next(iter(spelt.values()), [])

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
        paths = pack_paths(given)
        known = {} if new else {path: tuple(rest) for path, *rest in self._with_paths("path, id, row", "items", paths)}
        lost = {path: rest for path, *rest in self._with_paths("path, id, caption, metadata", "lost", paths)}
        next_id = schema.sequence(self._db) + 1
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
        known: dict[str | bytes, tuple[Any, ...]],
        lost: dict[str | bytes, list[Any]],
    ) -> int:
        """:meth:`put` where some of the paths are ``known`` (id and row), ``lost``, or come twice."""
        stored = set(known)
        records: dict[str | bytes, tuple[Any, ...]] = {}
        dead: list[tuple[int]] = []
        for row, (path, item) in enumerate(zip(paths, items, strict=True), start=first):
            caption, metadata = item.caption, item.metadata
            if path in known:
                item_id, before = known[path]
                dead.append((before,))
            elif path in lost:
                item_id, old_caption, old_metadata = lost[path]
                caption = old_caption if caption is None else caption
                metadata = {**json.loads(old_metadata), **metadata}
            else:
                item_id, next_id = next_id, next_id + 1
            known[path] = item_id, row
            records[path] = (item_id, path, item.hash, _storable(caption), _json(metadata), row, *item.stamp)
        insert(self._db, (record for path, record in records.items() if path not in stored))
        self._db.executemany(
            "UPDATE items SET hash=?, caption=?, metadata=?, row=?, size=?, mtime=?, ctime=?, checked=?, crc=? "
            "WHERE id=?",
            [(*record[2:], record[0]) for record in schema.seal(records[path] for path in stored)],
        )
        self._db.executemany("INSERT INTO dead VALUES (?)", dead)
        self._db.executemany("DELETE FROM lost WHERE id = ?", [(rest[0],) for rest in lost.values()])
        return len(dead)

    def _with_paths(self, columns: str, table: str, paths: Sequence[str | bytes]) -> Iterator[Sequence[Any]]:
        if table == "lost" and self.integrity.lost_count() == 0:
            return
        for start in range(0, len(paths), 500):
            part = paths[start : start + 500]
            marks = ",".join("?" * len(part))
            yield from self._db.execute(f"SELECT {columns} FROM {table} WHERE path IN ({marks})", part).fetchall()

    def restamp(self, stamps: Iterable[tuple[int, Stamp]]) -> None:
        """Note that items' files were read again and had the same content."""
        # The new checksum must not vouch for a record that was damaged before.
        self._db.executemany(
            f"UPDATE items SET size=?1, mtime=?2, ctime=?3, checked=?4, crc = CASE crc WHEN record_crc({COLUMNS}) "
            "THEN record_crc(id, path, hash, caption, metadata, row, ?1, ?2, ?3, ?4) ELSE crc END WHERE id=?5",
            [(stamp.size, stamp.mtime, stamp.ctime, stamp.checked, item_id) for item_id, stamp in stamps],
        )

    def delete(self, items: Iterable[tuple[int, int]]) -> None:
        """Forget items, given as (id, row); their rows die."""
        for item_id, row in items:
            self._db.execute("DELETE FROM items WHERE id = ?", (item_id,))
            self._db.execute("INSERT INTO dead VALUES (?)", (row,))

    def renumber(self, moves: Iterable[tuple[int, int]]) -> None:
        """Give items new rows, as (new, id), and forget the dead ones."""
        self._db.executemany("UPDATE items SET row = ? WHERE id = ?", moves)
        self._db.execute(f"UPDATE items SET crc = record_crc({COLUMNS})")
        self._db.execute("DELETE FROM dead")

    def rows_where(self, condition: str) -> Passing:
        """Rows of the items for which a condition holds; see :func:`hivlp.store.where.rows_where`.

        Called inside :meth:`reading`.
        """
        return rows_where(self._path, condition)


def _storable(text: str | None) -> str | None:
    """Text as SQLite can hold it."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def _json(metadata: Mapping[str, Any]) -> str:
    if not metadata:
        return "{}"
    text = json.dumps(metadata, ensure_ascii=False)  # SQLite does not find a key that is written with escapes
    return text if pack_path(text) is text else json.dumps(metadata)
