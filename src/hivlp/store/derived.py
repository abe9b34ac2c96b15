"""Derived files of a store: columns of declared fields, and what hits show, which spare reading the catalog."""

from __future__ import annotations

import logging

from hivlp.errors import IndexFolderError
from hivlp.store import payloads
from hivlp.store.fields import files as column_files
from hivlp.store.fields.commit import CommitColumns
from hivlp.store.folder import Store

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
    with store.writer():
        with store.reading() as reader:
            column_files.drop_others(store.path, reader.state)  # of a process that was killed
            if not column_files.are_due(store.path, reader.state):
                return False
        try:
            with store.changing() as writer:
                columns = CommitColumns(store.path).declared(writer.reader)
                writer.note_columns(column_files.save(store.path, columns, writer.reader.state))
        except IndexFolderError as error:
            logger.warning("columns of fields are not written: %s", error)
            return False
        with store.reading() as reader:
            column_files.drop_others(store.path, reader.state)
    return True


def keep_payloads(store: Store, least: int = payloads.LEAST_ROWS) -> bool:
    """Write what hits show into a file, if the index is large and many rows came since the last one was written.

    Args:
        store: an index's.
        least: rows of an index that is large.

    Returns:
        Whether it was written; if that fails, the log says so, and hits are looked up as before.
    """
    with store.writer():
        with store.reading() as reader:
            payloads.drop_others(store.path, reader.state)  # of a process that was killed
            state = reader.state
            small = state.rows < least and state.payloads is None
            if small or not payloads.are_due(store.path, state):
                return False
        try:
            with store.changing() as writer:
                made = payloads.save(store.path, writer.reader.all_shown(), writer.reader.state)
                writer.note_payloads(made)
        except IndexFolderError as error:
            logger.warning("what hits show is not written: %s", error)
            return False
        with store.reading() as reader:
            payloads.drop_others(store.path, reader.state)
    return True
