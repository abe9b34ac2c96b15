"""Repair of an index: its store, the approximate index that is built from it, and what is to be encoded again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

from hivlp.files.scratch import settle
from hivlp.index.adding.report import Failure
from hivlp.index.verify import verify_index
from hivlp.search.operating_points import FOLDER as ENGINE_FOLDER
from hivlp.store.compacting import Progress
from hivlp.store.folder import Store
from hivlp.store.repair import repair_store
from hivlp.store.verify import VerifyReport, items_to_json


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


def set_damage_aside(store: Store, on_progress: Progress | None = None) -> RepairReport:
    """Rewrite the folder without what is damaged; a crash at any point leaves it as it was, or repaired.

    Raises:
        DamagedIndexError: if ``items.db`` is damaged beyond repair.
        IndexFolderError: if another process is writing, or the disk fails.
    """
    with store.writer():
        report = RepairReport(verify_index(store))
        if report.found.found("engine"):
            settle(store.path / ENGINE_FOLDER)
            shutil.rmtree(store.path / ENGINE_FOLDER, ignore_errors=True)  # `hivlp tune` builds it again
        for damage in report.found.found("payloads"):
            (store.path / damage.file).unlink(missing_ok=True)  # it is written again
        report.forgotten = repair_store(store, report.found, on_progress)
        with store.reading() as reader:
            report.lost, report.items = reader.integrity.lost()[0], reader.count()
    return report
