"""The table of picture formats that are opened.

Pillow knows thirty formats more; each is a parser open to attack, and one of them (EPS) starts another program.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from PIL.BmpImagePlugin import BmpImageFile
from PIL.IcoImagePlugin import IcoImageFile
from PIL.PpmImagePlugin import PpmImageFile

from hivlp.data.kinds import kind_of_content
from hivlp.data.pictures.gif import open_gif
from hivlp.data.pictures.jpeg import open_jpeg
from hivlp.data.pictures.limits import MAX_SLOW_SAMPLES
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.png import open_png
from hivlp.data.pictures.source import Source
from hivlp.data.pictures.tiff import is_raw, open_tiff, read_directory
from hivlp.data.pictures.video import open_video
from hivlp.data.pictures.webp import open_webp
from hivlp.data.pictures.whole import open_avif, open_heic, open_jxl, open_raw
from hivlp.errors import PictureError

_MAX_ICON_SIDE = 1024
_MAX_TEXT = 8 * MAX_SLOW_SAMPLES
# Magic number and two or three numbers, with comments between.
_PPM_HEAD = re.compile(rb"P.(?:\s|#[^\r\n]*[\r\n])+[\d.+-]+(?:(?:\s|#[^\r\n]*[\r\n])+[\d.eE+-]+){1,2}\s")


def open_picture(source: Source) -> Opened:
    """Read a picture's header, whatever its file is called.

    Raises:
        PictureError: if it is damaged, too large, or of no format that is read.
    """
    kind = kind_of_content(source.at(0, 512))
    if kind == "TIFF":
        directory = read_directory(source)
        return open_raw(source) if is_raw(directory) else open_tiff(source, directory)
    reader = _READERS.get(kind or "")
    if reader is None:
        told = f" (it is {kind})" if kind else ""
        raise PictureError(f"is not a picture in a format that hivlp reads{told}")
    try:
        return reader(source)
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise PictureError(f"is not a sound {kind} file: {error}") from error


def _open_bmp(source: Source) -> Opened:
    image = BmpImageFile(source.whole(), "")
    slow = bool(image.tile) and image.tile[0][0] == "bmp_rle"
    if slow and min(2 * image.width * image.height, source.size) > MAX_SLOW_SAMPLES:
        raise PictureError(f"has over {MAX_SLOW_SAMPLES} bytes of run lengths")
    return Opened(image, "BMP", per_pixel=3 if slow else 0, extra=image.width * 8)


def _open_ppm(source: Source) -> Opened:
    if not _PPM_HEAD.match(source.at(0, 1 << 16)):
        raise PictureError("is not a sound PPM file: its header is damaged")
    image = PpmImageFile(source.whole(), "")
    slow = image.tile[0][0] != "raw"
    samples = image.width * image.height * len(image.getbands())
    if slow and samples > MAX_SLOW_SAMPLES:
        raise PictureError(f"has {samples} samples as text or of an odd depth, over the limit of {MAX_SLOW_SAMPLES}")
    if image.tile[0][0] == "ppm_plain" and source.size > _MAX_TEXT:
        raise PictureError(f"is a file of {source.size >> 20} MB of text, over the limit of {_MAX_TEXT >> 20}")
    return Opened(image, "PPM", per_pixel=12 if slow else 0, extra=image.width * 16)


def _open_ico(source: Source) -> Opened:
    """The largest icon of the file. It may be a PNG, of any size whatever the file says."""
    count = int.from_bytes(source.at(4, 2), "little")
    table = source.at(6, 16 * min(count, 1024))
    entries = [table[at : at + 16] for at in range(0, len(table) - 15, 16)]
    if not entries:
        raise PictureError("is not a sound ICO file: it has no icon")
    entry = max(
        entries, key=lambda entry: ((entry[0] or 256) * (entry[1] or 256), int.from_bytes(entry[6:8], "little"))
    )
    size, place = struct.unpack_from("<II", entry, 8)
    content = source.at(place, size)
    if kind_of_content(content) == "PNG":
        opened = open_png(Source.of(content))
        opened.kind = "ICO"
        return opened
    if len(content) < 12:
        raise PictureError("is not a sound ICO file: it is truncated")
    width, height = struct.unpack_from("<ii", content, 4)
    if not (0 < width <= _MAX_ICON_SIDE and 0 < abs(height) <= 2 * _MAX_ICON_SIDE):
        raise PictureError(f"is not a sound ICO file: it claims {width}x{abs(height) // 2} pixels")
    single = b"\0\0\1\0\1\0" + entry[:12] + struct.pack("<I", 22) + content
    return Opened(IcoImageFile(Source.of(single).whole(), ""), "ICO", extra=64 * width * abs(height))


_READERS: dict[str, Callable[[Source], Opened]] = {
    "AVIF": open_avif,
    "BMP": _open_bmp,
    "GIF": open_gif,
    "HEIC": open_heic,
    "ICO": _open_ico,
    "JPEG": open_jpeg,
    "JPEG XL": open_jxl,
    "PNG": open_png,
    "PPM": _open_ppm,
    "RAW": open_raw,
    "WEBP": open_webp,
    "video": open_video,
}
