"""BLIP (Li et al., ICML 2022) as a re-ranker: matching logit plus its own cosine, on the top 128 (COCO: 256)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hivlp.config import PictureConfig
from hivlp.systems.fusion.model import CLIP_MEAN, CLIP_STD, SquarePictures
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import Tokens

LONGEST = 35
"""Tokens of a text."""
WORDS = 50
"""Words of a caption."""


class BlipReranker(SquarePictures):
    """BLIP: what is kept of a picture are its vision tower's tokens."""

    depth, rule = 128, "matching logit plus cosine"

    def __init__(self, network: Any, tokens: Tokens, **about: Any) -> None:
        """A re-ranker.

        Args:
            network: a ``BlipForImageTextRetrieval``.
            tokens: of bert-base-uncased.
            about: see :class:`~hivlp.systems.fusion.model.FusionModel`.
        """
        super().__init__(**about)
        self._network, self._tokens = network, tokens
        self.picture = PictureConfig(int(network.config.vision_config.image_size), "stretch", CLIP_MEAN, CLIP_STD)
        # [ENC] is the vocabulary's last, and takes the first token's place where text and picture are matched.
        self._encode = int(network.config.text_config.vocab_size) - 1

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T,) ids of each text."""
        return self._tokens([plain(text) for text in texts])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, N, width) tokens of the vision tower."""
        states: Tensor = self._network.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`~hivlp.systems.fusion.model.FusionModel.match`."""
        network, mask = self._network, text_mask.long()
        matched = texts.clone()
        matched[:, 0] = self._encode
        fused = network.text_encoder(
            input_ids=matched, attention_mask=mask, encoder_hidden_states=pictures,
            encoder_attention_mask=picture_mask.long(),
        ).last_hidden_state[:, 0]  # fmt: skip
        logit: Tensor = network.itm_head(fused)[:, 1]
        # Without a picture the text encoder skips its cross-attention; equal texts are encoded once.
        rows, place = torch.unique(torch.stack([texts, mask]), dim=1, return_inverse=True)
        alone = network.text_encoder(input_ids=rows[0], attention_mask=rows[1]).last_hidden_state[:, 0]
        text = functional.normalize(network.text_proj(alone), dim=-1)[place]
        image = functional.normalize(network.vision_proj(pictures[:, 0]), dim=-1)
        return logit + (text * image).sum(1)


def plain(caption: str) -> str:
    """A caption as BLIP prepares it: lower case, ``.!"()*#:;~`` as spaces, 50 words."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split()[:WORDS])


def load(settings: Settings) -> BlipReranker:
    """A folder of ``transformers``' ``BlipForImageTextRetrieval``."""
    from transformers import BlipForImageTextRetrieval

    network = settings.network(BlipForImageTextRetrieval)
    text = network.config.text_config
    sizes = {"vocabulary": text.vocab_size, "positions": text.max_position_embeddings}
    return BlipReranker(network, Tokens(settings.folder, LONGEST, **sizes, lowercase=True), **settings.about())
