"""Settings of a fusion model's folder (``config.json``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.config import LARGEST_INPUT
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, printable

MOST_LAYERS = 1_000


@dataclass(frozen=True)
class Settings:
    """A fusion model's folder.

    Attributes:
        folder: of the model.
        config: its ``config.json``.
        keep: folder for pictures' tokens; None to keep them in memory alone.
    """

    folder: Path
    config: Mapping[str, Any]
    keep: Path | None = None

    def path(self, key: str) -> Path:
        """A file or folder that the settings name, within the model's folder or absolute.

        Raises:
            ModelError: if it is not named, or not there.
        """
        name = self.config.get(key)
        if not isinstance(name, str) or not name:
            raise ModelError(f"{printable(self.folder)}: config.json must name its {key}")
        path = self.folder / name
        if not path.exists():
            raise ModelError(f"{printable(self.folder)}: config.json names {key} {printable(name)}, which is not there")
        return path

    def number(self, key: str, default: int) -> int:
        """A whole number among the settings.

        Raises:
            ModelError: if it is something else.
        """
        value = self.config.get(key, default)
        if type(value) is not int or not 0 <= value <= LARGEST_INPUT:
            raise ModelError(f"{printable(self.folder)}: {key} must be a whole number, not {value!r:.40}")
        return value

    def about(self, *files: str) -> dict[str, Any]:
        """``name``, ``fingerprint`` and ``keep`` of :class:`~hivlp.systems.fusion.model.FusionModel`.

        The fingerprint is of the settings and of each weight file's path, size and time of change: hashing gigabytes
        would take longer than a search.

        Args:
            files: settings that name weight files; none for all ``*.safetensors``.
        """
        weights = [self.path(key) for key in files] or sorted(self.folder.glob("*.safetensors"))
        parts = [repr(sorted(self.config.items(), key=str))]
        for path in weights:
            state = path.stat()
            parts.append(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}")
        fingerprint = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
        return {"name": self.folder.resolve().name, "fingerprint": fingerprint, "keep": self.keep}

    def network(self, cls: Any) -> Any:
        """A ``transformers`` model from the folder's safetensors; pickled weights are never opened.

        Args:
            cls: of the model.

        Raises:
            ModelError: if it cannot be loaded, or weights are missing.
        """
        if (key := _too_deep(self.config)) is not None:
            raise ModelError(f"{printable(self.folder)}: config.json asks for more than {MOST_LAYERS} {key:.40}")
        try:
            with _quiet():
                network, found = cls.from_pretrained(self.folder, use_safetensors=True, output_loading_info=True)
        except Exception as error:  # of files, of safetensors, of torch
            raise ModelError(f"{printable(self.folder)} cannot be loaded: {one_line(error, 300)}") from error
        if missing := sorted(found["missing_keys"]):
            raise ModelError(f"{printable(self.folder)} lacks {len(missing)} weights, the first of them {missing[0]}")
        return network.float().eval()


def _too_deep(config: Mapping[str, Any]) -> str | None:
    """The name of a number of layers, in a configuration or a part of it, that would take hours to build."""
    for key, value in config.items():
        if isinstance(value, dict) and (found := _too_deep(value)) is not None:
            return found
        if "layers" in key and isinstance(value, (int, float)) and value > MOST_LAYERS:
            return key
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report, a line a tensor, of what the error says in one."""
    from logging import CRITICAL

    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
