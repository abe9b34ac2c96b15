"""An opened picture: its header has been read, none of its pixels decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hivlp.data.pictures.colour import Samples
from hivlp.data.pictures.exif import Directory, orientation
from hivlp.data.pictures.exif import facts as exif_facts
from hivlp.data.pictures.facts import Facts, merged, shape_of
from hivlp.data.pictures.iptc import read_iptc
from hivlp.data.pictures.limits import MAX_PIXELS, check_size
from hivlp.data.pictures.xmp import read_xmp


@dataclass
class Opened:
    """What a format's reader makes of a file.

    Attributes:
        image: as Pillow opens it; nothing is decoded yet.
        kind: the format, as people call it.
        exif: the directory of its EXIF data.
        xmp: its XMP data.
        iptc: its IPTC data.
        told: facts that the format says by ways of its own.
        turned: whether decoding turns it upright already.
        profile: the ICC profile of its colours.
        gamma: the exponent of its samples, where a PNG tells one.
        samples: how grey values are meant, where the mode does not say it.
        per_pixel: bytes that decoding takes for each pixel beside those of the decoded image.
        extra: bytes that decoding takes beside, whatever the size.
        most_pixels: the limit of its size.
        reduce: has it decoded at the least size that leaves so many pixels to each side, where the format can.
        pixels: decodes and gives the image, by default with ``image.load``.
    """

    image: Image.Image
    kind: str
    exif: Directory | None = None
    xmp: bytes = b""
    iptc: bytes = b""
    told: Facts = field(default_factory=Facts)
    turned: bool = False
    profile: bytes | None = None
    gamma: float | None = None
    samples: Samples = field(default_factory=Samples)
    per_pixel: float = 0
    extra: int = 0
    most_pixels: int = MAX_PIXELS
    reduce: Callable[[int], None] | None = field(default=None, repr=False)
    pixels: Callable[[], Image.Image] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_size(*self.image.size, self.most_pixels)

    @property
    def orientation(self) -> int:
        """How the decoded image has yet to be turned."""
        return 1 if self.turned else orientation(self.exif)

    def facts(self) -> dict[str, Any]:
        """What people filter by: the keys of :data:`hivlp.data.pictures.facts.FACTS`, where they are known."""
        width, height = self.image.size
        if self.orientation >= 5:  # these exchange width and height
            width, height = height, width
        known = merged(exif_facts(self.exif), read_xmp(self.xmp), read_iptc(self.iptc)).over(self.told)
        shape = shape_of(width, height)
        return {"format": self.kind, "width": width, "height": height, "orientation": shape, **known.to_metadata()}

    def decoded(self) -> Image.Image:
        """The first frame with all its pixels."""
        if self.pixels is not None:
            return self.pixels()
        self.image.load()
        return self.image

    def cost(self) -> int:
        """Bytes that decoding takes at the size that the image has now."""
        width, height = self.image.size
        return image_bytes(self.image.mode, width, height) + self.extra + math.ceil(self.per_pixel * width * height)


def image_bytes(mode: str, width: int, height: int) -> int:
    """Bytes of an image in Pillow, which keeps a pointer for each row."""
    wide = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    return height * (width * wide + 16)
