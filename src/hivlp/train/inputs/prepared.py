"""Preparation of one pair of a stream: its picture decoded and cropped, one of its captions chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hivlp.config import PictureConfig
from hivlp.data.contents import content_hash
from hivlp.data.pairs import Pair
from hivlp.data.pictures import decode, prepare
from hivlp.data.texts import LONGEST
from hivlp.errors import PictureError
from hivlp.train.inputs.augment import bare, caption_variants, master_side, plain_view, random_view
from hivlp.train.inputs.held_out import HeldOut
from hivlp.train.recipe.schema import Augment

_VIEW = 4  # what the seed is used for, beside the uses in hivlp.train.inputs.corpus and hivlp.data.streams.lane


@dataclass(frozen=True)
class Prepared:
    """A pair, ready for a batch.

    Attributes:
        pixels: (size, size, 3) uint8.
        text: the caption, or a variant of it.
        same: equal for pairs with the same first caption, which may be exchanged.
        note: what is odd about it; empty if nothing is.
    """

    pixels: NDArray[np.uint8]
    text: str
    same: int
    note: str


@dataclass(frozen=True)
class Preparation:
    """How pairs are prepared.

    Attributes:
        picture: the model's input.
        augment: random views and caption variants.
        seed: of the recipe.
        smallest: pixels of a picture's shorter side, at least.
        held_out: pictures that may not be shown; None for none.
    """

    picture: PictureConfig
    augment: Augment
    seed: int
    smallest: int = 1
    held_out: HeldOut | None = None

    def __call__(self, pair: Pair, numbers: NDArray[np.int64]) -> Prepared:
        """A random view of the picture and a random variant of a caption.

        Args:
            pair: with its picture.
            numbers: from :meth:`hivlp.data.streams.lane.Lane.take`.

        Raises:
            PictureError: if the picture cannot be decoded, is too small, or is held out.
        """
        master = self.master(pair)
        rng = np.random.default_rng([self.seed, _VIEW, *numbers.tolist()])
        variants = caption_variants(pair, self.augment)
        text = variants[rng.integers(len(variants))]
        longest = max(map(len, pair.captions))
        return Prepared(
            random_view(master, self.picture.size, self.augment, rng),
            text,
            same_number(pair.captions[0]),
            ""
            if longest <= LONGEST
            else f"{pair.id}: of a caption of {longest} characters, all but the first {LONGEST}",
        )

    def plain(self, pair: Pair) -> NDArray[np.uint8]:
        """(size, size, 3) uint8: the whole picture.

        Raises:
            PictureError: as :meth:`__call__`.
        """
        return plain_view(self.master(pair), self.picture.size)

    def master(self, pair: Pair) -> NDArray[np.uint8]:
        """The picture before it is cropped."""
        config = self.picture.at(master_side(self.picture.size, self.augment))
        # Large pictures are decoded at a fraction of their size: a grey level does not matter to what is augmented.
        image = decode(pair.read(), target=config.size)
        if min(image.size) < self.smallest:
            raise PictureError(f"has {image.width} x {image.height} pixels, less than stream.smallest: {self.smallest}")
        if self.held_out is not None:
            self.held_out.check(image)
        return prepare(image, config)


def same_number(caption: str) -> int:
    """64 bits of a hash of a caption, equal for captions that are taken for equal."""
    return int.from_bytes(bytes.fromhex(content_hash(bare(caption).casefold().encode()))[:8], "big", signed=True)
