"""Augmentation: random crops, flips and colours of pictures, and variants of captions."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from hivlp.data.pairs import Pair
from hivlp.train.recipe.schema import Augment

MASTER = 256
ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)


def master_side(size: int, config: Augment) -> int:
    """Side in pixels at which a picture is kept for random views of ``size``, so that crops keep detail."""
    if config.plain:
        return size
    return max(MASTER, size) if size > 64 else 2 * size


def plain_view(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole picture: (S, S, 3) to (size, size, 3) uint8."""
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def random_view(pixels: NDArray[np.uint8], size: int, config: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop (or a white border), flip and colour jitter: (S, S, 3) to (size, size, 3) uint8."""
    image = Image.fromarray(pixels)
    if config.plain:
        return plain_view(pixels, size)
    side = image.width * rng.uniform(*config.zoom)
    slack = abs(image.width - side) / 2
    left, top = (image.width / 2 - side / 2 + rng.uniform(-1, 1) * slack for _ in range(2))
    border = max(0, int(np.ceil(side - image.width)))
    if border:
        canvas = Image.new("RGB", (image.width + 2 * border,) * 2, "white")
        canvas.paste(image, (border, border))
        image, left, top = canvas, left + border, top + border
    box = (max(0.0, left), max(0.0, top), min(float(image.width), left + side), min(float(image.height), top + side))
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5 and config.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.colour and rng.random() < 0.5:
        image = ImageEnhance.Color(image).enhance(rng.uniform(1 - 1.5 * config.colour, 1 + config.colour))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(1 - 0.75 * config.colour, 1 + 0.75 * config.colour))
    return np.asarray(image)


def bare(caption: str) -> str:
    """The caption without leading article and closing full stop; captions that are equal so are taken for equal."""
    return ARTICLE.sub("", caption.strip().rstrip(". "))


def caption_variants(pair: Pair, config: Augment) -> list[str]:
    """The captions as they are and bare, and, if asked, followed by the names of the picture's folders."""
    variants = []
    folders = [part.replace("_", " ").replace("-", " ") for part in pair.folders]
    for caption in pair.captions:
        short = bare(caption)
        variants += [caption, short]
        if config.folders and folders:
            variants += [f"{short}, {folders[-1]}", f"{short}, {', '.join(reversed(folders))}"]
    return variants
