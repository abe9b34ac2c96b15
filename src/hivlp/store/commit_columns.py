"""Columns of a commit: those in files for its first rows, and what the catalog says of rows that came since."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.store import column_files
from hivlp.store.columns import Column
from hivlp.store.conditions import ID, NotAnsweredError, parse
from hivlp.store.database import FILE
from hivlp.store.reader import Reader
from hivlp.store.records import ColumnFiles, State

logger = logging.getLogger(__name__)
MOST_LEARNT = 16
"""Keys of the metadata that are no declared fields, whose columns are kept in memory once they were asked for."""
MOST_TEXT = 1 << 25
"""Bytes of the distinct texts of such a column; SQLite answers what is asked of longer ones."""


class Part:
    """Columns of some rows, each made when it is first needed.

    Attributes:
        first: row that they begin with.
        last: row that they end before.
        files: that hold those of declared fields; None if the catalog does.
    """

    def __init__(self, folder: Path, first: int, last: int, files: ColumnFiles | None = None) -> None:
        """No column is made yet."""
        self.first, self.last, self.files = first, last, files
        self._folder = folder
        self._made: dict[tuple[str, str | None], Column] = {}
        self._unfit: set[str] = set()

    def columns(self, kinds: Mapping[str, str | None], reader: Reader | None) -> dict[str, Column] | None:
        """Columns by name; None if SQLite must answer, or a reader is needed to make one of them.

        Args:
            kinds: name of a field, ``id``, or ``$.key`` -> type; None for a key.
            reader: of the commit.
        """
        missing = [each for each in kinds.items() if each not in self._made and not self._loaded(*each, reader)]
        if missing and (reader is None or not self._read(reader, missing)):
            return None
        found = {name: self._made[name, kind] for name, kind in kinds.items()}
        learnt = [each for each in self._made if each[1] is None]
        for oldest in learnt[: max(0, len(learnt) - MOST_LEARNT)]:
            del self._made[oldest]
        return found

    def _loaded(self, name: str, kind: str | None, reader: Reader | None) -> bool:
        if self.files is None or kind is None or name in self._unfit:
            return False
        try:
            self._made[name, kind] = column_files.load(self._folder, self.files, name, kind)
        except DamagedIndexError as error:
            if reader is not None:  # otherwise a commit may have come, and replaced the files
                logger.warning("reading a field from %s: %s", FILE, error)
                self._unfit.add(name)
            return False
        return True

    def _read(self, reader: Reader, missing: Sequence[tuple[str, str | None]]) -> bool:
        """Make columns from the catalog, if it holds what columns can."""
        sql = {ID: ID} | {field.name: field.sql for field in reader.state.fields}
        expressions = [sql[name] if kind is not None else f"metadata ->> '{name}'" for name, kind in missing]
        count = self.last - self.first
        try:
            rows, columns = reader.column_values(expressions, self.first, self.last)
            for (name, kind), values in zip(missing, columns, strict=True):
                if kind is None and sum(len(value) for value in {*values} if isinstance(value, bytes)) > MOST_TEXT:
                    return False
                make = Column.of_ids if name == ID else partial(Column.of, kind=kind)
                self._made[name, kind] = make(rows - self.first, count, values)
        except (sqlite3.Error, ValueError, TypeError, OverflowError):  # malformed JSON, which SQLite tells of
            return False
        return True


class CommitColumns:
    """Columns of the newest commit that was read, for any number of threads."""

    def __init__(self, folder: Path) -> None:
        """No column is read yet.

        Args:
            folder: of the index.
        """
        self._folder = folder
        self._newest: tuple[State, tuple[Part, ...]] | None = None
        self._lock = threading.RLock()

    def mask(self, text: str, state: State, reader: Reader | None = None) -> NDArray[np.bool_] | None:
        """Rows for which a condition holds, those of tombstones among them.

        Args:
            text: the condition.
            state: of the commit.
            reader: of the commit, to make columns that are not there yet; without one, they are only looked up.

        Returns:
            (rows,) bool; None if SQLite must answer, or a reader is needed.
        """
        condition = parse(text, state.fields)
        if condition is None:
            return None
        types = types_of(state)
        kinds = {name: types.get(name) for name in condition.columns}
        with self._lock:
            parts = [part.columns(kinds, reader) for part in self._parts(state)]
        try:
            masks = [condition.mask(columns) for columns in parts if columns is not None]
        except NotAnsweredError:
            return None
        if len(masks) < len(parts):
            return None
        return masks[0] if len(masks) == 1 else np.concatenate(masks)

    def columns(self, reader: Reader) -> dict[str, Column]:
        """Columns of all declared fields and of the ids, over all rows of a reader's commit.

        Raises:
            DamagedIndexError: if the catalog holds what a column cannot.
        """
        types = types_of(reader.state)
        with self._lock:
            parts = [part.columns(types, reader) for part in self._parts(reader.state)]
        made = [part for part in parts if part is not None]
        if len(made) < len(parts):
            raise DamagedIndexError(f"{self._folder}: fields cannot be read; run `hivlp repair`")
        rows = reader.state.rows
        return {name: _joined([part[name] for part in made], kind, rows) for name, kind in types.items()}

    def _parts(self, state: State) -> tuple[Part, ...]:
        if self._newest is not None and self._newest[0] == state:
            return self._newest[1]
        files = column_files.of(self._folder, state)
        if files is None:
            parts: tuple[Part, ...] = (Part(self._folder, 0, state.rows),)
        else:
            known = self._newest[1][0] if self._newest is not None else None
            # Rows within files never change: whatever was made of them stays good.
            base = known if known is not None and known.files == files else Part(self._folder, 0, files.rows, files)
            parts = (base, Part(self._folder, files.rows, state.rows))[: 1 + (state.rows > files.rows)]
        self._newest = state, parts
        return parts


def types_of(state: State) -> dict[str, str]:
    """Type of each column that a commit's fields have, the ids' among them."""
    return {ID: "int"} | {field.name: field.type for field in state.fields}


def _joined(parts: Sequence[Column], kind: str, rows: int) -> Column:
    """One column of several parts, end to end."""
    if len(parts) == 1:
        return parts[0]
    everything = np.arange(rows)
    if isinstance(parts[0].values, range):
        return Column.of_ids(everything, rows, np.concatenate([column.codes for column in parts]).tolist())
    return Column.of(everything, rows, [value for column in parts for value in column], kind)
