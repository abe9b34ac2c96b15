"""ALBEF (Li et al., NeurIPS 2021) as a re-ranker: the matching logit on the top 128 (COCO: 256)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hivlp.config import PictureConfig
from hivlp.systems.albef import Albef, load_albef
from hivlp.systems.fusion.model import CLIP_MEAN, CLIP_STD, SquarePictures
from hivlp.systems.fusion.settings import Settings
from hivlp.systems.fusion.texts import Tokens

LONGEST = 30
"""Tokens of a text, and words of a caption."""


class AlbefReranker(SquarePictures):
    """ALBEF: what is kept of a picture are its vision tower's tokens; a text passes its six own layers once."""

    depth, rule = 128, "matching logit"

    def __init__(self, network: Albef, tokens: Tokens, **about: Any) -> None:
        """A re-ranker.

        Args:
            network: with weights.
            tokens: of bert-base-uncased.
            about: see :class:`~hivlp.systems.fusion.model.FusionModel`.
        """
        super().__init__(**about)
        self._network, self._tokens = network, tokens
        self.picture = PictureConfig(network.config.size, "stretch", CLIP_MEAN, CLIP_STD)

    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """(T, width) states of each text after its own layers."""
        ids = self._tokens([plain(text) for text in texts])
        lengths = [len(each) for each in ids]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        states = self._network.encode_text(pad_sequence(ids, batch_first=True), mask)
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, N, width) tokens of the vision tower."""
        return self._network.encode_image(pixels)

    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """See :meth:`~hivlp.systems.fusion.model.FusionModel.match`."""
        return self._network.fuse(texts, text_mask, pictures)


def plain(caption: str) -> str:
    """A caption as ALBEF prepares it: lower case, ``,.'!?"()*#:;~`` removed, ``-`` and ``/`` as spaces, 30 words."""
    bare = re.sub(r"[,.'!?\"()*#:;~]", "", caption.lower()).replace("-", " ").replace("/", " ")
    return " ".join(bare.replace("<person>", "person").split()[:LONGEST])


def load(settings: Settings) -> AlbefReranker:
    """A model folder with ``checkpoint`` and ``image_size`` (384 by default)."""
    network = load_albef(settings.path("checkpoint"), settings.number("image_size", 384))
    sizes = {"vocabulary": network.config.vocabulary, "positions": network.config.positions}
    tokens = Tokens(settings.folder, LONGEST, **sizes, lowercase=True)
    return AlbefReranker(network, tokens, **settings.about("checkpoint"))
