"""Columns of a commit: those in files for its first rows, and what the catalog says of rows that came since."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.store.database import FILE
from hivlp.store.fields import files as column_files
from hivlp.store.fields.column import Column
from hivlp.store.fields.comparisons import NotAnsweredError
from hivlp.store.fields.conditions import parse
from hivlp.store.fields.declared import ID, FieldCounts, types_of
from hivlp.store.reader import Reader
from hivlp.store.records import ColumnFiles, State

logger = logging.getLogger(__name__)
ASKED = 1
"""Times that SQLite answers what is asked of a key, before a column is made of it: which takes about twice as long."""
MOST_LEARNT = 16
"""Keys of the metadata that are no declared fields, whose columns are kept in memory."""
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
        self._asked = Counter[str]()
        self._unfit: set[str] = set()

    def columns(
        self, kinds: Mapping[str, str | None], reader: Reader | None, *, learning: bool = False
    ) -> dict[str, Column] | None:
        """Columns by name; None if SQLite must answer, or a reader is needed to make one of them.

        Args:
            kinds: name of a field, ``id``, or ``$.key`` -> type; None for a key.
            reader: of the commit.
            learning: what the catalog alone holds is only read once it was asked for :data:`ASKED` times before.
        """
        missing = [each for each in kinds.items() if each not in self._made and not self._loaded(*each, reader)]
        if missing:
            if reader is None:
                return None
            names = [name for name, _ in missing]
            if learning and min(map(self._asked.__getitem__, names)) < ASKED:
                self._asked.update(names)
                return None
            if not self._read(reader, missing):
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
        self._newest: tuple[State, Part, Part | None] | None = None
        self._lock = threading.Lock()

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
        types = types_of(state.fields)
        parts = self._columns({name: types.get(name) for name in condition.columns}, state, reader, learning=True)
        try:
            masks = [condition.mask(columns) for columns in parts or ()]
        except NotAnsweredError:
            return None
        return np.concatenate(masks) if len(masks) > 1 else masks[0] if masks else None

    def declared(self, reader: Reader) -> dict[str, Column]:
        """Columns of all declared fields and of the ids, over all rows of a reader's commit.

        Raises:
            DamagedIndexError: if the catalog holds what a column cannot.
        """
        types = types_of(reader.state.fields)
        parts = self._columns(types, reader.state, reader)
        if parts is None:
            raise DamagedIndexError(f"{self._folder}: fields cannot be read; run `hivlp repair`")
        return {name: Column.joined([part[name] for part in parts], kind) for name, kind in types.items()}

    def counts(self, reader: Reader) -> dict[str, FieldCounts]:
        """By name of each declared field, how many items have a value of it.

        Raises:
            DamagedIndexError: if the catalog holds what a column cannot.
        """
        if not reader.state.fields:
            return {}
        columns, items, alive = self.declared(reader), reader.count(), reader.alive()
        found = {}
        for field in reader.state.fields:
            known = columns[field.name].codes > 0
            values = int(np.count_nonzero(known if alive is None else known & alive))
            found[field.name] = FieldCounts(field, values, items - values)
        return found

    def _columns(
        self, kinds: Mapping[str, str | None], state: State, reader: Reader | None, *, learning: bool = False
    ) -> list[dict[str, Column]] | None:
        """Columns by name of the rows in files, or of all; and of those that came since, if there are any."""
        with self._lock:
            base, tail = self._parts(state)
            found = [base.columns(kinds, reader, learning=learning)]
            if tail is not None and found[0] is not None:
                found.append(tail.columns(kinds, reader))
        made = [columns for columns in found if columns is not None]
        return made if len(made) == len(found) else None

    def _parts(self, state: State) -> tuple[Part, Part | None]:
        if self._newest is not None and self._newest[0] == state:
            return self._newest[1:]
        files = column_files.of(self._folder, state)
        if files is None:
            base = Part(self._folder, 0, state.rows)
        elif self._newest is not None and self._newest[1].files == files:
            base = self._newest[1]  # rows within files never change: whatever was made of them stays good
        else:
            base = Part(self._folder, 0, files.rows, files)
        tail = Part(self._folder, base.last, state.rows) if base.last < state.rows else None
        self._newest = state, base, tail
        return base, tail
