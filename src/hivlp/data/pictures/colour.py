"""Conversion of any mode and colour space to 8-bit sRGB over white, strip by strip."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from hivlp.data.pictures.limits import MAX_PROFILE_BYTES

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
Levels = tuple[float, float]  # the values of black and white
_STRIP_PIXELS = 1 << 19
_SMALL_PROFILE = 1 << 16  # it is worth remembering what such a one does
_CEILINGS = (1.0, 255.0, 65535.0)


@dataclass(frozen=True)
class Samples:
    """How grey values are meant.

    Attributes:
        inverted: whether the least value is white.
        unsigned: whether 32-bit integers are.
        white: the greatest value, if that of the mode is not it.
    """

    inverted: bool = False
    unsigned: bool = False
    white: int | None = None

    def of(self, image: Image.Image) -> NDArray[Any]:
        """(H, W) values of an image of a wide mode."""
        values = np.asarray(image)
        return values.view(np.uint32) if self.unsigned and image.mode == "I" else values


def shrunk_rgb(
    image: Image.Image,
    target: int | None = None,
    *,
    profile: bytes | None = None,
    gamma: float | None = None,
    samples: Samples = Samples(),
) -> Image.Image:
    """Convert to sRGB, transparent parts over white.

    Args:
        image: decoded, of any mode.
        target: divide by a whole number where that leaves twice as many pixels to the shorter side, so that no
            quality is lost.
        profile: the ICC profile of its colours; one that is damaged or does not fit is ignored.
        gamma: the exponent of its samples.
        samples: how its grey values are meant.
    """
    width, height = image.size
    factor = 1 if target is None else max(1, min(width, height) // (2 * target))
    levels = _levels(image, samples) if image.mode in WIDE_MODES else None
    transparent = image.info.get("transparency")
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    if factor == 1 and height <= rows:
        whole = _plain(image, levels, samples, transparent)
        return _to_srgb(whole, profile, gamma)
    small: Image.Image | None = None
    # Strip by strip, or a large picture would be in memory several times over.
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        plain = _plain(strip, levels, samples, transparent)
        if factor > 1:
            plain = plain.reduce(factor)
        converted = _to_srgb(plain, profile, gamma)
        if small is None:
            small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
        small.paste(converted, (0, top // factor))
    assert small is not None
    return small


def _plain(image: Image.Image, levels: Levels | None, samples: Samples, transparent: object) -> Image.Image:
    """As ``L``, ``RGB``, ``CMYK`` or ``LAB``, without transparency: the modes that colour profiles are for."""
    if levels is not None:
        return _from_wide(image, levels, samples, transparent)
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    if image.mode == "LA":
        white, grey = Image.new("L", image.size, 255), image.getchannel("L")
        white.paste(ImageChops.invert(grey) if samples.inverted else grey, mask=image.getchannel("A"))
        return white
    if samples.inverted and image.mode == "L":
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None, gamma: float | None) -> Image.Image:
    if profile is not None or image.mode == "LAB":
        converted = _with_profile(image, profile)
        if converted is not None:
            return converted
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb if gamma is None else rgb.point(_gamma_table(gamma) * 3)


def _with_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The image converted to sRGB; None if there is nothing to convert, or the profile is of no use."""
    if profile is not None and len(profile) > MAX_PROFILE_BYTES:
        return None
    if profile is not None and image.mode == "RGB" and len(profile) <= _SMALL_PROFILE and _is_srgb(profile):
        return None
    return _converted(image, profile)


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    try:
        from PIL import ImageCms

        known = ImageCms.createProfile("LAB") if profile is None or image.mode == "LAB" else io.BytesIO(profile)
        source = ImageCms.ImageCmsProfile(known)
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return ImageCms.applyTransform(image, transform)
    except Exception:  # of another colour space, damaged, or a Pillow without LittleCMS
        return None


@functools.lru_cache(maxsize=32)
def _is_srgb(profile: bytes) -> bool:
    """Whether a profile changes no colour, as nearly every one in photographs: sRGB under any of its names."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, len(steps), 3)
    converted = _converted(Image.fromarray(grid), profile)
    return converted is None or int(np.abs(np.asarray(converted).astype(int) - grid).max()) <= 2


def _gamma_table(gamma: float) -> list[int]:
    """Eight-bit samples v with v = light ** gamma, as sRGB."""
    light = (np.arange(256) / 255.0) ** min(1 / gamma, 20.0)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return [int(value) for value in np.rint(255 * srgb)]


def _levels(image: Image.Image, samples: Samples) -> Levels:
    """The values of black and white of an image with more than eight bits.

    PNG and PPM say that white is 65535. TIFF leaves it open for 32 bits and for floats, so there the values decide:
    0…1, 0…255 and 0…65535 are taken as such, anything else is stretched from its least to its greatest value.
    """
    if samples.white is not None:
        return 0.0, float(samples.white)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    low, high = np.inf, -np.inf
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        values = samples.of(image.crop((0, top, width, min(top + rows, height))))
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        return 0.0, 1.0
    ceilings = [ceiling for ceiling in _CEILINGS if high <= ceiling]
    return (0.0, ceilings[0]) if low >= 0 and ceilings else (low, high)


def _from_wide(image: Image.Image, levels: Levels, samples: Samples, transparent: object) -> Image.Image:
    """Scale grey of more than eight bits to ``L``; Pillow's own conversion clips it."""
    low, high = levels
    raw = samples.of(image)
    # For 16 bits, a table is faster.
    pixels = _grey(np.arange(1 << 16), low, high)[raw] if raw.dtype.itemsize == 2 else _grey(raw, low, high)
    if samples.inverted:
        pixels = 255 - pixels
    if isinstance(transparent, int):
        pixels[raw == transparent] = 255
    return Image.fromarray(pixels)


def _grey(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values from ``low`` to ``high`` as 0 to 255."""
    # Float32 is exact for 24 bits, and half the size of numpy's default.
    precise = np.float64 if values.dtype.kind in "iu" and high - low > 1 << 24 else np.float32
    finite = np.nan_to_num(values.astype(precise), nan=low, posinf=high, neginf=low)
    scaled = (finite - precise(low)) * precise(255.0 / max(high - low, 1e-30))
    grey: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey
