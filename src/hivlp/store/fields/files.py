"""Column files: the columns of declared fields as ``.npy`` arrays in a folder ``fields.MARK`` of the index folder.

They are derived, and spare a scan of all metadata. The catalog names the folder and the checksums of its files
(:class:`hivlp.store.records.ColumnFiles`) in the commit that they belong to. Rows never change within a generation, so
they stay good for the first rows of every later commit. New ones are written beside the old ones before a commit names
them. What is damaged, missing, or of a commit that is no more (where a backup was put back) does not fit what the
catalog says and is not used.
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
from hivlp.store.fields.column import Column, Texts, affinity_of, code_dtype, id_dtype
from hivlp.store.fields.declared import ID, types_of
from hivlp.store.records import ColumnFiles, State

FOLDER = "fields"
MARK_BITS = 60
GROWTH = 100
"""Part of the rows, one in so many, up to which those that came later are read from the catalog."""
LEAST_TAIL = 1000
"""Rows up to which they are, however few there are."""


def save(folder: Path, columns: Mapping[str, Column], state: State) -> ColumnFiles:
    """Write columns into the index folder, beside those that are there.

    Args:
        folder: of the index.
        columns: of all rows of a commit, by name.
        state: of the commit.

    Returns:
        What the catalog must say of them.

    Raises:
        OSError: if they cannot be written.
    """
    checks, mark = {}, secrets.randbits(MARK_BITS)
    place = folder / _name(mark)
    with scratch_folder(place) as scratch:
        for name, column in columns.items():
            for part, array in _arrays(column).items():
                file = scratch / f"{name}.{part}.npy"
                with file.open("xb") as out:
                    np.save(out, array, allow_pickle=False)
                    out.flush()
                    os.fsync(out.fileno())
                checks[file.name] = npy.checksum(npy.map_file(file))
        scratch.rename(place)
    sync_folder(folder)
    return ColumnFiles(state.generation, state.rows, mark, checks)


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
    codes = _read(folder, files, name, "codes", None)
    if codes.dtype.kind != "u" or len(codes) != files.rows:
        raise _unfit(name, "codes")
    last = int(codes.max(initial=0))
    if name == ID:
        column = Column(codes, range(1, last + 1), last, affinity_of(kind))
        dtype = id_dtype(last)
    elif kind == "str":
        texts, ends = _read(folder, files, name, "values", np.uint8), _read(folder, files, name, "ends", np.int64)
        if not _are_ends(ends, len(texts)):
            raise _unfit(name, "ends")
        column = Column(codes, Texts(texts.data, ends), 0, affinity_of(kind))
        dtype = code_dtype(len(ends))
    else:
        values = _read(folder, files, name, "values", np.float64 if kind == "float" else np.int64)
        column = Column(codes, values.data, len(values), affinity_of(kind))
        dtype = code_dtype(len(values))
    if last > len(column.values) or codes.dtype != dtype:
        raise _unfit(name, "codes")
    return column


def damage(folder: Path, state: State) -> dict[str, str]:
    """What is wrong with the files that a commit names, by name of the column."""
    found: dict[str, str] = {}
    files = of(folder, state)
    if files is None:
        return found
    for name, kind in types_of(state.fields).items():
        try:
            load(folder, files, name, kind)
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


def _read(folder: Path, files: ColumnFiles, name: str, part: str, dtype: type[np.generic] | None) -> NDArray[Any]:
    """The (n,) array of a file; of this dtype, if one is given."""
    file = f"{name}.{part}.npy"
    try:
        data = npy.read_file(folder / _name(files.mark) / file)
        if npy.checksum(data) != files.checks.get(file):
            raise _unfit(name, part)
        array = npy.parse(data)
    except (OSError, ValueError) as error:
        raise _unfit(name, part) from error
    if array.ndim != 1 or array.dtype != (array.dtype if dtype is None else dtype):
        raise _unfit(name, part)
    return array


def _are_ends(ends: NDArray[np.int64], length: int) -> bool:
    if len(ends) == 0:
        return length == 0
    return bool(ends[0] >= 0 and ends[-1] == length and np.all(ends[1:] >= ends[:-1]))


def _unfit(name: str, part: str) -> DamagedIndexError:
    return DamagedIndexError(
        f"the column file {name}.{part}.npy is not what was written; `hivlp repair` writes it again"
    )
