"""Making of an index folder: built aside, moved into place whole."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import ArgumentError, IndexFolderError
from hivlp.files.scratch import scratch_folder, sync_folder
from hivlp.store import schema
from hivlp.store.codec import CODECS, FLOAT16
from hivlp.store.database import FILE, connect
from hivlp.store.fields.declared import Field
from hivlp.store.folder import Store, write_reason
from hivlp.store.records import About, State, format_of
from hivlp.store.vectors import vector_files


def check_free(path: Path) -> None:
    """Whether an index can be made here.

    Raises:
        IndexFolderError: if the folder holds something.
    """
    if Store.exists(path):
        raise IndexFolderError(f"{path} is already an index: open it instead")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise IndexFolderError(f"{path} exists and is not an index: choose another folder")
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be created: {write_reason(error)}") from error


def make_store(
    path: Path,
    about: About,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    codec: str = FLOAT16.name,
    fields: Sequence[Field] = (),
    *,
    relative: bool = False,
) -> None:
    """Make an empty folder.

    Args:
        path: a folder that does not exist yet, or is empty.
        about: what the index is made with.
        arrays: name of a ``.npy`` file -> what belongs to the index beside the vectors.
        codec: of the finest level, ``float16``, ``float32`` or ``int8``; the others are float16.
        fields: that are declared.
        relative: whether paths below the folder that it is made in are stored without that.

    Raises:
        IndexFolderError: if the folder holds something, or cannot be written.
        ArgumentError: if there is no such codec.
    """
    check_free(path)
    if codec not in CODECS:
        raise ArgumentError(f"a codec is {', '.join(CODECS)}, not {codec!r:.40}")
    finest = CODECS[codec]
    state = State(0, 0, 0, format_of(finest, relative=relative), finest.dtype, tuple(fields))
    levels = {"levels": json.dumps([asdict(level) for level in about.levels])}
    try:
        # Built aside and moved into place whole: a crash leaves no half-made index under this name.
        with parents_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(path) as scratch:
                for file in vector_files(scratch, about.levels, state):
                    file.create()
                for name, array in (arrays or {}).items():
                    with (scratch / name).open("xb") as out:
                        np.save(out, array, allow_pickle=False)
                        out.flush()
                        os.fsync(out.fileno())
                with closing(connect(scratch / FILE)) as db, db:
                    db.execute("BEGIN")
                    schema.make_tables(db, {**state.to_meta(), **asdict(about), **levels})
                sync_folder(scratch)
                scratch.rename(path)
        sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise IndexFolderError(f"{path} cannot be created: {write_reason(error)}") from error


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """The folders about a new one as they were before the block, if that raises and the new one is gone.

    Its parents that were not there are removed; an empty folder that it took the place of is there again.
    """
    was_there = os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises if access is denied)
    absent = [folder for folder in path.absolute().parents if not os.path.lexists(folder)]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if was_there:
                path.mkdir(exist_ok=True)
            for folder in absent:
                folder.rmdir()
        raise


@contextmanager
def new_or_nothing(path: Path) -> Iterator[None]:
    """Removal of an index that the block made, if it raises before the index has its first item."""
    if Store.exists(path):
        yield
        return
    with parents_of(path):
        try:
            yield
        except BaseException:
            with suppress(IndexFolderError), closing(Store(path)) as store, store.writer():
                if len(store) == 0:
                    remove_store(path)
            raise


def remove_store(path: Path) -> None:
    """Remove the folder of an index that nobody else has seen."""
    shutil.rmtree(path, ignore_errors=True)
