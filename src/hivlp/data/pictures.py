"""Decoding pictures that nobody vouches for, and fitting them to a model's input."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from hivlp.config import PictureConfig
from hivlp.data.preparing import fit
from hivlp.data.walk import PICTURE_SUFFIXES, Found, Unreadable, find_pictures
from hivlp.errors import PictureError

__all__ = [
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "Found",
    "Unreadable",
    "decode",
    "find_pictures",
    "fit",
    "load_pixels",
    "picture_facts",
    "picture_size",
    "to_rgb",
]

MAX_PIXELS = 178_956_970
"""Pictures that claim more pixels (width × height) than this are refused before any of them is decoded.

A decoded pixel takes four bytes, so the largest picture needs some 700 MB for a moment; only a JPEG needs less, because
it is decoded at a fraction of its size.
"""

# Only what people keep pictures in. Pillow knows thirty formats more; each is a parser open to attack, and one of them
# (EPS) starts another program.
_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "AVIF": "Avif",
    "ICO": "Ico",
}
for _plugin in _PLUGINS.values():
    with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")

_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
_EXIF_FOLDER, _TAKEN_TAG = 0x8769, 0x9003
_TAKEN = re.compile(r"(\d{4}):(\d{2}):(\d{2}) (\d{2}:\d{2}:\d{2})")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 64
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes | Path, *, target: int | None = None) -> Image.Image:
    """The first frame of a picture as upright RGB, transparent parts over white.

    Args:
        data: the file's content, or its path.
        target: where the shorter side may shrink to, in pixels. Large pictures are then decoded at a fraction of
            their size, which is faster and needs less memory; the result is never smaller than ``target`` unless the
            picture is.

    Returns:
        An image of mode ``RGB``.

    Raises:
        PictureError: if the picture cannot be decoded or claims more than :data:`MAX_PIXELS`.
    """
    with _opened(data) as image:
        if target is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (target, target))
        image.load()
        # After load: a PNG may keep its EXIF at the end, and a TIFF is turned by Pillow while loading.
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _shrunk_rgb(image, target)
        return rgb if turn is None else rgb.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An open PIL image as upright RGB, transparent parts over white.

    Raises:
        PictureError: if it cannot be converted.
    """
    try:
        rgb = _shrunk_rgb(image, None)
        turn = _UPRIGHT.get(_orientation(image))
        return rgb if turn is None else rgb.transpose(turn)
    except Exception as error:
        raise PictureError(f"cannot be converted to RGB: {error}") from error


def load_pixels(data: bytes | Path, config: PictureConfig) -> NDArray[np.uint8]:
    """Decode a picture and fit it to a model's input.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        PictureError: if it cannot be decoded.
    """
    # At a fraction of its size a picture is not, to the grey level, what a trained model saw.
    return fit(decode(data, target=config.size if config.fit == "pad" else None), config)


def picture_size(data: bytes | Path) -> tuple[int, int]:
    """The width and height in pixels that a picture's header claims, before any turning.

    Raises:
        PictureError: as :func:`decode`.
    """
    with _opened(data) as image:
        return image.size


def picture_facts(data: bytes | Path) -> dict[str, str | int]:
    """What a picture's header says of it.

    Returns:
        ``format`` (``JPEG``, ``PNG``, ...), ``width`` and ``height`` in pixels as it is shown, and, where its EXIF data
        tells, ``taken``: the camera's local time, as in ``2024-06-01T12:30:00``.

    Raises:
        PictureError: as :func:`decode`.
    """
    with _opened(data) as image:
        width, height = image.size
        facts: dict[str, str | int] = {"format": image.format or "", "width": width, "height": height}
        if image.format == "PNG" and "exif" not in image.info:
            return facts  # Pillow would decode the whole picture, to see whether EXIF data comes after it
        if _orientation(image) in _TURNED:
            facts["width"], facts["height"] = height, width
        with contextlib.suppress(Exception):  # damaged EXIF data
            if taken := _TAKEN.match(str(image.getexif().get_ifd(_EXIF_FOLDER).get(_TAKEN_TAG, ""))):
                facts["taken"] = "{}-{}-{}T{}".format(*taken.groups())
        return facts


@contextlib.contextmanager
def _opened(data: bytes | Path) -> Iterator[ImageFile.ImageFile]:
    """Open a picture, check its size, and turn whatever goes wrong with it into a PictureError."""
    try:
        with _stream(data) as stream:
            image = _identify(stream)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PictureError(f"claims {width}x{height} pixels, over the limit of {MAX_PIXELS}")
            if width < 1 or height < 1:
                raise PictureError("has no pixels")
            yield image
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError("needs more memory than there is") from error
    except Exception as error:
        # Pillow's parsers raise whatever their arithmetic runs into (OSError, SyntaxError, ValueError, struct.error,
        # zlib.error, KeyError, ...), and a picture must never stop a job.
        text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise PictureError(f"is damaged or cannot be read: {text[:200]}") from error


@contextlib.contextmanager
def _stream(data: bytes | Path) -> Iterator[IO[bytes]]:
    if isinstance(data, bytes):
        yield io.BytesIO(data)
        return
    try:
        if not stat.S_ISREG(data.stat().st_mode):  # opening a pipe would wait for ever
            raise PictureError("is not a regular file")
        stream = data.open("rb")
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        yield stream


def _identify(stream: IO[bytes]) -> ImageFile.ImageFile:
    """What :func:`PIL.Image.open` does, for our formats only.

    ``Image.open`` checks the size itself against a limit that is global to the process and warns on stderr; here the
    caller checks.
    """
    start = stream.read(16)
    if not start:
        raise PictureError("is an empty file")
    for name in _PLUGINS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None:
            continue
        try:
            if accept(start) is not True:  # a string says that Pillow was built without this format
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            raise PictureError(f"is not a sound {name} file: {error}") from error
    raise PictureError("is not a picture in a format that hivlp reads")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none or it is damaged: no reason to lose the picture."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _shrunk_rgb(image: Image.Image, target: int | None) -> Image.Image:
    """Convert to RGB; divide by a whole number first where that leaves twice the target, so that no quality is lost."""
    if image.mode in _WIDE_MODES:
        image = _from_wide(image)
    factor = 1 if target is None else min(image.size) // (2 * target)
    if factor < 2:
        return _rgb(image)
    # Strip by strip, or a large picture with transparency would be in memory three times over.
    width, height = image.size
    small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows = factor * _STRIP
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        small.paste(_rgb(strip).reduce(factor), (0, top // factor))
    return small


def _rgb(image: Image.Image) -> Image.Image:
    """Convert a mode of eight bits or fewer to RGB, transparent parts over white."""
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """Scale grey of more than eight bits to ``L``; Pillow's own conversion clips it.

    PNG and PPM say that white is 65535. TIFF leaves it open for 32 bits and for floats, so there the values decide:
    0…1, 0…255 and 0…65535 are taken as such, anything else is stretched from its least to its greatest value.
    """
    raw = np.asarray(image)
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        low, high = 0.0, 65535.0
    else:
        raw = np.nan_to_num(raw.astype(np.float32), posinf=0.0, neginf=0.0)
        low, high = float(raw.min()), float(raw.max())
        ceilings = [ceiling for ceiling in (1.0, 255.0, 65535.0) if high <= ceiling]
        if low >= 0 and ceilings:
            low, high = 0.0, ceilings[0]
    # Float32 is exact for 16 bits, and half the size of numpy's default.
    grey = (raw.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1e-30))
    pixels = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[raw == transparent] = 255
    return Image.fromarray(pixels)
