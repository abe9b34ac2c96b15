"""The encoder interface that index, evaluation and training use, and conversion of texts and pictures given to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.errors import ArgumentError, PictureError
from hivlp.levels import Embeddings, Level

Picture = Path | bytes | Image.Image
T = TypeVar("T")


def as_texts(texts: str | Iterable[str]) -> list[str]:
    """One text or many as a list; a string is one text, not many letters.

    Raises:
        ArgumentError: if there is anything but text.
    """
    texts = unpacked(texts)
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable):
        raise ArgumentError(f"texts must be a str or a list of them, not {type(texts).__name__}")
    listed = list(texts)
    for number, text in enumerate(listed, start=1):
        if not isinstance(text, str):
            raise ArgumentError(f"text {number} of {len(listed)} is no str, but {type(text).__name__} {text!r:.40}")
    return listed


def as_picture(picture: object) -> Picture:
    """A picture as :class:`Encoder` takes it; a string is a path.

    Raises:
        PictureError: if it is none.
    """
    if isinstance(picture, str):
        return Path(picture)
    if isinstance(picture, (Path, bytes, Image.Image)):
        return picture
    if isinstance(picture, (bytearray, memoryview)):
        return bytes(picture)
    turn = ": PIL.Image.fromarray makes a picture of it" if isinstance(picture, np.ndarray) else ""
    raise PictureError(f"a picture is a path, its bytes or a PIL image, not {type(picture).__name__}{turn}")


def as_pictures(pictures: Picture | str | Iterable[Picture | str]) -> list[Picture]:
    """One picture or many as a list; a path, bytes and a PIL image are one picture each.

    Raises:
        PictureError: if there is anything but pictures.
    """
    pictures = unpacked(pictures)
    if isinstance(pictures, (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [as_picture(pictures)]
    if not isinstance(pictures, Iterable):
        raise PictureError(f"pictures are paths, bytes or PIL images, not {type(pictures).__name__}")
    return [as_picture(picture) for picture in pictures]


def unpacked(given: T) -> T | Any:
    """What an array of names, texts or objects holds: a list of them, or the only one; anything else as it is."""
    holds = isinstance(given, np.ndarray) and (given.ndim == 0 or given.dtype.kind in "OSUT")
    return given.tolist() if holds else given  # type: ignore[attr-defined]


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
        """Unit vectors of the texts at the named levels (default: all), running no layer that they do not need.

        (N, dim) a level; a ``str`` is one text, N = 1.
        """

    def encode_pixels(self, pixels: NDArray[np.uint8], *, levels: Sequence[str] | None = None) -> Embeddings:
        """Unit vectors of prepared pictures, (N, size, size, 3) uint8 RGB, at the named levels (default: all).

        A picture's vectors do not depend on those beside it, nor on which levels are asked for. Only
        ``Index.add(lazy=True)`` asks for some.
        """

    def encode_image(self, pictures: Sequence[Picture]) -> Embeddings:
        """Unit vectors of pictures given as files, bytes or PIL images, (N, dim) a level.

        Raises:
            PictureError: if one cannot be decoded.
        """


def check_encoder(model: object) -> None:
    """Check that this is a loaded model.

    Raises:
        ArgumentError: if not.
    """
    names = ("name", "levels", "fingerprint", "encode_text")
    if isinstance(model, type) or not all(hasattr(model, name) for name in names):
        raise ArgumentError(f"model must be a loaded model, its name or folder, not {type(model).__name__}")
