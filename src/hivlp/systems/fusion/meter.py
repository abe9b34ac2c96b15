"""METER as a re-ranker: the logit of its ranking head alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hivlp.config import PictureConfig
from hivlp.systems.fusion.model import CLIP_MEAN, CLIP_STD, SquarePictures
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import UNUSED_POSITIONS, Tokens
from hivlp.systems.meter import Meter, load_meter

LONGEST = 40
"""Tokens of a text."""
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class MeterReranker(SquarePictures):
    """METER: what is kept of a picture are its vision tower's tokens, 577 of CLIP at 384 pixels."""

    depth, rule = 100, "score alone"

    def __init__(self, network: Meter, tokens: Tokens, **about: Any) -> None:
        """A re-ranker.

        Args:
            network: with weights.
            tokens: of roberta-base.
            about: see :class:`~hivlp.systems.fusion.model.FusionModel`.
        """
        super().__init__(**about)
        self._network, self._tokens = network, tokens
        clip = network.config.vision == "clip"
        mean, std = (CLIP_MEAN, CLIP_STD) if clip else (IMAGENET_MEAN, IMAGENET_STD)
        self.picture = PictureConfig(network.config.size, "crop", mean, std)

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T, width) tokens of each text as fusion begins with them."""
        ids = self._tokens(texts)
        lengths = [len(each) for each in ids]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        # RoBERTa counts positions by its padding, id 1.
        states = self._network.encode_text(pad_sequence(ids, batch_first=True, padding_value=1), mask)
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, N, width) tokens as fusion begins with them."""
        return self._network.encode_image(pixels)

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`~hivlp.systems.fusion.model.FusionModel.match`."""
        return self._network.fuse(texts, text_mask, pictures)


def load(settings: Settings) -> MeterReranker:
    """A model folder with ``checkpoint`` and ``image_size`` (384 by default)."""
    network = load_meter(settings.path("checkpoint"), settings.number("image_size", 384))
    config = network.config
    tokens = Tokens(
        settings.folder, LONGEST, vocabulary=config.vocabulary, positions=config.positions - UNUSED_POSITIONS
    )
    return MeterReranker(network, tokens, **settings.about("checkpoint"))
