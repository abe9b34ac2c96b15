"""Repair of a store: what is damaged is set aside or forgotten, all else is kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.store.compacting import Progress, rewrite
from hivlp.store.folder import Store
from hivlp.store.verify import VerifyReport, verify_store


@dataclass
class StoreRepair:
    """What became of a damaged store.

    Attributes:
        lost: (id, path) of items set aside: their vectors are gone, what is known of them is kept, and they come back
            when their pictures are indexed again.
        forgotten: (id, path) of items whose record was damaged; indexing their pictures again makes new items.
        items: in the store afterwards.
    """

    lost: list[tuple[int, str]] = field(default_factory=list)
    forgotten: list[tuple[int, str]] = field(default_factory=list)
    items: int = 0


def repair_store(store: Store, found: VerifyReport, on_progress: Progress | None = None) -> StoreRepair:
    """Rewrite a store without what is damaged; a crash at any point leaves it as it was, or repaired.

    Args:
        store: that the caller is the only writer of.
        found: what :func:`hivlp.store.verify.verify_store` found.
        on_progress: called with how many vectors are written, and of how many.

    Raises:
        DamagedIndexError: if ``items.db`` is damaged beyond repair.
        IndexFolderError: if another process is writing, or the disk fails.
    """
    repaired = StoreRepair()
    if found.found("structure"):
        with suppress(IndexFolderError), store.changing(upgrade=False) as writer:
            writer.rebuild_indexes()
        found = verify_store(store)
        for damage in found.found("structure"):
            raise DamagedIndexError(beyond_repair(f"{store.path}: {damage.file}: {damage.what}"))
    if found.found("record", "rows", "vectors", "checksums"):
        forgotten = {item for damage in found.found("record") for item in damage.items}
        vectors = {item for damage in found.found("rows", "vectors") for item in damage.items}
        repaired.forgotten = sorted(forgotten)
        with store.changing(upgrade=False) as writer:
            if not writer.reader.state.has_checksums:
                writer.upgrade(check=False)
            writer.forget(item_id for item_id, _ in forgotten)
            writer.lose({item_id for item_id, _ in vectors} - {item_id for item_id, _ in forgotten})
            rewrite(writer, on_progress)
        store.drop_old_files()
    with store.reading() as reader:
        repaired.lost = reader.integrity.lost()[0]
        repaired.items = reader.count()
    return repaired


def beyond_repair(what: str) -> str:
    """The sentence for an ``items.db`` that cannot be trusted."""
    return f"{what}; this cannot be repaired: put back a copy of the folder, or index the pictures into a new one"
