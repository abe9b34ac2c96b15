"""PNG: only the chunks that make up its picture reach the decoder, so that no other can spoil it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from PIL.PngImagePlugin import PngImageFile

from hivlp.data.pictures.exif import Directory, exif_directory
from hivlp.data.pictures.limits import MAX_PROFILE_BYTES, check_parts, check_size
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source, spliced
from hivlp.data.pictures.xmp import MAX_BYTES as MAX_XMP_BYTES
from hivlp.errors import PictureError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_EXIF_BYTES = 1 << 20
_MAX_TEXT_BYTES = 1 << 18
_XMP = b"XML:com.adobe.xmp\0"
_RAW_EXIF = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_STANDARD_GAMMA = 45_455  # 1/2.2
_GREY, _COLOUR = 0, 2


def open_png(source: Source) -> Opened:
    """Open a PNG, or the default image of an animated one.

    Raises:
        PictureError: if it is damaged where its picture needs it.
    """
    chunks = _Chunks()
    place, count = len(_SIGNATURE), 0
    while len(head := source.at(place, 8)) == 8:
        count += 1
        check_parts(count, "chunks")
        (length,), name = struct.unpack_from(">I", head), head[4:]
        if name == b"IEND" or not name.isalpha():
            break
        end = place + 12 + length
        if name == b"IDAT":
            # One piece for chunks that follow each other keeps the list short.
            if chunks.data and chunks.data[-1][1] == place:
                chunks.data[-1] = (chunks.data[-1][0], end)
            elif length:
                chunks.data.append((place, end))
        else:
            chunks.take(source, name, place, length)
        place = end
    if not chunks.head:
        raise PictureError("is not a sound PNG file: it has no header")
    width, height = struct.unpack_from(">II", chunks.head[0], 8)
    check_size(width, height)
    if not chunks.data:
        raise PictureError("is not a sound PNG file: it has no pixels")
    image = PngImageFile(spliced(source, [_SIGNATURE, *chunks.head, *chunks.data, _chunk(b"IEND", b"")]), "")
    # Two rows and, for 16 bits, what they become.
    return Opened(
        image,
        "PNG",
        exif=chunks.exif,
        xmp=chunks.xmp,
        profile=chunks.profile,
        gamma=None if chunks.profile or chunks.standard else chunks.gamma,
        extra=width * 32,
    )


@dataclass
class _Chunks:
    """What is wanted of a PNG's chunks."""

    head: list[bytes] = field(default_factory=list)
    data: list[tuple[int, int]] = field(default_factory=list)
    exif: Directory | None = None
    xmp: bytes = b""
    profile: bytes | None = None
    gamma: float | None = None
    standard: bool = False
    seen: set[bytes] = field(default_factory=set)

    def take(self, source: Source, name: bytes, place: int, length: int) -> None:
        """Keep a chunk if the picture needs it, or take from it what it says of the colours and of the camera."""
        most = {
            b"IHDR": 13,
            b"PLTE": 768,
            b"tRNS": 256,
            b"gAMA": 4,
            b"sRGB": 1,
            b"cICP": 4,
            b"iCCP": MAX_PROFILE_BYTES,
            b"eXIf": _MAX_EXIF_BYTES,
            b"zTXt": _MAX_TEXT_BYTES,
            b"tEXt": _MAX_TEXT_BYTES,
            b"iTXt": MAX_XMP_BYTES,
        }.get(name, -1)
        critical = name in (b"IHDR", b"PLTE")
        if length > most and not critical:
            return
        if name in self.seen and not name.endswith(b"Xt"):
            return
        whole = source.at(place, 12 + min(length, most))
        body, check = whole[8:-4], whole[-4:]
        if len(whole) < 12 + length or zlib.crc32(whole[4:-4]) != int.from_bytes(check, "big"):
            if critical:
                raise PictureError(f"is not a sound PNG file: its {name.decode()} chunk is damaged")
            return
        self.seen.add(name)
        if name == b"IHDR":
            if length != 13 or self.head:
                raise PictureError("is not a sound PNG file: its IHDR chunk is damaged")
            self.head.append(whole)
        elif not self.head:
            raise PictureError("is not a sound PNG file: it has no header")
        elif name == b"PLTE":
            self.head.append(whole)
        elif name == b"tRNS":
            self.head.append(_chunk(name, _eight_bit(body, *self.head[0][16:18])))
        elif name == b"gAMA" and length == 4:
            (value,) = struct.unpack(">I", body)
            self.gamma = value / 100_000 if value and abs(value - _STANDARD_GAMMA) > 2_500 else None
        elif name in (b"sRGB", b"cICP"):
            self.standard = True
        elif name == b"iCCP":
            self.profile = _inflated(body.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
        elif name == b"eXIf":
            self.exif = exif_directory(body)
        elif name == b"iTXt":
            self.xmp = self.xmp or _xmp(body)
        elif self.exif is None and body.startswith(_RAW_EXIF):
            self.exif = exif_directory(_raw_profile(name, body))


def _eight_bit(body: bytes, depth: int, colour: int) -> bytes:
    """A transparent colour at the depth that Pillow decodes to, for which it is compared unchanged."""
    if colour == _GREY and depth < 8 and len(body) >= 2:
        return struct.pack(">H", (struct.unpack_from(">H", body)[0] & ((1 << depth) - 1)) * 255 // ((1 << depth) - 1))
    if colour == _COLOUR and depth == 16 and len(body) >= 6:
        return struct.pack(">3H", *(value >> 8 for value in struct.unpack_from(">3H", body)))
    return body


def _raw_profile(name: bytes, body: bytes) -> bytes:
    """EXIF data as ImageMagick writes it: name and length on lines of their own, then hexadecimal digits."""
    text = body.partition(b"\0")[2]
    if name == b"zTXt":
        text = _inflated(text[1:], 2 * _MAX_EXIF_BYTES) or b""
    digits = b"".join(text.split()[2:])
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        return b""


def _xmp(body: bytes) -> bytes:
    """XMP data of an international text; empty if it is another."""
    if not body.startswith(_XMP) or len(body) < len(_XMP) + 2:
        return b""
    packed = body[len(_XMP)]
    content = body[len(_XMP) + 2 :].split(b"\0", 2)[-1]
    return (_inflated(content, MAX_XMP_BYTES) or b"") if packed else content


def _inflated(data: bytes, most: int) -> bytes | None:
    """Decompressed bytes; None if they are damaged or more than ``most``."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(data, most + 1)
    except zlib.error:
        return None
    return content if inflater.eof and len(content) <= most else None


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
