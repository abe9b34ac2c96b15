"""hivlp's own model folders: ``config.json``, ``image.onnx``, ``text.onnx`` with its weights, ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hivlp.config import (
    IMAGE_GRAPH,
    IMAGE_WEIGHTS,
    TEXT_GRAPH,
    TEXT_WEIGHTS,
    TOKENIZER,
    HiVLPConfig,
    image_graph,
    text_graph,
)
from hivlp.errors import ModelError
from hivlp.files.reading import read_json
from hivlp.formats.format import present
from hivlp.formats.model_files import ModelFiles

ORIGIN = "origin.json"
"""In a folder that was converted: what from."""


class OwnFormat:
    """A folder that ``hivlp train``, ``adapt`` or ``export`` wrote, or that ships with the package."""

    name, torch = "hivlp", False

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`: without the weights that only training reads."""
        if not {"config.json", IMAGE_GRAPH, TEXT_GRAPH} <= set(names):
            return []
        graphs = [name for name in names if name.startswith(("text.", "image.")) and name.endswith((".onnx", ".bin"))]
        graphs = [name for name in graphs if name not in (IMAGE_GRAPH, IMAGE_WEIGHTS)]
        files = ["config.json", IMAGE_GRAPH, IMAGE_WEIGHTS, *graphs, TOKENIZER, ORIGIN, "README.md"]
        return present(files, names)

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        HiVLPConfig.load(folder)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        return open_own(folder)


def is_own(folder: Path) -> bool:
    """Whether a folder holds a model of ours rather than one of ``transformers``."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and "format" in settings and "model_type" not in settings


def open_own(folder: Path) -> ModelFiles:
    """The files of a hivlp model folder.

    Raises:
        ModelError: if it is none, or lacks the graphs or the tokenizer.
    """
    config = HiVLPConfig.load(folder)
    needed = (TOKENIZER, TEXT_GRAPH, TEXT_WEIGHTS, IMAGE_GRAPH)
    for name in (IMAGE_GRAPH, TEXT_GRAPH, TEXT_WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}; run `hivlp export {folder}` to make it")
    *coarser, finest = (level.name for level in config.levels)
    origin = read_json(folder / ORIGIN, ModelError).get("sha256") if (folder / ORIGIN).is_file() else None
    return ModelFiles(
        config=config,
        image=folder / IMAGE_GRAPH,
        early={
            level.name: folder / image_graph(level.name)
            for level in config.levels[:-1]
            if level.image_layer < config.levels[-1].image_layer
        },
        text={**{level: folder / text_graph(level) for level in coarser}, finest: folder / TEXT_GRAPH},
        tokenizer=folder / TOKENIZER,
        hashed=tuple(folder / name for name in ("config.json", *needed)),
        origin=origin if isinstance(origin, str) else None,
    )
