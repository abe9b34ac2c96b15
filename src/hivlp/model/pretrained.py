"""A CLIP, SigLIP or SigLIP2 checkpoint as a hivlp model of one level: its own embedding, nothing lost.

Coarser levels are fitted to it later; until then the cascade has one stage, which is how a plain dual encoder appears
here.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hivlp.config import HiVLPConfig, TowerConfig
from hivlp.errors import ModelError
from hivlp.files.reading import one_line
from hivlp.levels import Level
from hivlp.model import processor
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import DualEncoderImageTower

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *processor.FILES)


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder holds a ``transformers`` model rather than one of ours."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def import_dual_encoder(folder: Path, out: Path, name: str = "") -> HiVLPModel:
    """Write a ``transformers`` dual encoder as a hivlp model folder (weights, configuration, tokenizer).

    Pictures and texts are prepared as the checkpoint's own processor does it; weights of any precision become float32.

    Args:
        folder: with ``config.json``, safetensors weights (also in shards) and the processor's files
            (:data:`FILES` of a repository on the hub).
        out: where to write; graphs are added by :func:`hivlp.export.export`.
        name: what people call the model; default the folder's.

    Raises:
        ModelError: if a file is missing, or the model is not a dual encoder that hivlp knows, or its processor does
            what hivlp does not.
    """
    from transformers import AutoConfig, AutoModel

    source = name or folder
    try:
        original = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a configuration's class makes of the file
        raise ModelError(f"{source} cannot be loaded: {one_line(error, 300)}") from error
    family = original.model_type
    if family not in ("clip", "siglip"):
        raise ModelError(f"{source} is a {family} model; hivlp imports the clip and siglip families (SigLIP2 included, "
                         "but for NaFlex, whose pictures vary in size)")  # fmt: skip
    vision, text = original.vision_config, original.text_config
    picture = processor.picture_config(folder, source, int(vision.image_size))
    try:
        # Pickled weights are never opened.
        network, found = AutoModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # of files, of safetensors, of torch
        raise ModelError(f"{source} cannot be loaded: {one_line(error, 300)}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{source} lacks {len(missing)} of its weights, the first of them {missing[0]}")
    tower = TowerConfig("dual_encoder", _without_dtype(original.to_dict()), {"fine": "identity"})
    dim = int(original.projection_dim if family == "clip" else text.hidden_size)
    with tempfile.TemporaryDirectory() as scratch:  # what is refused leaves nothing
        tokenizer = Path(scratch) / processor.TOKENIZER
        processor.write_tokenizer(folder, source, tokenizer)
        model = HiVLPModel(
            HiVLPConfig(
                name=name or folder.resolve().name,
                levels=(Level("fine", dim, int(vision.num_hidden_layers), int(text.num_hidden_layers)),),
                image_tower=tower,
                text_tower=tower,
                picture=picture,
                text=processor.text_config(folder, source, tokenizer, family, int(text.max_position_embeddings)),
            )
        )
        assert isinstance(model.image_tower, DualEncoderImageTower)
        model.image_tower.dual.network.load_state_dict(network.state_dict())
        model.save_pretrained(out, tokenizer)
    return model.eval()


def _without_dtype(options: dict[str, Any]) -> dict[str, Any]:
    """A configuration that does not say in which precision its weights were stored."""
    return {
        key: _without_dtype(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if key not in ("dtype", "torch_dtype")
    }
