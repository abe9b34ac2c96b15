"""Small random checkpoints of the real classes, written by the real libraries, and what these make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a red circle", "the", "the blue square on white, and more words that no tower has places for at all", "red!"]
SIDE = 32


def odd_pictures() -> dict[str, Image.Image]:
    """Pictures of sizes and modes that preparations stumble over."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    return {
        "1x1": Image.fromarray(noise(1, 1, 3)),
        "3x1000": Image.fromarray(noise(1000, 3, 3)),
        "1000x3": Image.fromarray(noise(3, 1000, 3)),
        "photo": Image.fromarray(noise(7, 9, 3)).resize((131, 97), Image.Resampling.BICUBIC),
        "odd": Image.fromarray(noise(5, 6, 3)).resize((41, 55), Image.Resampling.BICUBIC),
        "grey": Image.fromarray(noise(40, 50)),
        "rgba": Image.fromarray(np.concatenate([noise(33, 47, 3), np.full((33, 47, 1), 255, np.uint8)], axis=2)),
        "palette": Image.fromarray(noise(37, 35, 3)).quantize(16),
        "16-bit": Image.fromarray((noise(36, 44).astype(np.uint16) * 257)),
    }


def write_odd_pictures(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, image in odd_pictures().items():
        paths[name] = folder / f"{name}.png"
        image.save(paths[name])
    return paths


def as_rgb(path: Path) -> Image.Image:
    """A picture as every library is given it: eight bits a channel, no transparency."""
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits
            return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def clip_tokenizer(**settings):
    """Of CLIP's real class, with letters and two merged words."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(f"{c}</w>" for c in LETTERS), *"!,", "!</w>", ",</w>", "re", "red</w>", "th", "the</w>"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("r", "e"), ("re", "d</w>"), ("t", "h"), ("th", "e</w>")]
    return CLIPTokenizer(vocabulary, merges, **settings)


def word_tokenizer(cls: str, pad: str, start: str, end: str, unknown: str, **settings):
    """A word-level tokenizer of a class that the library knows."""
    import tokenizers
    import transformers

    words = sorted({word for text in TEXTS for word in text.replace(",", " ,").replace("!", " !").split()})
    names = {piece: number for number, piece in enumerate([start, pad, end, unknown, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, names[start]), (end, names[end])]
    )
    return getattr(transformers, cls)(
        tokenizer_object=backend, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown, cls_token=start,
        sep_token=end, model_max_length=16, **settings,
    )  # fmt: skip


def save_checkpoint(folder: Path, kind: str, *, pickled: bool = False):
    """A dual encoder of ``transformers`` with its processor, in the folder and as objects (model, tokenizer, images)."""
    import importlib

    import torch
    import transformers as tf

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    bert = {**size, "vocab_size": 64, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "pad_token_id": 1}
    if kind in ("clip", "siglip", "metaclip_2"):
        tokenizer = clip_tokenizer(model_max_length=20)
        ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
        text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 20, "projection_dim": 8, **ids}
    else:
        tokenizer = word_tokenizer("PreTrainedTokenizerFast", "<pad>", "<s>", "</s>", "<unk>")
        text = {**bert, "vocab_size": 64}
    name = {"clip": "CLIP", "siglip": "Siglip", "metaclip_2": "MetaClip2", "align": "Align", "altclip": "AltCLIP",
            "chinese_clip": "ChineseCLIP"}[kind]  # fmt: skip
    config_class, model_class = getattr(tf, f"{name}Config"), getattr(tf, f"{name}Model")
    if kind == "align":
        vision = {"image_size": SIDE, "hidden_dim": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1,
                  "num_hidden_layers": 4, "depthwise_padding": []}  # fmt: skip
    if kind == "altclip":
        text = {**text, "project_dim": 8, "type_vocab_size": 1}
    if kind == "siglip":
        config = config_class(text_config=text, vision_config=vision)
    else:
        config = config_class(text_config=text, vision_config=vision, projection_dim=64 if kind == "align" else 8)
    model = model_class(config)
    with torch.no_grad():  # else neither words nor pictures matter
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    model = model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    place, cut = {"height": SIDE, "width": SIDE}, {"size": {"shortest_edge": SIDE}, "crop_size": SIDE}
    module, settings = {
        "clip": ("clip.image_processing_pil_clip", cut),
        "metaclip_2": ("clip.image_processing_pil_clip", cut),
        "altclip": ("clip.image_processing_pil_clip", {**cut, "image_mean": [0.4] * 3}),
        "chinese_clip": ("chinese_clip.image_processing_pil_chinese_clip", {"size": place, "do_center_crop": False}),
        "siglip": ("siglip.image_processing_pil_siglip", {"size": place}),
        "align": ("efficientnet.image_processing_pil_efficientnet",
                  {"size": {"height": 40, "width": 40}, "crop_size": place, "do_center_crop": True, "resample": 2,
                   "rescale_factor": 1 / 127.5, "rescale_offset": True}),
    }[kind]  # fmt: skip
    classes = importlib.import_module(f"transformers.models.{module}")
    processor = getattr(classes, next(each for each in classes.__all__ if each.endswith("Pil")))(**settings)
    processor.save_pretrained(folder)
    return model, tokenizer, processor


def library_vectors(model, tokenizer, processor, texts: list[str], pictures: list[Image.Image]):
    """Unit vectors (texts, pictures) as the library itself gives them."""
    import torch

    kind = model.config.model_type
    siglip = kind.startswith("siglip")
    longest = model.config.text_config.max_position_embeddings if siglip else tokenizer.model_max_length
    given = [text.lower() for text in texts] if siglip else texts
    tokens = tokenizer(given, padding="max_length" if siglip else True, truncation=True, max_length=longest,
                       return_tensors="pt")  # fmt: skip
    keep = ("input_ids",) if siglip else ("input_ids", "attention_mask")
    with torch.no_grad():
        text = model.get_text_features(**{name: tokens[name] for name in keep})
        pixels = torch.from_numpy(np.stack([processor(p, return_tensors="np")["pixel_values"][0] for p in pictures]))
        image = model.get_image_features(pixel_values=pixels.float())
    text, image = (getattr(each, "pooler_output", each) for each in (text, image))
    unit = torch.nn.functional.normalize
    return unit(text, dim=-1).numpy(), unit(image, dim=-1).numpy()


def write_hub_config(folder: Path, **more) -> None:
    """Change what a checkpoint's ``config.json`` says."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
