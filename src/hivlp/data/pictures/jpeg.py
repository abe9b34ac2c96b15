"""JPEG: its head is read here, so that no number of segments, and no scan too many, reaches a decoder."""

from __future__ import annotations

import re

from PIL.JpegImagePlugin import JpegImageFile

from hivlp.data.pictures.exif import Directory, exif_directory
from hivlp.data.pictures.iptc import iptc_of_photoshop
from hivlp.data.pictures.limits import (
    MAX_PROFILE_BYTES,
    MAX_SCANNED_PIXELS,
    MAX_SCANS,
    check_parts,
    check_size,
)
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source, spliced
from hivlp.errors import PictureError

_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})  # Huffman, arithmetic, quantization, restart interval
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_SCAN, _END, _COMMENT = 0xDA, 0xD9, 0xFE
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_WINDOW = 1 << 20
_MAX_TABLES = 512
_MAX_JUNK = 1 << 16
# A decoder keeps a few rows of blocks for each component, and 64 bytes for a column of them are plenty.
_COLUMN_BYTES = 256


def open_jpeg(source: Source) -> Opened:
    """Open a JPEG without comments and application data, except those that say how its pixels are meant.

    Raises:
        PictureError: if it is damaged or has too many scans.
    """
    head = _Head(source)
    width, height = head.size
    scaled = 1 if head.frame in _LOSSLESS else 8
    check_size(-(-width // scaled), -(-height // scaled))
    extra = width * _COLUMN_BYTES
    scans = 1
    if head.frame in _PROGRESSIVE or head.scanned < len(head.sampling):
        scans = _count_scans(source, head.data)
        # All coefficients are kept until the last scan is read.
        across, down = (max(factors) for factors in zip(*head.sampling, strict=True))
        share = sum(h * v for h, v in head.sampling) / (across * down)
        extra += round(2 * share * (width + 8 * across) * (height + 8 * down))
    if scans > MAX_SCANS:
        raise PictureError(f"has over {MAX_SCANS} scans")
    if scans * width * height > MAX_SCANNED_PIXELS:
        raise PictureError(f"has {scans} scans of {width}x{height} pixels, over the limit of {MAX_SCANNED_PIXELS}")
    image = JpegImageFile(spliced(source, [b"\xff\xd8", *head.kept, (head.start, source.size)]), "")
    return Opened(
        image,
        "JPEG",
        exif=head.exif,
        xmp=head.xmp,
        iptc=head.iptc,
        profile=head.profile(),
        extra=extra,
        most_pixels=MAX_SCANNED_PIXELS,
        reduce=None if head.frame in _LOSSLESS else lambda target: _reduce(image, target),
    )


def _reduce(image: JpegImageFile, target: int) -> None:
    image.draft(None, (target, target))  # to 1, 1/2, 1/4 or 1/8


class _Head:
    """All segments before the first scan.

    Attributes:
        kept: those that a decoder needs.
        frame: the kind of JPEG, by its marker.
        size: width and height.
        sampling: horizontal and vertical factor of each component.
        scanned: components in the first scan.
        start: place of the first scan's marker.
        data: place of its data.
        exif: the EXIF data.
        xmp: the XMP data.
        iptc: the IPTC data.
    """

    def __init__(self, source: Source) -> None:
        self.kept: list[bytes | tuple[int, int]] = []
        self.frame = 0
        self.size = (0, 0)
        self.sampling: list[tuple[int, int]] = []
        self.exif: Directory | None = None
        self.xmp = self.iptc = b""
        self._profile: dict[int, bytes] = {}
        self._read(source)

    def profile(self) -> bytes | None:
        """The ICC profile, if every part of it is there."""
        parts = [self._profile.get(number) for number in range(1, len(self._profile) + 1)]
        return b"".join(part for part in parts if part is not None) if parts and None not in parts else None

    def _read(self, source: Source) -> None:
        place, count, junk, seen = 2, 0, 0, set()
        while True:
            head = source.at(place, 4)
            if len(head) < 4:
                raise PictureError("is not a sound JPEG file: it is truncated before its first scan")
            marker = head[1]
            if head[0] != 0xFF or marker in (0x00, 0xFF):
                # Fill bytes and junk between segments; a marker follows, or the file is no JPEG any more.
                block = source.at(place, 4096)
                skipped = block.find(b"\xff", 1)
                step = skipped if skipped > 0 else len(block)
                junk += step
                if junk > _MAX_JUNK:
                    raise PictureError("is not a sound JPEG file: there is no marker where one is expected")
                place += step
                continue
            count += 1
            check_parts(count, "segments")
            if marker in _BARE:
                place += 2
                continue
            length = int.from_bytes(head[2:], "big")
            end = place + 2 + length
            if length < 2 or marker in (_END, 0xD8):
                raise PictureError("is not a sound JPEG file: a segment is damaged")
            if marker == _SCAN:
                self.start, self.data = place, end
                self.scanned = (source.at(place + 4, 1) or b"\0")[0]
                break
            if marker in _FRAMES:
                self._read_frame(marker, source.at(place + 4, length - 2))
                self.kept.append((place, end))
            elif marker in _TABLES:
                self.kept.append((place, end))
            elif self._wanted(marker, source.at(place + 4, min(length - 2, 1 << 16))) and marker not in seen:
                seen.add(marker)
                self.kept.append((place, end))
            place = end
            if len(self.kept) > _MAX_TABLES:
                raise PictureError(f"has over {_MAX_TABLES} tables")
        if not self.frame:
            raise PictureError("is not a sound JPEG file: it has no frame before its first scan")

    def _read_frame(self, marker: int, body: bytes) -> None:
        if self.frame:
            raise PictureError("is not a sound JPEG file: it has two frames")
        components = body[5] if len(body) > 5 else 0
        if not components or len(body) < 6 + 3 * components:
            raise PictureError("is not a sound JPEG file: its frame is damaged")
        self.frame = marker
        self.size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        factors = [body[7 + 3 * number] for number in range(components)]
        self.sampling = [(max(1, factor >> 4), max(1, factor & 15)) for factor in factors]

    def _wanted(self, marker: int, body: bytes) -> bool:
        """Whether a decoder needs application data; what is wanted here is taken from it."""
        if marker == 0xE1 and body.startswith(b"Exif\0") and self.exif is None:
            self.exif = exif_directory(body)
        elif marker == 0xE1 and body.startswith(_XMP) and not self.xmp:
            self.xmp = body[len(_XMP) :]
        elif marker == 0xED and not self.iptc:
            self.iptc = iptc_of_photoshop(body)
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            held = sum(map(len, self._profile.values()))
            if held + len(body) <= MAX_PROFILE_BYTES:
                self._profile.setdefault(body[12], body[14:])
        return (marker == 0xE0 and body.startswith(b"JFIF")) or (marker == 0xEE and body.startswith(b"Adobe"))


def _count_scans(source: Source, place: int) -> int:
    """The scans up to the end of the picture, at most one more than are allowed."""
    scans, count = 1, 0
    while scans <= MAX_SCANS:
        window = source.at(place, _WINDOW)
        found = _MARKER.search(window)
        if found is None:
            if len(window) < _WINDOW:
                break
            place += len(window) - 1  # a marker may lie across the edge
            continue
        marker = window[found.end() - 1]
        at = place + found.end()
        if marker == _END:
            break
        count += 1
        check_parts(count, "segments")
        scans += marker == _SCAN
        length = int.from_bytes(source.at(at, 2), "big")
        place = at if marker in _BARE else at + max(2, length)
    return scans
