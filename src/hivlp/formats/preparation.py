"""Preparation settings of a ``transformers`` checkpoint (image processor, tokenizer) as hivlp configurations.

Read from its JSON files alone: a model whose graphs are ready is used without ``transformers``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivlp.config import RESAMPLE, PictureConfig, TextConfig
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.formats.sentencepiece import convert_sentencepiece

logger = logging.getLogger(__name__)
PICTURES, BOTH, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer.json"
SETTINGS, SPECIAL, PIECES, WORDS = "tokenizer_config.json", "special_tokens_map.json", "spiece.model", "vocab.json"
FILES = [PICTURES, BOTH, TOKENIZER, SETTINGS, SPECIAL, PIECES, WORDS, "merges.txt", "vocab.txt",
         "sentencepiece.bpe.model"]  # fmt: skip
_CLIP = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SQUARE = {"do_resize": True, "size": {"height": 224, "width": 224}, "do_center_crop": False, **_HALF}
PLAIN: Mapping[str, Mapping[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": {**_SQUARE, "resample": 3},
    "ViTImageProcessor": {**_SQUARE, "resample": 2},
    "EfficientNetImageProcessor": {
        **_SQUARE, "size": {"height": 346, "width": 346}, "crop_size": 289, "resample": 3, "include_top": True,
    },
}  # fmt: skip
"""Classes that scale, cut, rescale and normalise, and do nothing else, with what they do where a file says nothing."""
_CLASSES = {
    "clip": "CLIPImageProcessor", "metaclip_2": "CLIPImageProcessor", "altclip": "CLIPImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor", "siglip": "SiglipImageProcessor",
    "align": "EfficientNetImageProcessor", "siglip2": "Siglip2ImageProcessor",
}  # fmt: skip
"""Of the model's type, for files that do not name the class."""
NAFLEX = "Siglip2ImageProcessor"
"""The class that cuts pictures of any proportions into patches."""
LEFT = ("Gemma", "Siglip2")
"""Tokenizers whose padding goes to the left where nothing else is said."""
_PADS = {"clip": "<|endoftext|>", "siglip": "</s>", "siglip2": "<pad>", "altclip": "<pad>", "metaclip_2": "<pad>"}


