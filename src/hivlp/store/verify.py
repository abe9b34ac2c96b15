"""Whether an index folder still is what was written: every vector, every record, and that they fit together."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hivlp.ann import AnnIndex
from hivlp.ann.arrays import Arrays
from hivlp.ann.manifest import MANIFEST, RefusedEngineError, read_manifest
from hivlp.coarse.maps import EMBEDDINGS, ITEM_FILE, QUERY_FILE, CoarseMaps
from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.files.scratch import standing
from hivlp.levels import Level
from hivlp.search.opened import open_engine
from hivlp.search.operating_points import FOLDER as ENGINE_FOLDER
from hivlp.search.operating_points import Tuned
from hivlp.store.compacting import Progress
from hivlp.store.database import FILE
from hivlp.store.folder import IndexFolder
from hivlp.store.records import State
from hivlp.store.schema import OLD_FORMAT, unpack_path
from hivlp.store.vectors import CHUNK, Stored, VectorFile, not_unit, row_checksums

Rows = NDArray[np.int64]
SHOWN = 20  # a text for people names so many of a kind; the JSON names all
NO_CHECKSUMS = (
    "an index of format 1 has no checksums: only lengths and norms were checked; the next change to it makes checksums"
)


Kind = Literal["structure", "record", "rows", "vectors", "checksums", "maps", "engine"]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        kind: of what is damaged: ``items.db`` as a whole (``structure``), what it says of an item (``record``), which
            item a row belongs to (``rows``), the vectors themselves, only their checksums, the ``maps`` that an index
            of given vectors has in place of a model, or the ``engine``, which is built from the rest.
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
    """What :meth:`hivlp.index.Index.verify` found. ``notes`` tell what is no damage, but good to know."""

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


def verify(path: Path | str, on_progress: Progress | None = None) -> VerifyReport:
    """Check a folder, even one that is too damaged to be opened.

    Args:
        path: of the folder.
        on_progress: called with how many records and vectors were looked at, and of how many.

    Raises:
        IndexFolderError: if it is not an index, is of a newer format, or may not be read.
    """
    try:
        folder = IndexFolder(Path(path))
    except DamagedIndexError as error:
        return VerifyReport(str(path), damage=[Damage("structure", FILE, str(error))])
    with closing(folder):
        return verify_folder(folder, on_progress)


def verify_folder(folder: IndexFolder, on_progress: Progress | None = None) -> VerifyReport:
    """Check an open folder. Writers may go on meanwhile; what they add is not looked at.

    Args:
        folder: an open one.
        on_progress: called with how many records and vectors were looked at, and of how many.

    Raises:
        IndexFolderError: if a file may not be read.
    """
    report = VerifyReport(str(folder.path))
    looked_at = 0

    def follow(count: int) -> None:
        nonlocal looked_at
        looked_at += count
        if on_progress is not None:
            on_progress(looked_at, (1 + len(folder.levels)) * report.rows)

    fine: tuple[Stored, int] | None = None
    try:
        with folder.catalog.reading() as state:
            report.format, report.rows = state.format, state.rows
            if state.format == OLD_FORMAT:
                report.notes.append(NO_CHECKSUMS)
            folder.catalog.check_meta()
            faults = folder.catalog.integrity.faults()
            report.damage += [Damage("structure", FILE, fault) for fault in faults]
            if faults:
                report.notes.append(f"the rest was not looked at: what {FILE} says of it cannot be trusted")
                return report
            known = _most_rows(folder, state)
            if state.rows > known:  # perhaps too many to be named one by one
                what = f"the table meta speaks of {state.rows} rows, items and files of {known} at most"
                report.damage.append(Damage("structure", FILE, what))
                return report
            owners = _check_records(folder, state, report, follow)
            files = [_LevelCheck(folder, level, state) for level in folder.levels]
            fine = files[-1].whole(state)
            if folder.catalog.about.model == EMBEDDINGS:
                _check_maps(folder, report)
        # The files' committed rows never change, so that they can be read without keeping writers waiting.
        for file in files:
            for kind, name, what, rows in file.damage(follow):
                ids = owners[rows]
                items = _known(folder, ids[ids > 0])
                report.damage.append(Damage(kind, name, what, tuple(rows), items, file.level))
    except (DamagedIndexError, sqlite3.DatabaseError, UnicodeDecodeError) as error:
        report.damage.append(Damage("structure", FILE, str(error)))
    report.damage += _check_engine(folder.path, fine)
    return report


def _check_engine(folder: Path, fine: tuple[Stored, int] | None) -> list[Damage]:
    """Every file's sum; and if these are right, whether it is an engine at all, and one of these vectors."""
    place = standing(folder / ENGINE_FOLDER)
    if not place.exists():
        return []
    try:
        what = "is not as it was written; `hivlp tune` builds the engine again"
        damaged = [Damage("engine", f"{ENGINE_FOLDER}/{name}", what) for name in AnnIndex.damage(place)]
        if not damaged and (fine is None or open_engine(folder, *fine) is None):
            Arrays.load(place)  # by itself: the vectors were given other rows since it was built
            if fine is not None and Tuned.of_manifest(read_manifest(place)).generation > fine[1]:
                raise RefusedEngineError(place, MANIFEST, "it is of vectors that do not exist yet")
        return damaged
    except IndexFolderError as error:
        file = error.file if isinstance(error, RefusedEngineError) else MANIFEST
        return [Damage("engine", f"{ENGINE_FOLDER}/{file}", str(error))]


