"""Derived files of a store: columns of declared fields, and what hits show, which spare reading the catalog."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hivlp.errors import IndexFolderError
from hivlp.store import payloads
from hivlp.store.fields import files as column_files
from hivlp.store.fields.commit import CommitColumns
from hivlp.store.folder import Store
from hivlp.store.records import State
from hivlp.store.writer import Writer

logger = logging.getLogger(__name__)


def keep_derived(store: Store) -> None:
    """Write what spares reading the catalog, where it is due: columns of declared fields, and what hits show."""
    with store.writer():
        keep_columns(store)
        keep_payloads(store)


def keep_columns(store: Store) -> bool:
    """Write the columns of declared fields into files, if many rows came since, or those there are do not fit.

    Returns:
        Whether they were written; if that fails, the log says so, and conditions are answered as before.
    """

    def write(writer: Writer) -> None:
        columns = CommitColumns(store.path).declared(writer.reader)
        writer.note_columns(column_files.save(store.path, columns, writer.reader.state))

    def is_due(state: State) -> bool:
        return column_files.are_due(store.path, state)

    return _keep(store, "columns of fields are", column_files.drop_others, is_due, write)


def keep_payloads(store: Store, least: int = payloads.LEAST_ROWS) -> bool:
    """Write what hits show into a file, if the index is large and many rows came since the last one was written.

    Args:
        store: an index's.
        least: rows of an index that is large.

    Returns:
        Whether it was written; if that fails, the log says so, and hits are looked up as before.
    """

    def write(writer: Writer) -> None:
        writer.note_payloads(payloads.save(store.path, writer.reader.all_shown(), writer.reader.state, store.paths))

    def is_due(state: State) -> bool:
        small = state.rows < least and state.payloads is None
        return not small and payloads.are_due(store.path, state)

    return _keep(store, "what hits show is", payloads.drop_others, is_due, write)


def _keep(
    store: Store,
    what: str,
    drop_others: Callable[[Path, State], None],
    is_due: Callable[[State], bool],
    write: Callable[[Writer], None],
) -> bool:
    """Write files of a commit that name them, and remove others; whether they were due and could be written."""
    with store.writer():
        with store.reading() as reader:
            drop_others(store.path, reader.state)  # of a process that was killed
            if not is_due(reader.state):
                return False
        try:
            with store.changing() as writer:
                write(writer)
        except IndexFolderError as error:
            logger.warning("%s not written: %s", what, error)
            return False
        with store.reading() as reader:
            drop_others(store.path, reader.state)
    return True