def picture_config(folder: Path, source: Path | str, side: int | None) -> PictureConfig:
    """How a ``transformers`` checkpoint prepares pictures.

    Args:
        folder: with ``preprocessor_config.json``, or ``processor_config.json`` as ``transformers`` 5 writes it.
        source: what a person calls it.
        side: of the pictures that the vision tower takes; None where it takes any, or patches.

    Raises:
        ModelError: if the processor does what hivlp does not.
    """
    named, kind = picture_settings(folder, source)
    if kind == NAFLEX and side is None:
        return _in_patches(named, source)
    if kind not in PLAIN:
        raise ModelError(f"{source} prepares pictures with a {kind}; hivlp knows {', '.join(PLAIN)}")
    # What the file leaves open, the class decides.
    settings = {**PLAIN[kind], **{name: value for name, value in named.items() if value is not None or "crop" in name}}
    try:
        config = _in_our_terms(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{source} prepares pictures as hivlp does not: {one_line(error)}") from error
    if side not in (None, config.size):
        raise ModelError(f"{source} prepares pictures of {config.size} pixels a side, its vision tower takes {side}")
    if str(named.get("image_processor_type", "")).endswith("Fast") and config.resample not in ("bilinear", "bicubic"):
        logger.warning("%s was prepared by torchvision, whose %s filter is not Pillow's", source, config.resample)
    return config


def _in_patches(named: Mapping[str, Any], source: Path | str) -> PictureConfig:
    settings = {**_HALF, "patch_size": 16, "max_num_patches": 256, "resample": 2, "do_resize": True,
                **{name: value for name, value in named.items() if value is not None}}  # fmt: skip
    try:
        if not settings["do_resize"]:
            raise ValueError("do_resize is off")
        mean, std = normalisation(settings)
        return PictureConfig(int(settings["patch_size"]), "patches", mean, std, RESAMPLE[settings["resample"]],
                             patches=int(settings["max_num_patches"]))  # fmt: skip
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{source} prepares pictures as hivlp does not: {one_line(error)}") from error


def picture_settings(folder: Path, source: Path | str) -> tuple[dict[str, Any], str]:
    """What a checkpoint's file says of its image processor, and the name of its class.

    Raises:
        ModelError: if there is no such file.
    """
    named = _read(folder / PICTURES) if (folder / PICTURES).is_file() else _read(folder / BOTH).get("image_processor")
    if not isinstance(named, dict):
        raise ModelError(f"{source} has no {PICTURES}, which hivlp needs to prepare pictures as it was trained")
    kind = named.get("image_processor_type") or named.get("feature_extractor_type")
    kind = kind or _CLASSES.get(str(_read(folder / "config.json").get("model_type")), "class that is not named")
    kind = str(kind).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    return named, kind


def _in_our_terms(settings: Mapping[str, Any]) -> PictureConfig:
    """The settings of a plain processor.

    Raises:
        ValueError: naming what hivlp does not do.
    """
    if settings.get("do_pad"):
        raise ValueError("do_pad")
    fit, side, resize = "stretch", None, None
    size = settings["size"]
    size = {"shortest_edge": size} if isinstance(size, int) else size
    if settings["do_resize"]:
        resize = {name: int(value) for name, value in dict(size).items() if value is not None}
    if settings["do_center_crop"]:
        fit, crop = "crop", settings["crop_size"]
        if crop is None:
            raise ValueError("do_center_crop without a crop_size")
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        resize = resize or {}
        side = _square(crop["height"], crop["width"], "crop_size")
    elif resize is not None and set(resize) == {"height", "width"}:
        side, resize = _square(resize["height"], resize["width"], "size"), None
    else:
        raise ValueError("its pictures vary in size, since nothing is cut to a square")
    mean, std = normalisation(settings)
    resample = settings["resample"]
    if isinstance(resample, int) and 0 <= resample < len(RESAMPLE):
        resample = RESAMPLE[resample]
    return PictureConfig(side, fit, mean, std, str(resample), resize)


def normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of each channel, with ``rgb`` in 0…255, of what a processor does in up to three steps.

    Raises:
        ValueError: if it cannot be said so.
    """
    factor = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    if factor == 0:
        raise ValueError("rescale_factor 0 leaves nothing of a picture")
    shift = 1.0 if settings.get("rescale_offset") and settings.get("do_rescale", True) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if settings.get("do_normalize", True):
        mean, std = _channels(settings, "image_mean"), _channels(settings, "image_std")
    means = [(value + shift) / factor for value in mean]
    # EfficientNet divides by the deviation twice.
    twice = _channels(settings, "image_std") if settings.get("include_top") else [1.0] * 3
    deviations = [value * again / factor for value, again in zip(std, twice, strict=True)]
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])


def _square(height: int, width: int, name: str) -> int:
    if height != width:
        raise ValueError(f"{name} {height}x{width} is not square")
    return int(height)


def _channels(settings: Mapping[str, Any], name: str) -> list[float]:
    """One number a channel."""
    values = settings[name]
    numbers = [float(value) for value in (values if isinstance(values, list | tuple) else [values])]
    if len(numbers) not in (1, 3):
        raise ValueError(f"{name} has {len(numbers)} channels")
    return numbers * (3 // len(numbers))


def write_tokenizer(folder: Path, source: Path | str, out: Path) -> None:
    """A checkpoint's ``tokenizer.json``, as it is or made of ``vocab.json`` and ``merges.txt`` or ``spiece.model``.

    Raises:
        ModelError: if there is none of them, or one cannot be read.
    """
    if (folder / TOKENIZER).is_file():
        shutil.copyfile(folder / TOKENIZER, out)
    elif (folder / PIECES).is_file():
        convert_sentencepiece(folder / PIECES).save(str(out))
    elif _has_words(folder):
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer.save(str(out))
        except Exception as error:  # whatever the class makes of its files
            raise ModelError(f"{source}: its tokenizer cannot be read: {one_line(error)}") from error
    else:
        raise ModelError(f"{source} has no {TOKENIZER}, nor {PIECES}, nor {WORDS} with merges.txt, nor vocab.txt")


def _has_words(folder: Path) -> bool:
    """Whether there are files that the tokenizer's class of ``transformers`` can make a tokenizer of."""
    pair = (folder / WORDS).is_file() and (folder / "merges.txt").is_file()
    return pair or any((folder / name).is_file() for name in ("vocab.txt", "sentencepiece.bpe.model"))


def text_config(folder: Path, source: Path | str, tokenizer: Path, family: str, positions: int) -> TextConfig:
    """How a checkpoint prepares texts; SigLIP saw them in lower case and padded to their full length.

    Args:
        folder: of the checkpoint.
        source: what a person calls it.
        tokenizer: its ``tokenizer.json``.
        family: ``model_type`` of its configuration, such as ``clip`` or ``siglip``.
        positions: tokens that the text tower has places for.

    Raises:
        ModelError: if something is said that cannot be.
    """
    from tokenizers import Tokenizer

    settings = _read(folder / SETTINGS)
    stored = _read(tokenizer)
    siglip = family.startswith("siglip")
    named = str(settings.get("tokenizer_class", ""))
    usual = "left" if named.startswith(LEFT) else "right"
    side = settings.get("padding_side") or _direction(stored, "padding") or usual
    pad = settings.get("pad_token") or _read(folder / SPECIAL).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    # Else that of the tokenizer's class.
    pad = pad or ("<pad>" if named.startswith(LEFT) else _PADS.get(family, "[PAD]"))
    try:
        pad_id = Tokenizer.from_file(str(tokenizer)).token_to_id(pad)
        if pad_id is None and stored.get("padding"):
            pad_id = int(stored["padding"]["pad_id"])
        if pad_id is None and siglip:
            raise ValueError(f"it pads its texts, but its tokenizer has no {pad}")
        return TextConfig(
            max_tokens=min(positions, int(settings.get("model_max_length") or positions)),
            lowercase=siglip and settings.get("do_lower_case") is not False,
            pad_to_max=siglip or side == "left",
            pad_id=pad_id or 0,
            padding_side=side,
            truncation_side=settings.get("truncation_side") or _direction(stored, "truncation") or "right",
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{source} prepares texts as hivlp does not: {error}") from error


def _direction(stored: Mapping[str, Any], what: str) -> str | None:
    section = stored.get(what)
    return str(section["direction"]).lower() if isinstance(section, dict) and "direction" in section else None


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        ModelError: if it holds something else.
    """
    return read_json(path, ModelError) if path.exists() else {}
