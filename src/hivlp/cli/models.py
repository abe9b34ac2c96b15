"""Which model a verb works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hivlp.errors import HivlpError

if TYPE_CHECKING:
    from hivlp.encode import HiVLP
    from hivlp.index import Index

DEFAULT_MODEL = "hivlp-mini"


def load_model(name: str | Path) -> HiVLP:
    """By name or folder."""
    from hivlp.encode import HiVLP

    return HiVLP.from_pretrained(name)


def index_model(index: Index, model: str | None) -> HiVLP:
    """The given one, or the one that the index was made with."""
    if not (model or index.model_source):
        raise HivlpError(
            f"{index.path} was made of embeddings alone: search by --vector or --like, or name their model with --model"
        )
    return load_model(model or index.model_source)
