"""WebP: of an animation, only the first frame reaches the decoder."""

from __future__ import annotations

from typing import Any

from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from hivlp.data.pictures.exif import exif_directory
from hivlp.data.pictures.limits import MAX_PROFILE_BYTES, check_cost, check_parts
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source, spliced
from hivlp.data.pictures.xmp import MAX_BYTES as MAX_XMP_BYTES
from hivlp.errors import PictureError

# The first of each of these chunks makes up the picture; a list of frames would be larger in memory than in the file.
_WANTED = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF"})
# Bytes for each pixel beside the decoded image, measured: two canvases, and what a lossless picture is decoded to.
_CANVAS_BYTES = 10


def open_webp(source: Source) -> Opened:
    """Open a WebP, or the first frame of an animated one.

    Raises:
        PictureError: if it is damaged.
    """
    check_cost(2 * source.size)
    kept: dict[bytes, tuple[int, int]] = {}
    xmp = b""
    place, count = 12, 0
    while len(head := source.at(place, 8)) == 8:
        count += 1
        check_parts(count, "chunks")
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"XMP " and not xmp:
            xmp = source.at(place + 8, min(length, MAX_XMP_BYTES))
        end = place + 8 + length + length % 2
        if name in _WANTED:
            kept.setdefault(name, (place, min(end, source.size)))
        place = end
    size = 4 + sum(end - start for start, end in kept.values())
    image = WebPImageFile(spliced(source, [b"RIFF" + size.to_bytes(4, "little") + b"WEBP", *kept.values()]), "")

    def pixels() -> Image.Image:
        # Pillow would keep two canvases, the frame and its copy of it; here only the frame is left.
        decoder: Any = image._decoder
        frame = decoder.get_next()
        image._decoder = None
        if frame is None:
            raise PictureError("is damaged or cannot be read: its first frame cannot be decoded")
        return Image.frombuffer(image.rawmode, image.size, frame[0], "raw", image.rawmode, 0, 1)

    profile = image.info.get("icc_profile")
    return Opened(
        image,
        "WEBP",
        exif=exif_directory(image.info.get("exif") or b""),
        xmp=xmp,
        profile=profile if profile and len(profile) <= MAX_PROFILE_BYTES else None,
        per_pixel=_CANVAS_BYTES,
        extra=2 * source.size,
        pixels=pixels,
    )
