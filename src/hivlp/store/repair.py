"""Saving what can be saved of a damaged index: the rest is set aside, for its pictures to be encoded again."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hivlp.errors import DamagedIndexError
from hivlp.files.scratch import settle
from hivlp.index.adding import Failure
from hivlp.search.operating_points import FOLDER as ENGINE_FOLDER
from hivlp.store.compacting import Progress, drop_old_files, rewrite
from hivlp.store.folder import IndexFolder
from hivlp.store.schema import OLD_FORMAT
from hivlp.store.verify import VerifyReport, items_to_json, verify_folder


@dataclass
class RepairReport:
    """What :meth:`hivlp.index.Index.repair` did.

    Attributes:
        found: the damage that there was.
        restored: items that were set aside, now or before, and whose pictures were encoded again.
        lost: (id, path) of items set aside: their vectors are gone, what is known of them is kept, and they come back
            when their pictures are indexed again.
        forgotten: (id, path) of items whose record was damaged; indexing their pictures again makes new items.
        failed: pictures of items set aside that cannot be encoded, and why.
        items: in the index afterwards.
    """

    found: VerifyReport
    restored: int = 0
    lost: list[tuple[int, str]] = field(default_factory=list)
    forgotten: list[tuple[int, str]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    items: int = 0

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp repair --json`` prints."""
        return {
            "damage": [damage.to_json() for damage in self.found.damage],
            "restored": self.restored,
            "lost": items_to_json(self.lost),
            "forgotten": items_to_json(self.forgotten),
            "failed": [{"path": failure.path, "error": failure.error} for failure in self.failed],
            "items": self.items,
        }

    def __str__(self) -> str:
        lines = [str(damage) for damage in self.found.damage] or ["nothing is damaged"]
        lines += [f"failed: {failure.path}: {failure.error}" for failure in self.failed]
        for what, items in (
            ("set aside until its picture is indexed again", self.lost),
            ("forgotten; index its picture again", self.forgotten),
        ):
            lines += [f"not repaired, {what}: [{item_id}] {path!r}" for item_id, path in items]
        lost = len(self.lost) + len(self.forgotten)
        return "\n".join([*lines, f"{self.restored} encoded again, {lost} not repaired; {self.items} items"])


def set_damage_aside(folder: IndexFolder, on_progress: Progress | None = None) -> RepairReport:
    """Rewrite the folder without what is damaged; a crash at any point leaves it as it was, or repaired.

    Raises:
        DamagedIndexError: if ``items.db`` is damaged beyond repair.
        IndexFolderError: if another process is writing, or the disk fails.
    """
    with folder._writer():
        report = RepairReport(verify_folder(folder))
        found = report.found
        if any(damage.kind == "structure" for damage in found.damage):
            with suppress(sqlite3.DatabaseError, DamagedIndexError), folder.catalog.writing():
                folder.catalog.integrity.rebuild_indexes()
            found = verify_folder(folder)
            for damage in found.damage:
                if damage.kind == "structure":
                    raise DamagedIndexError(beyond_repair(f"{folder.path}: {damage.file}: {damage.what}"))
        if any(damage.kind == "engine" for damage in report.found.damage):
            settle(folder.path / ENGINE_FOLDER)
            shutil.rmtree(folder.path / ENGINE_FOLDER, ignore_errors=True)  # `hivlp tune` builds it again
        if any(damage.kind != "engine" for damage in report.found.damage):
            records = {item for damage in found.damage if damage.kind == "record" for item in damage.items}
            vectors = {item for damage in found.damage if damage.kind in ("rows", "vectors") for item in damage.items}
            report.forgotten = sorted(records)
            with folder._guard(), folder.catalog.writing() as state:
                if state.format == OLD_FORMAT:
                    state = folder.catalog.upgrade()
                folder.catalog.integrity.forget(item_id for item_id, _ in records)
                forgotten = {item_id for item_id, _ in records}
                folder.catalog.integrity.lose({item_id for item_id, _ in vectors} - forgotten)
                rewrite(folder, state, folder.catalog.live(), on_progress)
            drop_old_files(folder, folder.catalog.state())
        report.lost = folder.catalog.integrity.lost()[0]
        report.items = folder.catalog.count()
    return report


def beyond_repair(what: str) -> str:
    """The sentence for an ``items.db`` that cannot be trusted."""
    return f"{what}; this cannot be repaired: put back a copy of the folder, or index the pictures into a new one"
