"""Original files: opened without following links, and shown only if they are pictures of the index."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from hivlp.data.kinds import kind_of_content
from hivlp.serve.errors import RequestError, not_found

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "ICO": "image/x-icon",
    "TIFF": "image/tiff",
    "HEIC": "image/heic",
    "JPEG XL": "image/jxl",
    "PPM": "image/x-portable-anymap",
    "RAW": "image/x-raw",
    "video": "video/mp4",
}
"""Kind of a file -> media type it is sent as; a file of any other kind is not sent, wherever it lies."""
SHOWN = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "ICO", "video")
"""Kinds that browsers show; others are offered to be saved."""


class Original(NamedTuple):
    """An original file, open for reading; its media type, bytes, and whether browsers show it."""

    file: IO[bytes]
    media_type: str
    size: int
    changed: float
    shown: bool


def open_original(path: str, roots: Sequence[Path]) -> Original:
    """Open an item's file.

    Its real path must be the one that the index recorded, which then has no link in it, or lie beneath a root. It is
    opened one folder after another, following no link, so that nothing can be put in its way meanwhile; and what is not
    a picture by its content is not shown, whatever a stranger's index says.

    Args:
        path: as the index has it.
        roots: real paths of folders.

    Raises:
        RequestError: if it is not there, or may not be shown.
    """
    gone = not_found("the picture's file is not there")
    if not Path(path).is_absolute() or "\0" in path:
        raise gone
    real = os.path.realpath(path)
    if real != path and not any(beneath(real, root) for root in roots):
        raise RequestError(403, "forbidden", "the picture's file is a link to a place outside the roots")
    try:
        file = os.fdopen(_opened(real), "rb")
    except OSError as error:
        raise gone from error
    status = os.fstat(file.fileno())
    kind = kind_of_content(file.read(512)) if stat.S_ISREG(status.st_mode) else None
    if kind not in MEDIA_TYPES:
        file.close()
        raise RequestError(415, "not_a_picture", "the file is not a picture that is shown")
    file.seek(0)
    return Original(file, MEDIA_TYPES[kind], status.st_size, status.st_mtime, kind in SHOWN)


def beneath(real: str, root: Path) -> bool:
    """Whether a real path lies beneath a root, or is it."""
    return Path(real).is_relative_to(root)


def _opened(real: str) -> int:
    """A descriptor of a file whose path has no link in it, for reading, without waiting for a pipe's other end."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.open not in os.supports_dir_fd:
        return os.open(real, flags | getattr(os, "O_BINARY", 0))
    *folders, name = Path(real).parts
    place = os.open(folders[0], os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders[1:]:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
            os.close(place)
            place = inner
        return os.open(name, flags, dir_fd=place)
    finally:
        os.close(place)
