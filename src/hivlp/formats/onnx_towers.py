"""Ready ONNX graphs (``onnx/text_model.onnx``, ``vision_model.onnx``) beside a ``transformers`` configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hivlp.config import HiVLPConfig, TowerConfig
from hivlp.errors import ModelError
from hivlp.files.reading import read_json
from hivlp.formats import preparation
from hivlp.formats.format import listing, present
from hivlp.formats.model_files import PRECISIONS, ModelFiles
from hivlp.formats.transformers import family
from hivlp.levels import ONLY_LEVEL, Level

FOLDERS = ("onnx/", "")
SUFFIXES = {"float32": ("",), "float16": ("_fp16",), "int8": ("_int8", "_quantized", "_uint8")}
"""Precision -> what is between a graph's name and its ending."""
TEXT_OUTPUTS = ("text_embeds", "sentence_embedding", "pooler_output")
IMAGE_OUTPUTS = ("image_embeds", "pooler_output")


class OnnxTowersFormat:
    """A repository made for transformers.js or by Optimum, with a graph for each tower."""

    name, torch = "onnx", False

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`: two graphs with their weights, not the dozen others of such a repository."""
        found = _graphs(names, precision)
        if not found or "config.json" not in names or preparation.TOKENIZER not in names:
            return []
        beside = [name for name in names if name.startswith(tuple(f"{graph}_data" for graph in found))]
        beside += [name for name in names if name in {f"{graph}.data" for graph in found}]
        return present(["config.json", *preparation.FILES, *found, *beside], names)

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        family(folder, source)
        preparation.picture_config(folder, source, None)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        names = listing(folder)
        image, text = (folder / name for name in _graphs(names, precision))
        kind = family(folder, source)
        settings = read_json(folder / "config.json", ModelError)
        words = settings.get("text_config")
        words = words if isinstance(words, dict) else {}
        tokenizer = folder / preparation.TOKENIZER
        positions = int(words.get("max_position_embeddings") or (64 if kind.startswith("siglip") else 77))
        if kind.startswith("siglip"):
            dim = int(words.get("projection_size") or words.get("hidden_size") or 768)
        else:
            dim = int(settings.get("projection_dim") or words.get("projection_dim") or 512)
        tower = TowerConfig("onnx", {"format": self.name})
        config = HiVLPConfig(
            source, (Level(ONLY_LEVEL, dim, 1, 1),), tower, tower,
            picture=preparation.picture_config(folder, source, None),
            text=preparation.text_config(folder, source, tokenizer, kind, positions),
        )  # fmt: skip
        files = [name for name in self.wanted(names, precision) if name.startswith(FOLDERS[0]) or ".onnx" in name]
        return ModelFiles(
            config, image, {ONLY_LEVEL: text}, tokenizer,
            outputs={ONLY_LEVEL: (*TEXT_OUTPUTS[:2], *IMAGE_OUTPUTS)},
            hashed=(tokenizer, *(folder / name for name in files)),
        )  # fmt: skip


def _graphs(names: Sequence[str], precision: str) -> list[str]:
    """The image and the text graph in a precision, or the best that is there; empty if there are none.

    Raises:
        ModelError: if there are graphs, but not in this precision.
    """
    known, there = set(names), []
    for word in PRECISIONS:
        for folder in FOLDERS:
            for suffix in SUFFIXES[word]:
                pair = [f"{folder}{tower}_model{suffix}.onnx" for tower in ("vision", "text")]
                if known.issuperset(pair):
                    if precision in ("", word):
                        return pair
                    there.append(word)
    if there:
        raise ModelError(f"its graphs are in {' and '.join(dict.fromkeys(there))}, not in {precision}")
    return []