def _check_maps(folder: IndexFolder, report: VerifyReport) -> None:
    try:
        CoarseMaps.load(folder.path, folder.catalog.about.fingerprint)
    except DamagedIndexError as error:
        report.damage.append(Damage("maps", f"{ITEM_FILE}, {QUERY_FILE}", str(error)))


def _most_rows(folder: IndexFolder, state: State) -> int:
    """How many rows there can have been, by what there is of them: each is an item's or free, and in every file."""
    found = [folder.catalog.count() + len(folder.catalog.dead())]
    for level in folder.levels:
        with suppress(DamagedIndexError):  # a missing file is found later
            found.append(VectorFile.of(folder.path, level, state.generation, state.dtype).held())
    return max(found)


def _check_records(folder: IndexFolder, state: State, report: VerifyReport, follow: Callable[[int], None]) -> Rows:
    """Whether every record is as written, and every row of one item or dead; gives the id of each row's item, or 0."""
    owners, claims = np.zeros(state.rows, np.int64), np.zeros(state.rows, np.int64)
    damaged: list[Damage] = []
    for record, whole in folder.catalog.integrity.records():
        item_id, path, row = record[0], record[1], record[5]
        report.items += 1
        if report.items % CHUNK == 0:
            follow(CHUNK)
        inside = isinstance(row, int) and 0 <= row < state.rows
        item = (item_id, unpack_path(path if isinstance(path, (str, bytes)) else repr(path)))
        if not (whole and folder.catalog.makes_sense(record)):
            damaged.append(Damage("record", FILE, "what is known of an item is not what was written", (), (item,)))
        elif not inside:
            damaged.append(Damage("rows", FILE, "an item has no vectors", (), (item,)))
        if inside:
            claims[row] += 1
            owners[row] = item_id
    dead = np.array(folder.catalog.dead(), np.int64)
    there = (dead >= 0) & (dead < state.rows)
    np.add.at(claims, dead[there], 1)
    if not there.all():
        damaged.append(Damage("rows", FILE, "a removed item has a row that does not exist"))
    if not damaged:  # otherwise it may follow from that
        for what, rows in (
            ("rows belong to no item, and are not free", np.flatnonzero(claims == 0)),
            ("rows have more than one owner", np.flatnonzero(claims > 1)),
        ):
            if len(rows):
                ids = owners[rows]
                damaged.append(Damage("rows", FILE, what, tuple(rows.tolist()), _known(folder, ids[ids > 0])))
    report.lost, unknown = folder.catalog.integrity.lost()
    what = "what is known of an item set aside is not what was written"
    damaged += [Damage("record", FILE, what, (), ((item_id, "?"),)) for item_id in unknown]
    report.damage += damaged
    return owners


def _known(folder: IndexFolder, ids: Rows) -> tuple[tuple[int, str], ...]:
    wanted = set(ids.tolist())
    return tuple((item_id, folder.catalog.integrity.path_of(item_id)) for item_id in sorted(wanted))


class _LevelCheck:
    """One level's file, and what the catalog says of it. Made inside the transaction in which the two agree."""

    def __init__(self, folder: IndexFolder, level: Level, state: State) -> None:
        self.level, self._rows = level.name, state.rows
        self._crcs, self._known = folder.catalog.integrity.checksums(level.name, state.rows)
        self._has_checksums = state.format != OLD_FORMAT
        file = VectorFile.of(folder.path, level, state.generation, state.dtype)
        self._name = file.path.name
        try:
            self._held: int | None = min(file.held(), state.rows)
        except DamagedIndexError:
            self._held = None
        # A later compaction may delete the file, but not what is mapped.
        self._vectors = file.map(self._held or 0) if self._held is not None else None

    def whole(self, state: State) -> tuple[Stored, int] | None:
        """All vectors, if the file is long enough, and its generation."""
        if self._vectors is None or self._held != self._rows:
            return None
        return np.asarray(self._vectors), state.generation

    def damage(self, follow: Callable[[int], None]) -> Iterator[tuple[Kind, str, str, list[int]]]:
        """What is wrong: kind, file, words, rows; ``follow`` is told of each block of vectors."""
        if self._has_checksums and not self._known.all():
            rows = np.flatnonzero(~self._known).tolist()
            yield "checksums", FILE, f"the checksums of {self._name} are not what was written", rows
        if self._vectors is None or self._held is None:
            yield "vectors", self._name, "the file is missing", list(range(self._rows))
            return
        if self._held < self._rows:
            rows = list(range(self._held, self._rows))
            yield "vectors", self._name, f"the file ends after {self._held} of {self._rows} vectors", rows
        differing: list[int] = []
        impossible: list[int] = []
        for start in range(0, self._held, CHUNK):
            block = np.asarray(self._vectors[start : start + CHUNK])
            known, crcs = self._known[start : start + len(block)], self._crcs[start : start + len(block)]
            differing += (start + np.flatnonzero(known & (row_checksums(block) != crcs))).tolist()
            odd = not_unit(block)
            impossible += (start + odd[~known[odd]]).tolist()
            follow(len(block))
        if differing:
            yield "vectors", self._name, "vectors are not what was written", differing
        if impossible:
            yield "vectors", self._name, "vectors are not of unit length", impossible


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
