"""A picture's file, of which only the parts that matter are shown to a decoder."""

from __future__ import annotations

import bisect
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hivlp.data.pictures.limits import MAX_FILE_BYTES
from hivlp.errors import PictureError
from hivlp.files.reading import open_file, reason


class Source:
    """An encoded picture that can be read at any place without being in memory.

    Attributes:
        stream: the content, from its start.
        size: its bytes.
        path: where it lies, if it is a file.
    """

    def __init__(self, stream: IO[bytes], size: int, path: Path | None = None) -> None:
        self.stream, self.size, self.path = stream, size, path

    @classmethod
    def of(cls, data: bytes) -> Source:
        """Content that is in memory."""
        return cls(io.BytesIO(data), len(data))

    def at(self, place: int, count: int) -> bytes:
        """``count`` bytes at a place, fewer at the end of the file."""
        if place < 0 or place >= self.size:
            return b""
        self.stream.seek(place)
        return self.stream.read(min(count, self.size - place))

    def whole(self) -> IO[bytes]:
        """The stream, rewound."""
        self.stream.seek(0)
        return self.stream


@contextmanager
def opened_source(data: bytes | Path) -> Iterator[Source]:
    """Open a picture's file, or take its content.

    Raises:
        PictureError: if it cannot be opened, is no regular file, is empty, or has more than ``MAX_FILE_BYTES``.
    """
    if isinstance(data, bytes):
        _check_bytes(len(data))
        yield Source.of(data)
        return
    try:
        stream = open_file(data)
    except (OSError, ValueError) as error:
        raise PictureError(f"cannot be read: {reason(error)}") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        _check_bytes(size)
        yield Source(stream, size, data)


def _check_bytes(size: int) -> None:
    if not size:
        raise PictureError("is an empty file")
    if size > MAX_FILE_BYTES:
        raise PictureError(f"is a file of {size >> 20} MB, over the limit of {MAX_FILE_BYTES >> 20} MB")


def spliced(source: Source, parts: list[bytes | tuple[int, int]]) -> IO[bytes]:
    """A stream of some parts of a file (start, end) and of bytes between them, none of it copied."""
    return io.BufferedReader(_Spliced(source, parts), 1 << 16)


class _Spliced(io.RawIOBase):
    def __init__(self, source: Source, parts: list[bytes | tuple[int, int]]) -> None:
        self._source, self._parts = source, parts
        self._starts = [0]
        for part in parts:
            length = len(part) if isinstance(part, bytes) else part[1] - part[0]
            self._starts.append(self._starts[-1] + length)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._starts[-1]}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        number = bisect.bisect_right(self._starts, self._place) - 1
        if number >= len(self._parts):
            return 0
        part, skipped = self._parts[number], self._place - self._starts[number]
        if isinstance(part, bytes):
            data = part[skipped : skipped + len(buffer)]
        else:
            start = part[0] + skipped
            data = self._source.at(start, min(len(buffer), part[1] - start))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
