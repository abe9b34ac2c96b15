"""Preparation settings as open_clip has them in JSON, as hivlp configurations; ONNX exports of its models keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivlp.config import PictureConfig, TextConfig
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.formats import preparation

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CONTEXT = 77


def picture_config(settings: Mapping[str, Any], size: Any, source: str) -> PictureConfig:
    """How an open_clip model prepares pictures.

    Args:
        settings: its ``preprocess_cfg``.
        size: of pictures, where the settings do not tell.
        source: what a person calls the model.

    Raises:
        ModelError: if hivlp does not prepare pictures so.
    """
    try:
        size = settings.get("size") or size
        sides = [size, size] if isinstance(size, int) else [int(side) for side in size]
        if len(set(sides)) != 1:
            raise ValueError(f"pictures of {sides} pixels are not square")
        mode = settings.get("resize_mode") or "shortest"
        if mode not in ("shortest", "squash"):
            raise ValueError(f"resize_mode {mode}")
        mean, std = (tuple(255 * float(value) for value in settings.get(name) or default)
                     for name, default in (("mean", MEAN), ("std", STD)))  # fmt: skip
        filtering = "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
        if mode == "squash":
            return PictureConfig(sides[0], "stretch", mean, std, filtering)  # type: ignore[arg-type]
        return PictureConfig(sides[0], "crop", mean, std, filtering, margin="even")  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{source} prepares pictures as hivlp does not: {one_line(error)}") from error


def text_config(settings: Mapping[str, Any], folder: Path, tokenizer: Path, source: str, *, cut: bool) -> TextConfig:
    """How an open_clip model prepares texts.

    Args:
        settings: its ``text_cfg``.
        folder: with ``tokenizer_config.json``, where there is one.
        tokenizer: its ``tokenizer.json``.
        source: what a person calls the model.
        cut: whether the text tower may be given texts at their own length.

    Raises:
        ModelError: if hivlp does not prepare texts so.
    """
    from tokenizers import Tokenizer

    options = dict(settings.get("tokenizer_kwargs") or {})
    named = bool(settings.get("hf_tokenizer_name"))
    unknown = [name for name in options if name not in ("clean", "language")] + [
        name for name in ("tokenizer_mode",) if settings.get(name)
    ]
    if options.get("strip_sep_token") is False:
        unknown.remove("strip_sep_token")
    if unknown:
        raise ModelError(f"{source} prepares texts as hivlp does not: {', '.join(unknown)}")
    clean = options.get("clean") or ("whitespace" if named else "lower")
    about = folder / preparation.SETTINGS
    pad = read_json(about, ModelError).get("pad_token") if about.is_file() else None
    pad = pad.get("content") if isinstance(pad, dict) else pad
    try:
        # open_clip's own tokenizer fills up with 0, that of transformers with its padding token.
        pad_id = Tokenizer.from_file(str(tokenizer)).token_to_id(pad) if named and pad else 0
        return TextConfig(
            max_tokens=int(settings.get("context_length") or CONTEXT),
            lowercase=clean == "lower",
            clean="canonicalize" if clean == "canonicalize" else "whitespace",
            pad_to_max=not cut,
            pad_id=pad_id or 0,
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{source} prepares texts as hivlp does not: {one_line(error)}") from error


def reads_own_length(settings: Mapping[str, Any]) -> bool:
    """Whether a text's vector is that of its own length: a causal mask hides the padding, and the end is read."""
    causal = not settings.get("no_causal_mask") and not settings.get("hf_model_name")
    return causal and settings.get("pool_type", "argmax") == "argmax" and not settings.get("embed_cls")
