"""Inputs of a training step: pixels and token ids, or, for frozen towers, their features computed once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hivlp.config import PictureConfig, TextConfig
from hivlp.data.pairs import Pair
from hivlp.data.pictures import load_pixels
from hivlp.encode.onnx import open_session
from hivlp.encode.stream import default_workers
from hivlp.encode.text import TextTokenizer
from hivlp.errors import DataError, PictureError
from hivlp.export import export_image_features
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.train.augment import bare, caption_variants, plain_view, random_view
from hivlp.train.recipe import Augment

logger = logging.getLogger(__name__)
MASTER = 256  # side, in pixels, at which decoded pictures are kept for augmentation
BATCH, TEXT_BATCH = 8, 128


@dataclass
class Corpus:
    """Decoded pictures and tokenised captions of a training set.

    Attributes:
        pixels: (N, S, S, 3) uint8, memory-mapped.
        repeat: (N,) how often an epoch visits each picture.
        texts: every caption variant; ``ids`` and ``mask`` (M, T) are their tokens.
        lengths: (M,) columns of ``ids`` that a text needs: all of them where the model wants its padding.
        variants: for each picture, which rows of ``texts`` describe it.
        caption_ids: (N,) equal for pictures with the same first caption.
    """

    pixels: NDArray[np.uint8]
    repeat: NDArray[np.int64]
    texts: list[str]
    ids: Tensor
    mask: Tensor
    lengths: Tensor
    variants: list[list[int]]
    caption_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)


def build_corpus(
    pairs: list[tuple[Pair, int]], picture: PictureConfig, tokenizer: TextTokenizer, augment: Augment, cache: Path
) -> Corpus:
    """Decode every picture once into ``cache`` and tokenise every caption.

    Broken pictures are logged and left out.

    Args:
        pairs: each pair and how often an epoch visits it.
        picture: preparation; its size is raised to ``MASTER`` so that crops keep detail.
        tokenizer: of the model.
        augment: which caption variants to make.
        cache: folder for the memory-mapped pixels.

    Raises:
        DataError: if nothing is left.
    """
    side = max(MASTER, picture.size) if picture.size > 64 else 2 * picture.size
    side = picture.size if augment.plain else side
    master = picture.at(side)
    cache.mkdir(parents=True, exist_ok=True)
    pixels, readable = _decoded([pair for pair, _ in pairs], master, cache)
    kept = [pairs[number] for number in readable]
    numbers: dict[str, int] = {}
    variants = [
        [numbers.setdefault(text, len(numbers)) for text in caption_variants(pair, augment)] for pair, _ in kept
    ]
    texts = list(numbers)
    ids, mask = tokenize(tokenizer, texts)
    same: dict[str, int] = {}
    caption_ids = [same.setdefault(bare(pair.captions[0]).casefold(), len(same)) for pair, _ in kept]
    return Corpus(
        pixels=pixels,
        repeat=np.array([repeat for _, repeat in kept]),
        texts=texts,
        ids=ids,
        mask=mask,
        lengths=token_lengths(mask, tokenizer.config),
        variants=variants,
        caption_ids=np.array(caption_ids),
    )


def _decoded(pairs: list[Pair], master: PictureConfig, cache: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """(N, side, side, 3) pixels of the readable pictures, and which these are; decoded once for each ``cache``."""
    about, store = cache / "pixels.json", cache / "pixels.npy"
    digest = hashlib.sha256(repr((master, [pair.id for pair in pairs])).encode()).hexdigest()
    if about.is_file() and (known := json.loads(about.read_text(encoding="utf-8")))["digest"] == digest:
        return np.load(store, mmap_mode="r")[: len(known["kept"])], known["kept"]
    pixels = np.lib.format.open_memmap(store, "w+", np.uint8, (len(pairs), master.size, master.size, 3))

    def decode(pair: Pair) -> NDArray[np.uint8] | PictureError:
        try:
            return load_pixels(pair.read(), master)
        except PictureError as error:
            return error

    kept: list[int] = []
    with ThreadPoolExecutor(default_workers()) as pool, tqdm(total=len(pairs), desc="decode", unit=" pictures") as bar:
        for start in range(0, len(pairs), 256):
            part = pairs[start : start + 256]
            for number, loaded in enumerate(pool.map(decode, part), start):
                if isinstance(loaded, PictureError):
                    logger.warning("skipped %s: %s", pairs[number].id, loaded)
                    continue
                pixels[len(kept)] = loaded
                kept.append(number)
            bar.update(len(part))
    if not kept:
        raise DataError("the recipe's data holds no readable picture with a caption")
    pixels.flush()
    temporary = about.with_suffix(".partial")
    temporary.write_text(json.dumps({"digest": digest, "kept": kept}), encoding="utf-8")
    temporary.replace(about)
    return pixels[: len(kept)], kept


def frozen_image_features(
    model: HiVLPModel, corpus: Corpus, augment: Augment, seed: int, cache: Path
) -> list[Features]:
    """Features of each view of each picture: one plain view and ``augment.views`` random ones.

    A view that an earlier, interrupted run finished is read back instead of computed again.

    Returns:
        One ``layer -> (N, width)`` a view.
    """
    from safetensors.torch import load_file, save_file

    size, layers = model.config.picture.size, model.image_layers
    graph = cache / "features.onnx"
    export_image_features(model, graph)
    session = open_session(graph)

    def features(start: int, view: int) -> list[NDArray[np.float32]]:
        rows = range(start, min(start + BATCH, len(corpus)))
        batch = [
            plain_view(corpus.pixels[row], size)
            if view == 0
            else random_view(corpus.pixels[row], size, augment, np.random.default_rng([seed, view, row]))
            for row in rows
        ]
        result: list[NDArray[np.float32]] = session.run(None, {"pixels": np.stack(batch)})
        return result

    views: list[Features] = []
    for view in range(augment.views + 1):
        path = cache / f"view{view}.safetensors"
        if not path.is_file():
            starts = range(0, len(corpus), BATCH)
            with ThreadPoolExecutor(default_workers()) as pool:
                mapped = pool.map(features, starts, [view] * len(starts))
                parts = list(tqdm(mapped, f"image features {view + 1}/{augment.views + 1}", len(starts)))
            arrays = [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]
            temporary = path.with_suffix(".partial")
            save_file({str(layer): array for layer, array in zip(layers, arrays, strict=True)}, temporary)
            temporary.replace(path)
        views.append({int(layer): tensor for layer, tensor in load_file(path).items()})
    graph.unlink()
    return views


def frozen_text_features(model: HiVLPModel, corpus: Corpus) -> Features:
    """``layer -> (M, width)`` for every caption variant."""
    return _text_features(model, corpus.ids, corpus.mask)


def text_features(model: HiVLPModel, tokenizer: TextTokenizer, texts: Sequence[str]) -> Features:
    """``layer -> (M, width)`` of any texts."""
    return _text_features(model, *tokenize(tokenizer, texts))


def tokenize(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (M, T) int64."""
    ids, mask = tokenizer(texts)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def token_lengths(mask: Tensor, config: TextConfig) -> Tensor:
    """(M,) how many columns of a (M, T) mask each text needs; what is padded to the full length keeps it."""
    return torch.full((len(mask),), mask.shape[1]) if config.pad_to_max else mask.sum(1)


@torch.no_grad()
def _text_features(model: HiVLPModel, ids: Tensor, mask: Tensor) -> Features:
    parts: dict[int, list[Tensor]] = {layer: [] for layer in model.text_layers}
    # Texts of like length together: a batch is as long as its longest.
    lengths = token_lengths(mask, model.config.text)
    order = lengths.argsort(stable=True)
    with tqdm(total=len(ids), desc="text features", unit="text", delay=1) as progress:
        for rows in torch.split(order, TEXT_BATCH):
            length = int(lengths[rows].max())
            for layer, features in model.text_features(ids[rows, :length], mask[rows, :length]).items():
                parts[layer].append(features)
            progress.update(len(rows))
    back = order.argsort()
    return {layer: torch.cat(chunks)[back] for layer, chunks in parts.items()}
