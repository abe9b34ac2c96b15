"""Ready ONNX graphs of open_clip models in two folders, ``textual/`` and ``visual/``, as immich keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hivlp.config import HiVLPConfig, TowerConfig
from hivlp.errors import ModelError
from hivlp.files.reading import read_json
from hivlp.formats import open_clip_settings
from hivlp.formats.format import listing, present
from hivlp.formats.model_files import ModelFiles
from hivlp.levels import ONLY_LEVEL, Level

TEXT, IMAGE = "textual/model.onnx", "visual/model.onnx"
PREPARE, TOKENIZER, SETTINGS = "visual/preprocess_cfg.json", "textual/tokenizer.json", "textual/tokenizer_config.json"


class OnnxFoldersFormat:
    """A repository that immich's exporter wrote."""

    name, torch = "textual-visual", False

    def wanted(self, names: Sequence[str], precision: str) -> list[str]:
        """See :meth:`Format.wanted`."""
        if not {TEXT, IMAGE, "config.json"} <= set(names):
            return []
        if precision not in ("", "float32"):
            raise ModelError(f"its graphs are in float32, not in {precision}")
        # Weights of more than 2 GB are in files beside the graph, whatever their names.
        graph_only = (".json", ".txt", ".md", ".model", ".armnn", ".rknn", ".tflite")
        beside = [
            name for name in names
            if name.count("/") == 1 and name.startswith(("textual/", "visual/")) and not name.endswith(graph_only)
        ]  # fmt: skip
        return present(["config.json", PREPARE, TOKENIZER, SETTINGS, *beside], names)

    def check(self, folder: Path, source: str) -> None:
        """See :meth:`Format.check`."""
        _config(folder, source)

    def open(self, folder: Path, source: str, precision: str) -> ModelFiles:
        """See :meth:`Format.open`."""
        files = [name for name in self.wanted(listing(folder), precision) if not name.endswith(".json")]
        return ModelFiles(
            _config(folder, source),
            folder / IMAGE,
            {ONLY_LEVEL: folder / TEXT},
            folder / TOKENIZER,
            outputs={ONLY_LEVEL: ("embedding", "text_embedding", "image_embedding", "text_embeds", "image_embeds")},
            hashed=(folder / TOKENIZER, *(folder / name for name in files)),
        )


def _config(folder: Path, source: str) -> HiVLPConfig:
    settings = read_json(folder / "config.json", ModelError)
    words, vision, dim = settings.get("text_cfg"), settings.get("vision_cfg"), settings.get("embed_dim")
    if not isinstance(words, dict) or not isinstance(vision, dict) or not isinstance(dim, int):
        raise ModelError(f"{source}: config.json has no embed_dim, text_cfg and vision_cfg, as open_clip writes them")
    for name in (PREPARE, TOKENIZER):
        if not (folder / name).is_file():
            raise ModelError(f"{source} has no {name}")
    prepare = read_json(folder / PREPARE, ModelError)
    tower = TowerConfig("onnx", {"format": OnnxFoldersFormat.name})
    return HiVLPConfig(
        source,
        (Level(ONLY_LEVEL, dim, 1, 1),),
        tower,
        tower,
        picture=open_clip_settings.picture_config(prepare, vision.get("image_size"), source),
        text=open_clip_settings.text_config(
            _as_named(words), (folder / SETTINGS).parent, folder / TOKENIZER, source, cut=False
        ),
    )


def _as_named(words: dict[str, Any]) -> dict[str, Any]:
    """The settings of texts; the tokenizer is always one of ``transformers``, which fills up with its padding token."""
    clean = (words.get("tokenizer_kwargs") or {}).get("clean") or ("whitespace" if words.get("hf_tokenizer_name") else
                                                                   "lower")  # fmt: skip
    return {**words, "hf_tokenizer_name": "transformers", "tokenizer_kwargs": {"clean": clean}}
