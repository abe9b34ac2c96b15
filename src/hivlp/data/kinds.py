"""File types by content (magic bytes) and by suffix."""

from __future__ import annotations

import functools
import importlib.util
import struct

from hivlp.errors import install_command

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_STILL_BRANDS = frozenset({b"mif1", b"msf1", b"miaf", b"MiHB", b"MiHE"})

EXTRA = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl", "RAW": "rawpy", "video": "av"}
"""Kinds that the `photos` extra reads, and the package that reads each."""

NEEDS_EXTRA = f"needs more than is installed: {install_command('photos')}"

_PICTURES = {
    "AVIF": ".avif",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "HEIC": ".heic .heics .heif .heifs .hif",
    "ICO": ".ico",
    "JPEG": ".jfif .jpe .jpeg .jpg .mpo",
    "JPEG XL": ".jxl",
    "PNG": ".apng .png",
    "PPM": ".pbm .pgm .pnm .ppm",
    "RAW": ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
    ".sr2 .srf .srw .x3f",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "video": ".3g2 .3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv",
}
_UNREAD = {
    "SVG": ".svg .svgz",
    "Photoshop": ".psb .psd",
    "JPEG 2000": ".j2c .j2k .jp2 .jpc .jpf .jpx",
    "PDF": ".pdf",
    "PostScript": ".ai .eps .ps",
    "other picture": ".bpg .cur .dds .djvu .emf .exr .fits .flif .hdr .icns .jxr .pcx .pfm .qoi .ras .sgi .tga .wdp "
    ".wmf .xbm .xcf .xpm",
}
_SUFFIXES = {suffix: kind for kind, names in (_PICTURES | _UNREAD).items() for suffix in names.split()}

PICTURE_SUFFIXES = frozenset(suffix for names in _PICTURES.values() for suffix in names.split())
"""Lower-case suffixes of the pictures that hivlp reads, some of them with the `photos` extra only."""


def kind_of_name(suffix: str) -> str | None:
    """What a file with a suffix is: a kind of picture or video, or None for all else."""
    return _SUFFIXES.get(suffix.lower())


def why_unread(kind: str) -> str | None:
    """Why files of a kind are not read; None if they are."""
    if kind in _UNREAD:
        return "is not read by hivlp"
    return None if readable(kind) else NEEDS_EXTRA


@functools.cache
def readable(kind: str) -> bool:
    """Whether pictures of a kind can be read with the packages that are installed."""
    if kind == "AVIF":
        from PIL import features

        return bool(features.check("avif"))
    package = EXTRA.get(kind)
    return package is None or importlib.util.find_spec(package) is not None


def kind_of_content(start: bytes) -> str | None:
    """What a file is, from its first 64 bytes or more; None if that is unknown."""
    for kind, magics in _MAGIC.items():
        if start.startswith(magics):
            return kind
    if start[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "video"}.get(start[8:12])
    if start[:1] == b"P" and start[1:2] in tuple(b"%c" % c for c in b"0123456fFy"):
        return "PPM"
    if start[4:8] == b"ftyp":
        return _kind_of_brands(start)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    return "SVG" if text.startswith((b"<svg", b"<?xml")) else None


_MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": b"BM",
    "RAW": (b"II*\0\x10\0\0\0CR", b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM"),
    "TIFF": (b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0"),
    "ICO": b"\0\0\1\0",
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "Photoshop": b"8BPS",
    "PDF": b"%PDF",
    "PostScript": b"%!PS",
    "video": (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1"),
}


def _kind_of_brands(start: bytes) -> str | None:
    (size,) = struct.unpack_from(">I", start)
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, min(size, len(start)) - 3, 4))]
    if brands[0] == b"crx ":
        return "RAW"
    # The first brand decides where it says enough.
    for brand in brands:
        if brand in _HEIC_BRANDS:
            return "HEIC"
        if brand in _AVIF_BRANDS:
            return "AVIF"
    return "HEIC" if brands[0] in _STILL_BRANDS else "video"
