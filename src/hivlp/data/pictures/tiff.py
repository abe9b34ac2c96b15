"""TIFF, and the camera formats that are TIFF inside."""

from __future__ import annotations

from PIL import TiffImagePlugin

from hivlp.data.pictures.exif import Directory, first_directory
from hivlp.data.pictures.limits import MAX_PARTS, MAX_PROFILE_BYTES, check_cost, check_size
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source
from hivlp.errors import PictureError

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES = 273, 277, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_SUBDIRECTORIES, _PROFILE, _DNG_VERSION = 330, 34675, 50706
_COLOUR_MAP = 320
# Tags whose values Pillow or libtiff look at, and which hold a few numbers each.
_FEW = (254, 255, 256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 296, 317, 322, 323, 338, 339, 530)
_MANY = (_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES)
_WHITE_IS_ZERO = 0

# Depths that Pillow decodes, but has no entry for with white as zero or in big-endian order.
for _order in (TiffImagePlugin.II, TiffImagePlugin.MM):
    _end = "" if _order == TiffImagePlugin.II else "B"
    for _photometric in (0, 1):
        for _sample, _depth, _modes in (
            (1, 16, (f"I;16{_end}", f"I;16{_end}")),
            (1, 32, ("I", f"I;32{_end}")),
            (2, 16, ("I", f"I;16{_end}S")),
            (2, 32, ("I", f"I;32{_end}S")),
        ):
            TiffImagePlugin.OPEN_INFO.setdefault((_order, _photometric, (_sample,), 1, (_depth,), ()), _modes)


def is_raw(directory: Directory) -> bool:
    """Whether a TIFF file is what a camera's sensor saw, of which the first directory shows a preview."""
    if _DNG_VERSION in directory.entries:
        return True
    return bool(directory.number(_SUBFILE, 0) & 1) and _SUBDIRECTORIES in directory.entries


def open_tiff(source: Source, directory: Directory) -> Opened:
    """Open the first page of a TIFF file.

    Raises:
        PictureError: if it is damaged, or a strip or tile of it is larger than any picture may be.
    """
    _check_tags(source, directory)
    width, height = directory.number(_WIDTH, 0), directory.number(_HEIGHT, 0)
    check_size(width, height)
    samples = min(directory.number(_SAMPLES, 1), 64)
    bits = max(directory.numbers(_BITS, 64) or (1,))
    if _TILES in directory.entries:
        across, down = directory.number(_TILE_WIDTH, 0), directory.number(_TILE_HEIGHT, 0)
        sizes = directory.numbers(_TILE_SIZES, MAX_PARTS)
    else:
        across, down = width, min(height, directory.number(_STRIP_ROWS, height))
        sizes = directory.numbers(_STRIP_SIZES, MAX_PARTS)
    # A strip or tile is in memory as it is stored, decoded, and as Pillow wants it.
    part = across * down * max(4, -(-samples * bits // 8)) if directory.number(_COMPRESSION, 1) != 1 else 0
    extra = part + min(max(sizes, default=0), source.size) + across * 32
    if directory.number(_COMPRESSION, 1) != 1:
        extra += source.size  # which libtiff maps into memory
    check_cost(extra)
    image = TiffImagePlugin.TiffImageFile(source.whole(), "")
    photometric = directory.number(_PHOTOMETRIC, 0)
    turned = directory.number(274, 1) in range(2, 9)
    return Opened(
        image,
        "TIFF",
        exif=directory,
        turned=True,  # Pillow turns a TIFF while it is loaded
        profile=directory.raw(_PROFILE, MAX_PROFILE_BYTES + 1) or None,
        inverted=photometric == _WHITE_IS_ZERO and image.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"),
        per_pixel=4 if turned else 0,
        extra=extra,
    )


def _check_tags(source: Source, directory: Directory) -> None:
    """Refuse what would be more in Python's memory than in the file."""
    if sum(entry.size for entry in directory.entries.values()) > 2 * source.size + (1 << 20):
        raise PictureError("is not a sound TIFF file: its tags hold more than the file")
    limits = dict.fromkeys(_FEW, 64) | dict.fromkeys(_MANY, MAX_PARTS) | {_COLOUR_MAP: 3 << 16}
    for tag, most in limits.items():
        entry = directory.entries.get(tag)
        if entry is not None and entry.count > most:
            raise PictureError(f"is not a sound TIFF file: tag {tag} has {entry.count} values")


def read_directory(source: Source) -> Directory:
    """The first directory.

    Raises:
        PictureError: if there is none.
    """
    directory = first_directory(source)
    if directory is None or not directory.entries:
        raise PictureError("is damaged or cannot be read: the TIFF file has no directory")
    return directory
