"""Texts and pictures in one list, encoded at one level in the order that they were given in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.encode.base import Encoder, unpacked
from hivlp.errors import ArgumentError, ModelError


def encode(
    model: Encoder, inputs: Any, batch_size: int, show_progress_bar: bool, level: str | None
) -> NDArray[np.float32]:
    """The job behind :meth:`hivlp.encode.onnx.OnnxEncoder.encode`."""
    known = {each.name: each.dim for each in model.levels}
    name = model.levels[-1].name if level is None else level
    if name not in known:
        raise ModelError(f"model {model.name} has no level {name!r:.40}; it has {', '.join(known)}")
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be 1 or more, not {batch_size}")
    inputs = unpacked(inputs)
    alone = isinstance(inputs, (str, Path, bytes, Image.Image)) or not isinstance(inputs, Iterable)
    listed = [inputs] if alone else list(inputs)
    for number, each in enumerate(listed, start=1):
        if not isinstance(each, (str, Path, bytes, Image.Image)):
            raise ArgumentError(f"input {number} is neither a text nor a picture, but {type(each).__name__}")
    texts = [place for place, each in enumerate(listed) if isinstance(each, str)]
    pictures = [place for place, each in enumerate(listed) if not isinstance(each, str)]
    vectors = np.empty((len(listed), known[name]), np.float32)
    bar = _bar(len(listed)) if show_progress_bar else None
    for places, way in ((texts, "text"), (pictures, "image")):
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            batch = [listed[place] for place in part]
            made = model.encode_text(batch, levels=[name]) if way == "text" else model.encode_image(batch)
            vectors[part] = made[name]
            if bar is not None:
                bar.update(len(part))
    if bar is not None:
        bar.close()
    return vectors[0] if alone else vectors


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="encode", unit="", disable=None)
