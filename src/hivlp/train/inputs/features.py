"""The decoded and tokenised training set, and cached features of frozen towers."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from hivlp.config import PictureConfig, TextConfig
from hivlp.data.contents import PREPARED_BY, Contents, read_pixels
from hivlp.data.pairs import Pair
from hivlp.data.readers.skips import NAMED
from hivlp.data.texts import LONGEST, TextTokenizer
from hivlp.encode.session import open_session
from hivlp.encode.stream import default_workers
from hivlp.errors import DataError, PictureError
from hivlp.export.graphs import export_image_features
from hivlp.files.npy import open_npy
from hivlp.files.scratch import write_whole
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.tower import Features
from hivlp.train.inputs.augment import bare, caption_variants, master_side, plain_view, random_view
from hivlp.train.recipe.schema import Augment
from hivlp.train.state.cache import key_of, read_cache, weights_digest, write_cache

logger = logging.getLogger(__name__)
BATCH, TEXT_BATCH = 8, 128
Tokenize = Callable[[Sequence[str]], tuple[NDArray[np.int64], NDArray[np.int64]]]


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
        contents: what was read, unreadable pictures too.
    """

    pixels: NDArray[np.uint8]
    repeat: NDArray[np.int64]
    texts: list[str]
    ids: Tensor
    mask: Tensor
    lengths: Tensor
    variants: list[list[int]]
    caption_ids: NDArray[np.int64]
    contents: Contents

    def __len__(self) -> int:
        return len(self.pixels)


def build_corpus(
    pairs: list[tuple[Pair, int]],
    picture: PictureConfig,
    tokenizer: TextTokenizer,
    augment: Augment,
    cache: Path,
    *,
    checked: bool = False,
) -> Corpus:
    """Decode every picture once into ``cache`` and tokenise every caption.

    Broken pictures are logged and left out.

    Args:
        pairs: each pair and how often an epoch visits it.
        picture: preparation; its size is raised so that random crops keep detail.
        tokenizer: of the model.
        augment: which caption variants to make.
        cache: folder for the memory-mapped pixels; those that are there are used if the pictures are still the same.
        checked: whether another process has just read the pictures and left its pixels in ``cache``.

    Raises:
        DataError: if nothing is left.
    """
    master = picture.at(master_side(picture.size, augment))
    cache.mkdir(parents=True, exist_ok=True)
    pixels, readable, contents = _decoded([pair for pair, _ in pairs], master, cache, checked)
    kept = [pairs[number] for number in readable]
    numbers: dict[str, int] = {}
    variants = [
        [numbers.setdefault(text, len(numbers)) for text in caption_variants(pair, augment)] for pair, _ in kept
    ]
    long = [pair for pair, _ in kept if max(map(len, pair.captions)) > LONGEST]
    for pair in long[:NAMED]:
        logger.warning("%s: of a caption of more than %d characters the rest is left out", pair.id, LONGEST)
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
        contents=contents,
    )


def _decoded(
    pairs: list[Pair], master: PictureConfig, cache: Path, checked: bool
) -> tuple[NDArray[np.uint8], list[int], Contents]:
    """(N, side, side, 3) pixels of the readable pictures, which these are, and what was read.

    A picture is decoded once for each ``cache``, but read each time, unless that has been ``checked``.
    """
    about, store = cache / "pixels.json", cache / "pixels.npy"
    if (known := _kept(about)) is not None and store.is_file():
        contents = Contents.of(pairs, known["pictures"] if checked else Contents.read(pairs).pictures)
        if known["key"] == key_of(master=master, contents=contents.digest, by=PREPARED_BY):
            pixels = _mapped(store, (len(pairs), master.size, master.size, 3))
            if pixels is not None:
                return pixels[: len(known["kept"])], known["kept"], contents
    about.unlink(missing_ok=True)
    pixels = np.lib.format.open_memmap(store, "w+", np.uint8, (len(pairs), master.size, master.size, 3))

    kept: list[int] = []
    hashes: list[str] = []
    with (
        ThreadPoolExecutor(default_workers()) as pool,
        tqdm(total=len(pairs), desc="decode", unit=" pictures", disable=None) as bar,
    ):
        for start in range(0, len(pairs), 256):
            part = pairs[start : start + 256]
            for number, (content, loaded) in enumerate(pool.map(lambda pair: read_pixels(pair, master), part), start):
                hashes.append(content)
                if isinstance(loaded, PictureError):
                    logger.warning("skipped %s: %s", pairs[number].id, loaded)
                    continue
                pixels[len(kept)] = loaded
                kept.append(number)
            bar.update(len(part))
    if not kept:
        raise DataError("the recipe's data holds no readable picture with a caption")
    pixels.flush()
    contents = Contents.of(pairs, hashes)
    key = key_of(master=master, contents=contents.digest, by=PREPARED_BY)
    note = json.dumps({"key": key, "kept": kept, "pictures": hashes})
    write_whole(about, lambda place: place.write_text(note, encoding="utf-8"))
    return pixels[: len(kept)], kept, contents


