"""TIFF, and the camera formats that are TIFF inside."""

from __future__ import annotations

from PIL import TiffImagePlugin

from hivlp.data.pictures.colour import WIDE_MODES, Samples
from hivlp.data.pictures.exif import IPTC, XMP, Directory, first_directory
from hivlp.data.pictures.limits import MAX_PARTS, MAX_PROFILE_BYTES, check_cost, check_size
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source
from hivlp.data.pictures.xmp import MAX_BYTES as MAX_XMP_BYTES
from hivlp.errors import PictureError

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES = 273, 277, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_SUBDIRECTORIES, _PROFILE, _DNG_VERSION = 330, 34675, 50706
_COLOUR_MAP, _FORMAT = 320, 339
# Tags whose values Pillow or libtiff look at, and which hold a few numbers each.
_FEW = (254, 255, 256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 296, 317, 322, 323, 338, 339, 530)
_MANY = (_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES)
_WHITE_IS_ZERO, _YCBCR = 0, 6
_PART_BYTES = 1024


def _complete_modes() -> None:
    """Enter the depths that Pillow can decode, but has no entry for with white as zero or in the other byte order."""
    for order, end in ((TiffImagePlugin.II, ""), (TiffImagePlugin.MM, "B")):
        for sample, depths, extras, mode, raw in (
            (1, (12,), (), "I;16", "I;12"),
            (1, (16,), (), f"I;16{end}", f"I;16{end}"),
            (1, (32,), (), "I", f"I;32{end}"),
            (2, (16,), (), "I", f"I;16{end}S"),
            (2, (32,), (), "I", f"I;32{end}S"),
            (1, (8, 8), (0,), "L", "LX"),
            (1, (8, 8), (2,), "LA", "LA"),
        ):
            for photometric in (0, 1):
                TiffImagePlugin.OPEN_INFO.setdefault((order, photometric, (sample,), 1, depths, extras), (mode, raw))


_complete_modes()
# What libtiff decompresses is in the machine's byte order already, which Pillow minds for other depths only.
_NATIVE = {"F;32BF": "F;32NF", "I;32B": "I;32N", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


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
    places = directory.entries.get(_TILES) or directory.entries.get(_STRIPS)
    parts = places.count if places is not None else 0
    # A strip or tile is in memory as it is stored and, decompressed, as its samples or as the RGBA of YCbCr; Pillow
    # keeps a note of each; and libtiff maps the file into memory.
    extra = min(max(sizes, default=0), source.size) + across * 32 + _PART_BYTES * parts
    if directory.number(_COMPRESSION, 1) != 1:
        each = 32 if directory.number(_PHOTOMETRIC, 0) == _YCBCR else bits * samples
        extra += -(-across * each // 8) * down + source.size
    check_cost(extra)
    image = TiffImagePlugin.TiffImageFile(source.whole(), "")
    _mind_order(image)
    photometric = directory.number(_PHOTOMETRIC, 0)
    turned = directory.number(274, 1) in range(2, 9)
    return Opened(
        image,
        "TIFF",
        exif=directory,
        xmp=directory.raw(XMP, MAX_XMP_BYTES),
        iptc=directory.raw(IPTC, 1 << 16),
        turned=True,  # Pillow turns a TIFF while it is loaded
        profile=directory.raw(_PROFILE, MAX_PROFILE_BYTES + 1) or None,
        samples=Samples(
            inverted=photometric == _WHITE_IS_ZERO and (samples == 2 or image.mode in WIDE_MODES),
            unsigned=bits == 32 and directory.number(_FORMAT, 1) == 1,
            white=4095 if bits == 12 else None,
        ),
        per_pixel=4 if turned else 0,
        extra=extra,
    )


def _mind_order(image: TiffImagePlugin.TiffImageFile) -> None:
    for number, tile in enumerate(image.tile):
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple) and tile.args[0] in _NATIVE:
            image.tile[number] = tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))


def _check_tags(source: Source, directory: Directory) -> None:
    """Refuse what would be more in Python's memory than in the file, or other to Pillow than it is here."""
    if not directory.sound:
        raise PictureError("is not a sound TIFF file: it has too many tags, or one of them twice")
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
