"""LightningDOT (Sun et al., NAACL 2021): a UNITER tower over regions, a BERT tower over texts, one inner product.

In this project's words a dual encoder of one level, whose vectors are not normalised; :func:`as_cosine` makes of its
inner products the cosines that an index ranks by. Facts from intersun/LightningDOT, commit a597f3f.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hivlp.errors import ModelError
from hivlp.levels import Vectors
from hivlp.systems.checkpoints import State, build, count_layers, modern, read_checkpoint, renamed, width_of
from hivlp.systems.uniter import BASE, Regions, Uniter, UniterConfig, uniter_config

CLS = 101
"""Id of [CLS] in bert-base-cased, the image tower's only token."""
LEFT_OVER = r"txt_model\.bert\.embeddings\.position_ids"
_PRETRAINED = "bert."


def projection(width: int) -> nn.Sequential:
    """The head of a tower: width -> 2 width -> width, with GELU and a normalisation between."""
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width, eps=1e-12), nn.Linear(2 * width, width)
    )


class _Tower(nn.Module):
    """An encoder under the name ``bert`` with its head."""

    def __init__(self, bert: nn.Module, width: int) -> None:
        super().__init__()
        self.bert = bert
        self.encode_proj = projection(width)


class LightningDot(nn.Module):
    """LightningDOT: vectors of texts and of pictures, compared by inner product."""

    def __init__(self, images: UniterConfig = BASE, texts: UniterConfig = BASE) -> None:
        """Random weights.

        Args:
            images: size of the image tower.
            texts: size of the text tower; ``features`` has no meaning there.
        """
        super().__init__()
        from transformers import BertModel

        self.img_model = _Tower(Uniter(images), images.width)
        self.txt_model = _Tower(BertModel(texts.bert()), texts.width)

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """(B, T) int64 ids and mask -> (B, width) vectors, not normalised."""
        bert: Any = self.txt_model.bert
        states = bert(input_ids=tokens, attention_mask=token_mask.long()).last_hidden_state
        vectors: Tensor = self.txt_model.encode_proj(states[:, 0])
        return vectors

    def encode_regions(self, regions: Regions) -> Tensor:
        """Regions of B pictures -> (B, width) vectors, not normalised."""
        bert: Any = self.img_model.bert
        tokens = torch.full((len(regions.mask), 1), CLS, device=regions.mask.device)
        states = bert(tokens, torch.ones_like(tokens, dtype=torch.bool), bert.embed_regions(regions), regions.mask)
        vectors: Tensor = self.img_model.encode_proj(states[:, 0])
        return vectors


def contrastive_loss(images: Tensor, texts: Tensor) -> Tensor:
    """LightningDOT's loss: half text->image and half image->text cross-entropy over a batch, without a temperature.

    Args:
        images: (B, dim), one for each text.
        texts: (B, dim).
    """
    scores = texts @ images.T
    right = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, right) + functional.cross_entropy(scores.T, right)) / 2


def as_cosine(items: Vectors, queries: Vectors) -> tuple[Vectors, Vectors]:
    """Unit vectors with one more coordinate, whose cosines rank as the inner products do.

    An item gets sqrt(L² − length²), L being the greatest length of an item, a query gets 0; so the cosine is the inner
    product over L and the query's length (Bachrach et al., 2014; LightningDOT's HNSW does the same).

    Args:
        items: (N, dim) float32.
        queries: (Q, dim) float32.

    Returns:
        (N, dim + 1) and (Q, dim + 1) float32.
    """
    lengths = np.linalg.norm(items.astype(np.float64), axis=1)
    longest = lengths.max(initial=0.0) or 1.0
    rest = np.sqrt(np.maximum(longest**2 - lengths**2, 0))
    wide = np.concatenate([items, rest[:, None]], 1) / longest
    asked = np.concatenate([queries, np.zeros((len(queries), 1))], 1)
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return wide.astype(np.float32), asked.astype(np.float32)


def load_lightningdot(path: Path) -> LightningDot:
    """LightningDOT from a fine-tuned checkpoint: a dict with ``model_dict``, or its tensors alone.

    Raises:
        ModelError: if the file cannot be read, lacks a tensor, or is a pre-trained one, which has neither the text
            tower nor the heads.
    """
    state = renamed(read_checkpoint(path, "model_dict"), modern)
    if not any(name.startswith("txt_model.") for name in state) and any(n.startswith(_PRETRAINED) for n in state):
        raise ModelError(f"{path} is a pre-trained image tower: hivlp.systems.lightningdot.load_image_tower reads it")
    images, texts = uniter_config(state, "img_model.bert.", path), _text_config(state, path)
    return build(lambda: LightningDot(images, texts), state, path, LEFT_OVER)


def load_image_tower(path: Path) -> Uniter:
    """The image tower's encoder from a pre-trained checkpoint: names that begin with ``bert.``, all else left out.

    Raises:
        ModelError: if the file cannot be read, or lacks a tensor.
    """
    held = renamed(read_checkpoint(path, "state_dict"), modern)
    state = {name.removeprefix(_PRETRAINED): part for name, part in held.items() if name.startswith(_PRETRAINED)}
    config = uniter_config(state, "", path)
    return build(lambda: Uniter(config), state, path)


def _text_config(state: State, path: Path) -> UniterConfig:
    prefix = "txt_model.bert."
    vocabulary, width = width_of(state, f"{prefix}embeddings.word_embeddings.weight", path)
    positions, _ = width_of(state, f"{prefix}embeddings.position_embeddings.weight", path)
    feed_forward, _ = width_of(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", path)
    layers = count_layers(state, r"txt_model\.bert\.encoder\.layer\.(\d+)\.")
    return UniterConfig(layers, width, feed_forward, vocabulary, positions)
