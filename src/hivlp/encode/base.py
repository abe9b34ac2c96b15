"""What the index, the evaluation and the server need of a model, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.levels import Embeddings, Level

Picture = Path | bytes | Image.Image


class Encoder(Protocol):
    """A model that turns pictures and texts into vectors at several levels."""

    @property
    def name(self) -> str:
        """What people call the model."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the weights and everything else that changes a vector."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Coarse to fine."""

    @property
    def picture(self) -> PictureConfig:
        """How pictures must be prepared for :meth:`encode_pixels`."""

    def encode_text(self, texts: Sequence[str], *, levels: Sequence[str] | None = None) -> Embeddings:
        """Unit vectors of the texts at the named levels (default: all), running no layer that they do not need."""

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Unit vectors of prepared pictures, (N, size, size, 3) uint8 RGB."""

    def encode_image(self, pictures: Sequence[Picture]) -> Embeddings:
        """Unit vectors of pictures given as files, bytes or PIL images.

        Raises:
            PictureError: if one cannot be decoded.
        """
