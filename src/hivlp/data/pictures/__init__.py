"""Decoding pictures that nobody vouches for, and preparing them as a model's input."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data.kinds import PICTURE_SUFFIXES
from hivlp.data.pictures import exif
from hivlp.data.pictures.colour import shrunk_rgb
from hivlp.data.pictures.formats import open_picture
from hivlp.data.pictures.limits import BUDGET, MAX_BYTES, MAX_FILE_BYTES, MAX_PIXELS, check_cost, check_size
from hivlp.data.pictures.opened import Opened, image_bytes
from hivlp.data.pictures.preparing import prepare
from hivlp.data.pictures.source import opened_source
from hivlp.data.walk import Found, Unreadable, find_pictures
from hivlp.errors import PictureError

__all__ = [
    "MAX_BYTES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "Found",
    "Unreadable",
    "decode",
    "find_pictures",
    "load_pixels",
    "picture_facts",
    "picture_size",
    "prepare",
    "to_rgb",
]

T = TypeVar("T")

# What a small picture takes; only a larger one is opened a second time, when there is room for it.
_SMALL = 16 << 20
# A strip of 2**19 pixels in the few forms that it goes through.
_STRIP_BYTES = 24 << 20
# Up to here a picture is decoded at its full size where that makes a difference of a grey level.
_WHOLE_PIXELS = 48_000_000
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes | Path, *, target: int | None = None) -> Image.Image:
    """The first frame of a picture as upright sRGB, transparent parts over white.

    Threads that decode at the same time share :data:`MAX_BYTES` of memory: they wait for each other where their
    pictures are large.

    Args:
        data: the file's content, or its path.
        target: where the shorter side may shrink to, in pixels. Large pictures are then decoded at a fraction of
            their size, which is faster and needs less memory; the result is never smaller than ``target`` unless the
            picture is.

    Returns:
        An image of mode ``RGB``.

    Raises:
        PictureError: if the picture cannot be decoded or would cost more than :mod:`hivlp.data.pictures.limits` allow.
    """
    return _used(data, target, lambda image: image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An open PIL image as upright sRGB, transparent parts over white.

    Raises:
        PictureError: if it cannot be converted.
    """
    try:
        rgb = shrunk_rgb(image, profile=image.info.get("icc_profile"))
        turn = _UPRIGHT.get(int(image.getexif().get(exif.ORIENTATION, 1)))
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:
        raise PictureError(f"cannot be converted to RGB: {error}") from error


def load_pixels(data: bytes | Path, config: PictureConfig) -> NDArray[np.uint8]:
    """Decode a picture and prepare it as a model's input.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        PictureError: if it cannot be decoded.
    """
    # At a fraction of its size a picture is not, to the grey level, what a trained model saw.
    whole = 0 if config.fit == "pad" else _WHOLE_PIXELS
    side = config.size * math.isqrt(config.patches) if config.patches else config.size
    return _used(data, side, lambda image: prepare(image, config), whole)


def picture_size(data: bytes | Path) -> tuple[int, int]:
    """The width and height in pixels that a picture's header claims, before any turning.

    Raises:
        PictureError: as :func:`decode`.
    """
    with BUDGET.hold(_opening_bytes(data)), _opened(data) as opened:
        return opened.image.size


def picture_facts(data: bytes | Path) -> dict[str, Any]:
    """What a picture's header, EXIF, XMP and IPTC data say of it.

    Returns:
        ``format`` (``JPEG``, ``PNG``, ...), ``width`` and ``height`` in pixels as it is shown, ``orientation``
        (``landscape``, ``portrait``, ``square``), and what is told of the facts in
        :class:`hivlp.data.pictures.facts.Facts`.

    Raises:
        PictureError: as :func:`decode`.
    """
    with BUDGET.hold(_opening_bytes(data)), _opened(data) as opened:
        return opened.facts()


def _used(data: bytes | Path, target: int | None, use: Callable[[Image.Image], T], whole: int = 0) -> T:
    """What ``use`` makes of a decoded picture, with memory held for it from its first byte on.

    One of up to ``whole`` pixels is decoded at its full size all the same.
    """
    held = _opening_bytes(data)
    while True:
        with BUDGET.hold(held), _opened(data) as opened:
            width, height = opened.image.size
            smallest = None if width * height <= whole else target
            cost = _prepare(opened, smallest)
            if cost <= held:
                return use(_decoded(opened, smallest))
        held = cost


def _opening_bytes(data: bytes | Path) -> int:
    """What opening a picture may take: some decoders want the whole file, and copy it."""
    try:
        return _SMALL + 2 * (len(data) if isinstance(data, bytes) else data.stat().st_size)
    except (OSError, ValueError):
        return _SMALL  # opening it says what is wrong


def _prepare(opened: Opened, target: int | None) -> int:
    """Choose the size at which a picture is decoded; gives the bytes that it takes until it is small.

    Raises:
        PictureError: if they are too many.
    """
    if target is not None and opened.reduce is not None:
        opened.reduce(target)
    width, height = opened.image.size
    check_size(width, height)
    factor = 1 if target is None else max(1, min(width, height) // (2 * target))
    small = image_bytes("RGB", -(-width // factor), -(-height // factor))
    # The reduced picture, a copy of it for its model, and one turned upright.
    cost = opened.cost() + small * (2 if opened.orientation == 1 else 3) + min(_STRIP_BYTES, 48 * width * height)
    check_cost(cost)
    return cost


def _decoded(opened: Opened, target: int | None) -> Image.Image:
    image = opened.decoded()
    rgb = shrunk_rgb(image, target, profile=opened.profile, gamma=opened.gamma, samples=opened.samples)
    turn = _UPRIGHT.get(opened.orientation)
    return rgb if turn is None else rgb.transpose(turn)


@contextlib.contextmanager
def _opened(data: bytes | Path) -> Iterator[Opened]:
    """Open a picture, and turn whatever goes wrong with it into a PictureError."""
    try:
        with opened_source(data) as source:
            opened = open_picture(source)
            if isinstance(data, bytes):
                opened.extra += source.size
            yield opened
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"claims more pixels than the limit: {error}") from error
    except MemoryError as error:
        raise PictureError("needs more memory than there is") from error
    except Exception as error:
        # Pillow's parsers raise whatever their arithmetic runs into (OSError, SyntaxError, ValueError, struct.error,
        # zlib.error, KeyError, ...), and a picture must never stop a job.
        text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise PictureError(f"is damaged or cannot be read: {text[:200]}") from error
