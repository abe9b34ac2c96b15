"""ViLT (Kim et al., ICML 2021) as a re-ranker: the logit of its ranking head alone.

Its pictures keep their proportions, so their numbers of patches differ. Only the patches' embeddings depend on no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hivlp.data.pictures import decode
from hivlp.search.fusion import Shown
from hivlp.systems.fusion.model import FusionModel
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import Tokens

LONGEST = 40
"""Tokens of a text."""
DIVISOR = 32
"""Both sides are a multiple of it."""


class ViltReranker(FusionModel):
    """ViLT: what is kept of a picture are its patches with their positions, before the first layer."""

    depth, rule = 100, "score alone"

    def __init__(self, network: Any, tokens: Tokens, **about: Any) -> None:
        """A re-ranker.

        Args:
            network: a ``ViltForImageAndTextRetrieval``.
            tokens: of bert-base-uncased.
            about: see :class:`FusionModel`.
        """
        super().__init__(**about)
        self._network, self._tokens, self._shorter = network, tokens, int(network.config.image_size)

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T,) ids of each text."""
        return self._tokens(texts)

    def read(self, picture: Shown) -> Any:
        """(height, width, 3) uint8 pixels."""
        image = decode(picture.read())
        size = scaled(image.size, self._shorter)
        return np.array(image.resize(size, Image.Resampling.BICUBIC))

    def encode_pictures(self, pictures: Sequence[Any]) -> list[Tensor]:
        """(1 + patches, width) embeddings of each picture."""
        found = []
        for pixels in pictures:  # each of its own shape
            values = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 127.5 - 1
            mask = torch.ones(1, *values.shape[2:], dtype=torch.long)
            states, _, _ = self._network.vilt.embeddings.visual_embed(values, mask, max_image_length=-1)
            found.append(states[0])
        return found

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`FusionModel.match`."""
        output = self._network(
            input_ids=texts, attention_mask=text_mask.long(), image_embeds=pictures, pixel_mask=picture_mask.long()
        )
        scores: Tensor = output.logits[:, 0]
        return scores


def scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height of a picture as ViLT sees it.

    Args:
        size: its width and height.
        shorter: pixels of the shorter side; the longer has at most 1333/800 of them (639 of 384).
    """
    longer = int(1333 / 800 * shorter)
    scale = min(shorter / min(size), longer / max(size))
    width, height = (max(1, int(side * scale + 0.5) // DIVISOR) * DIVISOR for side in size)
    return width, height


def load(settings: Settings) -> ViltReranker:
    """A folder of ``transformers``' ``ViltForImageAndTextRetrieval``."""
    from transformers import ViltForImageAndTextRetrieval

    network = settings.network(ViltForImageAndTextRetrieval)
    sizes = {"vocabulary": network.config.vocab_size, "positions": network.config.max_position_embeddings}
    return ViltReranker(network, Tokens(settings.folder, LONGEST, **sizes, lowercase=True), **settings.about())
