"""Preparation settings of a ``transformers`` checkpoint (image processor, tokenizer) as hivlp configurations."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivlp.config import RESAMPLE, PictureConfig, TextConfig
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.model.sentencepiece import convert_sentencepiece

logger = logging.getLogger(__name__)
PICTURES, BOTH, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer.json"
SETTINGS, SPECIAL, PIECES, WORDS = "tokenizer_config.json", "special_tokens_map.json", "spiece.model", "vocab.json"
FILES = [PICTURES, BOTH, TOKENIZER, SETTINGS, SPECIAL, PIECES, WORDS, "merges.txt"]
# Classes that scale, cut, rescale and normalise, and do nothing else.
PLAIN = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")
# Tokenizers whose padding goes to the left where nothing else is said.
LEFT = ("Gemma", "Siglip2")


def picture_config(folder: Path, source: Path | str, side: int) -> PictureConfig:
    """How a ``transformers`` checkpoint prepares pictures.

    Args:
        folder: with ``preprocessor_config.json``, or ``processor_config.json`` as ``transformers`` 5 writes it.
        source: what a person calls it.
        side: of the pictures that the vision tower takes.

    Raises:
        ModelError: if the processor does what hivlp does not.
    """
    from transformers import AutoImageProcessor

    alone = (folder / PICTURES).is_file()
    named = _read(folder / PICTURES) if alone else _read(folder / BOTH).get("image_processor")
    if not isinstance(named, dict):
        raise ModelError(f"{source} has no {PICTURES}, which hivlp needs to prepare pictures as it was trained")
    try:
        # What the files leave open, the class decides.
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the class makes of its settings
        raise ModelError(f"{source}: its image processor cannot be read: {one_line(error)}") from error
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if kind not in PLAIN:
        raise ModelError(f"{source} prepares pictures with a {kind}; hivlp knows {', '.join(PLAIN)}")
    try:
        config = _in_our_terms(processor)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{source} prepares pictures as hivlp does not: {error}") from error
    if config.size != side:
        raise ModelError(f"{source} prepares pictures of {config.size} pixels a side, its vision tower takes {side}")
    if str(named.get("image_processor_type", "")).endswith("Fast") and config.resample not in ("bilinear", "bicubic"):
        logger.warning("%s was prepared by torchvision, whose %s filter is not Pillow's", source, config.resample)
    return config


def _in_our_terms(processor: Any) -> PictureConfig:
    """The settings of a plain processor.

    Raises:
        ValueError: naming what hivlp does not do.
    """
    if getattr(processor, "do_pad", None):
        raise ValueError("do_pad")
    fit, side, resize = "stretch", None, None
    if processor.do_resize:
        resize = {name: int(value) for name, value in dict(processor.size).items() if value is not None}
    if getattr(processor, "do_center_crop", None):
        fit, crop = "crop", processor.crop_size
        if crop is None:
            raise ValueError("do_center_crop without a crop_size")
        resize = resize or {}
        side = _square(crop["height"], crop["width"], "crop_size")
    elif resize is not None and set(resize) == {"height", "width"}:
        side, resize = _square(resize["height"], resize["width"], "size"), None
    else:
        raise ValueError("its pictures vary in size, since nothing is cut to a square")
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    if factor == 0:
        raise ValueError("rescale_factor 0 leaves nothing of a picture")
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = _channels(processor, "image_mean"), _channels(processor, "image_std")
    mean, std = ([value / factor for value in values] for values in (mean, std))
    resample = getattr(processor.resample, "value", processor.resample)
    if isinstance(resample, int) and 0 <= resample < len(RESAMPLE):
        resample = RESAMPLE[resample]
    return PictureConfig(side, fit, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), str(resample), resize)


def _square(height: int, width: int, name: str) -> int:
    if height != width:
        raise ValueError(f"{name} {height}x{width} is not square")
    return int(height)


def _channels(processor: Any, name: str) -> list[float]:
    """One number a channel; those of the class where the file says null."""
    values = getattr(processor, name)
    values = getattr(type(processor), name) if values is None else values
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
    elif (folder / WORDS).is_file() and (folder / "merges.txt").is_file():
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer.save(str(out))
        except Exception as error:  # whatever the class makes of its files
            raise ModelError(f"{source}: its tokenizer cannot be read: {one_line(error)}") from error
    else:
        raise ModelError(f"{source} has no {TOKENIZER}, nor {PIECES}, nor {WORDS} with merges.txt")


def text_config(folder: Path, source: Path | str, tokenizer: Path, family: str, positions: int) -> TextConfig:
    """How a checkpoint prepares texts; SigLIP saw them in lower case and padded to their full length.

    Args:
        folder: of the checkpoint.
        source: what a person calls it.
        tokenizer: its ``tokenizer.json``.
        family: ``clip`` or ``siglip``.
        positions: tokens that the text tower has places for.

    Raises:
        ModelError: if something is said that cannot be.
    """
    from tokenizers import Tokenizer

    settings = _read(folder / SETTINGS)
    stored = _read(tokenizer)
    siglip = family == "siglip"
    named = str(settings.get("tokenizer_class", ""))
    usual = "left" if named.startswith(LEFT) else "right"
    side = settings.get("padding_side") or _direction(stored, "padding") or usual
    pad = settings.get("pad_token") or _read(folder / SPECIAL).get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    # Else that of the tokenizer's class.
    pad = pad or ("<pad>" if named.startswith(LEFT) else "</s>" if siglip else "<|endoftext|>")
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
