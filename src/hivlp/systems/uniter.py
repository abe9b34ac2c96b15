"""UNITER (Chen et al., ECCV 2020): one BERT encoder over a text's tokens and a picture's regions.

The score of a text and a picture is the logit of ``rank_output`` on the pooled first token, so every pair takes a pass
through all layers. Parameters have the published names; facts from ChenRocks/UNITER, commit 1dbfa62.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hivlp.systems.blocks import bert_config, bert_part, states_of
from hivlp.systems.checkpoints import State, build, count_layers, modern, read_checkpoint, renamed, width_of

PRETRAINING = r"(cls|feat_regress|region_classifier)\."
"""Names of the heads that only pre-training uses."""
MASKED = -10_000.0
"""What is added to the attention logit of padding."""


@dataclass(frozen=True)
class UniterConfig:
    """Size of a UNITER encoder.

    Attributes:
        layers: transformer layers.
        width: of a token's state.
        feed_forward: width inside a layer's feed-forward part.
        vocabulary: word pieces, of bert-base-cased.
        positions: tokens that a text may have.
        features: length of a region's feature vector.
    """

    layers: int = 12
    width: int = 768
    feed_forward: int = 3072
    vocabulary: int = 28_996
    positions: int = 512
    features: int = 2048

    def bert(self) -> Any:
        """The configuration of the ``transformers`` blocks."""
        return bert_config(
            self.width, vocab_size=self.vocabulary, num_hidden_layers=self.layers, intermediate_size=self.feed_forward,
            max_position_embeddings=self.positions,
        )  # fmt: skip


BASE, LARGE = UniterConfig(), UniterConfig(layers=24, width=1024, feed_forward=4096)


@dataclass(frozen=True)
class Regions:
    """Regions of a batch of pictures.

    Attributes:
        features: (B, R, features) float32.
        boxes: (B, R, 7): x1, y1, x2, y2, width, height as shares of the picture's, and the area.
        mask: (B, R) True for regions, False for padding at the end.
    """

    features: Tensor
    boxes: Tensor
    mask: Tensor


class RegionEmbeddings(nn.Module):
    """Embeddings of regions: feature, box and token type 1, each of the first two normalised, then their sum."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.img_linear = nn.Linear(config.features, config.width)
        self.img_layer_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.pos_layer_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.pos_linear = nn.Linear(7, config.width)
        self.mask_embedding = nn.Embedding(2, config.features, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, regions: Regions, type_row: Tensor, masked: Tensor | None = None) -> Tensor:
        """(B, R, width) states.

        Args:
            regions: of the pictures.
            type_row: (width,) row 1 of the text's table of token types.
            masked: (B, R) int64, 1 for regions that masked region modelling hides.
        """
        features = regions.features
        if masked is not None:
            features = features + self.mask_embedding(masked)
        seen = self.img_layer_norm(self.img_linear(features))
        placed = self.pos_layer_norm(self.pos_linear(regions.boxes))
        states: Tensor = self.dropout(self.LayerNorm(seen + placed + type_row))
        return states


class _Layers(nn.Module):
    """BERT layers under the name ``layer``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(bert_part("BertLayer", config) for _ in range(config.num_hidden_layers))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, width) states with a (B, L) mask -> the last layer's."""
        bias = ((1.0 - mask.to(states.dtype)) * MASKED)[:, None, None, :]
        for block in self.layer:
            states = states_of(block(states, bias))
        return states


class Uniter(nn.Module):
    """UNITER's encoder; LightningDOT's image tower is the same."""

    def __init__(self, config: UniterConfig = BASE) -> None:
        super().__init__()
        bert = config.bert()
        self.config = config
        self.embeddings = bert_part("BertEmbeddings", bert)
        self.img_embeddings = RegionEmbeddings(config)
        self.encoder = _Layers(bert)
        self.pooler = bert_part("BertPooler", bert)

    def embed_regions(self, regions: Regions, masked: Tensor | None = None) -> Tensor:
        """(B, R, width) states of regions before the first layer: all of a picture that no text changes."""
        table: Any = self.embeddings.token_type_embeddings
        states: Tensor = self.img_embeddings(regions, table.weight[1], masked)
        return states

    def forward(self, tokens: Tensor, token_mask: Tensor, states: Tensor, region_mask: Tensor) -> Tensor:
        """(B, L, width) states of the last layer, a text's tokens first, its regions right after the last of them.

        Padding takes no part in attention and goes to the end, so that L is the longest text with its own regions, not
        the longest text and the most regions.

        Args:
            tokens: (B, T) int64 ids.
            token_mask: (B, T) True for tokens, False for padding at the end.
            states: (B, R, width) of :meth:`embed_regions`.
            region_mask: (B, R).
        """
        text = self.embeddings(input_ids=tokens)
        mask = torch.cat([token_mask, region_mask], 1)
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, : int(mask.sum(1).max())]
        joined = torch.cat([text, states], 1)
        joined = joined.gather(1, order[..., None].expand(-1, -1, joined.shape[-1]))
        encoded: Tensor = self.encoder(joined, mask.gather(1, order))
        return encoded


class UniterRanker(nn.Module):
    """UNITER with its matching and ranking heads."""

    def __init__(self, config: UniterConfig = BASE) -> None:
        super().__init__()
        self.uniter = Uniter(config)
        self.itm_output = nn.Linear(config.width, 2)
        self.rank_output = nn.Linear(config.width, 1)

    def forward(self, tokens: Tensor, token_mask: Tensor, states: Tensor, region_mask: Tensor) -> Tensor:
        """(B,) scores of texts with pictures; arguments as of :meth:`Uniter.forward`."""
        encoded = self.uniter(tokens, token_mask, states, region_mask)
        scores: Tensor = self.rank_output(self.uniter.pooler(encoded))[:, 0]
        return scores


def load_uniter(path: Path) -> UniterRanker:
    """UNITER from a published checkpoint, fine-tuned or pre-trained, base or large.

    A file without ``rank_output.weight`` (a pre-trained one) ranks by row 1 of its matching head.

    Raises:
        ModelError: if the file cannot be read, or lacks a tensor.
    """
    state = renamed(read_checkpoint(path, "state_dict", "model"), lambda name: modern(_of_uniter(name)))
    if "rank_output.weight" not in state and "itm_output.weight" in state:
        state["rank_output.weight"], state["rank_output.bias"] = (
            state[f"itm_output.{part}"][1:2].clone() for part in ("weight", "bias")
        )
    config = uniter_config(state, "uniter.", path)
    return build(lambda: UniterRanker(config), state, path, PRETRAINING)


def uniter_config(state: State, prefix: str, path: Path) -> UniterConfig:
    """The size of the encoder in a checkpoint.

    Args:
        state: its tensors.
        prefix: of the encoder's names.
        path: of the file, for the error.

    Raises:
        ModelError: if there is no such encoder.
    """
    vocabulary, width = width_of(state, f"{prefix}embeddings.word_embeddings.weight", path)
    positions, _ = width_of(state, f"{prefix}embeddings.position_embeddings.weight", path)
    _, features = width_of(state, f"{prefix}img_embeddings.img_linear.weight", path)
    feed_forward, _ = width_of(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", path)
    layers = count_layers(state, prefix.replace(".", r"\.") + r"encoder\.layer\.(\d+)\.")
    return UniterConfig(layers, width, feed_forward, vocabulary, positions, features)


def _of_uniter(name: str) -> str:
    """Older files say ``bert`` where newer ones say ``uniter``."""
    return f"uniter.{name.removeprefix('bert.')}" if name.startswith("bert.") else name
