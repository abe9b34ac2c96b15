"""Image and text towers: networks that give the pooled output of any of their layers.

A tower is an ``nn.Module`` with ``depth`` (how many layers a level can name), ``widths`` (the feature size of each)
and a forward that takes the layers wanted and computes nothing deeper than the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hivlp.config import TowerConfig
from hivlp.errors import ModelError, RecipeError
from hivlp.model.convnet import ConvTower
from hivlp.model.tower import Features, Tower
from hivlp.model.transformers_towers import TransformersImageTower, TransformersTextTower
from hivlp.model.vit import VisionTransformer
from hivlp.plugins import Registry


class BertTextTower(Tower):
    """A BERT encoder whose layers are mean-pooled over the tokens (Reimers & Gurevych, 2019)."""

    numbered = re.compile(r"encoder\.layer\.(\d+)\.")
    first = ("bert.embeddings.",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(**options), add_pooling_layer=False)
        self.depth = self.bert.config.num_hidden_layers
        self.widths = [self.bert.config.hidden_size] * self.depth
        self.vocabulary, self.positions = self.bert.config.vocab_size, self.bert.config.max_position_embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, T) int64 ids and mask -> layer -> (B, hidden) float."""
        hidden = self.bert.embeddings(input_ids=input_ids)
        mask = attention_mask.to(hidden.dtype)
        bias = ((1.0 - mask) * torch.finfo(hidden.dtype).min)[:, None, None, :]
        weight = (mask / mask.sum(1, keepdim=True))[..., None]
        features: Features = {}
        for number, block in enumerate(self.bert.encoder.layer[: max(layers)], start=1):
            output = block(hidden, bias)
            hidden = output[0] if isinstance(output, tuple) else output
            if number in layers:
                features[number] = (hidden * weight).sum(1)
        return features

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) int64 ids and mask -> (B, T, hidden), the last layer's state of every token."""
        states: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


class DualEncoder(nn.Module):
    """A ``transformers`` dual encoder (CLIP, SigLIP, SigLIP2 …), shared by its two towers below.

    The deepest layer of each tower is the model's own embedding, projection included, so that a level which reads it
    through an identity head *is* the original model.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(**options)
        if not (hasattr(config, "vision_config") and hasattr(config, "text_config")):
            raise ModelError(f"{config.model_type} is not a dual encoder: it lacks a vision or a text tower")
        # In float32 whatever its weights were stored in: the graphs are.
        self.network = AutoModel.from_config(config).float()  # type: ignore[no-untyped-call]
        self.embedding_dim = int(getattr(config, "projection_dim", 0) or config.text_config.hidden_size)
        self.is_siglip = "siglip" in config.model_type


class _Half(Tower):
    """One of the two towers of a :class:`DualEncoder`."""

    numbered = re.compile(r"encoder\.layers\.(\d+)\.")

    def __init__(self, dual: DualEncoder, config: Any) -> None:
        super().__init__()
        self.dual = dual
        self.depth = int(config.num_hidden_layers)
        self.widths = [int(config.hidden_size)] * (self.depth - 1) + [dual.embedding_dim]


class DualEncoderImageTower(_Half):
    """The vision half of a :class:`DualEncoder`."""

    owned = ("dual.network.vision_model.", "dual.network.visual_projection.")
    first = ("dual.network.vision_model.embeddings.", "dual.network.vision_model.pre_layrnorm.")

    def __init__(self, dual: DualEncoder) -> None:
        super().__init__(dual, dual.network.config.vision_config)

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> Features:
        """Layers below the last give the class token (CLIP) or the mean patch (SigLIP), the last the embedding."""
        network = self.dual.network
        output = network.vision_model(pixel_values=pixels, output_hidden_states=True)
        features: Features = {}
        for layer in layers:
            if layer == self.depth:
                pooled = output.pooler_output
                features[layer] = pooled if self.dual.is_siglip else network.visual_projection(pooled)
            else:
                hidden = output.hidden_states[layer]
                features[layer] = hidden.mean(1) if self.dual.is_siglip else hidden[:, 0]
        return features


class DualEncoderTextTower(_Half):
    """The text half of a :class:`DualEncoder`."""

    owned = ("dual.network.text_model.", "dual.network.text_projection.")
    first = ("dual.network.text_model.embeddings.",)

    def __init__(self, dual: DualEncoder) -> None:
        super().__init__(dual, dual.network.config.text_config)
        self.sees_padding = dual.is_siglip
        config = dual.network.config.text_config
        self.vocabulary, self.positions = int(config.vocab_size), int(config.max_position_embeddings)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: tuple[int, ...]) -> Features:
        """Layers below the last give the mean token, the last the model's own text embedding."""
        network = self.dual.network
        # SigLIP was trained with its padding visible and takes no mask.
        mask = None if self.dual.is_siglip else attention_mask
        output = network.text_model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
        weight = attention_mask.to(output.pooler_output.dtype)
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        features: Features = {}
        for layer in layers:
            if layer == self.depth:
                pooled = output.pooler_output
                features[layer] = pooled if self.dual.is_siglip else network.text_projection(pooled)
            else:
                features[layer] = (output.hidden_states[layer] * weight).sum(1)
        return features


IMAGE_TOWERS: Registry[type[Tower]] = Registry(
    "hivlp.image_towers", {"convnet": ConvTower, "transformers": TransformersImageTower, "vit": VisionTransformer}
)
TEXT_TOWERS: Registry[type[Tower]] = Registry(
    "hivlp.text_towers", {"bert": BertTextTower, "transformers": TransformersTextTower}
)
"""Classes of towers by their ``kind``; a dual encoder is both at once."""
DUAL_ENCODER = "dual_encoder"


def build_towers(image: TowerConfig, text: TowerConfig) -> tuple[Tower, Tower]:
    """The two towers that a configuration names, with random weights.

    Raises:
        ModelError: if a kind is unknown, or only one half of a dual encoder is asked for.
    """
    if DUAL_ENCODER in (image.kind, text.kind):
        if image.kind != text.kind:
            raise ModelError("both towers of a dual_encoder must come from the same model")
        dual = DualEncoder(image.options)
        return DualEncoderImageTower(dual), DualEncoderTextTower(dual)
    towers: list[Tower] = []
    for side, config, known in (("image", image, IMAGE_TOWERS), ("text", text, TEXT_TOWERS)):
        tower = known.get(config.kind)
        if tower is None:
            names = ", ".join([*known.names(), DUAL_ENCODER])
            raise ModelError(f"unknown {side} tower {config.kind!r}; known: {names}")
        try:
            towers.append(tower.from_options(config.options))
        except RecipeError as error:
            raise ModelError(f"{side} tower: {error}") from error
    return towers[0], towers[1]


def tokenizer_path(folder: Path) -> Path:
    """Where a model folder keeps its tokenizer.

    Raises:
        ModelError: if there is none.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json")
    return path
