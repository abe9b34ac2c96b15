"""Cached vectors of a finished model's towers, kept in a folder in parts of 512.

An interrupted run goes on where it was, and a part is computed again only if its pictures or texts, the model's files
or the program that prepares pictures have changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from tqdm import tqdm

from hivlp.data.contents import PREPARED_BY, Contents, folder_digest, read_pixels
from hivlp.data.pairs import Pair
from hivlp.encode.onnx import OnnxEncoder
from hivlp.encode.stream import Pixels, chunks, encode_stream
from hivlp.errors import DataError, PictureError
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.train.inputs.features import text_features
from hivlp.train.state.cache import key_of, read_cache, write_cache

logger = logging.getLogger(__name__)
PART = 512
"""Pictures or texts whose vectors are kept in one file."""
T = TypeVar("T")


def picture_vectors(encoder: OnnxEncoder, pictures: Sequence[Pair], run: Path) -> Tensor:
    """(N, D) finest vectors of the pictures that can be read.

    Args:
        encoder: of the original model.
        pictures: in the order wanted.
        run: folder that keeps the parts.

    Raises:
        DataError: if no picture can be read.
    """

    def compute(chunk: list[Pair]) -> tuple[Tensor, str]:
        hashes = [""] * len(chunk)

        def load(place: int) -> Pixels:
            hashes[place], pixels = read_pixels(chunk[place], encoder.picture)
            if isinstance(pixels, PictureError):
                raise pixels
            return pixels

        found = []
        for batch in encode_stream(encoder, range(len(chunk)), load):
            for place, reason in batch.failures:
                logger.warning("skipped %s: %s", chunk[place].id, reason)
            found.append(batch.embeddings.fine)
        return torch.from_numpy(np.concatenate(found)), Contents.of(chunk, hashes).digest

    vectors = _kept(encoder, pictures, run / "pictures", lambda chunk: Contents.read(chunk).digest, compute)
    if not len(vectors):
        raise DataError("no picture could be read")
    return vectors


def text_vectors(encoder: OnnxEncoder, texts: Sequence[str], run: Path) -> Tensor:
    """(M, D) finest vectors of the texts; arguments as of :func:`picture_vectors`."""
    return _of_texts(encoder, texts, run / "texts", lambda chunk: torch.from_numpy(encoder.encode_text(chunk).fine))


def layer_features(model: HiVLPModel, encoder: OnnxEncoder, texts: Sequence[str], run: Path) -> Tensor:
    """(M, W) features of the text layer that the first level of ``model`` reads; else as :func:`text_vectors`."""
    layer = model.config.levels[0].text_layer

    def features(chunk: list[str]) -> Tensor:
        return text_features(model, encoder.tokenize, chunk, (layer,))[layer]

    return _of_texts(encoder, texts, run / f"layer{layer}", features)


def _of_texts(
    encoder: OnnxEncoder, texts: Sequence[str], folder: Path, compute: Callable[[list[str]], Tensor]
) -> Tensor:
    def digest(chunk: list[str]) -> str:
        return key_of(texts=chunk)

    return _kept(encoder, texts, folder, digest, lambda chunk: (compute(chunk), digest(chunk)))


def _kept(
    encoder: OnnxEncoder,
    items: Sequence[T],
    folder: Path,
    digest: Callable[[list[T]], str],
    compute: Callable[[list[T]], tuple[Tensor, str]],
) -> Tensor:
    """(N, D) rows of all items.

    Args:
        encoder: whose files a part depends on.
        items: pictures or texts.
        folder: that keeps the parts; its name is the kind of rows.
        digest: of the contents of some items.
        compute: rows of some items, and their digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by, model = [PREPARED_BY, onnxruntime.__version__], folder_digest(encoder.files.image.parent)
    parts = []
    with tqdm(total=len(items), desc=folder.name, unit="", disable=None) as bar:
        for number, chunk in enumerate(chunks(items, PART)):
            path = folder / f"{number:06}.safetensors"

            def key(contents: str) -> str:
                return key_of(contents=contents, kind=folder.name, model=model, by=by)

            known = read_cache(path, key(digest(chunk))) if path.is_file() else None
            if known is None:
                rows, contents = compute(chunk)
                known = {"rows": rows}
                write_cache(path, key(contents), known)
            parts.append(known["rows"])
            bar.update(len(chunk))
    return torch.cat(parts)
