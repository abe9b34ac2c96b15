"""Verification of a store: every vector and every record as it was written, and that they fit together."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hivlp.ann.rows import Stored
from hivlp.errors import DamagedIndexError
from hivlp.store import payloads
from hivlp.store.codec import Checksums, row_checksums
from hivlp.store.compacting import Progress
from hivlp.store.database import FILE
from hivlp.store.fields import files as column_files
from hivlp.store.folder import Store
from hivlp.store.lookup import Shown
from hivlp.store.reader import Reader
from hivlp.store.vectors import CHUNK, VectorFile

SHOWN = 20  # a text for people names so many of a kind; the JSON names all
NO_CHECKSUMS = (
    "an index of format 1 has no checksums: only lengths and norms were checked; the next change to it makes checksums"
)

Kind = Literal["structure", "record", "rows", "vectors", "checksums", "maps", "fields", "payloads", "engine"]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        kind: of what is damaged: ``items.db`` as a whole (``structure``), what it says of an item (``record``), which
            item a row belongs to (``rows``), the vectors themselves, only their ``checksums``, the ``maps`` that an
            index of given vectors has in place of a model, or what is built from the rest: columns of ``fields``,
            ``payloads`` that hits show, and the ``engine``.
        file: its name in the folder.
        what: in words.
        rows: of the vector file, ascending.
        items: (id, path) of the items that it touches.
        level: if it is a level's vectors.
    """

    kind: Kind
    file: str
    what: str
    rows: tuple[int, ...] = ()
    items: tuple[tuple[int, str], ...] = ()
    level: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --verify --json`` prints."""
        return {
            "kind": self.kind,
            "file": self.file,
            "what": self.what,
            "level": self.level,
            "rows": list(self.rows),
            "items": items_to_json(self.items),
        }

    def __str__(self) -> str:
        rows = f", {_spans(self.rows)}" if self.rows else ""
        lines = [f"damaged: {self.file}{rows}: {self.what}"]
        lines += [f"  item [{item_id}] {path!r}" for item_id, path in self.items[:SHOWN]]
        if len(self.items) > SHOWN:
            lines.append(f"  and {len(self.items) - SHOWN} items more")
        return "\n".join(lines)


@dataclass
class VerifyReport:
    """Damage that was found, and what was looked at. ``notes`` tell what is no damage, but good to know."""

    path: str
    format: int | None = None
    items: int = 0
    rows: int = 0
    lost: list[tuple[int, str]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def found(self, *kinds: Kind) -> list[Damage]:
        """The damage of these kinds."""
        return [damage for damage in self.damage if damage.kind in kinds]

    def summary(self) -> str:
        """The damage in one sentence."""
        files = sorted({damage.file for damage in self.damage})
        touched = len({item_id for damage in self.damage for item_id, _ in damage.items})
        items = f", {touched} item{'s'[: touched != 1]} touched" if touched else ""
        return f"{self.path} is damaged ({', '.join(files)}{items}): `hivlp repair` saves what can be saved"

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --verify --json`` prints."""
        return {
            "path": self.path,
            "ok": self.ok,
            "format": self.format,
            "items": self.items,
            "rows": self.rows,
            "lost": len(self.lost),
            "damage": [damage.to_json() for damage in self.damage],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        checked = f"{self.items} items, {self.rows} rows: {'all as written' if self.ok else 'damaged'}"
        notes = list(self.notes)
        if self.lost:
            notes.append(f"{len(self.lost)} items are set aside until their pictures are indexed again")
        return "\n".join([*map(str, self.damage), *notes, checked])


def verify_store(store: Store, on_progress: Progress | None = None) -> VerifyReport:
    """Check an open store. Writers may go on meanwhile; what they add is not looked at.

    Args:
        store: an open one.
        on_progress: called with how many records and vectors were looked at, and of how many.

    Raises:
        IndexFolderError: if a file may not be read.
    """
    report = VerifyReport(str(store.path))
    looked_at = 0

    def follow(count: int) -> None:
        nonlocal looked_at
        looked_at += count
        if on_progress is not None:
            on_progress(looked_at, (1 + len(store.levels)) * report.rows)

    try:
        with store.reading() as reader:
            state = reader.state
            report.format, report.rows = state.format, state.rows
            if not state.has_checksums:
                report.notes.append(NO_CHECKSUMS)
            report.damage = [Damage("structure", FILE, fault) for fault in reader.integrity.faults()]
            if report.damage:
                report.notes.append(f"the rest was not looked at: what {FILE} says of it cannot be trusted")
                return report
            known = _most_rows(reader)
            if state.rows > known:  # perhaps too many to be named one by one
                what = f"the table meta speaks of {state.rows} rows, items and files of {known} at most"
                report.damage.append(Damage("structure", FILE, what))
                return report
            owners = _check_records(reader, report, follow)
            try:
                reader.integrity.pending()
            except DamagedIndexError as error:
                report.damage.append(Damage("checksums", FILE, str(error)))
            checks = [_LevelCheck.of(reader, file) for file in reader.files()]
        # Committed rows never change, so that they can be read without keeping writers waiting.
        found = [damage for check in checks for damage in check.damage(follow)]
        with store.reading() as reader:
            for kind, name, what, rows, level in found:
                items = _known(reader, owners[rows])
                report.damage.append(Damage(kind, name, what, tuple(rows), items, level))
            report.damage += [
                Damage("fields", name, what) for name, what in column_files.damage(store.path, reader.state).items()
            ]
            wrong = payloads.damage(store.path, reader.state, _whole_shown(reader), store.paths)
            if wrong is not None and reader.state.payloads is not None:
                report.damage.append(Damage("payloads", reader.state.payloads.name, wrong))
    except (DamagedIndexError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
        report.damage.append(Damage("structure", FILE, str(error)))
    return report


def _most_rows(reader: Reader) -> int:
    """How many rows there can have been, by what there is of them: each is an item's or free, and in every file."""
    found = [reader.count() + len(reader.dead())]
    for file in reader.files():
        with suppress(DamagedIndexError):  # a missing file is found later
            found.append(file.held())
    return max(found)


def _check_records(reader: Reader, report: VerifyReport, follow: Callable[[int], None]) -> NDArray[np.int64]:
    """Whether every record is as written, and every row of one item or dead; gives the id of each row's item, or 0."""
    rows = reader.state.rows
    owners, claims = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    damaged: list[Damage] = []
    for record, whole in reader.integrity.records():
        report.items += 1
        if report.items % CHUNK == 0:
            follow(CHUNK)
        inside = isinstance(record.row, int) and 0 <= record.row < rows
        item = (record.id, reader.integrity.shown_path(record.path))
        if not whole:
            damaged.append(Damage("record", FILE, "what is known of an item is not what was written", (), (item,)))
        elif not inside:
            damaged.append(Damage("rows", FILE, "an item has no vectors", (), (item,)))
        if inside:
            claims[record.row] += 1
            owners[record.row] = record.id
    dead = np.array(reader.dead(), np.int64)
    there = (dead >= 0) & (dead < rows)
    np.add.at(claims, dead[there], 1)
    if not there.all():
        damaged.append(Damage("rows", FILE, "a removed item has a row that does not exist"))
    if not damaged:  # otherwise it may follow from that
        for what, wrong in (
            ("rows belong to no item, and are not free", np.flatnonzero(claims == 0)),
            ("rows have more than one owner", np.flatnonzero(claims > 1)),
        ):
            if len(wrong):
                damaged.append(Damage("rows", FILE, what, tuple(wrong.tolist()), _known(reader, owners[wrong])))
    report.lost, unknown = reader.integrity.lost()
    what = "what is known of an item set aside is not what was written"
    damaged += [Damage("record", FILE, what, (), ((item_id, "?"),)) for item_id in unknown]
    report.damage += damaged
    return owners


def _whole_shown(reader: Reader) -> Iterator[tuple[int, Shown]]:
    """Row, and what hits show of it, of each item whose record is as it was written; the others are named already."""
    for record, whole in reader.integrity.records():
        if whole and isinstance(record.row, int) and 0 <= record.row < reader.state.rows:
            yield record.row, Shown.of(record.id, record.path, record.caption, record.metadata, reader.paths)


def _known(reader: Reader, ids: NDArray[np.int64]) -> tuple[tuple[int, str], ...]:
    """(id, path) of the items of these rows; 0 is nobody's."""
    return tuple((item_id, reader.integrity.path_of(item_id)) for item_id in sorted({*ids.tolist()} - {0}))


@dataclass(frozen=True)
class _LevelCheck:
    """One level's file, and what the catalog says of it, taken in the transaction in which the two agree."""

    file: VectorFile
    rows: int
    sealed: bool
    crcs: Checksums
    known: NDArray[np.bool_]
    pending: NDArray[np.bool_]
    vectors: Stored | None

    @classmethod
    def of(cls, reader: Reader, file: VectorFile) -> _LevelCheck:
        rows, vectors = reader.state.rows, None
        with suppress(DamagedIndexError):
            # A later compaction may delete the file, but not what is mapped.
            vectors = file.map(min(file.held(), rows))
        sums = reader.integrity.checksums(file.level.name, 0, rows)
        pending = np.zeros(rows, bool)
        if file.level != reader.about.levels[0]:
            pending[reader.integrity.pending(lenient=True)] = True
        return cls(file, rows, reader.state.has_checksums, *sums, pending, vectors)

    def damage(self, follow: Callable[[int], None]) -> Iterator[tuple[Kind, str, str, list[int], str]]:
        """What is wrong: kind, file, words, rows, level; ``follow`` is told of each block of vectors."""
        name, level = self.file.path.name, self.file.level.name
        checked = self.known | self.pending
        if self.sealed and not checked.all():
            rows = np.flatnonzero(~checked).tolist()
            yield "checksums", FILE, f"the checksums of {name} are not what was written", rows, level
        if self.vectors is None:
            yield "vectors", name, "the file is missing", list(range(self.rows)), level
            return
        held = len(self.vectors)
        differing: list[int] = []
        impossible: list[int] = []
        for start in range(0, held, CHUNK):
            block = np.asarray(self.vectors[start : start + CHUNK])
            known, crcs = self.known[start : start + len(block)], self.crcs[start : start + len(block)]
            differing += (start + np.flatnonzero(known & (row_checksums(block) != crcs))).tolist()
            odd = self.file.codec.not_unit(block)
            impossible += (start + odd[~checked[start + odd]]).tolist()
            follow(len(block))
        for what, rows in (
            (f"the file ends after {held} of {self.rows} vectors", list(range(held, self.rows))),
            ("vectors are not what was written", differing),
            ("vectors are not of unit length", impossible),
        ):
            if rows:
                yield "vectors", name, what, rows, level


def items_to_json(items: Iterable[tuple[int, str]]) -> list[dict[str, Any]]:
    """(id, path) pairs, with names that are no text escaped."""
    return [{"id": item_id, "path": os.fsencode(path).decode("utf-8", "backslashreplace")} for item_id, path in items]


def _spans(rows: Iterable[int]) -> str:
    """``rows 3, 5–9`` for rows in ascending order."""
    spans: list[list[int]] = []
    for row in rows:
        if spans and spans[-1][1] == row - 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    words = [str(first) if first == last else f"{first}–{last}" for first, last in spans]
    if len(words) > SHOWN:
        words = [*words[:SHOWN], f"and {len(words) - SHOWN} spans more"]
    return f"row{'s'[: spans[0][0] != spans[-1][1]]} {', '.join(words)}"
