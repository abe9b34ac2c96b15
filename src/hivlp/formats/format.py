"""The interface of a format, and the listing of a folder that formats are told apart by."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from hivlp.errors import ModelError
from hivlp.formats.model_files import ModelFiles

DEPTH = 2
"""Folders below a model's own that are looked into: ``onnx/``, ``textual/``, ``0_CLIPModel/``."""
MOST = 10_000
"""Files that are listed."""
WEIGHTS = (".safetensors", ".bin", ".onnx", ".onnx_data", ".data", ".pt", ".pth", ".h5", ".msgpack")
"""Endings of files that are fetched last, after the small ones have told whether the model can be used."""


class Format(Protocol):
    """One way in which people keep a model in a folder or a hub repository."""

    @property
    def name(self) -> str:
        """What people call the format."""

    @property
    def torch(self) -> bool:
        """Whether the model must be converted once, with torch."""

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """The files that are needed of those that are there; empty if this is another format.

        Raises:
            ModelError: if it is this format, in other precisions alone.
        """

    def check(self, folder: Path, source: str) -> None:
        """Read the small files, before gigabytes are fetched or converted.

        Raises:
            ModelError: if the model is none that hivlp can use.
        """

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """The model's files, converted first where that is needed.

        Args:
            folder: with the wanted files.
            source: what a person calls the model.
            precision: of :data:`PRECISIONS`; empty for the best that is there.

        Raises:
            ModelError: if a file is missing or damaged, or the model is none that hivlp can use.
            MissingExtraError: if a library is missing that converts it.
        """


def listing(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it, as hub repositories name them.

    Raises:
        ModelError: if it cannot be read.
    """
    found: list[str] = []
    try:
        for place, folders, files in os.walk(folder):
            inner = Path(place).relative_to(folder)
            if len(inner.parts) >= DEPTH:
                folders.clear()
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [(inner / name).as_posix() for name in sorted(files)]
            if len(found) > MOST:
                break
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from error
    return found


def present(names: Iterable[str], among: Sequence[str]) -> list[str]:
    """Those of the names that are there, each once."""
    known = set(among)
    return [name for name in dict.fromkeys(names) if name in known]
