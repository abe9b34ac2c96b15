"""Base of fusion models: texts and pictures in, scores of pairs out, in batches, the pictures' tokens kept."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from hivlp.config import PictureConfig
from hivlp.data.pictures import load_pixels
from hivlp.errors import HivlpError
from hivlp.levels import Vectors
from hivlp.search.fusion import Shown
from hivlp.systems.fusion.kept import KeptTokens

logger = logging.getLogger(__name__)
CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
BATCH, PICTURES = 32, 8
"""Pairs in one pass, and pictures: large models take a second for each, and people wait for the bar."""
UNTOLD = 2.0
"""Seconds before a bar is shown."""


class FusionModel(ABC):
    """A fusion model; see :class:`hivlp.search.fusion.Reranker`.

    A text is a (T,) tensor of ids, or (T, width) of states where a picture changes nothing before fusion. A picture is
    an (N, width) tensor of tokens, which no text changes: they are computed once and kept.

    Attributes:
        name: what people call the model.
        depth: candidates that it is given where nobody says how many.
        rule: what its score is.
        tokens: the pictures' kept tokens.
    """

    depth: int = 128
    rule: str = "matching logit"

    def __init__(self, name: str, fingerprint: str, keep: Path | None = None) -> None:
        """A model that has seen nothing yet.

        Args:
            name: what people call it.
            fingerprint: of its weights and preparation.
            keep: folder for the pictures' tokens; None to keep them in memory alone.
        """
        self.name = name
        self.tokens = KeptTokens(fingerprint, keep)

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> list[Tensor]:
        """Each text as :meth:`match` takes it."""

    @abstractmethod
    def read(self, picture: Shown) -> Any:
        """A picture as :meth:`encode_pictures` takes it.

        Raises:
            HivlpError: if it cannot be had.
        """

    @abstractmethod
    def encode_pictures(self, pictures: Sequence[Any]) -> list[Tensor]:
        """The (N, width) tokens of each picture."""

    @abstractmethod
    def match(self, texts: Tensor, text_mask: Tensor, pictures: Tensor, picture_mask: Tensor) -> Tensor:
        """(B,) scores of pairs.

        Args:
            texts: (B, T) or (B, T, width), padded with zeros.
            text_mask: (B, T) True where there is a text.
            pictures: (B, N, width), padded with zeros.
            picture_mask: (B, N) True where there is a picture.
        """

    @torch.inference_mode()
    def score(self, texts: Sequence[str], pictures: Sequence[Shown]) -> Vectors:
        """(n,) float32 scores of pairs, NaN for a picture that cannot be read.

        Args:
            texts: one of each pair; equal ones are encoded once.
            pictures: the other of each pair; those of one key are encoded once.
        """
        words = list(dict.fromkeys(texts))
        shown = list({picture.key: picture for picture in pictures}.values())
        states = dict(zip(words, self.encode_texts(words) if words else (), strict=True))
        keys = [picture.key for picture in shown]
        kept = zip(keys, self.tokens.get(keys, lambda places: self._computed(shown, places)), strict=True)
        tokens = {key: seen for key, seen in kept if seen is not None}
        scores = np.full(len(texts), np.nan, np.float32)
        there = [place for place, picture in enumerate(pictures) if picture.key in tokens]
        # Pairs of like lengths share a pass, so that little of it is padding.
        there.sort(key=lambda place: (len(states[texts[place]]), len(tokens[pictures[place].key])))
        with _bar(len(there), "pairs") as bar:
            for start in range(0, len(there), BATCH):
                places = there[start : start + BATCH]
                text, text_mask = _padded([states[texts[place]] for place in places])
                image, image_mask = _padded([tokens[pictures[place].key] for place in places])
                scores[places] = self.match(text, text_mask, image, image_mask).float().numpy()
                bar.update(len(places))
        return scores

    def _computed(self, shown: Sequence[Shown], places: Sequence[int]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        with _bar(len(places), "pictures") as bar:
            for start in range(0, len(places), PICTURES):
                read: dict[int, Any] = {}
                part = places[start : start + PICTURES]
                for place in part:
                    try:
                        read[place] = self.read(shown[place])
                    except HivlpError as error:
                        logger.warning("not re-ranked: %s: %s", shown[place].name, error)
                encoded = dict(zip(read, self.encode_pictures(list(read.values())) if read else (), strict=True))
                found += [encoded.get(place) for place in part]
                bar.update(len(part))
        return found


class SquarePictures(FusionModel):
    """A fusion model that sees pictures of one square size.

    Attributes:
        picture: how they are prepared.
    """

    picture: PictureConfig

    def read(self, picture: Shown) -> Any:
        """(size, size, 3) uint8 pixels."""
        return load_pixels(picture.read(), self.picture)

    def encode_pictures(self, pictures: Sequence[Any]) -> list[Tensor]:
        """The (N, width) tokens of each picture."""
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.picture.mean, self.picture.std))
        return list(self.encode_pixels((pixels - mean) / std))

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, N, width) tokens."""


def _bar(total: int, what: str) -> tqdm[Any]:
    """A bar on stderr for what takes longer than :data:`UNTOLD`; it goes when it is done."""
    return tqdm(total=total, desc=f"re-ranking: {what}", disable=None, delay=UNTOLD, leave=False)


def _padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Parts of different lengths as one tensor, and where it holds something."""
    given = [part.float() if part.is_floating_point() else part for part in parts]
    lengths = torch.tensor([len(part) for part in given])
    return pad_sequence(given, batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None]


def bias_of(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, L) mask -> (B, 1, 1, L), what is added to attention logits: 0, or as little as there is."""
    return (~mask)[:, None, None, :].to(dtype) * torch.finfo(dtype).min
