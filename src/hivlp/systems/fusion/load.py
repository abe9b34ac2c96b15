"""Loading of fusion models by the family that their ``config.json`` names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from hivlp.errors import ModelError
from hivlp.files.reading import printable, read_json
from hivlp.systems.fusion.settings import Settings

if TYPE_CHECKING:
    from hivlp.systems.fusion.model import FusionModel

FAMILIES = ("uniter", "meter", "vilt", "albef", "blip", "bridgetower")
"""Values of ``model_type``, each a module of this package with a function ``load``."""


def load_reranker(folder: Path | str, *, keep: Path | str | None = None) -> FusionModel:
    """A fusion model from its folder, for ``Index.search(text, rerank=…)``.

    ``config.json`` names the family as ``model_type``. ViLT, BLIP and BridgeTower are folders of ``transformers``
    with safetensors weights; for UNITER, METER and ALBEF it names the published ``checkpoint``, for UNITER also the
    folder of ``regions``. Beside it lies ``tokenizer.json``, or BERT's ``vocab.txt``.

    Args:
        folder: of the model.
        keep: folder for pictures' tokens, which are computed once for all searches then; without, they are kept in
            memory.

    Raises:
        ModelError: if the folder is not of a known family, or something is missing in it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{printable(folder)} is not a folder of a fusion model: it has no config.json")
    config = read_json(folder / "config.json", ModelError)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{printable(folder)} is of the family {family!r:.40}; known: {', '.join(FAMILIES)}")
    module = importlib.import_module(f"hivlp.systems.fusion.{family}")
    loaded: FusionModel = module.load(Settings(folder, config, None if keep is None else Path(keep)))
    return loaded