def _mapped(store: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The pixels in a cache; None if they are damaged, or others."""
    try:
        pixels = open_npy(store, kinds="u", ndim=len(shape))
    except DataError as error:
        logger.warning("decoding the pictures again: %s", error)
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape == shape else None


def _kept(about: Path) -> dict[str, Any] | None:
    """What is known of the pixels in a cache; None if there are none."""
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) and {"key", "kept", "pictures"} <= set(known) else None


def frozen_image_features(
    model: HiVLPModel, corpus: Corpus, augment: Augment, seed: int, cache: Path
) -> list[Features]:
    """Features of each view of each picture: one plain view and ``augment.views`` random ones.

    A view that an earlier, interrupted run finished is read back instead of computed again, if it was made of the same
    pictures, in the same way, by the same weights.

    Returns:
        One ``layer -> (N, width)`` a view.
    """
    key = key_of(
        contents=corpus.contents.digest,
        picture=model.config.picture,
        augment=augment,
        seed=seed,
        layers=model.image_layers,
        weights=weights_digest(model.image_tower),
        by=[PREPARED_BY, onnxruntime.__version__, torch.__version__],
    )
    views: list[Features] = []
    with tempfile.TemporaryDirectory(dir=cache, prefix="features-") as folder:
        session = None
        for view in range(augment.views + 1):
            path = cache / f"view{view}.safetensors"
            known = read_cache(path, key)
            if known is None:
                if session is None:
                    export_image_features(model, Path(folder) / "features.onnx")
                    session = open_session(Path(folder) / "features.onnx")
                known = _view_features(session, corpus, model, augment, seed, view)
                write_cache(path, key, known)
            views.append({int(layer): tensor for layer, tensor in known.items()})
    return views


def _view_features(
    session: Any, corpus: Corpus, model: HiVLPModel, augment: Augment, seed: int, view: int
) -> dict[str, Tensor]:
    """Layer, as a word -> (N, width) of one view of each picture."""
    size, starts = model.config.picture.size, range(0, len(corpus), BATCH)

    def features(start: int) -> list[NDArray[np.float32]]:
        rows = range(start, min(start + BATCH, len(corpus)))
        batch = [
            plain_view(corpus.pixels[row], size)
            if view == 0
            else random_view(corpus.pixels[row], size, augment, np.random.default_rng([seed, view, row]))
            for row in rows
        ]
        result: list[NDArray[np.float32]] = session.run(None, {"pixels": np.stack(batch)})
        return result

    with ThreadPoolExecutor(default_workers()) as pool:
        mapped = pool.map(features, starts)
        parts = list(tqdm(mapped, f"image features {view + 1}/{augment.views + 1}", len(starts), disable=None))
    arrays = [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]
    return {str(layer): array for layer, array in zip(model.image_layers, arrays, strict=True)}


def text_features(
    model: HiVLPModel, tokenizer: Tokenize, texts: Sequence[str], layers: tuple[int, ...] | None = None
) -> Features:
    """``layer -> (M, width)`` of any texts; by default of the layers that levels read."""
    return token_features(model, *tokenize(tokenizer, texts), layers)


def tokenize(tokenizer: Tokenize, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (M, T) int64."""
    ids, mask = tokenizer(texts)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def token_lengths(mask: Tensor, config: TextConfig) -> Tensor:
    """(M,) how many columns of a (M, T) mask each text needs; what is padded to the full length keeps it."""
    return torch.full((len(mask),), mask.shape[1]) if config.pad_to_max else mask.sum(1)


@torch.no_grad()
def token_features(model: HiVLPModel, ids: Tensor, mask: Tensor, layers: tuple[int, ...] | None = None) -> Features:
    """As :func:`text_features`, of (M, T) tokens and their mask."""
    layers = layers or model.text_layers
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    # Texts of like length together: a batch is as long as its longest.
    lengths = token_lengths(mask, model.config.text)
    order = lengths.argsort(stable=True)
    with tqdm(total=len(ids), desc="text features", unit="text", delay=1, disable=None) as progress:
        for rows in torch.split(order, TEXT_BATCH):
            length = int(lengths[rows].max())
            for layer, features in model.text_tower(ids[rows, :length], mask[rows, :length], layers).items():
                parts[layer].append(features)
            progress.update(len(rows))
    back = order.argsort()
    return {layer: torch.cat(chunks)[back] for layer, chunks in parts.items()}
