"""Formats whose decoders take the whole file: AVIF, HEIC, JPEG XL, and the previews in camera files."""

from __future__ import annotations

import math
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from hivlp.data import kinds
from hivlp.data.pictures.exif import EXIF_FOLDER, XMP, exif_directory, facts, first_directory, orientation
from hivlp.data.pictures.jpeg import open_jpeg
from hivlp.data.pictures.limits import MAX_PROFILE_BYTES, check_cost, check_size
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source
from hivlp.data.pictures.xmp import MAX_BYTES as MAX_XMP_BYTES
from hivlp.errors import PictureError

# Bytes for each pixel beside the decoded image, measured: planes and copies that a decoder keeps.
_AVIF_BYTES, _HEIC_BYTES, _JXL_BYTES = 12, 12, 16
_MOST_BOXES = 64
_FLIPS = {3: 3, 5: 8, 6: 6}  # LibRaw's way of saying how a camera was held, as EXIF says it


def open_avif(source: Source) -> Opened:
    """Open the first frame of an AVIF."""
    from PIL.AvifImagePlugin import AvifImageFile

    check_cost(2 * source.size)
    return _whole(AvifImageFile(source.whole(), ""), "AVIF", source, _AVIF_BYTES)


def open_heic(source: Source) -> Opened:
    """Open the main picture of a HEIC file."""
    _require("HEIC")
    from pillow_heif import HeifImageFile, options

    check_cost(2 * source.size)
    # Pictures within the picture are never shown here.
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    opened = _whole(cast("Any", HeifImageFile)(source.whole(), ""), "HEIC", source, _HEIC_BYTES)
    opened.turned = True  # by its own boxes; its EXIF data may say it a second time
    return opened


def open_jxl(source: Source) -> Opened:
    """Open a JPEG XL. Its package decodes it as it is opened, so that the header is read here first."""
    _require("JPEG XL")
    from pillow_jxl.JpegXLImagePlugin import JXLImageFile

    check_cost(2 * source.size)
    size = _jxl_size(source)
    check_size(*size)
    claimed = Image.Image()
    claimed._size, claimed._mode = size, "RGB"
    boxes = _jxl_boxes(source)
    opened = Opened(claimed, "JPEG XL", per_pixel=_JXL_BYTES, extra=2 * source.size, xmp=boxes.get(b"xml ", b""))
    # What its EXIF data says beside how it is turned, which is known once it is decoded.
    opened.told = facts(exif_directory(boxes.get(b"Exif", b"")[4:]))

    def pixels() -> Image.Image:
        image: Any = JXLImageFile(source.whole(), "")
        check_size(*image.size)
        opened.profile = image.info.get("icc_profile")
        # The samples of a JPEG XL are turned as they are decoded, whatever its EXIF data says.
        opened.turned = not image.jpeg
        opened.exif = exif_directory(image.info.get("exif") or b"")
        image.load()
        return cast("Image.Image", image)

    opened.pixels = pixels
    return opened


def open_raw(source: Source) -> Opened:
    """Open the preview that a camera stored beside what its sensor saw."""
    _require("RAW")
    import rawpy

    check_cost(2 * source.size)
    try:
        with rawpy.imread(cast("BinaryIO", source.whole())) as raw:
            thumb, flip = raw.extract_thumb(), raw.sizes.flip
    except rawpy.LibRawError as error:
        raise PictureError(f"is a RAW picture without a preview that can be read: {error}") from error
    if thumb.format != rawpy.ThumbFormat.JPEG:
        image = Image.fromarray(np.asarray(thumb.data))
        return Opened(image, "RAW", turned=True)
    opened = open_jpeg(Source.of(bytes(thumb.data)))
    opened.kind = "RAW"
    directory = first_directory(source)
    if directory is not None and EXIF_FOLDER in directory.entries:
        # What the camera wrote beside the preview knows more than the preview does, except how that is turned.
        opened.told = facts(directory)
        opened.xmp = opened.xmp or directory.raw(XMP, MAX_XMP_BYTES)
    opened.extra += 2 * source.size
    if orientation(opened.exif) == 1 and flip in _FLIPS:
        opened.exif = exif_directory(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0%c\0\0\0\0\0\0" % _FLIPS[flip])
    return opened


def _require(kind: str) -> None:
    if not kinds.readable(kind):
        raise PictureError(f"is a {kind} picture, which {kinds.NEEDS_EXTRA}")


def _whole(image: Image.Image, kind: str, source: Source, per_pixel: float) -> Opened:
    profile, xmp = image.info.get("icc_profile"), image.info.get("xmp")
    return Opened(
        image,
        kind,
        exif=exif_directory(image.info.get("exif") or b""),
        xmp=xmp[:MAX_XMP_BYTES] if isinstance(xmp, bytes) else b"",
        profile=profile if profile and len(profile) <= MAX_PROFILE_BYTES else None,
        per_pixel=per_pixel,
        extra=2 * source.size,
    )


def _jxl_boxes(source: Source) -> dict[bytes, bytes]:
    """Content of the first boxes of EXIF and XMP data that are not compressed."""
    found: dict[bytes, bytes] = {}
    place = 0
    for _ in range(_MOST_BOXES if source.at(0, 4) == b"\0\0\0\x0c" else 0):
        head = source.at(place, 16)
        length, name, start = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, start = int.from_bytes(head[8:16], "big"), 16
        if length == 0:  # up to the end of the file
            length = source.size - place
        if len(head) < 8 or length < start:
            break
        if name in (b"Exif", b"xml "):
            found.setdefault(name, source.at(place + start, min(length - start, MAX_XMP_BYTES)))
        place += length
    return found


def _jxl_size(source: Source) -> tuple[int, int]:
    """Width and height from the first bits of the codestream, which may lie in a box."""
    place = 0
    if source.at(0, 4) == b"\0\0\0\x0c":
        for _ in range(_MOST_BOXES):
            head = source.at(place, 16)
            if len(head) < 8:
                raise PictureError("is not a sound JPEG XL file: it has no picture")
            length, name, start = int.from_bytes(head[:4], "big"), head[4:8], place + 8
            if length == 1:
                length, start = int.from_bytes(head[8:16], "big"), place + 16
            if name in (b"jxlc", b"jxlp"):
                place = start + (4 if name == b"jxlp" else 0)
                break
            if length < 8:
                raise PictureError("is not a sound JPEG XL file: a box is damaged")
            place += length
    start_bytes = source.at(place, 16)
    if start_bytes[:2] != b"\xff\x0a":
        raise PictureError("is not a sound JPEG XL file: it has no picture")
    bits = int.from_bytes(start_bytes[2:], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return math.floor(height * over / under), height
