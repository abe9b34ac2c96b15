"""Uploads: pictures that were sent to a service, kept in the index folder, also when that is renamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from hivlp.errors import HivlpError
from hivlp.index import Index
from hivlp.index.adding.pictures import read_content

logger = logging.getLogger(__name__)
HOME = "serve"
"""Folder in an index's own where the service keeps uploads and jobs."""


def uploads_of(index: Path) -> Path:
    """The folder of pictures that were uploaded to an index, each in a folder of its content's name.

    A link that a stranger's index has there is not resolved: what lies behind it was not uploaded.
    """
    return Path(os.path.realpath(index)) / HOME / "uploads"


def follow_uploads(index: Index) -> int:
    """Give the items of uploaded pictures their paths of now, if their index folder was renamed or moved.

    Items have the whole paths of their pictures. Those of a folder that is there still, as that of an index that this
    one is a copy of, are left alone.

    Returns:
        How many items have new paths.

    Raises:
        IndexFolderError: if another process is writing, or the folder cannot be written.
    """
    uploads = uploads_of(index.path)
    moved = 0
    for file in _files(uploads):
        with index.store.reading() as reader:
            if reader.named(os.fspath(file)):
                continue
            try:
                same = reader.copies(read_content(os.fspath(file))[1])
            except (OSError, HivlpError) as error:
                logger.info("%s is no upload: %s", file, error)
                continue
        end = (HOME, uploads.name, *file.relative_to(uploads).parts)
        old = [Path(item.path).parents[1] for item in same if Path(item.path).parts[-4:] == end]
        gone = next((folder for folder in old if not os.path.lexists(folder)), None)
        if gone is not None:
            moved += index.relocate(gone, uploads)[0]
    return moved


def _files(uploads: Path) -> Iterator[Path]:
    """Uploaded pictures; links, which a stranger's index may have, are none."""
    for file in sorted(uploads.glob("*/*")):
        if file.is_file() and os.path.realpath(file) == os.fspath(file):
            yield file
