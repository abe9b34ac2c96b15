"""Names of models as people write them: ``NAME[@REVISION][:PRECISION]``, or a folder."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hivlp.errors import ArgumentError, ModelError
from hivlp.formats.model_files import PRECISIONS
from hivlp.hub.table import MODELS

SHIPPED = "hivlp-mini"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ModelName:
    """A model's name, taken apart.

    Attributes:
        label: what the person wrote, without revision.
        folder: where it is, if it is on disk.
        hub_id: ``owner/name`` on the hub, if it is there.
        revision: branch, tag or commit; None for the one that was pinned first.
        precision: of its graphs; empty for the best that is there.
    """

    label: str
    folder: Path | None
    hub_id: str
    revision: str | None
    precision: str


def parse_name(name: str | Path) -> ModelName:
    """Take a name apart; a folder that exists is one, whatever it is called.

    Raises:
        ArgumentError: if it is no text and no path.
        ModelError: if nothing is called so, with the nearest name that is.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ArgumentError(f"a model is given by its name or folder, not by {type(name).__name__}")
    written, precision = os.fspath(name), ""
    if not _is_folder(written):
        before, colon, after = written.rpartition(":")
        if colon and after in PRECISIONS:
            written, precision = before, after
    if _is_folder(written):
        return ModelName(Path(written).resolve().name, Path(written), "", None, precision)
    known, at, revision = written.partition("@")
    if known == SHIPPED:
        shipped = Path(str(resources.files("hivlp"))) / "assets" / SHIPPED
        if shipped.is_dir():
            return ModelName(SHIPPED, shipped, "", None, precision)
        raise ModelError(f"this installation lacks the {SHIPPED} model; reinstall hivlp")
    if at and not revision:
        raise ModelError(f"no revision after the @ of {written!r}")
    if known in MODELS:
        entry = MODELS[known]
        return ModelName(known, None, entry.hub_id, revision or entry.revision, precision)
    if _HUB_ID.fullmatch(known):
        return ModelName(known, None, known, revision or None, precision)
    near = difflib.get_close_matches(known.lower(), [SHIPPED, *MODELS], 1, 0.5)
    hint = f"the nearest name is {near[0]}" if near else f"give {SHIPPED}, a name that `hivlp models` lists"
    raise ModelError(f"no model {str(name)!r}: {hint}; a model folder, or a hub id such as owner/name, works too")


def _is_folder(name: str) -> bool:
    return os.path.isdir(name)  # noqa: PTH112 (Path.is_dir raises for names that no folder can have)
