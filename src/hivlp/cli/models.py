"""Which model a verb works with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hivlp.errors import HivlpError, MissingExtraError

if TYPE_CHECKING:
    from hivlp.encode import HiVLP
    from hivlp.index import Index
    from hivlp.systems.fusion.model import FusionModel

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


def load_fusion(arguments: argparse.Namespace) -> FusionModel | None:
    """The fusion model that ``--rerank`` names; None if there is none.

    Raises:
        MissingExtraError: if torch or transformers is not installed.
    """
    if arguments.rerank is None:
        if arguments.rerank_depth is not None or arguments.rerank_keep is not None:
            raise HivlpError("--rerank-depth and --rerank-keep belong to --rerank MODEL")
        return None
    from importlib.util import find_spec

    if not all(find_spec(name) for name in ("torch", "transformers")):
        raise MissingExtraError("--rerank", "train")
    from hivlp.systems.fusion.load import load_reranker

    return load_reranker(arguments.rerank, keep=arguments.rerank_keep)
