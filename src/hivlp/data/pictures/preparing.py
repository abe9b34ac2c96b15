"""Preparation of an RGB image: resize and pad, crop or stretch to the square of pixels that a model takes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hivlp.config import PictureConfig

WHOLE = 1 << 24
"""Pixels up to which a picture is scaled as a whole before its centre is cut out. Of an endless strip the centre alone
is scaled, whose edges in the picture are then known in single precision only."""


def prepare(image: Image.Image, config: PictureConfig) -> NDArray[np.uint8]:
    """Scale an RGB image into the square that a model takes.

    Args:
        image: of mode ``RGB``; to be exact in ``crop`` and ``stretch``, at its full size.
        config: how.

    Returns:
        (size, size, 3) uint8 RGB. For ``patches``, (patches + 1, size, size, 3): the patches from left to right and top
        to bottom, black ones behind them, and before them one whose first four bytes are the numbers of rows and of
        columns, 16 bits each, the low byte first.
    """
    if config.fit == "patches":
        return _in_patches(image, config)
    size, scaled = config.size, scaled_size(image.size, config)
    resample = Image.Resampling[config.resample.upper()]
    if config.fit == "pad":
        square = Image.new("RGB", (size, size), "white")
        small = image.resize(scaled, resample, reducing_gap=2.0)
        square.paste(small, ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return np.array(square)
    left, top = (_margin(side - size, config.margin) for side in scaled)
    if scaled[0] * scaled[1] <= WHOLE:
        # What lies outside the picture is black.
        return np.array(image.resize(scaled, resample).crop((left, top, left + size, top + size)))
    inner = [(max(0, low), min(side, low + size)) for low, side in zip((left, top), scaled, strict=True)]
    (x0, x1), (y0, y1) = inner
    x, y = (whole / side for whole, side in zip(image.size, scaled, strict=True))
    part = image.resize((x1 - x0, y1 - y0), resample, box=(x0 * x, y0 * y, x1 * x, y1 * y))
    black = Image.new("RGB", (size, size))
    black.paste(part, (x0 - left, y0 - top))
    return np.array(black)


def _margin(excess: int, rounding: str) -> int:
    """Pixels to cut off before the centre; below 0, to fill up with."""
    if rounding == "down":
        return excess // 2
    return round(excess / 2) if excess > 0 else -(-excess // 2)


def scaled_size(size: tuple[int, int], config: PictureConfig) -> tuple[int, int]:
    """Width and height to which a picture of this width and height is scaled, before anything is added or cut off.

    For ``crop`` and ``stretch`` a side is rounded as ``transformers`` does it.
    """
    width, height = size
    if config.fit == "pad":
        scale = config.size / max(size)
        return max(1, round(width * scale)), max(1, round(height * scale))
    if config.fit == "stretch":
        return config.size, config.size
    if config.fit == "patches":
        return _grid_size(width, height, config)
    resize = {"shortest_edge": config.size} if config.resize is None else config.resize
    if not resize:
        return size
    if "height" in resize:
        return resize["width"], resize["height"]
    short, long, edge, limit = min(size), max(size), resize["shortest_edge"], resize.get("longest_edge")
    if limit is not None and long / short * edge > limit:
        exact = limit * short / long
        small, large = round(exact), int(exact * long / short)
        if small == short:
            return size
    else:
        small, large = edge, int(edge * long / short)
    small, large = max(1, small), max(1, large)
    return (small, large) if width <= height else (large, small)


def _in_patches(image: Image.Image, config: PictureConfig) -> NDArray[np.uint8]:
    size, scaled = config.size, scaled_size(image.size, config)
    columns, rows = scaled[0] // size, scaled[1] // size
    pixels = np.array(image.resize(scaled, Image.Resampling[config.resample.upper()]))
    prepared = np.zeros(config.shape, np.uint8)
    prepared[0].reshape(-1)[:4] = rows & 255, rows >> 8, columns & 255, columns >> 8
    tiles = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    prepared[1 : 1 + rows * columns] = tiles.reshape(-1, size, size, 3)
    return prepared


def _grid_size(width: int, height: int, config: PictureConfig) -> tuple[int, int]:
    """The largest size in whole patches, by bisection of the scale to 1e-5 as big_vision has it."""
    size, low, high = config.size, 1e-6, 100.0

    def sides(scale: float) -> tuple[int, int]:
        columns, rows = (max(1, math.ceil(side * scale / size)) for side in (width, height))
        return columns, rows

    while high - low >= 1e-5:
        middle = (low + high) / 2
        columns, rows = sides(middle)
        low, high = (middle, high) if columns * rows <= config.patches else (low, middle)
    columns, rows = sides(low)
    return columns * size, rows * size
