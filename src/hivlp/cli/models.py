"""Which model a verb works with, and the table of those that have short names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivlp.cli.output import print_result
from hivlp.errors import HivlpError, MissingExtraError

if TYPE_CHECKING:
    from hivlp.encode import HiVLP
    from hivlp.index import Index
    from hivlp.systems.fusion.model import FusionModel

DEFAULT_MODEL = "hivlp-mini"


def load_model(name: str | Path, device: str | None = None) -> HiVLP:
    """By name or folder, on a device (default: the CPU)."""
    from hivlp.encode import HiVLP

    return HiVLP.from_pretrained(name, device=device or "cpu")


def index_model(index: Index, model: str | None, device: str | None = None) -> HiVLP:
    """The given one, or the one that the index was made with."""
    if not (model or index.model_source):
        raise HivlpError(
            f"{index.path} was made of embeddings alone: search by --vector or --like, or name their model with --model"
        )
    return load_model(model or index.model_source, device)


def early_model(arguments: argparse.Namespace) -> HiVLP | None:
    """:func:`index_model` before the index is open; None if anything is wrong, which whoever opens it will say."""
    from hivlp.store.folder import Store

    try:
        model = arguments.model
        if not model:
            with closing(Store(Path(arguments.index))) as store:
                model = store.about.source
        return load_model(model, arguments.device) if model else None
    except Exception:
        return None


def run_models(arguments: argparse.Namespace) -> int:
    """``hivlp models``."""
    from hivlp.encode import HiVLP
    from hivlp.hub.table import MODELS, Entry

    dims = HiVLP.from_pretrained(DEFAULT_MODEL).levels[-1].dim
    shipped = Entry("", "hivlp", "Apache-2.0", "this package", "English", dims)
    rows = {name: entry.to_json() for name, entry in {DEFAULT_MODEL: shipped, **MODELS}.items()}
    print_result(
        arguments, lambda: {"models": [{"name": name, **row} for name, row in rows.items()]}, lambda: _table(rows)
    )
    return 0


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model; what nobody knows is a dash."""
    titles = ("name", "from", "format", "dims", "params", "languages", "licence", "commit", "recall")
    table = [titles]
    sources: list[str] = []
    for name, row in rows.items():
        recall = "-"
        if row["recall"] is not None:
            if row["recall_source"] not in sources:
                sources.append(row["recall_source"])
            recall = f"{row['recall']} [{sources.index(row['recall_source']) + 1}]"
        size = "-" if row["parameters_m"] is None else f"{row['parameters_m']:g} M"
        licence = row["licence"] or "-"
        if not row["licence_source"]:
            licence = "not verified" if licence == "-" else f"{licence} (not verified)"
        commit = "-" if not row["hub_id"] else row["revision"][:7] if row["revision"] else "not verified"
        table.append((name, row["hub_id"] or "this package", row["format"], str(row["dims"]), size,
                      row["languages"], licence, commit, recall))  # fmt: skip
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, start=1)]
    return "\n".join([
        *lines, "", "Recall as published: text to image, R@1 on COCO in percent, or what its source says.", *notes,
        "Licences and commits were looked up in public sources, which --json names: read the publisher's own licence "
        "before you build on a model. A commit that was not verified is the newest at the first use.",
        "Any hub id and any folder works as well; NAME:int8 and NAME:float16 are smaller, NAME@REVISION is a commit.",
        "Formats onnx and textual-visual are ready graphs; transformers and open_clip are converted once, with torch.",
    ])  # fmt: skip


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
