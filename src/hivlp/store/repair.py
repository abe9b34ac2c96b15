"""Repair of a store: what is damaged is set aside or forgotten, all else is kept."""

from __future__ import annotations

from contextlib import suppress

from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.store.compacting import Progress, rewrite
from hivlp.store.folder import Store
from hivlp.store.verify import VerifyReport, verify_store


def repair_store(store: Store, found: VerifyReport, on_progress: Progress | None = None) -> list[tuple[int, str]]:
    """Rewrite a store without what is damaged; a crash at any point leaves it as it was, or repaired.

    An item whose vectors are damaged is set aside (``Reader.integrity.lost``): what is known of it is kept, and it
    comes back when its picture is indexed again.

    Args:
        store: that the caller is the only writer of.
        found: what :func:`hivlp.store.verify.verify_store` found.
        on_progress: called with how many vectors are written, and of how many.

    Returns:
        (id, path) of the items that were forgotten, because their record was damaged.

    Raises:
        DamagedIndexError: if ``items.db`` is damaged beyond repair.
        IndexFolderError: if another process is writing, or the disk fails.
    """
    if found.found("structure"):
        with suppress(IndexFolderError), store.changing(upgrade=False) as writer:
            writer.rebuild_indexes()
        found = verify_store(store)
        for damage in found.found("structure"):
            raise DamagedIndexError(beyond_repair(f"{store.path}: {damage.file}: {damage.what}"))
    forgotten = {item for damage in found.found("record") for item in damage.items}
    vectors = {item for damage in found.found("rows", "vectors") for item in damage.items}
    if found.found("record", "rows", "vectors", "checksums"):
        with store.changing(upgrade=False) as writer:
            if not writer.reader.state.has_checksums:
                writer.upgrade(check=False)
            writer.forget(item_id for item_id, _ in forgotten)
            writer.lose({item_id for item_id, _ in vectors} - {item_id for item_id, _ in forgotten})
            rewrite(writer, on_progress)
        store.drop_old_files()
    return sorted(forgotten)


def beyond_repair(what: str) -> str:
    """The sentence for an ``items.db`` that cannot be trusted."""
    return f"{what}; this cannot be repaired: put back a copy of the folder, or index the pictures into a new one"
