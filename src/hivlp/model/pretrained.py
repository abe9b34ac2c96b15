"""A CLIP, SigLIP or SigLIP2 checkpoint as a hivlp model of one level: its own embedding, nothing lost.

Coarser levels are fitted to it later; until then the cascade has one stage, which is how a plain dual encoder appears
here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.errors import ModelError
from hivlp.levels import Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.towers import DualEncoderImageTower

PROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer.json"
FILES = ["config.json", PROCESSOR, TOKENIZER, "tokenizer_config.json", "*.safetensors", "*.safetensors.index.json"]


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder holds a ``transformers`` model rather than one of ours."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def import_dual_encoder(source: Path | str, out: Path) -> HiVLPModel:
    """Write a ``transformers`` dual encoder as a hivlp model folder (weights, configuration, tokenizer).

    Args:
        source: a folder with ``config.json``, safetensors weights, ``preprocessor_config.json`` and
            ``tokenizer.json``, or the hub id of one.
        out: where to write; graphs are added by :func:`hivlp.export.export`.

    Raises:
        ModelError: if a file is missing, or the model is not a dual encoder that hivlp knows.
    """
    from transformers import AutoConfig, AutoModel

    folder = Path(source) if Path(source).is_dir() else _download(str(source))
    for name in (PROCESSOR, TOKENIZER):
        if not (folder / name).is_file():
            raise ModelError(f"{source} has no {name}, which hivlp needs to prepare its input as it was trained")
    try:
        original = AutoConfig.from_pretrained(folder)
        # Pickled weights are never opened.
        network = AutoModel.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    family = original.model_type
    if family not in ("clip", "siglip"):
        raise ModelError(f"{source} is a {family} model; hivlp imports the clip and siglip families (SigLIP2 included)")
    tower = TowerConfig("dual_encoder", original.to_dict(), {"fine": "identity"})
    vision, text = original.vision_config, original.text_config
    dim = int(original.projection_dim if family == "clip" else text.hidden_size)
    model = HiVLPModel(
        HiVLPConfig(
            name=str(source) if not Path(source).is_dir() else folder.resolve().name,
            levels=(Level("fine", dim, int(vision.num_hidden_layers), int(text.num_hidden_layers)),),
            image_tower=tower,
            text_tower=tower,
            picture=_picture(json.loads((folder / PROCESSOR).read_text(encoding="utf-8")), source),
            text=_text(folder, family, int(text.max_position_embeddings)),
        )
    )
    assert isinstance(model.image_tower, DualEncoderImageTower)
    model.image_tower.dual.network.load_state_dict(network.state_dict())
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    return model.eval()


def _picture(processor: dict[str, Any], source: Path | str) -> PictureConfig:
    """What the image processor does, in our terms."""
    size = processor.get("size", {})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    scale = 1 / processor.get("rescale_factor", 1 / 255)
    mean, std = ([scale * value for value in processor[name]] for name in ("image_mean", "image_std"))
    if "shortest_edge" in size and processor.get("do_center_crop", True):
        crop = processor.get("crop_size", size["shortest_edge"])
        side, fit = crop["height"] if isinstance(crop, dict) else crop, "crop"
    elif size.get("height") is not None and size["height"] == size.get("width"):
        side, fit = size["height"], "stretch"
    else:
        raise ModelError(f"{source} wants pictures of varying or oblong size, which hivlp does not prepare")
    return PictureConfig(int(side), fit, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _text(folder: Path, family: str, positions: int) -> TextConfig:
    """What the tokenizer must be told; SigLIP saw its texts in lower case and padded to their full length."""
    from tokenizers import Tokenizer

    settings = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    pad = settings.get("pad_token")
    pad = pad["content"] if isinstance(pad, dict) else pad
    pad_id = Tokenizer.from_file(str(folder / TOKENIZER)).token_to_id(pad) if pad else None
    siglip = family == "siglip"
    return TextConfig(max_tokens=positions, lowercase=siglip, pad_to_max=siglip, pad_id=pad_id or 0)


def _download(hub_id: str) -> Path:
    from hivlp.encode.hub import download

    return download(hub_id, FILES)
