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
        "16-bit": Image.fromarray(noise(36, 44).astype(np.uint16) * 257),
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


def save_checkpoint(folder: Path, kind: str, *, pickled: bool = False, gentle: bool = False):
    """A dual encoder of ``transformers`` with its processor, in the folder and as objects (model, tokenizer, images).

    ``gentle``: with the library's own random weights, whose activations have no outliers.
    """
    import importlib

    import torch
    import transformers as tf

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    bert = {**size, "vocab_size": 64, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "pad_token_id": 1}
    if kind == "siglip2":
        vision = {**size, "num_patches": 16, "patch_size": 8}
    if kind in ("clip", "siglip", "siglip2", "metaclip_2"):
        tokenizer = clip_tokenizer(model_max_length=20)
        ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
        text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 20, "projection_dim": 8, **ids}
    else:
        tokenizer = word_tokenizer("PreTrainedTokenizerFast", "<pad>", "<s>", "</s>", "<unk>")
        text = {**bert, "vocab_size": 64}
    name = {"clip": "CLIP", "siglip": "Siglip", "metaclip_2": "MetaClip2", "align": "Align", "altclip": "AltCLIP",
            "chinese_clip": "ChineseCLIP", "siglip2": "Siglip2"}[kind]  # fmt: skip
    config_class, model_class = getattr(tf, f"{name}Config"), getattr(tf, f"{name}Model")
    if kind == "align":
        vision = {"image_size": SIDE, "hidden_dim": 64, "width_coefficient": 0.1, "depth_coefficient": 0.1,
                  "num_hidden_layers": 4, "depthwise_padding": []}  # fmt: skip
    if kind == "altclip":
        text = {**text, "project_dim": 8, "type_vocab_size": 1}
    if kind in ("siglip", "siglip2"):
        config = config_class(text_config=text, vision_config=vision)
    else:
        config = config_class(text_config=text, vision_config=vision, projection_dim=32 if kind == "align" else 8)
    model = model_class(config)
    with torch.no_grad():  # else neither words nor pictures matter
        for parameter in model.parameters():
            if parameter.ndim >= 2 and not gentle:
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
        "siglip2": ("siglip2.image_processing_pil_siglip2", {"patch_size": 8, "max_num_patches": 20}),
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
        given = [processor(picture, return_tensors="pt") for picture in pictures]
        image = model.get_image_features(**{name: torch.cat([each[name] for each in given]) for name in given[0]})
    text, image = (getattr(each, "pooler_output", each) for each in (text, image))
    unit = torch.nn.functional.normalize
    return unit(text, dim=-1).numpy(), unit(image, dim=-1).numpy()


def write_hub_config(folder: Path, **more) -> None:
    """Change what a checkpoint's ``config.json`` says."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def save_onnx_towers(folder: Path, kind: str, precisions: tuple[str, ...] = ("",)):
    """A checkpoint as hub repositories keep it for transformers.js: a configuration, and ``onnx/`` with both towers."""
    import torch

    model, tokenizer, processor = save_checkpoint(folder, kind)
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    siglip = kind == "siglip"

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask=None):
            return self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    class Image(Text):
        def forward(self, pixel_values):
            return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    tokens = torch.ones(2, 20 if siglip else 8, dtype=torch.int64)
    mask = tokens.clone()
    mask[1, -1] = 0
    output = ("pooler_output", "pooler_output") if siglip else ("text_embeds", "image_embeds")
    axes = {"input_ids": {0: "batch", 1: "tokens"}, "attention_mask": {0: "batch", 1: "tokens"},
            "pixel_values": {0: "batch"}, **{name: {0: "batch"} for name in output}}  # fmt: skip
    texts, names = ((tokens,), ["input_ids"]) if siglip else ((tokens, mask), ["input_ids", "attention_mask"])
    for tower, module, inputs, known in (("text", Text(), texts, names),
                                         ("vision", Image(), (torch.zeros(2, 3, SIDE, SIDE),), ["pixel_values"])):  # fmt: skip
        path = folder / "onnx" / f"{tower}_model.onnx"
        torch.onnx.export(module.eval(), inputs, str(path), input_names=known, output_names=[output[tower == "vision"]],
                          dynamic_axes={name: axes[name] for name in (*known, output[tower == "vision"])},
                          dynamo=False, opset_version=17)  # fmt: skip
        for precision in precisions:
            if precision:
                write_precision(path, path.with_name(f"{tower}_model{precision}.onnx"), precision)
    return model, tokenizer, processor


def write_precision(path: Path, out: Path, precision: str) -> None:
    """A graph in fp16 or int8, by ONNX Runtime's own tools, as the makers of such repositories use them."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if precision == "_fp16":
        onnx.save(convert_float_to_float16(onnx.load(str(path))), str(out))
    else:
        quantize_dynamic(str(path), str(out))


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A small model of open_clip's."""


def save_open_clip(folder: Path, settings=None, prepare=None, weights: str = "open_clip_model.safetensors"):
    """A model of open_clip with random weights, in a folder as its ``push_to_hf_hub`` writes it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    prepare = prepare or {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27], "interpolation": "bicubic"}
    about = {"model_cfg": settings or OPEN_CLIP, "preprocess_cfg": {"size": SIDE, **prepare}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                scale = 1.0 if "token_embedding" in name or "positional" in name else parameter.shape[-1] ** -0.5
                parameter.normal_(0, scale)
    model = model.eval()
    if weights.endswith(".safetensors"):
        save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / weights)
    else:
        torch.save(model.state_dict(), folder / weights)
    return model, open_clip.get_tokenizer(f"local-dir:{folder}"), transform


def open_clip_vectors(model, tokenizer, transform, texts, pictures):
    """Unit vectors (texts, pictures) as open_clip itself gives them."""
    import torch

    with torch.no_grad():
        text = model.encode_text(tokenizer(texts), normalize=True)
        image = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
    return text.numpy(), image.numpy()


def save_onnx_folders(folder: Path, settings=None, prepare=None):
    """A model of open_clip as immich keeps it: two folders, graphs of one picture and one text at full length."""
    import torch

    from hivlp.formats.open_clip import write_clip_tokenizer

    model, tokenizer, transform = save_open_clip(folder / "source", settings, prepare)
    about = json.loads((folder / "source" / "open_clip_config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about["model_cfg"]))
    for name in ("textual", "visual"):
        (folder / name).mkdir()
    (folder / "visual" / "preprocess_cfg.json").write_text(json.dumps(about["preprocess_cfg"]))
    (folder / "textual" / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<end_of_text>"}))
    write_clip_tokenizer(folder / "textual" / "tokenizer.json")

    class Tower(torch.nn.Module):
        def __init__(self, encode):
            super().__init__()
            self.model, self.encode = model, encode

        def forward(self, value):
            return self.encode(value, normalize=True)

    torch.backends.mha.set_fastpath_enabled(False)
    length = about["model_cfg"]["text_cfg"]["context_length"]
    for name, tower, given in (("textual/model.onnx", Tower(model.encode_text), torch.ones(1, length, dtype=torch.int32)),
                               ("visual/model.onnx", Tower(model.encode_image), torch.zeros(1, 3, SIDE, SIDE))):  # fmt: skip
        torch.onnx.export(tower.eval(), (given,), str(folder / name), opset_version=17, dynamo=False,
                          input_names=["text" if "text" in name else "image"], output_names=["embedding"])  # fmt: skip
    return model, tokenizer, transform
