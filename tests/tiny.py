"""Models small enough to build in a test, of the real classes."""

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

    from hivlp.export import export
    from hivlp.model.hivlp_model import HiVLPModel

    torch.manual_seed(seed)
    model = HiVLPModel(tiny_config(**changes))
    model.save_pretrained(folder, write_tokenizer(folder))
    export(folder)
    return folder
