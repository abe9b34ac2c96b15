"""Column files: the columns of declared fields as arrays in a folder ``fields.MARK``, which spare a scan of all metadata.

They are derived: the catalog names the folder, its files and their checksums (:class:`hivlp.store.records.ColumnFiles`)
in the commit that they belong to. Rows never change within a generation, so they stay good for the first rows of every
later commit. New ones are written beside the old ones before a commit names them. What is damaged, missing, or of a
commit that is no more (where a backup was put back) does not fit what the catalog says and is not used.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.files import npy
from hivlp.files.scratch import scratch_folder, sync_folder
from hivlp.store.columns import Column, Texts, affinity_of
from hivlp.store.conditions import ID
from hivlp.store.records import ColumnFiles, State

FOLDER = "fields"
MARK_BITS = 60
GROWTH = 20
"""Part of the rows, one in so many, up to which those that came later are read from the catalog."""
LEAST_TAIL = 1000
"""Rows up to which they are, however few there are."""


def save(folder: Path, columns: Mapping[str, Column], generation: int, rows: int) -> ColumnFiles:
    """Write columns into the index folder, beside those that are there.

    Args:
        folder: of the index.
        columns: of the first rows, by name.
        generation: of the rows.
        rows: how many.

    Returns:
        What the catalog must say of them.

    Raises:
        OSError: if they cannot be written.
    """
    checks, mark = [], secrets.randbits(MARK_BITS)
    place = folder / _name(mark)
    with scratch_folder(place) as scratch:
        for name, column in columns.items():
            for part, array in _arrays(column).items():
                file = scratch / f"{name}.{part}.npy"
                with file.open("xb") as out:
                    np.save(out, array, allow_pickle=False)
                    out.flush()
                    os.fsync(out.fileno())
                checks.append((file.name, npy.checksum(npy.map_file(file))))
        scratch.rename(place)
    sync_folder(folder)
    return ColumnFiles(generation, rows, mark, tuple(checks))


def drop_others(folder: Path, state: State) -> None:
    """Remove column files that the last commit does not name; for the only writer."""
    for place in folder.glob(f"{FOLDER}.*"):
        if state.columns is None or place.name != _name(state.columns.mark):
            shutil.rmtree(place, ignore_errors=True)


def of(folder: Path, state: State) -> ColumnFiles | None:
    """The column files of a commit; None if there are none, or of other rows."""
    files = state.columns
    if files is None or files.generation != state.generation or files.rows > state.rows:
        return None
    return files if (folder / _name(files.mark)).is_dir() else None


def load(folder: Path, files: ColumnFiles, name: str, kind: str) -> Column:
    """The column of a field, or of ``id``.

    Args:
        folder: of the index.
        files: that the catalog names.
        name: of the field.
        kind: type of the field.

    Raises:
        DamagedIndexError: if a file is missing, or not what was written.
    """
    codes = _read(folder, files, f"{name}.codes.npy")
    if codes.dtype.kind != "u" or codes.shape != (files.rows,):
        raise _unfit(f"{name}.codes.npy")
    most = int(codes.max(initial=0))
    if name == ID:
        return Column(codes, range(1, most + 1), most, affinity_of(kind))
    values = _read(folder, files, f"{name}.values.npy")
    wanted = {"str": np.dtype(np.uint8), "float": np.dtype(np.float64)}.get(kind, np.dtype(np.int64))
    if values.dtype != wanted or values.ndim != 1:
        raise _unfit(f"{name}.values.npy")
    if kind == "str":
        ends = _read(folder, files, f"{name}.ends.npy")
        if ends.dtype != np.int64 or ends.ndim != 1 or not _are_ends(ends, len(values)):
            raise _unfit(f"{name}.ends.npy")
        texts = Texts(values.tobytes(), ends)
        column = Column(codes, texts, 0, affinity_of(kind))
    else:
        column = Column(codes, values.data, len(values), affinity_of(kind))
    if most > len(column.values):
        raise _unfit(f"{name}.codes.npy")
    return column


def damage(folder: Path, state: State) -> dict[str, str]:
    """What is wrong with the files that a commit names, by file."""
    found, files = {}, of(folder, state)
    for name, _ in files.checks if files is not None else ():
        try:
            _read(folder, files, name)
        except DamagedIndexError as error:
            found[f"{_name(files.mark)}/{name}"] = str(error)
    return found


def are_due(folder: Path, state: State) -> bool:
    """Whether a commit's fields need files, other ones than there are, or new ones for rows that came since."""
    if not state.fields:
        return False
    files = of(folder, state)
    if files is None:
        return True
    return state.rows - files.rows > max(LEAST_TAIL, state.rows // GROWTH) or bool(damage(folder, state))


def stored_bytes(folder: Path) -> int:
    """Bytes that column files take on disk."""
    try:
        return sum(file.stat().st_size for file in folder.glob(f"{FOLDER}.*/*"))
    except OSError:  # another process is removing old ones
        return 0


def _arrays(column: Column) -> dict[str, NDArray[Any]]:
    values = column.values
    if isinstance(values, range):
        return {"codes": column.codes}
    if isinstance(values, Texts):
        return {"codes": column.codes, "values": np.frombuffer(values.joined, np.uint8), "ends": values.ends}
    return {"codes": column.codes, "values": np.asarray(values)}


def _name(mark: int) -> str:
    return f"{FOLDER}.{mark:015x}"


def _read(folder: Path, files: ColumnFiles, name: str) -> NDArray[Any]:
    try:
        data = npy.read_file(folder / _name(files.mark) / name)
        if npy.checksum(data) != dict(files.checks).get(name):
            raise _unfit(name)
        return npy.parse(data)
    except (OSError, ValueError) as error:
        raise _unfit(name) from error


def _are_ends(ends: NDArray[np.int64], length: int) -> bool:
    return bool(np.all(np.diff(ends, prepend=0) >= 0)) and int(ends[-1] if len(ends) else 0) == length


def _unfit(name: str) -> DamagedIndexError:
    return DamagedIndexError(f"the column file {name} is not as it was written; `hivlp repair` writes it again")
