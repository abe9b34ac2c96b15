"""Column files: the columns of declared fields as arrays in the folder ``fields``, which spare a scan of all metadata.

They are derived: the catalog names them and their checksums (:class:`hivlp.store.records.ColumnFiles`), in the commit
that they belong to. Rows never change within a generation, so they stay good for the first rows of every later commit.
One that is damaged, missing, or of another commit (after a crash, or where a backup was put back) has another checksum
and is not used.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import DamagedIndexError
from hivlp.files import npy
from hivlp.files.scratch import put, scratch_folder, standing
from hivlp.store.columns import Column, Texts, affinity_of
from hivlp.store.conditions import ID
from hivlp.store.records import ColumnFiles, State

FOLDER = "fields"
GROWTH = 20
"""Part of the rows, one in so many, up to which those that came later are read from the catalog."""
LEAST_TAIL = 1000
"""Rows up to which they are, however few there are."""


def save(folder: Path, columns: Mapping[str, Column], generation: int, rows: int) -> ColumnFiles:
    """Write columns into the index folder, in place of those that are there.

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
    checks = []
    with scratch_folder(folder / FOLDER) as scratch:
        for name, column in columns.items():
            for part, array in _arrays(column).items():
                file = scratch / f"{name}.{part}.npy"
                with file.open("xb") as out:
                    np.save(out, array, allow_pickle=False)
                    out.flush()
                    os.fsync(out.fileno())
                checks.append((file.name, npy.checksum(npy.map_file(file))))
        put(scratch, folder / FOLDER)
    return ColumnFiles(generation, rows, secrets.randbits(60), tuple(checks))


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
    sums = dict(files.checks)
    codes = _read(folder, sums, f"{name}.codes.npy")
    if codes.dtype.kind != "u" or codes.shape != (files.rows,):
        raise _unfit(f"{name}.codes.npy")
    most = int(codes.max(initial=0))
    if name == ID:
        return Column(codes, range(1, most + 1), most, affinity_of(kind))
    values = _read(folder, sums, f"{name}.values.npy")
    wanted = {"str": np.dtype(np.uint8), "float": np.dtype(np.float64)}.get(kind, np.dtype(np.int64))
    if values.dtype != wanted or values.ndim != 1:
        raise _unfit(f"{name}.values.npy")
    if kind == "str":
        ends = _read(folder, sums, f"{name}.ends.npy")
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
    found = {}
    if state.columns is not None and state.columns.generation == state.generation:
        for name, check in state.columns.checks:
            try:
                _read(folder, {name: check}, name)
            except DamagedIndexError as error:
                found[f"{FOLDER}/{name}"] = str(error)
    return found


def are_due(folder: Path, state: State) -> bool:
    """Whether a commit's fields need files, other ones than there are, or new ones for rows that came since."""
    files = state.columns
    if not state.fields:
        return False
    if files is None or files.generation != state.generation or files.rows > state.rows:
        return True
    known = {name for name, _ in files.checks}
    if not all(f"{name}.codes.npy" in known for name in (ID, *(field.name for field in state.fields))):
        return True
    return state.rows - files.rows > max(LEAST_TAIL, state.rows // GROWTH) or bool(damage(folder, state))


def stored_bytes(folder: Path) -> int:
    """Bytes that column files take on disk."""
    place = standing(folder / FOLDER)
    try:
        return sum(file.stat().st_size for file in place.iterdir())
    except OSError:  # there are none, or another process is putting new ones in their place
        return 0


def _arrays(column: Column) -> dict[str, NDArray[Any]]:
    values = column.values
    if isinstance(values, range):
        return {"codes": column.codes}
    if isinstance(values, Texts):
        return {"codes": column.codes, "values": np.frombuffer(values.joined, np.uint8), "ends": values.ends}
    return {"codes": column.codes, "values": np.asarray(values)}


def _read(folder: Path, sums: Mapping[str, int], name: str) -> NDArray[Any]:
    try:
        data = npy.read_file(standing(folder / FOLDER) / name)
        if npy.checksum(data) != sums.get(name):
            raise _unfit(name)
        return npy.parse(data)
    except (OSError, ValueError) as error:
        raise _unfit(name) from error


def _are_ends(ends: NDArray[np.int64], length: int) -> bool:
    return bool(np.all(np.diff(ends, prepend=0) >= 0)) and int(ends[-1] if len(ends) else 0) == length


def _unfit(name: str) -> DamagedIndexError:
    return DamagedIndexError(
        f"{FOLDER}/{name} is not what this commit's was; the next addition or `hivlp repair` writes it"
    )
