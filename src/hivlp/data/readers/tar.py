"""Offsets and sizes of the files in an uncompressed tar, which is not unpacked.

Python's ``tarfile`` takes a damaged or shortened header for the end of the archive, follows sizes below zero, and reads
a header's extension into memory however large it claims to be. Here each of them is an error that says where.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
EXTENSION_LIMIT = 1 << 20
"""Bytes of a long name, or of a header's extension, at most."""
_PADDING_LIMIT = 1 << 20  # zeros behind the end mark; the last record may be filled up with them
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18")  # gz zst bz2 xz lz4
_REGULAR = b"07\0"
_DATALESS = b"123456"  # links, devices, folders, pipes
_EXTENSIONS = b"xgLK"  # of the header that follows: pax, for one or for all; GNU's long names of files and links


class TarDamage(Exception):
    """What is wrong, and at which byte."""


@dataclass(frozen=True)
class Member:
    """One regular file, stored as it is.

    Attributes:
        name: as written in the tar.
        offset: of the content within the tar, in bytes.
        size: of the content, in bytes.
    """

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar in order, beyond an end mark too, as ``cat`` leaves them behind each other.

    Links, devices and sparse files are passed over.

    Raises:
        TarDamage: where a header makes no sense, or the file ends before its content or its end mark.
        OSError: if the file cannot be read.
    """
    length = file.seek(0, os.SEEK_END)
    offset = zeros = 0
    ended = False
    extended: dict[str, bytes] = {}
    everywhere: dict[str, bytes] = {}
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if not block or zeros > _PADDING_LIMIT:
            if not ended:
                raise TarDamage(f"it ends at byte {length} without an end mark" if offset else "it is empty")
            return
        if offset == 0 and block.startswith(_COMPRESSED):
            raise TarDamage("it is compressed; unpack it")
        if len(block) < BLOCK:
            if ended and not any(block):
                return
            raise TarDamage(f"it ends at byte {length}, within a header")
        if not any(block):
            offset, zeros, ended = offset + BLOCK, zeros + BLOCK, True
            continue
        zeros, ended = 0, False
        if not _is_header(block):
            raise TarDamage(f"byte {offset} is where a header should be, but there is none")
        kind, start = block[156:157], offset + BLOCK
        size = _number(block[124:136], offset)
        known = {} if kind in _EXTENSIONS else everywhere | extended
        if "size" in known:
            size = _decimal(known["size"], offset)
        if kind == b"S":
            start = _past_sparse_map(file, block, start)
        if kind in _DATALESS:
            size = 0
        if start + size > length:
            raise TarDamage(f"it ends at byte {length}, {start + size - length} bytes before a member at {offset} does")
        if kind in _EXTENSIONS:
            if size > EXTENSION_LIMIT:
                raise TarDamage(f"the header at byte {offset} claims an extension of {size} bytes")
            file.seek(start)
            data = file.read(size)
            if kind == b"L":
                extended["path"] = data.rstrip(b"\0")
            elif kind != b"K":
                (extended if kind == b"x" else everywhere).update(_records(data, offset))
        else:
            if kind in _REGULAR and not any(name.startswith("GNU.sparse") for name in known):
                name = known.get("path") or _plain_name(block)
                if not name.endswith(b"/"):  # old tars mark folders so
                    yield Member(name.decode("utf-8", "surrogateescape"), start, size)
            extended = {}
        offset = start + -(-size // BLOCK) * BLOCK


def _is_header(block: bytes) -> bool:
    try:
        told = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old programs added the bytes up as signed ones.
    return told == sum(rest) or told == sum(byte - 256 * (byte > 127) for byte in rest)


def _number(field: bytes, offset: int) -> int:
    """A size in octal digits, or in 256s if the first byte says so."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        digits = field.strip(b" \0")
        if field[0] & 0x80 or not (digits == b"" or digits.isdigit()):
            raise ValueError
        return int(digits or b"0", 8)
    except ValueError:
        raise TarDamage(f"the header at byte {offset} claims a size that is none") from None


def _decimal(digits: bytes, offset: int) -> int:
    if not digits.isdigit() or len(digits) > 19:
        raise TarDamage(f"the header at byte {offset} claims a size that is none")
    return int(digits)


def _plain_name(block: bytes) -> bytes:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _records(data: bytes, offset: int) -> dict[str, bytes]:
    """What an extended header says: lines of ``length key=value``, each as long as it says."""
    found: dict[str, bytes] = {}
    place = 0
    while place < len(data) and data[place]:
        digits, space, _ = data[place : place + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[place : place + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) < max(length, 5) or not equals or value[-1:] != b"\n":
            raise TarDamage(f"the header at byte {offset} has a damaged extension")
        found[key.decode("utf-8", "replace")] = value[:-1]
        place += length
    return found


def _past_sparse_map(file: BinaryIO, block: bytes, start: int) -> int:
    more = block[482]
    while more:
        file.seek(start)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise TarDamage(f"it ends at byte {start}, within a header")
        start, more = start + BLOCK, block[504]
    return start
