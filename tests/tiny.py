"""Models small enough to build in a test, of the real classes."""

import json
from pathlib import Path

from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.levels import Level

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "green", "circle", "square", "on", "white", "the"]

BERT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def tiny_config(**changes) -> HiVLPConfig:
    settings = {
        "name": "tiny",
        "levels": (Level("coarse", 4, 6, 1), Level("fine", 16, 8, 3)),
        "image_tower": TowerConfig("efficientnet_lite", {"variant": "lite0"}, {"fine": "linear"}),
        "text_tower": TowerConfig("bert", BERT, {"coarse": "mlp", "fine": "residual"}),
        "picture": PictureConfig(size=32),
        "text": TextConfig(max_tokens=12),
    }
    return HiVLPConfig(**{**settings, **changes})


def write_tokenizer(folder: Path) -> Path:
    """A word-level tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def save_tiny(folder: Path, seed: int = 0, **changes) -> Path:
    """A tiny model folder with weights, graphs and tokenizer."""
    import torch

    from hivlp.export.graphs import export
    from hivlp.model.hivlp_model import HiVLPModel

    torch.manual_seed(seed)
    model = HiVLPModel(tiny_config(**changes))
    model.save_pretrained(folder, write_tokenizer(folder))
    export(folder)
    return folder


def save_checkpoint(folder: Path, family: str):
    """A CLIP or SigLIP model of the real class with random weights, on disk as the hub has it, and its processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2,
            "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        processor = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
                     "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}  # fmt: skip
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return model, processor
