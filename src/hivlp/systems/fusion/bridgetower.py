"""BridgeTower (Xu et al., AAAI 2023) as a re-ranker: the matching logit on the top 128 (COCO: 256).

The last six layers of each encoder feed six fusion layers, and none of it flows back: the six states of a picture's
tokens are kept, side by side, six times as wide as those of other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hivlp.config import PictureConfig
from hivlp.systems.blocks import states_of
from hivlp.systems.fusion.model import CLIP_MEAN, CLIP_STD, SquarePictures, bias_of
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import UNUSED_POSITIONS, Tokens

LONGEST = 40
"""Tokens of a text."""


class BridgeTowerReranker(SquarePictures):
    """BridgeTower: what is kept of a picture are its tokens after each of the last six vision layers."""

    depth, rule = 128, "matching logit"

    def __init__(self, network: Any, tokens: Tokens, **about: Any) -> None:
        """A re-ranker.

        Args:
            network: a ``BridgeTowerForImageAndTextRetrieval``.
            tokens: of roberta-base.
            about: see :class:`~hivlp.systems.fusion.model.FusionModel`.
        """
        super().__init__(**about)
        self._tower, self._head, self._tokens = network.bridgetower, network.itm_score, tokens
        self._layers = int(network.config.num_hidden_layers)
        size = int(network.config.vision_config.image_size)
        self.picture = PictureConfig(size, "crop", CLIP_MEAN, CLIP_STD)

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T, layers · width) states of each text, after each of the last layers."""
        tower, ids = self._tower, self._tokens(texts)
        lengths = [len(each) for each in ids]
        padded = pad_sequence(ids, batch_first=True, padding_value=1)
        bias = bias_of(torch.arange(padded.shape[1]) < torch.tensor(lengths)[:, None])
        states, found = tower.text_model.embeddings(input_ids=padded), []
        layers = tower.text_model.encoder.layer
        for number, layer in enumerate(layers, start=1):
            states = states_of(layer(states, bias))
            if (place := number - (len(layers) - self._layers + 1)) >= 0:
                found.append(self._transformed("text", states, place) + tower.token_type_embeddings.weight[0])
        joined = torch.cat(found, -1)
        return [row[:length] for row, length in zip(joined, lengths, strict=True)]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, N, layers · width) states of each picture, after each of the last layers."""
        tower = self._tower
        visual = tower.vision_model.visual
        states, found = visual.forward_pre(pixels), []
        blocks = visual.transformer.resblocks
        for number, block in enumerate(blocks, start=1):
            states = block(states)
            if (place := number - (len(blocks) - self._layers + 1)) >= 0:
                seen = self._transformed("image", visual.forward_post(states), place)
                found.append(seen + tower.token_type_embeddings.weight[1])
        return torch.cat(found, -1)

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`~hivlp.systems.fusion.model.FusionModel.match`."""
        tower, text_bias, image_bias = self._tower, bias_of(text_mask), bias_of(picture_mask)
        text, image = tower.cross_modal_text_layernorm, tower.cross_modal_image_layernorm
        layers = zip(tower.cross_modal_text_layers, tower.cross_modal_image_layers, strict=True)
        parts = zip(texts.chunk(self._layers, -1), pictures.chunk(self._layers, -1), strict=True)
        for number, ((text_layer, image_layer), (words, seen)) in enumerate(zip(layers, parts, strict=True)):
            if number == 0:
                text, image = text(words), image(seen)
            else:
                text = tower.cross_modal_text_link_tower[number - 1](words, text, text_bias)
                image = tower.cross_modal_image_link_tower[number - 1](seen, image, image_bias)
            # Both look at what the other was before this layer.
            text, image = (
                text_layer(text, image, attention_mask=text_bias, encoder_attention_mask=image_bias)[0],
                image_layer(image, text, attention_mask=image_bias, encoder_attention_mask=text_bias)[0],
            )
        pooled = torch.cat([tower.cross_modal_text_pooler(text), tower.cross_modal_image_pooler(image)], -1)
        scores: Tensor = self._head(pooled)[:, 1]
        return scores

    def _transformed(self, side: str, states: Tensor, place: int) -> Tensor:
        """States projected for the fusion layers, which share one projection or have one each."""
        layer = getattr(self._tower, f"cross_modal_{side}_transform")
        projected: Tensor = layer[place](states) if hasattr(layer, "__getitem__") else layer(states)
        return projected


def load(settings: Settings) -> BridgeTowerReranker:
    """A folder of ``transformers``' ``BridgeTowerForImageAndTextRetrieval``."""
    from transformers import BridgeTowerForImageAndTextRetrieval

    network = settings.network(BridgeTowerForImageAndTextRetrieval)
    text = network.config.text_config
    positions = text.max_position_embeddings - UNUSED_POSITIONS
    tokens = Tokens(settings.folder, LONGEST, vocabulary=text.vocab_size, positions=positions)
    return BridgeTowerReranker(network, tokens, **settings.about())
