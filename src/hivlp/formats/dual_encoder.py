"""A CLIP, SigLIP or SigLIP2 checkpoint as a hivlp model of one level: its own embedding, nothing lost.

Coarser levels are fitted to it later; until then the cascade has one stage, which is how a plain dual encoder appears
here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hivlp.config import HiVLPConfig, TowerConfig
from hivlp.errors import ModelError
from hivlp.formats import preparation
from hivlp.formats.transformers import family, load_network
from hivlp.levels import Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import DualEncoderImageTower


def import_dual_encoder(folder: Path, out: Path, name: str = "") -> HiVLPModel:
    """Write a ``transformers`` dual encoder as a hivlp model folder (weights, configuration, tokenizer).

    Pictures and texts are prepared as the checkpoint's own processor does it; weights of any precision become float32.

    Args:
        folder: with ``config.json``, weights (also in shards) and the processor's files.
        out: where to write; graphs are added by :func:`hivlp.export.export`.
        name: what people call the model; default the folder's.

    Raises:
        ModelError: if a file is missing, or the model is not a dual encoder that hivlp knows, or its processor does
            what hivlp does not.
    """
    source = name or folder
    kind = family(folder, str(source))
    if kind not in ("clip", "siglip"):
        raise ModelError(f"{source} is a {kind} model; hivlp trains and adapts the clip and siglip families (SigLIP2 "
                         "included, but for NaFlex); `hivlp index --model` takes the others as they are")  # fmt: skip
    network = load_network(folder, source)
    original = network.config
    vision, text = original.vision_config, original.text_config
    picture = preparation.picture_config(folder, source, int(vision.image_size))
    tower = TowerConfig("dual_encoder", _without_dtype(original.to_dict()), {"fine": "identity"})
    dim = int(original.projection_dim if kind == "clip" else text.hidden_size)
    with tempfile.TemporaryDirectory() as scratch:  # what is refused leaves nothing
        tokenizer = Path(scratch) / preparation.TOKENIZER
        preparation.write_tokenizer(folder, source, tokenizer)
        model = HiVLPModel(
            HiVLPConfig(
                name=name or folder.resolve().name,
                levels=(Level("fine", dim, int(vision.num_hidden_layers), int(text.num_hidden_layers)),),
                image_tower=tower,
                text_tower=tower,
                picture=picture,
                text=preparation.text_config(folder, source, tokenizer, kind, int(text.max_position_embeddings)),
            )
        )
        assert isinstance(model.image_tower, DualEncoderImageTower)
        model.image_tower.dual.network.load_state_dict(network.state_dict())
        model.save_pretrained(out, tokenizer)
    model.eval()
    return model


def _without_dtype(options: dict[str, Any]) -> dict[str, Any]:
    """A configuration that does not say in which precision its weights were stored."""
    return {
        key: _without_dtype(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if key not in ("dtype", "torch_dtype")
    }
