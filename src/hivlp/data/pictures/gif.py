"""GIF: of an animation, only the first frame and what belongs to it reach the decoder."""

from __future__ import annotations

from PIL.GifImagePlugin import GifImageFile

from hivlp.data.pictures.limits import check_parts
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source, spliced
from hivlp.errors import PictureError

_EXTENSION, _IMAGE, _CONTROL = 0x21, 0x2C, 0xF9


def open_gif(source: Source) -> Opened:
    """Open the first frame of a GIF.

    Raises:
        PictureError: if there is none.
    """
    head = source.at(0, 13)
    if len(head) < 13:
        raise PictureError("is not a sound GIF file: it is truncated")
    palette = 3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0
    place, count = 13 + palette, 0
    control = b""
    while True:
        count += 1
        check_parts(count, "blocks")
        start = source.at(place, 2)
        if not start or start[0] == 0x3B:
            raise PictureError("is not a sound GIF file: it has no picture")
        if start[0] == _IMAGE:
            break
        if start[0] != _EXTENSION or len(start) < 2:
            place += 1  # junk, which decoders pass over
            continue
        block = source.at(place, 8)
        if start[1] == _CONTROL and len(block) == 8 and block[2] == 4:
            control = block[:7] + b"\0"
        place += 2
        while (size := (source.at(place, 1) or b"\0")[0]) != 0:
            count += 1
            check_parts(count, "blocks")
            place += 1 + size
        place += 1
    image = GifImageFile(spliced(source, [(0, 13 + palette), control, (place, source.size)]), "")
    # The frame's own image, and with transparency one more to blend it.
    return Opened(image, "GIF", per_pixel=2)
