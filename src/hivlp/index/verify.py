"""Verification of an index: its store, the approximate index over it, and the coarse maps of given vectors."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hivlp.ann import AnnIndex
from hivlp.ann.arrays import Arrays
from hivlp.ann.manifest import FORMAT, MANIFEST, InvalidAnnIndexError, read_manifest
from hivlp.ann.rows import Stored
from hivlp.coarse.maps import EMBEDDINGS, ITEM_FILE, QUERY_FILE, load_maps
from hivlp.errors import DamagedIndexError, IndexFolderError
from hivlp.files.scratch import standing
from hivlp.search.opened import open_ann
from hivlp.search.operating_points import FOLDER as ENGINE_FOLDER
from hivlp.search.operating_points import Tuned
from hivlp.store.compacting import Progress
from hivlp.store.database import FILE
from hivlp.store.folder import Store
from hivlp.store.verify import Damage, VerifyReport, verify_store


def verify(path: Path | str, on_progress: Progress | None = None) -> VerifyReport:
    """Check a folder, even one that is too damaged to be opened.

    Args:
        path: of the folder.
        on_progress: called with how many records and vectors were looked at, and of how many.

    Raises:
        IndexFolderError: if it is not an index, is of a newer format, or may not be read.
    """
    try:
        store = Store(Path(path))
    except DamagedIndexError as error:
        return VerifyReport(str(path), damage=[Damage("structure", FILE, str(error))])
    with closing(store):
        return verify_index(store, on_progress)


def verify_index(store: Store, on_progress: Progress | None = None) -> VerifyReport:
    """Check an open store, and what belongs to the index beside it.

    Args:
        store: an open one.
        on_progress: called with how many records and vectors were looked at, and of how many.

    Raises:
        IndexFolderError: if a file may not be read.
    """
    report = verify_store(store, on_progress)
    report.damage += _check_maps(store)
    if _is_outdated(store.path):
        report.notes.append("the approximate index is of an earlier format and not used; `hivlp tune` builds it again")
        return report
    try:
        with store.reading() as reader:
            fine, generation = reader.vectors()[-1], reader.state.generation
            report.damage += _check_engine(store.path, fine, generation)
    except DamagedIndexError:  # which is in the report already
        report.damage += _check_engine(store.path, None, 0)
    return report


def _check_maps(store: Store) -> list[Damage]:
    if store.about.model == EMBEDDINGS:
        try:
            load_maps(store.path, store.levels, store.about.fingerprint)
        except DamagedIndexError as error:
            return [Damage("maps", f"{ITEM_FILE}, {QUERY_FILE}", str(error))]
    return []


def _is_outdated(folder: Path) -> bool:
    """Whether there is an approximate index of an earlier format, whose files are as they were written."""
    place = standing(folder / ENGINE_FOLDER)
    try:
        return read_manifest(place, older=True).format < FORMAT and not AnnIndex.damage(place, older=True)
    except IndexFolderError:
        return False


def _check_engine(folder: Path, fine: Stored | None, generation: int) -> list[Damage]:
    """Damage of the approximate index: of each file's checksum, of its arrays, or of the vectors that it is of."""
    place = standing(folder / ENGINE_FOLDER)
    if not place.exists():
        return []
    try:
        what = "is not as it was written; `hivlp tune` builds it again"
        damaged = [Damage("engine", f"{ENGINE_FOLDER}/{name}", what) for name in AnnIndex.damage(place)]
        if not damaged and (fine is None or open_ann(folder, fine, generation) is None):
            Arrays.load(place)  # by itself: the vectors were given other rows since it was built
            if fine is not None and Tuned.of_manifest(read_manifest(place)).generation > generation:
                raise InvalidAnnIndexError(place, MANIFEST, "it is of vectors that do not exist yet")
        return damaged
    except IndexFolderError as error:
        file = error.file if isinstance(error, InvalidAnnIndexError) else MANIFEST
        return [Damage("engine", f"{ENGINE_FOLDER}/{file}", str(error))]
