"""sentence-transformers CLIP folders: ``modules.json`` names the part that is a ``transformers`` model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hivlp.errors import ModelError
from hivlp.files.reading import read_text
from hivlp.formats import preparation
from hivlp.formats.format import present
from hivlp.formats.model_files import ModelFiles
from hivlp.formats.transformers import family, open_checkpoint, weight_files

MODULES = "modules.json"
_PARTS = ("CLIPModel", "Transformer", "Normalize")
"""Classes of modules that leave the embedding what it is, or bring it to unit length."""


class SentenceTransformersFormat:
    """A folder that ``SentenceTransformer.save`` wrote, whose first module is a dual encoder."""

    name, torch = "sentence-transformers", True

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`."""
        if MODULES not in names:
            return []
        parts = sorted({name.rpartition("/")[0] for name in names if name.endswith("config.json") and "/" in name})
        for part in ["", *(f"{part}/" for part in parts)]:
            inside = [name.removeprefix(part) for name in names if name.startswith(part)]
            weights = weight_files(inside)
            if weights:
                files = present(["config.json", *preparation.FILES, *weights], inside)
                return [MODULES, *(part + name for name in files)]
        return []

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        part = _dual_encoder(folder, source)
        family(part, source)
        preparation.picture_settings(part, source)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        return open_checkpoint(_dual_encoder(folder, source), source, precision, self.name)


def _dual_encoder(folder: Path, source: str) -> Path:
    """The folder of the first module.

    Raises:
        ModelError: if modules follow it that change its vectors.
    """
    try:
        modules = json.loads(read_text(folder / MODULES, error=ModelError))
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        place = folder / str(modules[0]["path"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ModelError(f"{source}: {MODULES} is not a list of modules") from error
    if unknown := [kind for kind in kinds if kind not in _PARTS]:
        raise ModelError(f"{source} has a module {unknown[0]}, so its vectors are not those of a dual encoder alone; "
                         "such as clip-b32 works")  # fmt: skip
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{source}: {MODULES} leads out of the folder")
    return place
